"""Charges beyond what may be charged: loads take more than was told, and budgets are lowered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from nbproviders.errors import ConfigurationError
from nbproviders.residency.admission import Admission
from nbproviders.residency.entry import Entry
from nbproviders.residency.plan import MoveKind
from nbproviders.residency.seats import Make


class Excess:
    """Has idle models leave until charges are within their limits. Lives on the engine's loop.

    Where models in use are in the way, it looks again after each use, until there is nothing too much.

    Parameters
    ----------
    admission
        Knows what is too much.
    make
        Has an entry make a move, and records why.
    """

    def __init__(self, admission: Admission, make: Make) -> None:
        self._admission, self._make = admission, make
        self._lowered = False  # less is allowed than before: everybody leaves who can
        # They took more than was told. For that others leave where it helps, never they themselves: they
        # would come back as large, to leave again after each use.
        self._grown: list[Entry] = []
        self._tasks: set[asyncio.Task[object]] = set()  # a loop keeps tasks by weak references only

    def lower(self) -> None:
        """Have idle models leave, now that less may be allowed; and what is in use once it is not."""
        self._lowered = True
        self._look("less memory is allowed now")

    def loaded(self, entry: Entry, promised: Mapping[str, int]) -> None:
        """Have idle others leave, if a model took more than was told before it was loaded, and that helps."""
        if any(count > promised.get(device, 0) for device, count in entry.charges.items()):
            self._grown.append(entry)
            self._look(f"{entry.spec} took more than was told")

    def used(self) -> None:
        """Look again, now that a model is no longer in use, if some had to stay for that."""
        self._grown = [entry for entry in self._grown if entry.model is not None]
        if self._tasks:
            return  # what leaves is still charged; when it has left, this comes again
        if self._lowered:
            self._look("less memory is allowed now")
        elif self._grown:
            self._look(f"{self._grown[-1].spec} took more than was told")

    def _look(self, why: str) -> None:
        with suppress(ConfigurationError):  # a budget that cannot be read is told by the next load
            if self._lowered:
                moves, too_much = self._admission.over(everybody=True)
            else:
                moves, too_much = self._admission.over(everybody=False, grown=self._grown)
            if not too_much:
                self._lowered = False
                self._grown.clear()
            for entry, kind in moves:
                self.make(entry, kind, why)

    def make(self, entry: Entry, kind: MoveKind, why: str) -> None:
        """Have a model make a move, by and by."""
        task = asyncio.ensure_future(self._make(entry, kind, why))
        self._tasks.add(task)
        task.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self.used()

    async def made(self) -> None:
        """Wait until all moves that were begun are made; cancelled, they go on."""
        while self._tasks:
            await asyncio.wait(self._tasks.copy())
