"""The next token: drawn as probabilities say, by a generator of its own; what is no number is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nbproviders.core.params import GenerationParams
from nbproviders.errors import ProviderError
from nbproviders.runtimes.llamacpp.choosing import Choice, logprobs, require_numbers

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def choice(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Choice:
    """A chooser with these parameters."""
    return Choice(GenerationParams(temperature=temperature, top_p=top_p, seed=seed))


def shares(chooser: Choice, count: int = 4000) -> list[float]:
    """How often each token is drawn."""
    drawn = np.bincount([chooser.sample(LOGITS) for _ in range(count)], minlength=4)
    return list(drawn / count)


def test_temperature_zero_is_greedy() -> None:
    """Without a generator; any other temperature has one."""
    assert choice(0).greedy
    assert not choice(0.01).greedy


def test_tokens_are_drawn_as_their_probabilities_say() -> None:
    """Within four standard errors of 4,000 draws."""
    for share, wanted in zip(shares(choice()), (0.5, 0.3, 0.15, 0.05), strict=True):
        assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 4000))


def test_a_temperature_sharpens_or_flattens() -> None:
    """At 0.5 probabilities are squared and made to add up again."""
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    for share, wanted in zip(shares(choice(0.5)), squares / squares.sum(), strict=True):
        assert share == pytest.approx(wanted, abs=0.035)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.99, 4)]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    """At least one; those that are left keep their proportions."""
    found = shares(choice(top_p=top_p), 1500)
    assert [share > 0 for share in found] == [index < kept for index in range(4)]
    if kept == 2:
        assert found[0] / found[1] == pytest.approx(5 / 3, rel=0.2)


def test_top_p_that_is_reached_exactly_keeps_no_more() -> None:
    """Two of four that are equally likely are one half."""
    chooser = choice(top_p=0.5)
    assert {chooser.sample(np.zeros(4, np.float32)) for _ in range(300)} == {0, 1}


def test_top_p_does_not_change_the_logits_of_others() -> None:
    """They may be another request's: the row that is given is left as it is."""
    given = LOGITS.copy()
    choice(top_p=0.5).sample(given)
    assert (given == LOGITS).all()


def test_the_same_seed_draws_the_same() -> None:
    """And another seed something else, whoever draws between them."""
    first, again, other = choice(seed=7), choice(seed=7), choice(seed=8)
    drawn = [(first.sample(LOGITS), other.sample(LOGITS), again.sample(LOGITS)) for _ in range(40)]
    assert all(a == c for a, _, c in drawn)
    assert any(a != b for a, b, _ in drawn)


def test_probabilities_add_up_to_one() -> None:
    """In a row and in a table of rows; large numbers do not overflow."""
    found = logprobs(LOGITS + 1000)
    assert np.exp(found) == pytest.approx([0.5, 0.3, 0.15, 0.05], rel=1e-4)
    table = logprobs(np.array([[88.0, 90.0], [-1e30, 0.0]], np.float32))
    assert np.exp(table).sum(axis=-1) == pytest.approx([1, 1])


def test_what_is_no_number_is_refused() -> None:
    """As damaged weights compute it; a choice among such would be made up."""
    with pytest.raises(ProviderError, match="damaged"):
        logprobs(np.array([1.0, np.nan], np.float32))
    with pytest.raises(ProviderError, match="damaged"):
        require_numbers(np.array([np.nan]))
    require_numbers(np.array([1.0, -np.inf]))
