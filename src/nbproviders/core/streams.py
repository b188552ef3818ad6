"""Streams as people read them: `ClientStream` (async) and `SyncStream` (blocking).

The model's stream is read on the engine at the model's pace and carried over the border; see `_Pump`.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from nbproviders.core import engine as engines
from nbproviders.core.completion import Chunk, Completion
from nbproviders.core.model import Model
from nbproviders.core.params import Request
from nbproviders.core.watch import LOOK_S, Watch, looking
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    ProviderError,
    TimeoutError,
    fresh,
    mapped,
)


class _Pump:
    """Reads a stream on the engine, at the model's pace, and hands its chunks to the caller's side.

    The reader's pace never holds the model: a slow cell does not keep weights from leaving.
    """

    def __init__(self, model: Model, request: Request, deliver: Callable[[object], object]) -> None:
        self._model = model
        self._request = request
        self._deliver = deliver
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def begin(self, engine: engines.Engine) -> None:
        if not self._cancelled:
            self._task = engine.start(self._run())

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        # What the reader gets if this ends in any other way, such as by a cancellation.
        end: object = ClosedError("The stream was closed before its end.")
        try:
            with mapped(self._model.info.spec):
                async with self._model.stream(self._request) as stream:
                    async for chunk in stream:
                        self._deliver(chunk)
                    end = stream.completion
        except ProviderError as error:
            end = fresh(error)
        finally:
            self._deliver(end)


class _Reading:
    """What both readers share: the text so far and the completion at the end."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._completion: Completion | None = None
        self._ended = False

    @property
    def text(self) -> str:
        """What has been read so far."""
        return "".join(self._parts)

    @property
    def completion(self) -> Completion:
        """The whole with its usage and timings, once the stream was read to its end.

        Raises
        ------
        ClosedError
            Before that.
        """
        if self._completion is None:
            raise ClosedError(
                "This stream has no completion: it was not read to its end.",
                hint="Read it first: async for chunk in stream: …",
            )
        return self._completion

    def _take(self, item: object) -> Chunk | None:
        """Return a chunk, or None at the end; raise an error that came instead."""
        __tracebackhide__ = True
        if isinstance(item, Completion):
            self._completion, self._ended = item, True
            return None
        if isinstance(item, ProviderError):
            self._ended = True
            raise item
        chunk = item if isinstance(item, Chunk) else Chunk(item)
        self._parts.append(chunk)
        return chunk


class ClientStream(_Reading, AsyncIterator[Chunk]):
    """The chunks of one generation, on the caller's loop. Dropping it cancels the generation."""

    def __init__(
        self,
        model: Model,
        request: Request,
        engine: engines.Engine,
        watch: Watch | None = None,
    ) -> None:
        super().__init__()
        self._watch = watch
        self._engine = engine
        self._items: deque[object] = deque()
        self._inbox = _Inbox(self._items)
        self._model: Model | None = model
        self._request = request
        self._pump: _Pump | None = None
        self._port: engines.Port | None = None

    def _begin(self) -> engines.Port:
        if self._port is None or self._pump is None:
            assert self._model is not None
            home = self._port = engines.port()
            inbox = self._inbox
            self._pump = _Pump(self._model, self._request, lambda item: home.post(inbox.put, item))
            self._model = None
            self._engine.post(self._pump.begin, self._engine)
        return self._port

    async def __anext__(self) -> Chunk:
        __tracebackhide__ = True
        if self._ended:
            raise StopAsyncIteration
        home = self._begin()
        if not self._items:
            watch, self._watch = self._watch, None  # with its first chunk, the model is there
            with home, looking(watch):
                try:
                    await self._inbox.wait()
                except asyncio.CancelledError as error:
                    self._stop()
                    error.args = error.args or (engines.STOPPED,)
                    raise
        chunk = self._take(self._items.popleft())
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def _stop(self) -> None:
        self._ended = True
        if self._pump is not None:
            self._engine.post(self._pump.cancel)

    async def aclose(self) -> None:
        """Stop generating; nothing happens if it has ended."""
        if not self._ended:
            self._stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        pump = getattr(self, "_pump", None)
        if pump is not None and not self._ended:
            self._engine.post_from_finalizer(pump.cancel)


class _Inbox:
    """Where a pump's items arrive; it knows nothing of the stream, so that a stream can be dropped."""

    __slots__ = ("_items", "_waiter")

    def __init__(self, items: deque[object]) -> None:
        self._items = items
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: object) -> None:
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class SyncStream(_Reading, Iterator[Chunk]):
    """The chunks of one generation, blocking; wakes every 100 ms to obey Ctrl-C."""

    def __init__(
        self,
        model: Model,
        request: Request,
        engine: engines.Engine,
        timeout_s: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__()
        self._watch = watch
        self._engine = engine
        self._timeout_s = timeout_s
        self._items: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._pump = _Pump(model, request, self._items.put)
        self._begun = False

    def __next__(self) -> Chunk:
        __tracebackhide__ = True
        if self._ended:
            raise StopIteration
        if self._engine.here:
            raise ConfigurationError(
                "A blocking stream was read on the engine's own thread and would never go on.",
                hint="Inside a provider or scorer use the async form: async for.",
            )
        item: object = None
        try:
            if not self._begun:
                self._begun = True
                self._engine.post(self._pump.begin, self._engine)
            item = self._get()
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # without the frames of the waiting that it fell into
        finally:
            if item is None:
                self.close()
            self._end_watch()
        chunk = self._take(item)
        if chunk is None:
            raise StopIteration
        return chunk

    def _get(self) -> object:
        __tracebackhide__ = True
        waited_s = 0.0
        while True:
            with suppress(queue.Empty):
                return self._items.get(timeout=LOOK_S)
            waited_s += LOOK_S
            if self._timeout_s is not None and waited_s >= self._timeout_s:
                raise TimeoutError(
                    f"No chunk within {self._timeout_s:g} s.", hint="Give it longer: timeout_s=…"
                )
            if self._watch is not None:
                self._watch.look()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """Stop generating; nothing happens if it has ended."""
        if not self._ended:
            self._engine.post_from_finalizer(
                self._pump.cancel
            )  # Ctrl-C here: `__del__` does it again
            self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_begun", False) and not self._ended:
            self._engine.post_from_finalizer(self._pump.cancel)
