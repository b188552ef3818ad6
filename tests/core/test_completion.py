"""Promises of what comes back: text first, with what is known about it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from nbproviders.core.completion import Chunk, Completion, Finish, Usage
from nbproviders.core.params import GenerationParams

END = Finish(
    "length",
    Usage(3, 2),
    GenerationParams(seed=5),
    queue_s=0.5,
    ttft_s=0.25,
    total_s=2.0,
    chat=True,
    batch_invariant=False,
    reasoning="hm",
)


def completion() -> Completion:
    return Completion("42", end=END, spec="echo:echo")


def test_completion_is_text() -> None:
    """Scorers, f-strings, dictionaries and JSON take it as the str it is."""
    assert completion() == "42"
    assert f"<{completion()}>" == "<42>"
    assert {"42": 1}[completion()] == 1
    assert json.dumps(completion()) == '"42"'
    assert type(completion().text) is str
    assert completion().upper() == "42"


def test_completion_tells_how_it_was_made() -> None:
    """What the backend told at the end is on the text."""
    got = completion()
    assert got.usage.total_tokens == 5
    assert (got.finish, got.params.seed, got.spec) == ("length", 5, "echo:echo")
    assert (got.queue_s, got.ttft_s, got.total_s) == (0.5, 0.25, 2.0)
    assert (got.chat, got.batch_invariant, got.reasoning) == (True, False, "hm")
    assert got.tokens_per_s == 1.0


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_keep_what_is_known(again) -> None:
    """Saved or copied, a completion stays one, with all its attributes."""
    got = again(completion())
    assert type(got) is Completion
    assert got == "42"
    assert vars(got) == vars(completion())


def test_completion_without_an_end_has_measures_of_its_reader() -> None:
    """Where a backend tells no times, those the reader saw stand in."""
    got = Completion("x", params=GenerationParams(seed=1), ttft_s=0.1, total_s=0.2)
    assert (got.ttft_s, got.total_s, got.params.seed, got.finish) == (0.1, 0.2, 1, "stop")


def test_speed_is_none_where_it_cannot_be_told() -> None:
    """No tokens or no time make no number."""
    assert Completion("x").tokens_per_s is None
    assert Completion("x", total_s=1.0).tokens_per_s is None


def test_chunk_is_text_and_pickles() -> None:
    """A chunk is a str, also in another process."""
    got = pickle.loads(pickle.dumps(Chunk("ab")))
    assert got == "ab"
    assert type(got) is Chunk
    assert "".join([Chunk("a"), Chunk("b")]) == "ab"
