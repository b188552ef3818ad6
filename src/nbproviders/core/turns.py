"""`Turn`: what one thread at a time may do, waited for so that Ctrl-C and cancellations come through."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from nbproviders.core import engine

_LOOK_S = 0.1


class Turn:
    """A reentrant lock. In a forked child it is free: who held it does not exist there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    @contextmanager
    def taken(self, waiting: Callable[[], object]) -> Iterator[None]:
        """Hold it for a block.

        Parameters
        ----------
        waiting
            Called every 100 ms while another thread has it; what it raises ends the waiting.
        """
        held = self._lock
        if not held.acquire(blocking=False):
            waiting()
            while not held.acquire(timeout=_LOOK_S):
                waiting()
        try:
            yield
        finally:
            held.release()


_all: WeakSet[Turn] = WeakSet()


def _forget() -> None:
    for one in _all:
        one._lock = threading.RLock()


engine.after_fork([_forget])
