"""Sampling as an argmax over noise: right in distribution, one generator a row."""

from __future__ import annotations

import pytest

from nbproviders.runtimes.sampling import Draw, Sampler

torch = pytest.importorskip("torch")


def test_frequencies_follow_the_softmax() -> None:
    """Gumbel-max samples each token as often as its probability says."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    sampler = Sampler([Draw(1.0, seed=3)], torch.device("cpu"))
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[sampler(torch.zeros(1, 1), logits[None].clone()).argmax()] += 1
    assert (counts / 4000 - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.03


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    """Tokens beyond the share of probability are never drawn; the first is always kept."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    sampler = Sampler(
        [Draw(1.0, top_p=0.7, seed=1), Draw(1.0, top_p=0.01, seed=1)], torch.device("cpu")
    )
    drawn = torch.stack(
        [sampler(torch.zeros(2, 1), logits.repeat(2, 1)).argmax(-1) for _ in range(300)]
    )
    assert set(drawn[:, 0].tolist()) == {0, 1}
    assert set(drawn[:, 1].tolist()) == {0}


def test_a_greedy_row_is_left_alone() -> None:
    """A temperature of zero keeps the scores of its row, beside one that is sampled."""
    scores = torch.randn(2, 10)
    out = Sampler([Draw(0.0), Draw(1.0, seed=1)], torch.device("cpu"))(
        torch.zeros(2, 1), scores.clone()
    )
    assert torch.equal(out[0], scores[0])
    assert not torch.equal(out[1], scores[1])
