"""Scorers: functions of ``(response, expected)`` that say how good an answer is."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from nbproviders.errors import ConfigurationError, InvalidRequestError, ProviderError, foreign

Scorer = Callable[..., Any]


def exact_match(response: str, expected: str) -> bool:
    """Whether the response is the expected answer, spaces around both aside.

    Examples
    --------
    >>> exact_match(" 42 ", "42")
    True
    """
    return response.strip() == _wanted(expected, "exact_match").strip()


def contains(response: str, expected: str) -> bool:
    """Whether the expected answer stands somewhere in the response.

    Examples
    --------
    >>> contains("It is 42.", "42")
    True
    """
    return _wanted(expected, "contains") in response


def regex_match(response: str, expected: str) -> bool:
    """Whether the pattern that is expected is found in the response.

    Raises
    ------
    InvalidRequestError
        If it is no regular expression.

    Examples
    --------
    >>> regex_match("Answer: 42", "[0-9]+$")
    True
    """
    pattern = _wanted(expected, "regex_match")
    try:
        return re.search(pattern, response) is not None
    except re.error as error:
        raise InvalidRequestError(
            f"regex_match cannot use {pattern!r} as a pattern: {error}."
        ) from None


def _wanted(expected: Any, scorer: str) -> str:
    if expected is None:
        raise InvalidRequestError(
            f"{scorer} needs an expected answer, and this prompt has none.",
            hint="Give prompts as (prompt, expected) pairs, or use a scorer of the response alone.",
        )
    return str(expected)


def named(scorers: Any) -> dict[str, Scorer]:
    """Return scorers by the names of their columns.

    Raises
    ------
    ConfigurationError
        For something that cannot be called, and for two of one name.
    """
    if callable(scorers):
        scorers = [scorers]
    if not isinstance(scorers, Iterable) or isinstance(scorers, str):
        raise ConfigurationError(
            f"scorers must be functions, not {type(scorers).__name__}: {scorers!r:.60}"
        )
    found: dict[str, Scorer] = {}
    for place, scorer in enumerate(scorers):
        if not callable(scorer):
            raise ConfigurationError(
                f"Scorer number {place} is no function: {scorer!r:.60}",
                hint="Give functions of (response, expected), such as nbp.exact_match.",
            )
        name = _name(scorer, place)
        if name in found:
            raise ConfigurationError(
                f"Two scorers are named {name!r}.", hint="Give one another __name__."
            )
        found[name] = scorer
    return found


def _name(scorer: Scorer, place: int) -> str:
    while isinstance(scorer, functools.partial):
        scorer = scorer.func
    name = getattr(scorer, "__name__", type(scorer).__name__)
    return f"scorer{place}" if name == "<lambda>" else str(name)


async def apply(scorer: Scorer, response: str, expected: object) -> float | bool:
    """Return what a scorer, sync or async, says of one response.

    One that takes a single argument gets the response alone.

    Raises
    ------
    InvalidRequestError
        If it returns anything but a bool or a finite number. What it raises itself goes through.
    """
    result = scorer(response) if _takes_one(scorer) else scorer(response, expected)
    if inspect.isawaitable(result):
        result = await result
    item = getattr(result, "item", None)  # numpy scalars
    value = item() if callable(item) else result
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise InvalidRequestError(
        f"The scorer {_name(scorer, 0)} returned {value!r:.60}, which is neither a bool nor a number.",
        hint="Return True or False, or a number.",
    )


def _takes_one(scorer: Scorer) -> bool:
    try:
        parameters = inspect.signature(scorer).parameters.values()
    except (TypeError, ValueError):  # built in C, without a signature
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)


def explain(name: str, error: Exception) -> str:
    """Return why a scorer failed, as its cell tells it."""
    told = error.message if isinstance(error, ProviderError) else str(foreign(error))
    return f"scorer {name}: {told}"
