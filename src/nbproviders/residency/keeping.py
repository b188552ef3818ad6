"""Models that nobody has used for too long leave by themselves. Lives on the engine's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nbproviders.errors import ConfigurationError
from nbproviders.residency.entry import Entry, State
from nbproviders.residency.memory import Memory
from nbproviders.residency.table import Table


class Keeping:
    """The time to live of what is idle, counted from its last use.

    Parameters
    ----------
    table, memory
        The residency's.
    free
        Has an entry leave, and records why.
    """

    def __init__(self, table: Table, memory: Memory, free: Callable[[Entry, str], object]) -> None:
        self._table, self._memory, self._free = table, memory, free
        self._timer: asyncio.TimerHandle | None = None

    def used(self) -> None:
        """See that somebody looks in time, now that a model was used."""
        keep_s = self._keep_s()
        if keep_s is not None:
            self._look_in(keep_s)

    def look(self) -> None:
        """Have those leave whose time is over, and look again when the next one's will be."""
        self._stop()
        keep_s, now_s = self._keep_s(), self._table.now_s()
        if keep_s is None:
            return
        for entry in self._table.all():
            if entry.state not in (State.HOT, State.WARM):
                continue
            left_s = entry.last_used_s + keep_s - now_s
            if not entry.idle:
                self._look_in(keep_s)
            elif left_s > 0:
                self._look_in(left_s)
            else:
                self._free(entry, f"unused for {keep_s:g} s")

    def _keep_s(self) -> float | None:
        try:
            return self._memory.keep_s()
        except ConfigurationError:  # told when the next model loads
            return None

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + seconds:
            self._stop()
            self._timer = loop.call_later(seconds, self.look)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
