"""The waist: what a model is, whatever stands behind it.

To write one, give `stream` (and `aclose`). Everything above knows only this file. Batching needs no
method of its own: callers send up to ``info.parallel`` requests at once, and a backend gathers them.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from nbproviders.core.completion import UNPRICED, Chunk, Completion, Cost, Finish, Usage
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.tokens import KnowsTokens, Score, Token
from nbproviders.errors import (
    ClosedError,
    InvalidRequestError,
    ProviderError,
    UnsupportedError,
    mapped,
)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What callers may know of a model.

    Attributes
    ----------
    spec
        The reference it came from, as text.
    parallel
        Requests it takes at once with profit.
    memory_bytes
        Bytes it holds on each device, by device name (``cpu``, ``cuda:0``).
    context_tokens
        Most tokens of prompt and completion together; None if unknown.
    can
        Names of further capabilities: ``chat``, ``next_tokens``, ``score``, ``logprobs``, ``proxy``,
        ``sleep``.
    notes
        What a person should know of how it was loaded, such as an optimisation that stepped back and why.
    remote
        Whether another machine computes: asking it then takes nothing from models that compute here.
    """

    spec: str
    parallel: int = 1
    memory_bytes: dict[str, int] = field(default_factory=dict)
    context_tokens: int | None = None
    can: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    remote: bool = False


class Stream:
    """The text of one generation as it comes: ``async for chunk in stream``.

    Wraps what a backend writes: an async generator of text that may end with a `Finish`. Leaving it
    early (``aclose``, ``async with``, or losing the last reference) cancels the generation.
    """

    def __init__(
        self, source: AsyncGenerator[str | Finish, None], request: Request, spec: str
    ) -> None:
        self._source = source
        self._request = request
        self._spec = spec
        self._parts: list[str] = []
        self._began_s = time.perf_counter()
        self._first_s: float | None = None
        self._completion: Completion | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._completion is not None:
            raise StopAsyncIteration
        async for item in self._source:
            if isinstance(item, Finish):
                self._end(item)
                await self._source.aclose()
                raise StopAsyncIteration
            if self._first_s is None:
                self._first_s = time.perf_counter()
            self._parts.append(item)
            return item if isinstance(item, Chunk) else Chunk(item)
        self._end(Finish(chat=not isinstance(self._request.prompt, str)))
        raise StopAsyncIteration

    def _end(self, end: Finish) -> None:
        now_s = time.perf_counter()
        self._completion = Completion(
            "".join(self._parts),
            end=end,
            params=self._request.params,
            spec=self._spec,
            ttft_s=(self._first_s or now_s) - self._began_s,
            total_s=now_s - self._began_s,
        )

    @property
    def completion(self) -> Completion:
        """The whole, once the stream has ended.

        Raises
        ------
        ClosedError
            While it has not, or if it was cancelled.
        """
        if self._completion is None:
            raise ClosedError(
                "This stream has no completion: it has not been read to its end.",
                hint="Read it first: async for chunk in stream: …",
            )
        return self._completion

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._parts)

    async def aclose(self) -> None:
        """Stop generating. Nothing happens if it has ended."""
        await self._source.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class Model(ABC):
    """A model that generates text. Used on the engine's loop only; people hold a `Client`."""

    info: ModelInfo

    @abstractmethod
    def stream(self, request: str | Messages | Request) -> Stream:
        """Start generating when first read; see `Stream`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Free what the model holds, for real. Called twice, it does nothing more."""

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """Return the whole completion of a prompt; the stream, read to its end."""
        request = as_request(prompt, params, whole=True, **overrides)
        async with self.stream(request) as stream:
            async for _ in stream:
                pass
            return stream.completion

    def cost(self, usage: Usage) -> Cost:
        """Return what a request of so many tokens costs; also asked before it is made."""
        return UNPRICED

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Call a method of the object underneath, by its path; only where ``info.can`` has ``proxy``.

        Raises
        ------
        UnsupportedError
            For a model that hands nothing through.
        """
        raise UnsupportedError(f"{self.info.spec} has no method {'.'.join(path)!r}.")

    @property
    def raw(self) -> object:
        """The object underneath: a transformers model, an SDK's client; the model itself if none."""
        return self


def tokens_of(model: Model, ability: str) -> KnowsTokens:
    """Return a model as one that tells the probabilities of tokens.

    Raises
    ------
    UnsupportedError
        If it cannot do that, naming the providers' kinds that can.
    """
    require(model, ability)
    if isinstance(model, KnowsTokens):
        return model
    raise _unable(model, ability)


def require(model: Model, ability: str) -> None:
    """Check that a model can do something.

    Raises
    ------
    UnsupportedError
        If not.
    """
    if ability not in model.info.can:
        raise _unable(model, ability)


def _unable(model: Model, ability: str) -> UnsupportedError:
    return UnsupportedError(
        f"{model.info.spec} cannot tell {_ABILITIES[ability]}.",
        hint="Models of transformers and llama-cpp can.",
    )


_ABILITIES = {
    "next_tokens": "which tokens may come next",
    "score": "how likely a given text is",
    "logprobs": "the probability of each token it writes",
}


async def next_tokens(model: Model, request: Request, k: int) -> tuple[Token, ...]:
    """Return the `k` most likely next tokens after a prompt; see `KnowsTokens`.

    Raises
    ------
    InvalidRequestError
        If `k` is no whole number of at least 1.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidRequestError(f"k={k!r} must be a whole number, at least 1.")
    # A leased model may not be loaded yet and cannot say what it can: it asks by itself.
    able = model if isinstance(model, KnowsTokens) else tokens_of(model, "next_tokens")
    with mapped(model.info.spec):
        return await able.next_tokens(request, k)


async def score(model: Model, request: Request, continuation: str) -> Score:
    """Return how likely a continuation of a prompt is; see `KnowsTokens`.

    Raises
    ------
    InvalidRequestError
        If the continuation is no text, or empty.
    """
    if not isinstance(continuation, str) or not continuation:
        raise InvalidRequestError(
            f"A continuation is a str with something in it, not {continuation!r:.60}",
            hint="Write m.score(prompt, continuation).",
        )
    able = model if isinstance(model, KnowsTokens) else tokens_of(model, "score")
    with mapped(model.info.spec):
        return await able.score(request, str(continuation))


async def answer(model: Model, request: Request) -> Completion:
    """Return the completion of one request; whatever the model raises is one of our errors."""
    try:
        return await model.generate(request)
    except (Exception, SystemExit):  # mapped where it is rare: each answer comes this way
        with mapped(model.info.spec):
            raise


async def generate_all(
    model: Model,
    requests: Sequence[Request],
    on_done: Callable[[int, Completion | ProviderError], Awaitable[None] | None] | None = None,
) -> list[Completion | ProviderError]:
    """Answer many requests, ``info.parallel`` at once; a failure takes only its own place.

    Parameters
    ----------
    model
        Where to send them.
    requests
        What to ask.
    on_done
        Told of each result, by its place in `requests`, as soon as it is there.

    Returns
    -------
    list
        A completion or an error for each request, in their order.
    """
    results: list[Completion | ProviderError | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))

    async def work() -> None:
        for place, request in waiting:
            outcome: Completion | ProviderError
            try:
                outcome = await answer(model, request)
            except ProviderError as error:
                outcome = error
            results[place] = outcome
            told = on_done(place, outcome) if on_done is not None else None
            if told is not None:
                await told

    async with asyncio.TaskGroup() as group:
        for _ in range(min(max(model.info.parallel, 1), len(requests))):
            group.create_task(work())
    return [result for result in results if result is not None]
