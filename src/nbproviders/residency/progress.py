"""How far a load or a wake is, told by the thread that does it, and whether it is still wanted."""

from __future__ import annotations

import threading

from nbproviders.errors import ClosedError


class Progress:
    """How far a load is. Written by the loading thread, read by anyone.

    Attributes
    ----------
    phase
        What is being done, in a word or two.
    done_bytes, total_bytes
        How far; the total is 0 while unknown.
    allocated_bytes
        By device, what was allocated at once, before it is filled.
    host_bytes
        Main memory that a copy of the weights may take, for a device that has memory of its own; 0 is none.
    """

    def __init__(self) -> None:
        self.phase = "starting"
        self.done_bytes = 0
        self.total_bytes = 0
        self.allocated_bytes: dict[str, int] = {}
        self.host_bytes = 0
        self._stop = threading.Event()

    def report(self, done_bytes: int, total_bytes: int = 0, phase: str = "") -> None:
        """Say how far the load is; raises `ClosedError` if nobody wants it any more."""
        self.done_bytes = done_bytes
        self.total_bytes = total_bytes or self.total_bytes
        self.phase = phase or self.phase
        self.check()

    def restart(self) -> None:
        """Forget what was done: it was given back, and is begun anew."""
        self.done_bytes = 0
        self.allocated_bytes.clear()

    def check(self) -> None:
        """Raise `ClosedError` if nobody wants this load any more."""
        if self._stop.is_set():
            raise ClosedError("The load was cancelled.")

    def cancel(self) -> None:
        """Ask the loading thread to stop at its next report."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self._stop.is_set()

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1; None while unknown."""
        return min(self.done_bytes / self.total_bytes, 1.0) if self.total_bytes else None
