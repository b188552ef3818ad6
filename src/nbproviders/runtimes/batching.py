"""Gathering requests into batches for a thread, and bringing the text back to each.

Requests that arrive in one turn of the loop, or while a batch runs, go together; an engine that can take more
while it computes asks for them. No time is spent waiting for more to come.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

from nbproviders.core.completion import Finish
from nbproviders.core.engine import Mailbox
from nbproviders.core.params import Request
from nbproviders.errors import ProviderError, foreign, fresh
from nbproviders.runtimes.threads import Worker


class Ticket:
    """One request in a batch. Written by the worker's thread, read on the loop.

    Attributes
    ----------
    request
        What was asked.
    cancelled
        Set on the loop; the worker ends this row at its next token.
    arrived_s
        When it came, by ``time.perf_counter``.
    """

    __slots__ = ("_ended", "_items", "_mailbox", "_waiter", "arrived_s", "cancelled", "request")

    def __init__(self, request: Request, mailbox: Mailbox) -> None:
        self.request = request
        self.cancelled = False
        self.arrived_s = time.perf_counter()
        self._mailbox = mailbox
        self._items: deque[str | Finish | ProviderError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    # The worker's side

    def emit(self, text: str) -> None:
        """Deliver a piece of text."""
        self._mailbox.post(self.deliver, text)

    def end(self, text: str, finish: Finish) -> None:
        """Deliver the rest of the text and the end, in one."""
        self._mailbox.post(self._finish, text, finish)

    def fail(self, error: ProviderError) -> None:
        """Deliver a failure of this request alone."""
        self._mailbox.post(self.deliver, error)

    # The loop's side

    def deliver(self, item: str | Finish | ProviderError) -> None:
        """Take an item; the first that is no text is the end."""
        self._items.append(item)
        self._ended = self._ended or not isinstance(item, str)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _finish(self, text: str, finish: Finish) -> None:
        if text:
            self._items.append(text)
        self.deliver(finish)

    @property
    def ended(self) -> bool:
        """Whether the worker has done its last for this request."""
        return self._ended

    async def next(self) -> str | Finish | ProviderError:
        """Return the next item; the worker always delivers an end."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()


RunBatch = Callable[[Sequence[Ticket]], None]


class Batcher:
    """Feeds a worker with batches.

    Parameters
    ----------
    worker
        Whose thread computes.
    run
        Called there with up to `limit` tickets; ends or fails every one of them.
    limit
        Most requests in one batch.
    on_cancel
        Told on the loop when a request that is being computed was cancelled.
    """

    def __init__(
        self,
        worker: Worker,
        run: RunBatch,
        limit: int,
        on_cancel: Callable[[], object] | None = None,
    ) -> None:
        self._worker = worker
        self._run = run
        self._limit = limit
        self._on_cancel = on_cancel
        self._pending: deque[Ticket] = deque()
        self._lock = threading.Lock()  # both sides take from what is pending
        self._taken: list[Ticket] = []
        self._busy = False
        self._scheduled = False
        self._mailbox: Mailbox | None = None

    async def read(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Queue a request and yield its text and its `Finish`.

        Leaving early cancels it, and returns when the worker has let go of it.
        """
        loop = asyncio.get_running_loop()
        if self._mailbox is None:
            self._mailbox = Mailbox(loop)
        ticket = Ticket(request, self._mailbox)
        with self._lock:
            self._pending.append(ticket)
        self._schedule(loop)
        try:
            while True:
                item = await ticket.next()
                if isinstance(item, ProviderError):
                    raise item
                yield item
                if isinstance(item, Finish):
                    return
        finally:
            if not ticket.ended:
                await self._let_go(ticket)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Flush at the end of this turn of the loop, so that what arrives in it goes together."""
        if not self._scheduled and not self._busy:
            self._scheduled = True
            loop.call_soon(self._flush)

    def take(self, count: int) -> list[Ticket]:
        """Return up to so many requests that have come meanwhile; called by `run`, which then ends them."""
        if not self._pending:
            return []
        with self._lock:
            found = self._next(count, alone=False)
            # A run goes on as long as requests come: those that were answered must not pile up.
            self._taken = [ticket for ticket in self._taken if not ticket.ended] + found
        return found

    def _flush(self) -> None:
        self._scheduled = False
        while self._pending and not self._busy:
            with self._lock:
                batch = self._next(self._limit, alone=True)
                self._taken = list(batch)
            try:
                self._worker.post(functools.partial(self._work, batch))
                self._busy = True
            except ProviderError as error:  # the worker is closed
                for ticket in batch:
                    ticket.deliver(fresh(error))

    def _next(self, count: int, *, alone: bool) -> list[Ticket]:
        """Take the next requests; one that is to be alone comes alone, or not at all."""
        batch: list[Ticket] = []
        while self._pending and len(batch) < count:
            if self._pending[0].request.alone:
                return batch if batch or not alone else [self._pending.popleft()]
            batch.append(self._pending.popleft())
        return batch

    def _work(self, batch: list[Ticket]) -> None:
        assert self._mailbox is not None
        told = ProviderError("The model's batch ended without an answer to this request.")
        try:
            self._run(batch)
        except Exception as error:  # the backend's; whoever has no answer yet is told
            told = ProviderError(f"The model's batch failed: {foreign(error)}")
        finally:
            self._mailbox.post(self._worked, told)

    def _worked(self, told: ProviderError) -> None:
        self._busy = False
        with self._lock:
            batch, self._taken = self._taken, []
        for ticket in batch:
            if not ticket.ended:
                ticket.deliver(fresh(told))
        self._flush()

    async def _let_go(self, ticket: Ticket) -> None:
        ticket.cancelled = True
        with self._lock:
            if ticket in self._pending:
                self._pending.remove(ticket)
                return
            unwanted = all(other.cancelled or other.ended for other in self._taken)
        if unwanted and self._on_cancel is not None:
            self._on_cancel()
        # The thread still computes for it: whoever holds the model must hold it until it stops. A
        # cancellation of this task meanwhile changes nothing about that; it is heard afterwards.
        cancelled = False
        while not ticket.ended:
            try:
                await ticket.next()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
