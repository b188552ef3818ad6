"""Both engines compute the same model: a published checkpoint, token for token and in its probabilities."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import nbproviders as nbp

PROMPTS = (
    "Once upon a time",
    "The dog and the cat",
    "Tom was sad. His mom said:",
    "In the big garden",
    '"Look!" said Lily,',
)
# Float32 weights and float32 caches; half-precision caches alone move probabilities by up to 2e-3.
EXACT = "?type_k=f32&type_v=f32"


@pytest.fixture(scope="module")
def stories() -> Path:
    """The folder of a real checkpoint in both forms."""
    folder = Path(os.environ.get("NBPROVIDERS_TEST_MODELS", ""), "stories260k")
    if not os.environ.get("NBPROVIDERS_TEST_MODELS") or not folder.is_dir():
        pytest.skip("NBPROVIDERS_TEST_MODELS names no folder with stories260k")
    pytest.importorskip("llama_cpp")
    return folder


def both(folder: Path) -> tuple[str, str]:
    return f"transformers:{folder / 'hf'}", f"llama-cpp:{folder / 'stories260k.gguf'}{EXACT}"


def test_the_published_story(stories: Path) -> None:
    """Greedy from the beginning token, the text its author published."""
    lines = (stories / "SOURCE.md").read_text(encoding="utf-8").splitlines()
    story = "\n".join(line[2:] for line in lines if line.startswith("> "))
    assert len(story) > 400
    with nbp.model(both(stories)[1]) as m:
        text = m.generate("", max_tokens=300)
        streamed = "".join(m.stream("", max_tokens=300))
    assert text.startswith(story)
    assert streamed == text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_tokens(stories: Path, prompt: str) -> None:
    """200 greedy tokens have the same ids."""
    found = []
    for reference in both(stories):
        with nbp.model(reference) as m:
            done = m.generate(prompt, temperature=0, max_tokens=200, logprobs=True)
            found.append([token.id for token in done.tokens])
    assert len(found[0]) == 200
    assert found[0] == found[1]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_probabilities(stories: Path, prompt: str) -> None:
    """Of every token that may come next, within 1e-4, and of every token of a given text."""
    frames, totals = [], []
    for reference in both(stories):
        with nbp.model(reference) as m:
            frames.append(m.next_tokens(prompt, k=512).set_index("id")["probability"].sort_index())
            totals.append(m.score(prompt, " and the little bird was very happy.").total)
    assert len(frames[0]) == len(frames[1]) == 512
    assert (frames[0] - frames[1]).abs().max() < 1e-4
    assert totals[0] == pytest.approx(totals[1], abs=1e-3)


def test_batched_texts_equal_single_ones(stories: Path) -> None:
    """In float32 a text is the same alone and among others, and says so."""
    prompts = [f"{prompt} {word}" for prompt in PROMPTS for word in ("and", "but", "so", "then")]
    with nbp.model(both(stories)[1]) as m:
        alone = [m.generate(prompt, temperature=0, max_tokens=60) for prompt in prompts]
        together = m.generate_many(prompts, temperature=0, max_tokens=60)
    assert [str(text) for text in together] == [str(text) for text in alone]
    assert all(text.batch_invariant for text in together)
