"""Jobs of widgets: start, stop, show. Knows no model and no widget.

A view is changed only on the loop of the kernel that made it. A job's work runs on the engine; what
it tells is gathered and handed to the view, a few times a second. A callback may arrive on any thread
or loop (ipykernel 7.0 to 7.3 run it on a subshell's), so no callback is asked for its running loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import StrEnum
from typing import Any, Generic, TypeVar

from nbproviders.core import engine
from nbproviders.errors import ProviderError, foreign, scrub

T = TypeVar("T")
Tell = Callable[[Any], None]
logger = logging.getLogger(__name__)

RATE_HZ = 12
STOP_S = 0.1


class Home:
    """Where a view may be changed: the loop that was running when this was made.

    Make it in a cell. Without a running loop (plain Python, tests) calls are made at once, on the
    caller's thread, one at a time.
    """

    def __init__(self) -> None:
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._thread = threading.get_ident()
        self._lock = threading.RLock()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function at home: at once if the caller is there, else soon. Any thread."""
        loop = self._loop
        if loop is not None and loop.is_running():
            if threading.get_ident() == self._thread:
                function(*arguments)
                return
            with suppress(RuntimeError):  # closed in this moment
                loop.call_soon_threadsafe(function, *arguments)
                return
        with self._lock:
            function(*arguments)

    def soon(self, delay_s: float, function: Callable[..., object]) -> None:
        """Call a function at home after a moment; at once where no loop runs. At home."""
        if self._loop is not None and self._loop.is_running():
            self._loop.call_later(delay_s, function)
        else:
            function()


class State(StrEnum):
    """Where a job is."""

    IDLE = "idle"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class Job(Generic[T]):
    """One thing a widget does at a time. All three callbacks come at home, never two at once.

    Parameters
    ----------
    changed
        Called after each change of `state`.
    show
        Called with what the work told since the last call, in order; at most `RATE_HZ` times a
        second.
    home
        Shared by the jobs of one widget; by default the caller's.

    Attributes
    ----------
    state
        Where it is.
    error
        Why it failed, as text for people; empty unless `state` is failed.
    """

    def __init__(
        self,
        changed: Callable[[], object],
        show: Callable[[list[Any]], object] | None = None,
        home: Home | None = None,
    ) -> None:
        self.home = home or Home()
        self.state = State.IDLE
        self.error = ""
        self._changed, self._show = changed, show
        self._run: _Run[T] | None = None
        self._ended = threading.Event()
        self._ended.set()

    @property
    def busy(self) -> bool:
        """Whether it is running; while it is stopping it may be started again."""
        return self.state is State.RUNNING

    def start(
        self,
        work: Callable[[Tell], Coroutine[Any, Any, T]],
        done: Callable[[T], object] | None = None,
    ) -> None:
        """Start a coroutine function on the engine, unless one is running. Any thread.

        Parameters
        ----------
        work
            Gets a function that takes what is to be shown, from any thread.
        done
            Called at home with the result, before `changed`; not if the job was stopped or failed.
        """
        self.home.call(self._start, work, done)

    def stop(self) -> None:
        """Cancel the work; any thread. Returns at once, and nothing of it is shown any more."""
        self.home.call(self._stop)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until nothing is running; False after `timeout_s`. Never on the thread of a loop."""
        return self._ended.wait(timeout_s)

    # At home

    def _start(
        self, work: Callable[[Tell], Coroutine[Any, Any, T]], done: Callable[[T], object] | None
    ) -> None:
        if self.busy:
            return
        self._run = _Run(self, work, done)
        self._ended.clear()
        self._become(State.RUNNING)
        engine.default().post(self._run.begin)

    def _stop(self) -> None:
        run = self._run
        if run is None or not self.busy:
            return
        run.wanted = False
        self._become(State.STOPPING)
        engine.default().post(run.cancel)

    def shown(self, values: list[Any]) -> None:
        """Hand values to the view; at home."""
        if self._show is not None:
            try:
                self._show(values)
            except Exception as error:  # the widget's border: shown in the widget
                self._fail(error)

    def end(self, run: _Run[T], result: list[T], error: str) -> None:
        """Take note that a run is over; at home. One that was replaced before is ignored."""
        if self._run is not run:
            return
        if run.wanted:
            run.flush()
        if self._run is not run:  # the last thing shown made the view fail
            return
        wanted, run.wanted, self._run = run.wanted, False, None
        if not wanted:
            self._over(State.IDLE)
        elif error:
            self._over(State.FAILED, error)
        else:
            self.state = State.IDLE
            try:
                if run.done is not None and result:
                    run.done(result[0])
            except Exception as failure:  # the widget's border: shown in the widget
                self._fail(failure)
                return
            if self._run is None:
                self._over(State.IDLE)

    def _fail(self, error: Exception) -> None:
        """End with an error of the view's own code."""
        run, self._run = self._run, None
        if run is not None:
            run.wanted = False
            engine.default().post(run.cancel)
        self._over(State.FAILED, told(error))

    def _over(self, state: State, error: str = "") -> None:
        self._become(state, error)
        self._ended.set()

    def _become(self, state: State, error: str = "") -> None:
        self.state, self.error = state, error
        try:
            self._changed()
        except Exception as failure:  # a view that cannot even show its state
            logger.warning("A widget could not show that its job is %s: %s", state, told(failure))


class _Run(Generic[T]):
    """One start of a job, on both sides of the border."""

    def __init__(
        self,
        job: Job[T],
        work: Callable[[Tell], Coroutine[Any, Any, T]],
        done: Callable[[T], object] | None,
    ) -> None:
        self._job, self._work, self.done = job, work, done
        self.wanted = True
        self._task: asyncio.Task[T] | None = None
        self._lock = threading.Lock()
        self._told: list[Any] = []
        self._due = False
        self._shown_s = 0.0

    # On the engine

    def begin(self) -> None:
        self._task = engine.default().start(self._main())
        self._task.add_done_callback(self._finished)

    async def _main(self) -> T:
        return await self._work(self.tell)

    def _finished(self, task: asyncio.Task[T]) -> None:
        result: list[T] = []
        text = "It was cancelled."
        if not task.cancelled():
            error = task.exception()
            text = "" if error is None else told(error)
            result = [task.result()] if error is None else []
        self._job.home.call(self._job.end, self, result, text)

    def cancel(self) -> None:
        """Cancel, and report the end soon even if the work takes its time."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            loop = asyncio.get_running_loop()
            loop.call_later(STOP_S, self._job.home.call, self._job.end, self, [], "")

    def _later(self) -> None:
        wait_s = max(self._shown_s + 1 / RATE_HZ - time.monotonic(), 0)
        asyncio.get_running_loop().call_later(wait_s, self._job.home.call, self.flush)

    # From any thread

    def tell(self, value: Any) -> None:
        """Have a value shown soon."""
        with self._lock:
            if not self.wanted:
                return
            self._told.append(value)
            if self._due:
                return
            self._due = True
        engine.default().post(self._later)

    # At home

    def flush(self) -> None:
        """Hand over what was told since the last time."""
        with self._lock:
            values, self._told, self._due = self._told, [], False
            self._shown_s = time.monotonic()
        if values and self.wanted:
            self._job.shown(values)


def told(error: BaseException) -> str:
    """Return an error as text for people, without secrets; what is kept of it in a widget."""
    return scrub(str(error)) if isinstance(error, ProviderError) else str(foreign(error))


def clicks_note() -> str:
    """Return what to tell people about clicks while a cell runs; empty where they act at once."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    kernel = getattr(found, "kernel", None)
    module = sys.modules.get("ipykernel")
    if kernel is None or module is None or module.version_info >= (7, 4):
        return ""
    if getattr(kernel, "_supports_kernel_subshells", False):
        return "In apps older than JupyterLab 4.4 clicks act after the running cell."
    return "On this kernel clicks act after the running cell; ipykernel 7.4 or newer acts at once."
