"""Scorers: functions of ``(response, expected)`` that say how good an answer is."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from nbproviders.errors import (
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    foreign,
    scrub,
)

Scorer = Callable[..., Any]
_RESERVED = frozenset({"spec", "n", "errors"})  # columns of a summary


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
        For something that cannot be called, and for two functions of one name. Lambdas, partials
        and callable objects have no name of their own and are numbered: ``lambda``, ``lambda_2``.
    """
    if callable(scorers):
        scorers = [scorers]
    if not isinstance(scorers, Iterable) or isinstance(scorers, str):
        raise ConfigurationError(
            f"scorers must be functions, not {type(scorers).__name__}: {scorers!r:.60}"
        )
    found: dict[str, Scorer] = {}
    scorers = list(scorers)
    taken = {_own_name(one) for one in scorers if callable(one)}
    for place, scorer in enumerate(scorers):
        if not callable(scorer):
            raise ConfigurationError(
                f"Scorer number {place} is no function: {scorer!r:.60}",
                hint="Give functions of (response, expected), such as nbp.exact_match.",
            )
        name = _own_name(scorer) or _free_name(scorer, {*found, *taken})
        if name in found:
            raise ConfigurationError(
                f"Two scorers are named {name!r}.", hint="Give one another __name__."
            )
        if name in _RESERVED:
            raise ConfigurationError(
                f"A scorer cannot be named {name!r}: a summary has a column of that name.",
                hint="Give it another __name__.",
            )
        found[name] = scorer
    return found


def _own_name(scorer: Scorer) -> str | None:
    """Return the name its author gave it; None for a lambda, a partial or a callable object."""
    name = getattr(scorer, "__name__", None)
    return name if isinstance(name, str) and name != "<lambda>" else None


def _free_name(scorer: Scorer, taken: Collection[str | None]) -> str:
    """Return a name after what the scorer is made of; the second of a kind is ``contains_2``."""
    name = _spoken_name(scorer)
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(free for free in names if free not in taken)


def _spoken_name(scorer: Scorer) -> str:
    while isinstance(scorer, functools.partial):
        scorer = scorer.func
    if getattr(scorer, "__name__", None) == "<lambda>":
        return "lambda"
    return _own_name(scorer) or type(scorer).__name__


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
        f"The scorer {_spoken_name(scorer)} returned {value!r:.60}, which is neither a bool nor a number.",
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
    if isinstance(error, ProviderError):
        return f"scorer {name}: {scrub(str(error))}"
    return f"scorer {name}: {foreign(error)}"
