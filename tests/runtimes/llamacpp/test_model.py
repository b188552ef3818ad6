"""A GGUF model's probabilities: the same in any chunks, whoever asked before, whatever is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

import nbproviders as nbp
from nbproviders.runtimes.llamacpp import model as models
from nbproviders.runtimes.llamacpp.native import Abort
from tests.gguf_files import write_llama_gguf

EXACT = "type_k=f32&type_v=f32"
PROMPT, MORE = "the girl and the dog " * 5, " play on the red ball" * 4


def told(score: Any) -> list[tuple[int, float]]:
    return [(token.id, token.logprob) for token in score.tokens]


def near(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [i for i, _ in found] == [i for i, _ in wanted]
    assert [x for _, x in found] == pytest.approx([x for _, x in wanted], abs=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
def test_chunks_of_any_size_score_the_same(tmp_path: Path, arch: str) -> None:
    """Prompt and continuation over one evaluation or many."""
    path = write_llama_gguf(tmp_path / "m.gguf", arch=arch, context=512)
    found = []
    for n_batch in (512, 64, 7):
        with nbp.model(f"llama-cpp:{path}?n_batch={n_batch}&{EXACT}") as m:
            found.append(told(m.score(PROMPT, MORE)))
            [first] = m.next_tokens(PROMPT + MORE, k=1)["logprob"]
            found[-1].append((0, first))
    assert len(found[0]) > 20
    near(found[1], found[0])
    near(found[2], found[0])


@pytest.mark.parametrize("arch", ["llama", "mamba"])
def test_a_stop_that_was_meant_for_another_changes_nothing(
    tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes late, when somebody else is computed, who has the answer as if it had not come."""

    class Late(Abort):
        """Set again behind every third clearing."""

        count = 0

        def clear(self) -> None:
            super().clear()
            Late.count += 1
            if Late.count % 3 == 0:
                self.set()

    path = write_llama_gguf(tmp_path / "m.gguf", arch=arch, context=512)
    # Mamba forgets all that it knows and begins again: one score must be done in two evaluations.
    reference = f"llama-cpp:{path}?n_batch={16 if arch == 'llama' else 32}&{EXACT}"
    with nbp.model(reference) as m:
        wanted = told(m.score(PROMPT, MORE))
        best = m.next_tokens(PROMPT, k=5)["id"].tolist()
    nbp.unload_all()
    monkeypatch.setattr(models, "Abort", Late)
    with nbp.model(reference) as m:
        for _ in range(3):
            near(told(m.score(PROMPT, MORE)), wanted)
            assert m.next_tokens(PROMPT, k=5)["id"].tolist() == best
    assert Late.count > 9


def test_what_was_asked_before_does_not_matter(tmp_path: Path) -> None:
    """To probabilities, and to requests that are alone: not even which context there was for it."""
    path = write_llama_gguf(tmp_path / "m.gguf", hidden=64, heads=4)  # of 16: short ones
    reference = f"llama-cpp:{path}"
    with nbp.model(reference) as m, nbp.model(f"{reference}?invariant=true") as alone:

        def probe() -> list[list[tuple[int, float]]]:
            frame = m.next_tokens("the girl", 9)
            done = alone.generate("the dog", logprobs=True, temperature=1.3, seed=4, max_tokens=9)
            return [
                list(zip(frame["id"], frame["logprob"], strict=True)),
                told(m.score("the girl", " is red")),
                told(done),
            ]

        first = probe()
        m.generate_many(["the", "dog", "girl", "ball"] * 3, max_tokens=4)
        assert probe() == first
        m.generate("the dog", max_tokens=3)
        assert probe() == first


def test_a_stop_string_keeps_what_is_not_in_the_text_out() -> None:
    """Of the tokens that were asked for; usage counts what was computed."""
    with nbp.model("llama-cpp:demo-m") as m:
        done = m.generate("reverse otter:", stop="tt", logprobs=True)
        assert [token.text for token in done.tokens] == ["r", "e"]
        assert (str(done), done.usage.completion_tokens) == ("re", 4)


def test_a_continuation_that_would_merge_is_scored_as_written(tmp_path: Path) -> None:
    """No blank is put before it, though the vocabulary begins every text with one."""
    path = write_llama_gguf(tmp_path / "m.gguf")
    with nbp.model(f"llama-cpp:{path}") as m:
        assert m.score("the gir", "l").text == "l"
        assert m.score("the", " dog").text == " dog"
        assert m.score("on the b", "all is red").text == "all is red"
