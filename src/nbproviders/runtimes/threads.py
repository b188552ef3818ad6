"""A model's own thread: everything that touches its weights runs there, one job after another.

Compute libraries keep state in thread-local storage (torch.compile, CUDA graphs), and some must never be
called from two threads at once (llama.cpp).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from nbproviders.core.engine import Mailbox
from nbproviders.errors import ClosedError, ProviderError, foreign

T = TypeVar("T")

_here = threading.local()


class Worker:
    """A daemon thread that runs jobs in order.

    Parameters
    ----------
    name
        Of the thread, for debuggers.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"nbproviders-{name}", daemon=True)
        self._closed = False
        self._ended = False
        self._watchers: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self.claimed = False
        self._thread.start()

    def _run(self) -> None:
        _here.worker = self
        while (job := self._jobs.get()) is not None:
            job()
            del job  # an idle thread holds no reference to a model
        with self._lock:
            self._ended = True
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function on the thread and return its result.

        Cancelling the caller does not stop a thread: the job goes on to its end, its result is dropped.

        Raises
        ------
        ClosedError
            After `close`.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self.post(lambda: _run_into(done, loop, function, arguments))
        return await done

    async def run_to_end(
        self,
        function: Callable[..., T],
        *arguments: Any,
        on_cancel: Callable[[], object] | None = None,
    ) -> T:
        """Run a function on the thread; cancelled, end only when the thread has let go of it.

        Until then what it uses is in use. `on_cancel` may tell the function to hurry.
        """
        work = asyncio.ensure_future(self.run(function, *arguments))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel()
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # seen: nobody else will ask
            raise

    def post(self, job: Callable[[], None]) -> None:
        """Queue a job that reports its own end and raises nothing."""
        if self._closed:
            raise ClosedError("This model was closed.")
        self._jobs.put(job)

    async def close(self) -> None:
        """Let queued jobs end, then stop the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        if self._thread is threading.current_thread():
            return
        # Not by joining in an executor: at the interpreter's end there are none any more.
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            if self._ended:
                return
            self._watchers.append(lambda: Mailbox(loop).post(_settle, ended, None, False))
        await ended


def _run_into(
    done: asyncio.Future[Any],
    loop: asyncio.AbstractEventLoop,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    outcome: Any
    try:
        outcome, failed = function(*arguments), False
    except StopIteration as error:  # no future takes one
        outcome, failed = ProviderError(str(foreign(error))), True
    except Exception as error:  # handed over whole; the loop's side maps it
        outcome, failed = error, True
    except BaseException as error:  # sys.exit in foreign code would end the engine's loop
        outcome, failed = ProviderError(f"It tried to end the program: {foreign(error)}"), True
    mailbox = Mailbox(loop)
    mailbox.post(_settle, done, outcome, failed)


def _settle(done: asyncio.Future[Any], outcome: Any, failed: bool) -> None:
    if done.done():
        return
    if failed:
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def claim() -> Worker:
    """Return the worker whose thread this is, for a model that will go on using it.

    On any other thread, a new one. Whoever claims a worker closes it.
    """
    worker: Worker | None = getattr(_here, "worker", None)
    if worker is None:
        worker = Worker("model")
    worker.claimed = True
    return worker
