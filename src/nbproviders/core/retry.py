"""`Retry`: a model that asks again where asking again may help. The one place that retries.

Exponential with jitter, at most 30 s; as long as a service asks for (``Retry-After``), if that is no longer;
only retryable errors, and never after the first chunk of a stream: nobody gets half of two answers. Each
retry is logged (INFO), and the error that is left says how often was asked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from nbproviders.core.closing import closing_on_failure
from nbproviders.core.completion import Chunk, Completion, Finish, finish_of
from nbproviders.core.model import Model, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.wrapping import Wrapping
from nbproviders.errors import ProviderError

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_WAIT_S = 30.0
_FIRST_WAIT_S = 0.5
_JITTER_S = 0.5
_MORE = "max_retries=… asks more often."


async def retrying(
    call: Callable[[], Awaitable[T]], max_retries: int, *, first_wait_s: float = _FIRST_WAIT_S
) -> T:
    """Return what a call returns, asking again up to `max_retries` times.

    Its error, if it fails to the end, is final: an outer `Retry` lets it through. It says how often was
    asked, and whether the service wants to be left alone for longer than anybody waits here.

    Raises
    ------
    ProviderError
        The last error.
    """
    try:
        return await call()  # most calls need no more, and would wait for the machinery
    except ProviderError as error:
        failures = [error]

    async def again(attempt: Any) -> T:
        try:
            if failures:  # the first attempt was made above
                raise failures.pop()
            return await call()
        except ProviderError as error:
            _note(error, attempt, max_retries)
            raise

    asked = 1
    try:
        async for attempt in _attempts(max_retries, first_wait_s):
            asked = attempt.num
            with attempt:
                return await again(attempt)
    except ProviderError as error:
        _conclude(error, asked)
        raise
    raise AssertionError("no attempt was made")  # pragma: no cover  # there is always one


def _note(error: ProviderError, attempt: Any, max_retries: int) -> None:
    """Log that it will be asked again, if it will."""
    wait_s = _wait(error)
    if wait_s is False or attempt.num > max_retries:
        return
    least_s = attempt.next_wait if wait_s is True else wait_s
    logger.info(
        "%s; asking again in %.1f s or a little later (attempt %d of %d).",
        error.message.rstrip("."),
        least_s,
        attempt.num + 1,
        max_retries + 1,
    )


def _conclude(error: ProviderError, asked: int) -> None:
    """Make an error the last word: it is final, and says what was tried."""
    if error.retryable and not error.final:
        wish_s: float | None = getattr(error, "retry_after_s", None)
        if asked > 1:
            error.args = (f"{error.message} (asked {asked} times)",)
        if wish_s is not None and wish_s > MAX_WAIT_S:
            error.hint = (
                f"The service asks to be left alone for {wish_s:.0f} s; at most {MAX_WAIT_S:.0f} s are "
                "waited for here. Ask again after that, or another model."
            )
        elif asked > 1:
            error.hint = f"{error.hint} {_MORE}".strip()
    error.final = True


def _attempts(max_retries: int, first_wait_s: float) -> AsyncIterator[Any]:
    import stamina

    # It logs each retry as a warning; without a handler Python prints that into the notebook.
    quiet = logging.getLogger("stamina")
    if not quiet.handlers:
        quiet.addHandler(logging.NullHandler())
    return stamina.retry_context(
        on=_wait,
        attempts=max_retries + 1,
        timeout=None,
        wait_initial=first_wait_s,
        wait_max=MAX_WAIT_S,
        wait_jitter=min(_JITTER_S, first_wait_s),
    )


def _wait(error: Exception) -> bool | float:
    """Return whether to ask again; a number is the service's own wish, in seconds."""
    if not isinstance(error, ProviderError) or not error.retryable or error.final:
        return False
    asked_s: float | None = getattr(error, "retry_after_s", None)
    if asked_s is None:
        return True
    return asked_s if 0 <= asked_s <= MAX_WAIT_S else False


class Retry(Wrapping):
    """A model behind which a failing call is made again.

    Parameters
    ----------
    model
        What is asked. Closing this closes it.
    max_retries
        Attempts after the first; 0 is one attempt.
    first_wait_s
        About how long the first wait is; each further one is twice as long.
    """

    def __init__(
        self, model: Model, max_retries: int, *, first_wait_s: float = _FIRST_WAIT_S
    ) -> None:
        super().__init__(model)
        self._max_retries = max_retries
        self._first_wait_s = first_wait_s

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """The inner model's, tried again."""
        request = as_request(prompt, params, whole=True, **overrides)
        return await retrying(
            lambda: self._model.generate(request),
            self._max_retries,
            first_wait_s=self._first_wait_s,
        )

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        stream, first = await retrying(
            lambda: self._begun(request), self._max_retries, first_wait_s=self._first_wait_s
        )
        async with aclosing(stream):
            if first is not None:
                yield first
                async for chunk in stream:
                    yield chunk
            yield finish_of(stream.completion)

    async def _begun(self, request: Request) -> tuple[Stream, Chunk | None]:
        """Return a stream and its first chunk; None if it ended without any."""
        stream = self._model.stream(request)
        async with closing_on_failure(stream):
            return stream, await anext(stream, None)

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """The inner model's, tried again like a generation."""
        return await retrying(
            lambda: self._model.call(path, arguments, named),
            self._max_retries,
            first_wait_s=self._first_wait_s,
        )

    async def aclose(self) -> None:
        """Close the inner model."""
        await self._model.aclose()
