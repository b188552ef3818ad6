"""What other processes have on the devices of this one: what it tells them, asks of them and gives them.

Only devices that have an identity beyond this process are shared: accelerators. Main memory is not: what
its other users promised themselves shows in no ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from nbproviders.residency.entry import Entry
from nbproviders.residency.ledger import Ledger, Row
from nbproviders.residency.memory import Memory
from nbproviders.residency.plan import plan
from nbproviders.residency.seats import Make, seat
from nbproviders.residency.table import Table

# Whether a model is idle changes with each of its uses; it is told a little later, as it is only a hint.
_HINT_S = 0.25


class Sharing:
    """The ledger as the residency uses it. Lives on the engine's loop.

    Parameters
    ----------
    table, memory
        The residency's.
    make
        Has an entry make a planned move.
    ledger
        Made when a shared device is first wanted; tests give their own.
    """

    def __init__(
        self,
        table: Table,
        memory: Memory,
        make: Make,
        ledger: Ledger | None = None,
    ) -> None:
        self._table, self._memory, self._make = table, memory, make
        self._ledger = ledger
        self._serving = False
        self._due = False

    def joined(self, devices: Iterable[str]) -> Ledger | None:
        """Return the ledger, entered for the sake of these devices; None if they are ours alone."""
        if not any(self._memory.identity(device) for device in devices):
            return None
        ledger = self._opened()
        if not self._serving:
            self._serving = True
            ledger.serve(self._give)
        return ledger

    def _opened(self) -> Ledger:
        with self._table.lock:  # who asks what others have may be on any thread
            if self._ledger is None:
                self._ledger = Ledger()
            return self._ledger

    def others(self, device: str) -> list[Row]:
        """Return what other processes have on a device. Tells them nothing. From any thread."""
        identity = self._memory.identity(device)
        return self._opened().others(identity) if identity else []

    def promised_bytes(self, device: str) -> int:
        """Return the bytes of a device that are others' and that its free memory still shows."""
        rows = self.others(device)
        if self._memory.sees_others(device):
            return sum(row.pending_bytes for row in rows)
        return sum(row.charged_bytes for row in rows)

    @contextmanager
    def reserving(self, devices: Iterable[str]) -> Iterator[None]:
        """Hold devices for all processes while room is taken on them; then tell of it."""
        wanted = list(devices)
        ledger = self.joined(wanted)
        if ledger is None:
            yield
            return
        with ExitStack() as stack:
            for identity in sorted(filter(None, map(self._memory.identity, wanted))):
                stack.enter_context(ledger.reserving(identity))
            yield
            self.publish()

    def publish(self) -> None:
        """Tell the others what is here now."""
        if self._ledger is not None:
            self._ledger.publish([row for entry in self._table.all() for row in self._rows(entry)])

    def hint(self) -> None:
        """Tell the others soon."""
        if self._ledger is not None and not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_HINT_S, self._hinted)

    def _hinted(self) -> None:
        self._due = False
        self.publish()

    def _rows(self, entry: Entry) -> list[Row]:
        return [
            Row(
                key=entry.key.digest,
                spec=entry.spec.text,
                device=identity,
                charged_bytes=count,
                taken_bytes=entry.taken(device),
                state=str(entry.state),
                idle=entry.idle,
            )
            for device, count in entry.charges.items()
            if (identity := self._memory.identity(device))
        ]

    async def ask(self, short: Mapping[str, int]) -> int:
        """Ask others for what is missing here; return the bytes they say they gave."""
        given = 0
        for device, count in short.items():
            identity = self._memory.identity(device)
            if self._ledger is not None and identity:
                given += await self._ledger.ask(identity, count)
        return given

    async def _give(self, identity: str, need_bytes: int) -> int:
        """Have idle models leave a device for another process; return the bytes that came back."""
        mine = [
            entry
            for entry in self._table.all()
            if any(self._memory.identity(device) == identity for device in entry.charges)
        ]
        for device in {device for entry in mine for device in entry.charges}:
            if self._memory.identity(device) == identity:
                return await self._leave(device, need_bytes)
        return 0

    async def _leave(self, device: str, need_bytes: int) -> int:
        entries = {entry.key.digest: entry for entry in self._table.all()}
        before = self._charged(device)
        seats = [seat(entry, self._table) for entry in entries.values()]
        idle = sum(entry.charges.get(device, 0) for entry in entries.values() if entry.idle)
        # So much less room than is charged: the planner finds who had best leave.
        decided = plan(seats, {device: min(need_bytes, idle)}, {device: before})
        for name, kind in decided.moves:
            if entries[name].idle:
                await self._make(entries[name], kind, "another kernel asked for room")
        self.publish()
        return max(before - self._charged(device), 0)

    def _charged(self, device: str) -> int:
        return sum(entry.charges.get(device, 0) for entry in self._table.all())

    async def close(self) -> None:
        """Leave the ledger."""
        ledger, self._ledger, self._serving = self._ledger, None, False
        if ledger is not None:
            await ledger.close()
