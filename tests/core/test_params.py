"""Promises of what a caller may ask."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from nbproviders.core.params import GenerationParams, Request, as_request
from nbproviders.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", 9),
        ("temperature", float("nan")),
        ("temperature", "warm"),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 7),
        ("stop", ["a", 7]),
    ],
)
def test_out_of_bounds_is_told_with_its_value(name: str, value: Any) -> None:
    """A value that cannot be used is refused with its name, itself and the bounds."""
    with pytest.raises(InvalidRequestError) as caught:
        GenerationParams(**{name: value})
    assert f"{name}={value!r}" in caught.value.message
    assert "max_tokens at least 1" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("temperature", 2), ("max_tokens", 1), ("top_p", 1), ("seed", 0)],
)
def test_bounds_themselves_are_allowed(name: str, value: float) -> None:
    """The ends of each range belong to it."""
    assert getattr(GenerationParams(**{name: value}), name) == value


def test_unknown_parameter_lists_the_known() -> None:
    """A misspelt parameter is refused by name, with what there is."""
    with pytest.raises(InvalidRequestError, match="unknown parameter 'temprature'.*temperature"):
        GenerationParams(temprature=1)


def test_several_faults_are_told_together() -> None:
    """Nobody mends one fault only to meet the next."""
    with pytest.raises(InvalidRequestError, match=r"max_tokens=-1.*top_p=2|top_p=2.*max_tokens=-1"):
        GenerationParams(max_tokens=-1, top_p=2)


def test_stop_is_a_string_or_several() -> None:
    """One stop string is a list of one; none is an empty one."""
    assert GenerationParams(stop="\n").stop == ("\n",)
    assert GenerationParams(stop=["a", "b"]).stop == ("a", "b")
    assert GenerationParams(stop=None).stop == ()


def test_merged_replaces_and_checks() -> None:
    """Single fields are replaced, the others stay, and the result is checked anew."""
    params = GenerationParams(temperature=0.5, max_tokens=3)
    assert params.merged(max_tokens=4) == GenerationParams(temperature=0.5, max_tokens=4)
    assert params.merged() is params
    with pytest.raises(InvalidRequestError, match="max_tokens=0"):
        params.merged(max_tokens=0)


def test_given_is_what_was_asked_for() -> None:
    """Services get only the fields a caller set; zero is a value."""
    assert GenerationParams(temperature=0, seed=0).given() == {"temperature": 0, "seed": 0}
    assert GenerationParams().given() == {}


def test_params_are_values() -> None:
    """They compare, hash, pickle and copy by content and cannot be changed."""
    params = GenerationParams(stop="x", seed=3)
    assert params == pickle.loads(pickle.dumps(params)) == copy.deepcopy(params)
    assert hash(params) == hash(GenerationParams(stop="x", seed=3))
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 4  # type: ignore[misc]


def test_request_of_text() -> None:
    """A text is asked as it stands; the empty one too."""
    assert as_request("hi", seed=1) == Request("hi", GenerationParams(seed=1))
    assert as_request("").prompt == ""
    assert as_request("hi", raw=True).chat is False


def test_request_of_messages() -> None:
    """Turns keep their order and are detached from the caller's list."""
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    request = as_request(turns)
    turns.clear()
    assert [turn["role"] for turn in request.prompt] == ["system", "user"]  # type: ignore[index]


def test_request_of_a_request_keeps_what_is_not_said() -> None:
    """Passing a request on changes only what the caller names."""
    first = as_request("hi", GenerationParams(seed=1, temperature=0.5), raw=True, whole=True)
    assert as_request(first) == first
    again = as_request(first, seed=2)
    assert again.params == GenerationParams(seed=2, temperature=0.5)
    assert (again.chat, again.whole) == (False, True)
    plain = as_request(as_request("hi"), raw=True)
    assert (plain.chat, plain.whole) == (False, False)


def test_params_may_be_a_mapping() -> None:
    """A dict of parameters is as good, and checked as well; anything else is refused."""
    assert as_request("x", {"seed": 2}).params.seed == 2  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="seed=-1"):
        as_request("x", {"seed": -1})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="not int"):
        as_request("x", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (7, "not int: 7"),
        (None, "not NoneType"),
        (b"bytes", "not bytes"),
        ([], "empty list"),
        (["text"], "'text'"),
        ([{"role": "user"}], "{'role': 'user'}"),
        ([{"role": "user", "content": "x", "name": "y"}], "name"),
        ([{"role": "robot", "content": "x"}], "'robot'"),
        ([{"role": "user", "content": 3}], "not int: 3"),
    ],
)
def test_bad_prompts_are_told_with_their_value(prompt: Any, said: str) -> None:
    """What is no prompt is refused, and the refusal shows it."""
    with pytest.raises(InvalidRequestError) as caught:
        as_request(prompt)
    assert said in caught.value.message
