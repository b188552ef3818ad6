"""The engine thread: one daemon thread with one event loop, on which all models live.

Callers on any thread or loop hand it coroutines. Crossing is by mailboxes that wake the other side once
for each burst, not once for each call. While a loop has calls under way a ticker wakes it every 50 ms:
without that a notebook's interrupt is seen only when the work is over (ipykernel#881).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import (
    CancelledError as FutureCancelledError,
    Future,
    TimeoutError as FutureTimeoutError,
)
from contextlib import suppress
from typing import Any, Self, TypeVar

from nbproviders.core.watch import LOOK_S, Watch, looking
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    ProviderError,
    TimeoutError,
    foreign,
    fresh,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)

TICK_S = 0.05
_EXIT_S = 3.0
STOPPED = "Stopped before its end."  # what a notebook shows of a cell that was cancelled


class Mailbox:
    """Calls for one event loop, from any thread; it is woken once for each burst of them.

    There is no lock: a finalizer posts at any allocation, also while its own thread is posting, and
    Ctrl-C ends a post at any call. What keeps a call from lying unseen is the order: `post` appends and
    then looks whether the loop was woken; the loop forgets that it was and then looks what lies there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak: ports are kept by loop, and one that held its loop would keep it for ever.
        self._loop = weakref.ref(loop)
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._woken = False

    def post(self, function: Callable[..., object], *arguments: object) -> bool:
        """Have the loop call a function soon; False if that loop is closed for good."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._calls.append((function, arguments))
        if self._woken:
            return True
        woken = False
        try:
            self._woken = True
            loop.call_soon_threadsafe(self._drain)
            woken = True
        except RuntimeError:
            if loop.is_closed():  # in this moment
                return False
            raise  # the stack is full: a RecursionError is one too
        finally:
            if not woken:  # nor perhaps by Ctrl-C; others that have posted meanwhile rely on it
                self._woken = False
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._drain)
        return True

    def _drain(self) -> None:
        self._woken = False
        try:
            for _ in range(len(self._calls)):  # who posts meanwhile wakes the loop again
                function, arguments = self._calls.popleft()
                try:
                    function(*arguments)
                except Exception as error:  # one that fails takes no other of the burst with it
                    told = {"message": "A posted call failed", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(told)
        finally:
            if self._calls and not self._woken:  # Ctrl-C fell in between
                self._woken = True
                asyncio.get_running_loop().call_soon(self._drain)


class Port(Mailbox):
    """The caller's side: results for one loop, and the ticker that keeps it interruptible."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._waiting = 0
        self._ticking = False

    def __enter__(self) -> Self:
        self._waiting += 1
        if not self._ticking:
            self._tick()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1

    def _tick(self) -> None:
        self._ticking = self._waiting > 0
        if self._ticking:
            asyncio.get_running_loop().call_later(TICK_S, self._tick)


_ports: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Port] = weakref.WeakKeyDictionary()


def port() -> Port:
    """Return the port of the running loop."""
    loop = asyncio.get_running_loop()
    found = _ports.get(loop)
    if found is None:
        found = _ports[loop] = Port(loop)
    return found


class Engine:
    """The thread and its loop; started by its first use."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._mailbox = Mailbox(self._loop)
        self._closing: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="nbproviders-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=1))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    @property
    def here(self) -> bool:
        """Whether the caller is on the engine's own thread."""
        return threading.get_ident() == self._thread.ident

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the engine soon.

        Raises
        ------
        ClosedError
            If the engine has ended: the interpreter is going down, or this is a forked child.
        """
        if not self._mailbox.post(function, *arguments):
            raise ClosedError("The engine has ended; nothing can be run any more.")

    def post_from_finalizer(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the engine soon; if that has ended, nothing is left to give back."""
        self._mailbox.post(function, *arguments)

    def at_close(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a coroutine function run when the interpreter ends."""
        self._closing.append(function)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, on the engine's thread; kept until it ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def call(
        self, work: Callable[[], Coroutine[Any, Any, T]], watch: Watch | None = None
    ) -> T:
        """Run a coroutine function on the engine and return its result, from any loop.

        Cancelling the caller cancels the work and returns at once, without waiting for its end. `watch`
        looks at it meanwhile; on the engine itself nobody does.
        """
        __tracebackhide__ = True
        if self.here:
            return await work()
        home = port()
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        crossing = _Crossing(lambda task: home.post(_settle, result, task))
        self.post(crossing.begin, self, work)
        with home, looking(watch):
            try:
                return await result
            except asyncio.CancelledError as error:
                self.post_from_finalizer(crossing.cancel)
                error.args = error.args or (STOPPED,)
                raise

    def wait(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout_s: float | None = None,
        watch: Watch | None = None,
    ) -> T:
        """Run a coroutine function on the engine and block until its result is there.

        Wakes every 100 ms, so that Ctrl-C is obeyed; then the work is cancelled. `watch` looks at it
        meanwhile, on the caller's thread.

        Raises
        ------
        TimeoutError
            After `timeout_s` seconds; the work is cancelled.
        ConfigurationError
            On the engine's own thread, which would wait for itself for ever.
        """
        __tracebackhide__ = True
        if self.here:
            raise ConfigurationError(
                "A blocking call was made on the engine's own thread and would never return.",
                hint="Inside a provider or scorer use the async form: async with, await.",
            )
        result: Future[T] = Future()
        crossing = _Crossing(lambda task: _settle(result, task))
        try:  # from here on: Ctrl-C comes in the middle of a post as well
            self.post(crossing.begin, self, work)
            return _result(result, timeout_s, watch)
        finally:
            if not result.done():
                self.post_from_finalizer(crossing.cancel)
            if watch is not None:
                watch.close()

    def close(self) -> None:
        """Run what was left for the end, within three seconds, and stop the thread."""
        if not self._thread.is_alive() or self.here:
            return
        for function in self._closing:
            self.wait_quietly(function)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_EXIT_S)

    def wait_quietly(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for a coroutine function for at most three seconds, at the interpreter's end."""
        try:
            self.wait(work, _EXIT_S)
        except ProviderError as error:
            logger.debug("At the interpreter's end: %s", error)


class _Crossing:
    """One call on its way over the border: its task on the engine, and whether it is still wanted."""

    __slots__ = ("_cancelled", "_done", "_task")

    def __init__(self, done: Callable[[asyncio.Task[Any]], object]) -> None:
        self._done = done
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def begin(self, engine: Engine, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        if self._cancelled:
            return
        self._task = engine.start(_awaited(work))
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


# Functions between a user's line and the engine set __tracebackhide__: a notebook's traceback then ends at
# the user's line, and IPython need not parse our files to print it while somebody waits for Stop.
def _settle(result: asyncio.Future[Any] | Future[Any], task: asyncio.Task[Any]) -> None:
    """Carry a task's end over the border; an error crosses without its frames."""
    error = None if task.cancelled() else task.exception()
    if result.done():
        return
    if task.cancelled():
        result.cancel()
    elif error is not None:
        result.set_exception(fresh(error) if isinstance(error, ProviderError) else error)
    else:
        result.set_result(task.result())


async def _awaited(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await what a function returns; what it raises before that is the work's error as well.

    `SystemExit` of somebody's code, which would end the engine's loop, is an error of ours.
    """
    try:
        return await work()
    except SystemExit as error:
        raise ProviderError(f"The call was ended by {foreign(error)}.") from None


def _result(result: Future[T], timeout_s: float | None, watch: Watch | None = None) -> T:
    __tracebackhide__ = True
    try:
        error = _error(result, timeout_s, watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # without the frames of the waiting that it fell into
    if error is not None:
        raise error  # not by `result`, whose frames would stand before what it says
    return result.result()


def _error(result: Future[T], timeout_s: float | None, watch: Watch | None) -> BaseException | None:
    """Wait for a result; return the error that it is, None for any other."""
    __tracebackhide__ = True
    waited_s = 0.0
    while True:
        slice_s = LOOK_S if timeout_s is None else min(LOOK_S, max(timeout_s - waited_s, 0))
        try:
            return result.exception(slice_s)
        except FutureTimeoutError:
            waited_s += slice_s
        except FutureCancelledError:
            raise ClosedError("The call was cancelled before it ended.") from None
        # A result may have come in this moment.
        if timeout_s is not None and waited_s >= timeout_s and not result.done():
            raise TimeoutError(
                f"No result within {timeout_s:g} s.", hint="Give it longer: timeout_s=…"
            )
        if watch is not None:
            watch.look()


_default: Engine | None = None
_default_lock = threading.Lock()


def default() -> Engine:
    """Return the process's engine; started by its first use, anew in a forked child."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Engine()
    return _default


_after_fork: list[Callable[[], None]] = []


def after_fork(functions: Iterable[Callable[[], None]]) -> None:
    """Have functions called in a forked child: its threads are gone, and so what they owned."""
    _after_fork.extend(functions)


def _forget() -> None:
    global _default, _default_lock
    _default = None
    _default_lock = threading.Lock()
    for function in _after_fork:
        function()


def _close() -> None:
    if _default is not None:
        _default.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
atexit.register(_close)
