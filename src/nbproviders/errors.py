"""The one tree of errors. Every failure that leaves nbproviders is one of these.

::

    ProviderError (also RuntimeError)
    ├── AuthenticationError        401, 403: the key is missing or wrong
    ├── RateLimitError             429: retryable, carries retry_after_s
    ├── TimeoutError               also the builtin TimeoutError; retryable
    ├── InvalidRequestError        400, 404, 422, a bad prompt or parameter (also ValueError)
    ├── ServiceUnavailableError    5xx, refused, dropped: retryable
    ├── ModelAccessError           a model is missing, gated, offline, or has no weights
    ├── ConfigurationError         a name, option or setting is wrong (also ValueError)
    ├── InsufficientMemoryError    a model does not fit its device
    ├── ClosedError                a model, stream or handle was used after its end
    └── UnsupportedError           this model cannot do what was asked

Foreign exceptions never escape: they become the ``__cause__`` as a `ForeignError`, which holds their
type name and scrubbed text but none of their frames, so it can neither leak a secret nor keep weights alive.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Self


class ProviderError(RuntimeError):
    """The base of all errors of nbproviders.

    Parameters
    ----------
    message
        What was wrong, with the value.
    hint
        What to do about it; shown on a line of its own.

    Attributes
    ----------
    retryable
        Whether the same call may succeed later (a class attribute).
    hint
        As given, or the class's own.
    final
        Whether it has been retried already, or retrying cannot help; a router may still ask another model.
    """

    retryable: ClassVar[bool] = False
    final: bool = False
    hint: str = ""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n{self.hint}" if self.hint else message

    @property
    def message(self) -> str:
        """What was wrong, without the hint."""
        return super().__str__()


class AuthenticationError(ProviderError):
    """The service refused the key (HTTP 401, 403)."""

    hint = "Check the API key: pass api_key=… to the provider, or set its environment variable."


class RateLimitError(ProviderError):
    """The service asks for fewer requests (HTTP 429); `retry_after_s` is its own wish, if it told one."""

    retryable = True

    def __init__(
        self, message: str = "", *, retry_after_s: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class TimeoutError(ProviderError, builtins.TimeoutError):
    """Something took longer than it was given."""

    retryable = True

    def __new__(cls, *arguments: object, **_: object) -> Self:
        """Make one as the builtin does: two builtin bases leave Python no single way of its own."""
        return builtins.TimeoutError.__new__(cls, *arguments)


class InvalidRequestError(ProviderError, ValueError):
    """A prompt or parameter cannot be used (HTTP 400, 404, 422)."""


class ServiceUnavailableError(ProviderError):
    """The service failed, refused or dropped the connection (HTTP 5xx)."""

    retryable = True


class ModelAccessError(ProviderError):
    """A model cannot be reached: missing, gated, offline, of the wrong class, or without weights."""


class ConfigurationError(ProviderError, ValueError):
    """A provider name, an option or a setting is wrong."""


class InsufficientMemoryError(ProviderError):
    """A model does not fit into the budget of its device; the message shows who holds what."""


class ClosedError(ProviderError):
    """A model, stream or handle was used after its end."""


class UnsupportedError(ProviderError):
    """The model lacks a capability that was asked of it."""


class ForeignError(Exception):
    """What a library raised: the name of its exception type and its text, scrubbed of secrets."""

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}" if text else type_name)
        self.type_name = type_name
        self.text = text

    def __reduce__(self) -> tuple[type[ForeignError], tuple[str, str]]:
        return type(self), (self.type_name, self.text)


_SECRET_TEXT = re.compile(
    r"""(?ix)
    (?P<name>
        \b[\w-]*(?:authorization|api[-_]?key|token|secret|password|credentials?)\b['"]?\s*[:=]\s*['"]?
        (?:(?:bearer|basic|api-key|digest)\s+)?
      | \bbearer\s+
    )
    (?P<value>[^\s'",;&]{4,})
    | \b(?:sk|hf|gsk|xox[abp]|ghp)[-_][A-Za-z0-9_-]{8,}
    """
)


_MOST_CHARACTERS = 4_000


def scrub(text: str) -> str:
    """Return the text with anything that looks like a key or password replaced by ``****``."""
    return _SECRET_TEXT.sub(lambda found: (found["name"] or "") + "****", text)


def foreign(error: BaseException) -> ForeignError:
    """Return a frameless stand-in for a library's exception, safe to keep, show and log."""
    if isinstance(error, ForeignError):
        return error
    # The search for keys takes quadratic time on some texts, and nobody reads more of an error.
    return ForeignError(type(error).__name__, scrub(str(error)[:_MOST_CHARACTERS]))


def fresh(error: ProviderError) -> ProviderError:
    """Return an equal error without traceback: every waiter raises its own, and none keeps frames."""
    copy = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = foreign(error.__cause__) if error.__cause__ is not None else None
    copy.__suppress_context__ = True
    return copy


_SETUP_HINT = "Check the model's name and options; `nbproviders list` shows what is available here."


def setup_failed(spec: object, cause: BaseException) -> ProviderError:
    """Return the error of a failed setup: ``Failed to setup resource '<spec>': <cause>``.

    The class and hint are the cause's if it is one of ours. A library's exception becomes a
    `ProviderError` with the stand-in as ``__cause__``.
    """
    if isinstance(cause, ProviderError):
        error = fresh(cause)
        if not error.message.startswith("Failed to setup resource"):
            error.args = (f"Failed to setup resource '{spec}': {cause.message}",)
        error.hint = error.hint or _SETUP_HINT
        return error
    stand_in = foreign(cause)
    error = ProviderError(
        f"Failed to setup resource '{spec}': {stand_in}",
        hint=_SETUP_HINT,
    )
    error.__cause__ = stand_in
    error.__suppress_context__ = True
    return error


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Turn what a library or plugin raises inside the block into a `ProviderError`.

    Parameters
    ----------
    what
        Stands before the library's own words, such as ``"transformers:demo-m failed"``.
    """
    try:
        yield
    except (ProviderError, StopAsyncIteration):
        raise
    except MemoryError as error:
        raise InsufficientMemoryError(f"{what}: out of memory. {foreign(error)}") from foreign(
            error
        )
    except (Exception, SystemExit) as error:  # the border to other people's code; it is shown
        if is_out_of_memory(error):
            raise InsufficientMemoryError(f"{what}: out of memory. {foreign(error)}") from foreign(
                error
            )
        raise ProviderError(f"{what}: {foreign(error)}") from foreign(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so: by a class of its own on CUDA, in words on a CPU and on Metal."""
    told = str(error)
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and "out of memory" in told)
        or "can't allocate memory" in told
    )
