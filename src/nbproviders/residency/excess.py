"""Charges beyond what may be charged: loads take more than was told, and budgets are lowered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from nbproviders.errors import ConfigurationError
from nbproviders.residency.admission import Admission
from nbproviders.residency.entry import Entry
from nbproviders.residency.plan import MoveKind


class Excess:
    """Has idle models leave until charges are within their limits. Lives on the engine's loop.

    Parameters
    ----------
    admission
        Knows what is too much.
    make
        Has an entry make a move.
    """

    def __init__(
        self, admission: Admission, make: Callable[[Entry, MoveKind], Awaitable[None]]
    ) -> None:
        self._admission, self._make = admission, make
        self._more = False  # what is in use is too much: it leaves once it is not
        self._tasks: set[asyncio.Task[None]] = set()  # a loop keeps tasks by weak references only

    def look(self, but: Entry | None = None) -> None:
        """Have idle models leave, except one, if there is too much."""
        with suppress(ConfigurationError):  # a budget that cannot be read is told by the next load
            moves, self._more = self._admission.over()
            for entry, kind in moves:
                if entry is not but:
                    self.make(entry, kind)

    def loaded(self, entry: Entry, promised: Mapping[str, int]) -> None:
        """Look, if a model took more than was told before it was loaded."""
        if any(count > promised.get(device, 0) for device, count in entry.charges.items()):
            self.look(entry)

    def used(self) -> None:
        """Look again, now that a model is no longer in use, if some had to stay for that."""
        if self._more:
            self.look()

    def make(self, entry: Entry, kind: MoveKind) -> None:
        """Have a model make a move, by and by."""
        task = asyncio.ensure_future(self._make(entry, kind))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
