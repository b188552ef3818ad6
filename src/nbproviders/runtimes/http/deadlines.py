"""Ends of waits: one timer of the loop for all that wait on it.

`asyncio.timeout` and the HTTP library set a timer for each phase of each request and take it back a moment
later; for a short answer that was a tenth of all work.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType


class Deadlines:
    """The waits on one loop that must end some time; see `Deadline`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Take the timer back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _add(self, one: Deadline) -> None:
        self._waiting.add(one)
        # Often the timer is set already, for one that ended long ago: it looks again then.
        if self._timer is None or one.end_s < self._timer.when():
            self._set(one.end_s)

    def _set(self, end_s: float) -> None:
        self.close()
        if end_s < math.inf:
            self._timer = self._loop.call_at(end_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for one in tuple(self._waiting):
            if one.end_s <= now_s:
                self._waiting.discard(one)
                one.expire()
        if self._waiting:
            self._set(min(one.end_s for one in self._waiting))


class Deadline:
    """``with Deadline(deadlines, seconds):`` ends its block by a `TimeoutError` of Python's after a time.

    As `asyncio.timeout`, but for one task, and to be moved at hardly any cost.

    Attributes
    ----------
    expired
        Whether it has ended its block.
    end_s
        When it does, by the loop's clock; see `move`.
    """

    __slots__ = ("_all", "_cancelling", "_task", "end_s", "expired")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._all = deadlines
        self.end_s = deadlines._loop.time() + seconds
        self.expired = False

    def move(self, seconds: float, last_s: float) -> None:
        """End in so many seconds from now instead, at `last_s` at the latest; never earlier than before."""
        self.end_s = min(self._all._loop.time() + seconds, last_s)

    def expire(self) -> None:
        """End the block."""
        self.expired = True
        self._task.cancel()

    def __enter__(self) -> Deadline:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._all._add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._all._waiting.discard(self)
        if (
            self.expired
            and self._task.uncancel() <= self._cancelling  # else somebody else cancelled it too
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error
