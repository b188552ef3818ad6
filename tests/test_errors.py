"""Promises of the one tree of errors."""

from __future__ import annotations

import asyncio
import builtins
import copy
import pickle

import pytest

from nbproviders import errors
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    ForeignError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelAccessError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    UnsupportedError,
    foreign,
    fresh,
    mapped,
    scrub,
    setup_failed,
)

KINDS = [
    AuthenticationError,
    RateLimitError,
    errors.TimeoutError,
    InvalidRequestError,
    ServiceUnavailableError,
    ModelAccessError,
    ConfigurationError,
    InsufficientMemoryError,
    ClosedError,
    UnsupportedError,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_provider_error(kind: type[ProviderError]) -> None:
    """One except clause catches all there is."""
    assert issubclass(kind, ProviderError)
    assert issubclass(kind, RuntimeError)


def test_builtin_relatives() -> None:
    """Code that catches the builtin TimeoutError or ValueError catches ours."""
    assert issubclass(errors.TimeoutError, builtins.TimeoutError)
    assert issubclass(InvalidRequestError, ValueError)
    assert issubclass(ConfigurationError, ValueError)


def test_only_passing_failures_are_retryable() -> None:
    """Trying again is advised for what may pass: limits, time and outages."""
    retryable = {kind for kind in KINDS if kind.retryable}
    assert retryable == {RateLimitError, errors.TimeoutError, ServiceUnavailableError}


def test_hint_stands_on_its_own_line() -> None:
    """The text is the message, then what to do; the message alone can be had too."""
    error = ConfigurationError("wrong", hint="mend it")
    assert str(error) == "wrong\nmend it"
    assert error.message == "wrong"
    assert str(ProviderError("bare")) == "bare"


def test_kind_brings_its_hint() -> None:
    """A refused key tells what to check without anyone writing it at the place."""
    assert "API key" in str(AuthenticationError("refused"))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling_and_copying(kind: type[ProviderError]) -> None:
    """An error from another process tells the same."""
    error = kind("what", hint="do this")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)


def test_foreign_error_survives_pickling() -> None:
    """The stand-in for a library's exception crosses processes like the error it explains."""
    again = pickle.loads(pickle.dumps(foreign(OSError("gone"))))
    assert (again.type_name, again.text, str(again)) == ("OSError", "gone", "OSError: gone")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdef123456",
        "authorization=abcdef123456",
        "{'api_key': 'abcdef123456'}",
        '{"api-key": "abcdef123456"}',
        "https://host/v1?api_key=abcdef123456&n=1",
        "x-api-key: abcdef123456",
        "password = abcdef123456",
        "token: abcdef123456",
        "bearer abcdef123456",
        "the key sk-abcdef123456 was refused",
        "hf_abcdef123456",
        "ghp_abcdef123456",
        "xoxb-abcdef123456",
    ],
)
def test_scrub_hides_secrets(text: str) -> None:
    """What looks like a key is not in a text that was scrubbed."""
    assert "abcdef123456" not in scrub(text)
    assert "****" in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic abcdef123456",
        "access_token=abcdef123456",
        '{"refresh_token": "abcdef123456"}',
        "client_secret=abcdef123456",
        "OPENAI_API_KEY=abcdef123456",
    ],
)
def test_scrub_hides_secrets_with_longer_names(text: str) -> None:
    """A secret is hidden also where its name has a word before it, or its header another scheme."""
    assert "abcdef123456" not in scrub(text)


@pytest.mark.parametrize(
    "text", ["shape (3, 4) does not match", "max_tokens: 512", "no such file: /tmp/a", ""]
)
def test_scrub_leaves_plain_text(text: str) -> None:
    """A message without secrets stays as it was."""
    assert scrub(text) == text


def test_foreign_keeps_type_and_text_but_no_frames() -> None:
    """The stand-in says what the library said and holds nothing of it."""
    try:
        raise KeyError("token=abcdef123456")
    except KeyError as error:
        stand_in = foreign(error)
    assert stand_in.type_name == "KeyError"
    assert "abcdef" not in str(stand_in)
    assert (stand_in.__traceback__, stand_in.__cause__, stand_in.__context__) == (None, None, None)
    assert foreign(stand_in) is stand_in


def test_foreign_without_text_is_the_name() -> None:
    """An exception without words is told by its type."""
    assert str(foreign(AssertionError())) == "AssertionError"


def test_fresh_is_equal_and_has_no_frames() -> None:
    """Two waiters raise two errors that say the same, and neither keeps frames alive."""
    try:
        raise RateLimitError("slow down", retry_after_s=3, hint="wait") from OSError("x")
    except RateLimitError as error:
        copied, original = fresh(error), error
    assert copied is not original
    assert isinstance(copied, RateLimitError)
    assert (str(copied), copied.retry_after_s) == (str(original), 3)
    assert copied.__traceback__ is None
    assert isinstance(copied.__cause__, ForeignError)
    assert copied.__cause__.__traceback__ is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_made_fresh(kind: type[ProviderError]) -> None:
    """Errors of every kind cross the engine's border: an error that cannot leaves its caller waiting."""
    copied = fresh(kind("what", hint="do this"))
    assert type(copied) is kind
    assert str(copied) == "what\ndo this"


def test_an_authors_own_kind_can_be_made_fresh() -> None:
    """An error class with a constructor of its own is carried over as well."""

    class Refused(ProviderError):
        def __init__(self, code: int) -> None:
            super().__init__(f"refused with {code}")
            self.code = code

    copied = fresh(Refused(7))
    assert isinstance(copied, Refused)
    assert (copied.code, str(copied)) == (7, "refused with 7")


def test_setup_failed_of_a_library() -> None:
    """A library's exception becomes a message with the reference, a hint, and a frameless cause."""
    error = setup_failed("echo:x", OSError("disk on fire"))
    assert error.message == "Failed to setup resource 'echo:x': OSError: disk on fire"
    assert error.hint
    assert isinstance(error.__cause__, ForeignError)


def test_setup_failed_keeps_our_class_and_hint() -> None:
    """An error of ours stays what it is, told once, however many layers add to it."""
    inner = ModelAccessError("no such model", hint="look again")
    error = setup_failed("echo:x", setup_failed("echo:x", inner))
    assert type(error) is ModelAccessError
    assert str(error) == "Failed to setup resource 'echo:x': no such model\nlook again"


def test_mapped_turns_foreign_into_ours() -> None:
    """What a library raises inside comes out as ours, with its words and without its frames."""
    with pytest.raises(ProviderError, match="loading failed: KeyError: 'weight'") as caught:  # noqa: SIM117
        with mapped("loading failed"):
            raise KeyError("weight")
    assert isinstance(caught.value.__cause__, ForeignError)


def test_mapped_knows_exhausted_memory() -> None:
    """A MemoryError is about memory, not just any failure."""
    with pytest.raises(InsufficientMemoryError, match="out of memory"), mapped("loading"):
        raise MemoryError


@pytest.mark.parametrize(
    "error",
    [ClosedError("over"), StopAsyncIteration(), asyncio.CancelledError(), KeyboardInterrupt()],
)
def test_mapped_lets_pass(error: BaseException) -> None:
    """Ours, the end of an iteration and cancellation are not touched."""
    with pytest.raises(type(error)) as caught, mapped("never said"):
        raise error
    assert caught.value is error


def test_a_huge_foreign_text_is_cut_and_costs_no_time() -> None:
    """A service may answer with anything; looking for keys in it must not hang."""
    told = foreign(ValueError("-a" * 100_000))
    assert len(str(told)) < 5_000


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.57 GiB)"), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA is full."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("a word about being out of memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_failures(error: Exception, short: bool) -> None:
    """torch says it by a class, by words of its own for Metal and for the CPU, or Python does."""
    assert errors.is_out_of_memory(error) is short
