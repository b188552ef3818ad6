"""Scorers judge answers; whatever a user's own one does is told in words that help."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from nbproviders.comparison import scorers
from nbproviders.comparison.scorers import contains, exact_match, regex_match
from nbproviders.errors import ConfigurationError, InvalidRequestError


@pytest.mark.parametrize(
    ("scorer", "response", "expected", "right"),
    [
        (exact_match, " 42\n", "42 ", True),
        (exact_match, "42.", "42", False),
        (exact_match, "Owl", "owl", False),
        (exact_match, "42", 42, True),
        (contains, "It is 42.", "42", True),
        (contains, "It is 4 2.", "42", False),
        (regex_match, "Answer: 42", r"\d+$", True),
        (regex_match, "Answer: 42!", r"\d+$", False),
    ],
)
def test_shipped_scorers(scorer: Any, response: str, expected: Any, right: bool) -> None:
    """Each says whether the answer is the expected one, in its own sense."""
    assert scorer(response, expected) is right


def test_a_bad_pattern_is_our_error() -> None:
    """A pattern that does not compile is told with the pattern."""
    with pytest.raises(InvalidRequestError, match=r"\(unclosed"):
        regex_match("x", "(unclosed")


@pytest.mark.parametrize("scorer", [exact_match, contains, regex_match])
async def test_nothing_expected_is_our_error(scorer: Any) -> None:
    """A prompt without expected answer cannot be scored by these; the hint says what to do."""
    with pytest.raises(InvalidRequestError, match="pairs") as caught:
        await scorers.apply(scorer, "x", None)
    assert scorer.__name__ in caught.value.message


async def later(response: str, expected: str) -> bool:
    return response == expected


class Judge:
    def __call__(self, response: str, expected: str) -> float:
        return 0.25


@pytest.mark.parametrize(
    ("scorer", "score"),
    [
        (later, True),
        (Judge(), 0.25),
        (lambda response: len(response), 2.0),
        (lambda response, expected: response == expected, True),
        (lambda *both: len(both), 2.0),
        (lambda response, *, strict=True: 1, 1.0),
        (lambda r, e: np.bool_(False), False),
        (lambda r, e: np.float32(0.5), 0.5),
        (lambda r, e: np.int64(3), 3.0),
        (functools.partial(contains, expected="a"), True),
    ],
)
async def test_any_callable_scores(scorer: Any, score: Any) -> None:
    """Functions of one or two arguments, coroutines, objects and partials give a bool or a float."""
    found = await scorers.apply(scorer, "ab", "ab")
    assert found == score
    assert type(found) is type(score)


@pytest.mark.parametrize("value", ["yes", None, float("nan"), float("inf"), [1], {"score": 1}, 1j])
async def test_what_is_no_score_is_our_error(value: Any) -> None:
    """Anything but a bool or a finite number is refused, naming scorer and value."""

    def strange(response: str, expected: str) -> Any:
        return value

    with pytest.raises(InvalidRequestError, match="strange") as caught:
        await scorers.apply(strange, "x", "y")
    assert repr(value) in caught.value.message


async def test_what_a_scorer_raises_goes_through() -> None:
    """Its own exception reaches the caller, who keeps it to its cell."""
    with pytest.raises(ZeroDivisionError):
        await scorers.apply(lambda r, e: 1 / 0, "x", "y")


def test_names_of_columns() -> None:
    """Functions give their names; what has none is named after what it is made of, and numbered."""
    given = [lambda r: 1, functools.partial(contains, expected="a"), contains, Judge(), lambda r: 2]
    assert list(scorers.named(given)) == ["lambda", "contains_2", "contains", "Judge", "lambda_2"]
    assert scorers.named(exact_match) == {"exact_match": exact_match}
    assert scorers.named(()) == {}


def test_names_follow_the_order_given() -> None:
    """Scorers keep their order, also when they come from a generator."""
    assert list(scorers.named(s for s in (contains, exact_match))) == ["contains", "exact_match"]


def errors(response: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([contains, contains], "Two scorers are named 'contains'"),
        (["exact_match"], "number 0 is no function: 'exact_match'"),
        ("exact_match", "must be functions"),
        (7, "must be functions"),
        ([errors], "cannot be named 'errors'"),
    ],
)
def test_bad_scorers_are_our_error(given: Any, words: str) -> None:
    """What cannot be a scorer, or would share a column, is refused before anything runs."""
    with pytest.raises(ConfigurationError, match=words):
        scorers.named(given)


def test_an_explanation_keeps_secrets() -> None:
    """A cell tells scorer, kind and text of the failure, without keys, and our hint if it is ours."""
    told = scorers.explain("judge", ValueError("api_key=abcdef123456 refused"))
    assert told == "scorer judge: ValueError: api_key=**** refused"
    ours = scorers.explain("judge", InvalidRequestError("token=abcdef123456", hint="Do this."))
    assert ours == "scorer judge: token=****\nDo this."
