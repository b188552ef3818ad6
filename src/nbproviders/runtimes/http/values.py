"""JSON values that services send, read with suspicion: nothing in them has to be what it should be."""

from __future__ import annotations

import json
import re
from types import TracebackType
from typing import Any

from nbproviders.errors import ProviderError, ServiceUnavailableError

MOST_TOKENS = 2**53  # what a float still counts exactly; no service counts so far
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_HALVES = re.compile(r"(?i)\\ud[89a-f]")
_HALVES_IN_BYTES = re.compile(rb"(?i)\\ud[89a-f]|\xed[\xa0-\xbf]")


def parsed(data: str | bytes) -> Any:
    """Return a JSON value, in which all texts can be encoded: halves of surrogate pairs are replaced.

    Raises
    ------
    ValueError
        If it is none, or nested too deep.
    """
    try:
        value = json.loads(data)
        return _sound(value) if _halved(data) else value
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _halved(data: str | bytes) -> bool:
    """Whether there may be halves of surrogate pairs; nearly always the quicker look tells."""
    if isinstance(data, str):
        return "\\u" in data and _HALVES.search(data) is not None
    return (b"\\u" in data or b"\xed" in data) and _HALVES_IN_BYTES.search(data) is not None


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_sound(one) for one in value]
    if isinstance(value, dict):
        return {_sound(name): _sound(one) for name, one in value.items()}
    return value


def event(data: str, what: str) -> Any:
    """Return the JSON value of a stream's event.

    Parameters
    ----------
    what
        Who sent it, for the error.

    Raises
    ------
    ServiceUnavailableError
        If it is none.
    """
    try:
        return parsed(data)
    except ValueError:
        raise ServiceUnavailableError(
            # not shown: who writes such a thing may repeat the key
            f"{what}: an event of the stream is not JSON.",
            hint="What came of it is incomplete; ask again.",
        ) from None


class of_form:  # noqa: N801  # used as a function is
    """``with of_form(form, what):`` turns what reading a value raises into an error that says so.

    A class, since every answer and every event is read inside one.

    Parameters
    ----------
    form
        What it should be, for the error.
    what
        Who sent it.

    Raises
    ------
    ServiceUnavailableError
        Instead of what was raised.
    """

    __slots__ = ("_form", "_what")

    def __init__(self, form: str, what: str) -> None:
        self._form, self._what = form, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, _UNREADABLE) and not isinstance(error, ProviderError):
            raise ServiceUnavailableError(
                f"{self._what}: the answer is not of {self._form} form ({type(error).__name__}).",
                hint="Check base_url: another service may answer there.",
            ) from None


def text(value: Any) -> str:
    """Return a text; none is an empty one. Anything else is a TypeError."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("the text is no text")
    return value


def count(value: Any) -> int:
    """Return a number of tokens, bytes or nanoseconds; none is 0. Anything else is a ValueError."""
    number = int(value or 0)
    if not 0 <= number <= MOST_TOKENS:
        raise ValueError("no count")
    return number


def logprob(value: Any) -> float:
    """Return the logarithm of a probability; one above 0 by more than rounding is a ValueError."""
    number = float(value)
    if number > 0.01:
        raise ValueError("no probability")
    return min(number, 0.0)


def cut_off(what: str) -> ServiceUnavailableError:
    """Return the error of a stream that ended before what it had to say."""
    return ServiceUnavailableError(
        f"{what}: the stream ended before the completion did.",
        hint="What came of it is incomplete; ask again.",
    )


def rows(value: Any, what: str) -> list[dict[str, Any]]:
    """Return the objects with an ``id`` in a list of models.

    Raises
    ------
    ServiceUnavailableError
        If it is no such list.
    """
    found = value.get("data") if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise ServiceUnavailableError(
            f"{what}: the list of models is of another form.", hint="Check base_url."
        )
    return [row for row in found if isinstance(row, dict) and isinstance(row.get("id"), str)]
