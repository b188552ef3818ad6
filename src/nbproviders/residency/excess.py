"""Charges beyond what may be charged: loads take more than was told, and budgets are lowered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from nbproviders.errors import ConfigurationError
from nbproviders.residency.entry import Entry, State
from nbproviders.residency.memory import HOST
from nbproviders.residency.plan import MoveKind, plan
from nbproviders.residency.room import Room, total
from nbproviders.residency.seats import Make, seat
from nbproviders.residency.table import Table


class Excess:
    """Has idle models leave until charges are within their limits. Lives on the engine's loop.

    Where models in use are in the way, it looks again after each use, until there is nothing too much.

    Parameters
    ----------
    table, room
        The residency's.
    make
        Has an entry make a move, and records why.
    """

    def __init__(self, table: Table, room: Room, make: Make) -> None:
        self._table, self._room, self._make = table, room, make
        self._lowered = False  # less is allowed than before: everybody leaves who can
        # They took more than was told. For that others leave where it helps, never they themselves: they
        # would come back as large, to leave again after each use.
        self._grown: list[Entry] = []
        # Both once more, where only what is pinned stands against them: nothing to be done until it is not.
        self._lowered_beside, self._grown_beside = False, list[Entry]()
        self._moves: dict[asyncio.Task[object], tuple[Entry, MoveKind]] = {}  # under way

    def lower(self) -> None:
        """Have idle models leave, now that less may be allowed; and what is in use once it is not."""
        self._lowered = True
        self._look("less memory is allowed now")

    def unpinned(self) -> None:
        """Have it looked at again, with the next use, what stayed only for something that was pinned."""
        self._lowered = self._lowered or self._lowered_beside
        self._grown += self._grown_beside
        self._lowered_beside, self._grown_beside = False, []

    def loaded(self, entry: Entry, promised: Mapping[str, int]) -> None:
        """Have idle others leave, if a model took more than was told before it was loaded, and that helps."""
        if any(count > promised.get(device, 0) for device, count in entry.charges.items()):
            self._grown.append(entry)
            self._look(f"{entry.spec} took more than was told")

    def used(self) -> None:
        """Look again, now that a model is no longer in use, if some had to stay for that."""
        self._grown = [entry for entry in self._grown if entry.model is not None]
        if self._lowered:
            self._look("less memory is allowed now")
        elif self._grown:
            self._look(f"{self._grown[-1].spec} took more than was told")

    def _look(self, why: str) -> None:
        with suppress(ConfigurationError):  # a budget that cannot be read is told by the next load
            moves, waits = self._decided()
            # Not before all moves are made, others' too: who is to leave may be taken up before he does, or
            # may turn out to keep what he has.
            if not waits and not moves and not self._is_anybody_leaving():
                if waits is None:
                    self._lowered_beside = self._lowered_beside or self._lowered
                    self._grown_beside += self._grown
                self._lowered, self._grown = False, []
            for entry, kind in moves:
                self.make(entry, kind, why)

    def _decided(self) -> tuple[Sequence[tuple[Entry, MoveKind]], bool | None]:
        """Return moves that bring charges within their limits, and whether one in use may help later.

        None if there is too much all the same, for the sake of what is pinned. Moves under way are taken to
        be made. Where no moves suffice, because of models in use, and less is allowed than before, all others
        leave all the same.
        """
        leaving = dict(self._moves.values())
        grown = [] if self._lowered else self._grown  # only their devices are looked at
        entries = {entry.key.digest: entry for entry in self._table.all()}
        left = {name: _staying(entry, leaving.get(entry)) for name, entry in entries.items()}
        charges = total([*left.values()])
        looked_at = total([entry.charges for entry in grown]) if grown else charges
        limits = self._room.limits(looked_at)
        excess = {d: charges[d] - most for d, most in limits.items() if charges.get(d, 0) > most}
        if not excess:
            return (), False
        others = [entry for entry in entries.values() if entry not in (*grown, *leaving)]
        seats = [
            replace(
                seat(entry, self._table),
                charges=left[name],
                busy=entry not in others or not entry.idle,
            )
            for name, entry in entries.items()
        ]
        decided = plan(seats, dict.fromkeys(excess, 1), _less_one(limits))
        if decided.verdict == "fits":
            return [(entries[name], kind) for name, kind in decided.moves], False
        busy = [entry for entry in others if not entry.idle and not entry.pinned]
        waits = any(left[entry.key.digest].get(device) for entry in busy for device in excess)
        idle = [e for e in others if self._lowered and e.idle and _gives(e, excess)]
        return [(e, "sleep" if _sleeps_off(e, excess) else "free") for e in idle], waits or None

    def _is_anybody_leaving(self) -> bool:
        entries = self._table.all()
        return bool(self._moves) or any(e.state is State.DRAINING or e.freeing for e in entries)

    def make(self, entry: Entry, kind: MoveKind, why: str) -> None:
        """Have a model make a move, by and by."""
        task = asyncio.ensure_future(self._make(entry, kind, why))
        self._moves[task] = entry, kind
        task.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[object]) -> None:
        del self._moves[task]
        self.used()

    async def made(self) -> None:
        """Wait until all moves that were begun are made; cancelled, they go on."""
        while self._moves:
            await asyncio.wait([*self._moves])


def _gives(entry: Entry, devices: Collection[str]) -> bool:
    """Whether a model has something of some devices; what sleeps has next to nothing of its own."""
    return any(entry.charges.get(d) and (d == HOST or entry.state is State.HOT) for d in devices)


def _staying(entry: Entry, move: MoveKind | None) -> Mapping[str, int]:
    """Return what a model will be charged when the move that it makes is made."""
    if entry.freeing is not None or move == "free":
        return {}
    if entry.state is State.DRAINING or move == "sleep":
        return {HOST: entry.charges.get(HOST, 0)}
    return entry.charges


def _sleeps_off(entry: Entry, devices: Collection[str]) -> bool:
    """Whether a model takes nothing of some devices once it sleeps: its copy is in main memory."""
    return entry.state is State.HOT and entry.sleeper is not None and HOST not in devices


def _less_one(limits: Mapping[str, int]) -> dict[str, int]:
    # The planner makes room for something: a byte more than there is room for is too much.
    return {device: limit + 1 for device, limit in limits.items()}
