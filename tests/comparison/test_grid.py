"""The grid: models and prompts as users write them, checked before anything runs."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import nbproviders as nbp
from nbproviders.comparison import grid

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("given", "prompt", "expected"),
    [
        (["a", "b"], "a", None),
        ([("a", "x"), ("b", "y")], "a", "x"),
        ([{"prompt": "a", "expected": "x"}], "a", "x"),
        ([{"prompt": "a"}], "a", None),
        ([CHAT], tuple(CHAT), None),
        ([{"prompt": CHAT, "expected": "x"}], tuple(CHAT), "x"),
        (pd.DataFrame({"prompt": ["a"], "expected": ["x"]}), "a", "x"),
        (pd.DataFrame({"prompt": ["a"], "expected": [float("nan")]}), "a", None),
        ((p for p in ["a"]), "a", None),
        ([""], "", None),
    ],
)
def test_every_way_to_write_prompts(given: Any, prompt: Any, expected: Any) -> None:
    """Strings, pairs, dicts, messages and a DataFrame become prompts with their answers."""
    first = grid.prompts(given)[0]
    assert (first.prompt, first.expected, first.place) == (prompt, expected, 0)


def test_further_fields_and_ids_come_along() -> None:
    """What else stands in a dict is kept, and a prompt_id replaces the number."""
    first = grid.prompts([{"prompt": "a", "task": "t", "prompt_id": "p-7"}])[0]
    assert first.extra == {"task": "t"}
    assert first.place == "p-7"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "empty"),
        ("one prompt", "not one str"),
        (5, "not int"),
        (["a", ("b", "c")], "number 1 is a pair"),
        ([{"prompt": "a"}, "b"], "number 1 is a string"),
        ([3], "number 0"),
        ([("a", "b", "c")], "number 0"),
        ([{"text": "a"}], "number 0"),
        ([{"prompt": 3}], "number 0"),
        ([[{"role": "robot", "content": "x"}]], "robot"),
    ],
)
def test_prompts_that_cannot_be_asked(given: Any, words: str) -> None:
    """Empty, mixed or odd prompts are refused, telling which one it is."""
    with pytest.raises(nbp.InvalidRequestError) as caught:
        grid.prompts(given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "at least one model"),
        (["echo:a", "ECHO:a"], "given twice"),
        (["echo:a", "echo:a"], 'name them: compare({"lab": one'),
        ({"": "echo:a"}, "cannot be named ''"),
        ({3: "echo:a"}, "cannot be named 3 (int)"),
        ({"a": "echo:a", "b": object()}, "is no model"),
        (["nope:a"], "Unknown provider 'nope'"),
        (["echo:a?dely_s=1"], "Did you mean 'delay_s'"),
        ([object()], "is no model"),
        ([3], "is no model"),
    ],
)
def test_models_that_cannot_be_compared(given: Any, words: str) -> None:
    """None, doubles, unknown ones and things that are no model are refused before anything runs."""
    with pytest.raises(nbp.ConfigurationError) as caught:
        grid.contenders(given)
    assert words in str(caught.value)
