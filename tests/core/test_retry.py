"""Asking again: only where it helps, as long as the service wishes, never in the middle of a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from nbproviders.core.completion import Finish, Usage
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.core.retry import MAX_WAIT_S, Retry, retrying
from nbproviders.errors import (
    AuthenticationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
)

QUICK_S = 0.001


class Failing(Model):
    """Raises one error after another, then answers in two pieces; may fail between them."""

    info = ModelInfo("test:failing")

    def __init__(self, *errors: Exception, between: Exception | None = None) -> None:
        self.errors = list(errors)
        self.between = between
        self.asked = 0
        self.closed = 0

    def stream(self, request: str | Messages | Request) -> Stream:
        asked = as_request(request)
        return Stream(self._run(), asked, self.info.spec)

    async def _run(self) -> AsyncGenerator[str | Finish, None]:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        yield "a"
        if self.between is not None:
            raise self.between
        yield "b"
        yield Finish("length", Usage(3, 2))

    async def aclose(self) -> None:
        self.closed += 1


def retry(model: Model, times: int = 3) -> Retry:
    return Retry(model, times, first_wait_s=QUICK_S)


@pytest.mark.parametrize(
    "error", [ServiceUnavailableError("x"), TimeoutError("x"), RateLimitError("x", retry_after_s=0)]
)
async def test_what_may_pass_is_asked_again(error: ProviderError) -> None:
    """And the answer is whole, with what its end tells."""
    model = Failing(error, error)
    done = await retry(model).generate("x")
    assert (str(done), model.asked) == ("ab", 3)
    assert (done.finish, done.usage) == ("length", Usage(3, 2))


@pytest.mark.parametrize("error", [AuthenticationError("x"), InvalidRequestError("x"), KeyError(1)])
async def test_what_cannot_pass_is_told_at_once(error: Exception) -> None:
    """One request, no more."""
    model = Failing(error)
    with pytest.raises(type(error)):
        await retry(model).generate("x")
    assert model.asked == 1


@pytest.mark.parametrize("times", [0, 1, 4])
async def test_so_many_times_and_no_more(times: int) -> None:
    """Zero retries are one attempt, never None; the last error is the one that is raised."""
    errors = [ServiceUnavailableError(str(i)) for i in range(9)]
    model = Failing(*errors)
    with pytest.raises(ServiceUnavailableError) as told:
        await retry(model, times).generate("x")
    assert model.asked == times + 1
    assert told.value.message.split()[0] == str(times)
    assert told.value.final


@pytest.mark.parametrize("kind", [ServiceUnavailableError, RateLimitError, TimeoutError])
async def test_the_error_says_how_often_was_asked(
    kind: type[ProviderError], caplog: pytest.LogCaptureFixture
) -> None:
    """Beside what to do by itself; each retry was logged with the wait before it."""
    model = Failing(*[kind("HTTP 429", hint="Try later.") for _ in range(9)])
    with caplog.at_level(logging.INFO, "nbproviders"), pytest.raises(kind) as told:
        await retry(model, 2).generate("x")
    assert told.value.message == "HTTP 429 (asked 3 times)"
    assert told.value.hint == "Try later. max_retries=… asks more often."
    logged = [one.getMessage() for one in caplog.records if one.name.startswith("nbproviders")]
    wait = "asking again in 0.0 s or a little later"
    assert logged == [f"HTTP 429; {wait} (attempt {n} of 3)." for n in (2, 3)]


@pytest.mark.parametrize("first", [None, ServiceUnavailableError("x")])
async def test_a_last_word_that_is_no_retry_is_left_alone(first: ProviderError | None) -> None:
    """Nothing is added to what asking again cannot help, however it came to that."""
    used_up = RateLimitError("used up", retry_after_s=99)
    used_up.final = True
    for error in (AuthenticationError("refused"), used_up):
        model = Failing(*([first] if first else []), error)
        before = str(error)
        with pytest.raises(type(error)) as told:
            await retry(model).generate("x")
        assert (str(told.value), model.asked) == (before, 1 + bool(first))


async def test_one_attempt_is_not_counted() -> None:
    """With no retries nothing is said of them, nor logged."""
    with pytest.raises(ServiceUnavailableError) as told:
        await retry(Failing(ServiceUnavailableError("down")), 0).generate("x")
    assert str(told.value) == "down"


async def test_never_after_the_first_chunk() -> None:
    """Half of two answers is no answer."""
    model = Failing(between=ServiceUnavailableError("cut"))
    stream = retry(model).stream("x")
    assert await anext(stream) == "a"
    with pytest.raises(ServiceUnavailableError, match="cut"):
        await anext(stream)
    assert (stream.text, model.asked) == ("a", 1)


async def test_retries_do_not_multiply() -> None:
    """What was retried inside is final outside."""
    model = Failing(*[ServiceUnavailableError("x")] * 9)
    with pytest.raises(ServiceUnavailableError) as told:
        await Retry(retry(model, 2), 3, first_wait_s=QUICK_S).generate("x")
    assert (model.asked, told.value.message) == (3, "x (asked 3 times)")


async def test_the_service_is_waited_for_as_it_asks() -> None:
    """Not sooner; and not at all if it asks for longer than anybody wants to wait."""
    loop = asyncio.get_running_loop()
    model = Failing(RateLimitError("x", retry_after_s=0.2))
    began = loop.time()
    assert await retry(model).generate("x") == "ab"
    assert loop.time() - began >= 0.2
    model = Failing(RateLimitError("x", retry_after_s=MAX_WAIT_S + 1))
    with pytest.raises(RateLimitError) as told:
        await retry(model).generate("x")
    assert (model.asked, told.value.retry_after_s) == (1, MAX_WAIT_S + 1)
    assert told.value.message == "x"
    assert "asks to be left alone for 31 s; at most 30 s are waited for" in told.value.hint


async def test_a_cancelled_wait_ends_at_once() -> None:
    """Stop stops, also between attempts."""
    model = Failing(RateLimitError("x", retry_after_s=20))
    task = asyncio.ensure_future(retry(model).generate("x"))
    while not model.asked:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.asked == 1


async def test_closing_closes_what_is_inside() -> None:
    """Once for each closing."""
    model = Failing()
    await retry(model).aclose()
    assert model.closed == 1


async def test_a_call_is_retried_alike() -> None:
    """Not only models: any coroutine function."""
    left = [ServiceUnavailableError("x"), ServiceUnavailableError("x")]

    async def call() -> int:
        if left:
            raise left.pop()
        return 7

    assert await retrying(call, 2, first_wait_s=QUICK_S) == 7
