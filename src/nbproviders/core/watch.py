"""A look now and then at a call that its caller waits for, such as a line of progress."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

LOOK_S = 0.1


class Watch(ABC):
    """Looks after one call where its caller waits: on his thread, or on his loop."""

    @abstractmethod
    def look(self) -> None:
        """Called about every tenth of a second while the call is under way."""

    @abstractmethod
    def close(self) -> None:
        """Called once at its end, also of one that failed or was stopped."""


def looking(watch: Watch | None) -> AbstractContextManager[object]:
    """Have the running loop look while the block runs; nothing without a watch."""
    return _NOBODY if watch is None else _Looking(watch)


_NOBODY: AbstractContextManager[object] = nullcontext()


class _Looking(AbstractContextManager[object]):
    __slots__ = ("_timer", "_watch")

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        # A timer, no task: most calls end before its first turn, and then it has cost a microsecond.
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        self._watch.look()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._watch.close()
