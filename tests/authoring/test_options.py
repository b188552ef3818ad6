"""Promises of load options: declared, checked, told."""

from __future__ import annotations

import re
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring.options import Option, check, split
from nbproviders.core.spec import split_options
from nbproviders.errors import ConfigurationError
from tests.services.keys import FAKE

DECLARED = {
    "n_ctx": Option((int,), 512, "Tokens of context."),
    "scale": Option((float,), 1.0, "A factor."),
    "dtype": Option((str,), "auto"),
    "flag": Option((bool,), False),
    "map": Option((str, dict)),
}


def test_defaults_are_filled_in() -> None:
    """Every declared option has a value, given or not."""
    assert check(DECLARED, {"n_ctx": 8}, "x") == {
        "n_ctx": 8,
        "scale": 1.0,
        "dtype": "auto",
        "flag": False,
        "map": None,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", 1),
        ("scale", 2),
        ("scale", 2.5),
        ("flag", True),
        ("map", {"a": 1}),
        ("n_ctx", None),
    ],
)
def test_values_that_fit(name: str, value: Any) -> None:
    """Each of its types is taken, int for float, and None for any."""
    assert check(DECLARED, {name: value}, "x")[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", "512"),
        ("n_ctx", 1.5),
        ("n_ctx", True),
        ("scale", "big"),
        ("flag", 1),
        ("map", [1]),
    ],
)
def test_values_that_do_not_fit(name: str, value: Any) -> None:
    """A value of a wrong type is told with itself, its type and the right one."""
    with pytest.raises(ConfigurationError) as caught:
        check(DECLARED, {name: value}, "lab")
    assert f"{name}={value!r}" in caught.value.message
    assert "'lab'" in caught.value.message
    assert type(value).__name__ in caught.value.message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("flag", "Write flag=true or flag=false. "),
        ("n_ctx", "Write n_ctx=512. Tokens of context."),
        ("scale", "Write scale=1. A factor."),
        ("keep", "Write keep=true or keep=false. Stays."),
        ("timeout", "Write timeout=1.5. In seconds."),
        ("args", 'Write args=["a","b"]. '),
        ("map", ""),
    ],
)
def test_a_value_that_does_not_fit_has_an_example(name: str, told: str) -> None:
    """How it is written, with its default if there is one; and what is written so is taken."""
    declared = {
        **DECLARED,
        "keep": Option((bool,), help="Stays."),
        "timeout": Option((float,), help="In seconds."),
        "args": Option((list,)),
    }
    with pytest.raises(ConfigurationError) as caught:
        check(declared, {name: b"yes"}, "x")
    assert caught.value.hint == told
    for written in re.findall(r"(\w+=\S+)(?:\.| or)", told):
        check(declared, split_options(f"m?{written}")[1], "x")


def test_an_int_for_a_float_is_the_same_value() -> None:
    """scale=2 and scale=2.0 are one thing, and must not become two resources."""
    assert repr(check(DECLARED, {"scale": 2}, "x")) == repr(check(DECLARED, {"scale": 2.0}, "x"))


def test_a_misspelt_option_is_told_with_its_neighbour() -> None:
    """What is not declared is refused, with the likely one and all there are."""
    with pytest.raises(ConfigurationError, match="'lab' has no option 'n_ctz'") as caught:
        check(DECLARED, {"n_ctz": 1}, "lab")
    assert "Did you mean 'n_ctx'?" in caught.value.hint
    assert "chat" in caught.value.hint
    with pytest.raises(ConfigurationError) as far:
        check(DECLARED, {"zzzzzz": 1}, "lab")
    assert "Did you mean" not in far.value.hint


def test_undeclared_takes_all() -> None:
    """A provider that declares nothing gets every option as it comes."""
    assert check(None, {"anything": [1]}, "x") == {"anything": [1]}


def test_call_options_are_split_off() -> None:
    """chat and invariant are for calls, not for loading."""
    assert split({"n": 1, "chat": False, "invariant": True}) == ({"n": 1}, False, True)
    assert split({}) == ({}, None, False)
    with pytest.raises(ConfigurationError, match="chat='no' must be true or false") as caught:
        split({"chat": "no"})
    assert caught.value.hint == "Write chat=true or chat=false."


@pytest.mark.parametrize(
    "value", [[FAKE], {"key": FAKE}, FAKE.encode(), 5.5], ids=["list", "dict", "bytes", "float"]
)
def test_a_key_of_a_wrong_type_is_not_shown(value: Any) -> None:
    """The error names the option, and masks what was given for it."""
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        check({"api_key": Option((str,))}, {"api_key": value}, "x")
    assert FAKE not in str(caught.value)
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        nbp.create_provider("openai").model("gpt-x", api_key=value)
    assert FAKE not in str(caught.value)
