"""Letting a load in: find room, evict, wait for busy models, or say that it cannot fit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nbproviders.core.model import Model
from nbproviders.errors import InsufficientMemoryError, ProviderError
from nbproviders.residency.entry import Entry, Loader, State, ledger
from nbproviders.residency.memory import size_text
from nbproviders.residency.plan import Plan, Seat, plan

if TYPE_CHECKING:
    from nbproviders.residency.residency import Residency

WAIT_S = 60.0
_RECHECK_S = 0.5


class Admission:
    """The queue before memory. Lives on the engine's loop; the table is the residency's."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._event: asyncio.Event | None = None
        self._turn: asyncio.Lock | None = None
        self.wait_s = WAIT_S

    def wake(self) -> None:
        """Tell those who wait that something was given back."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def changed(self) -> None:
        """Wait until something was given back, half a second at most."""
        if self._event is None:
            self._event = asyncio.Event()
        try:
            # Free memory can change without us: other programs come and go.
            await asyncio.wait_for(self._event.wait(), _RECHECK_S)
        except TimeoutError:
            return

    async def load(self, entry: Entry, loader: Loader) -> Model:
        """Find room for a model and load it; once more after an eviction if memory ran out."""
        entry.progress.phase = "measuring"
        charges = dict(await loader.estimate())
        await self._admit(entry, charges)
        entry.state = State.LOADING
        try:
            return await loader.load(entry.progress)
        except InsufficientMemoryError:
            if not await self._evict_idle(entry):
                raise
        return await loader.load(entry.progress)

    async def _admit(self, entry: Entry, charges: Mapping[str, int]) -> None:
        if self._reserve(entry, charges):
            return
        entry.state = State.WAITING
        entry.progress.phase = "waiting for memory"
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            until_s = self._residency.now_s() + self.wait_s
            while not self._reserve(entry, charges):
                decided = self._plan(entry, charges)
                if decided.verdict == "fits":
                    await self._evict(decided.victims)
                elif decided.verdict == "never" or self._residency.now_s() >= until_s:
                    raise self._refusal(entry, charges, decided)
                else:
                    self._residency.record("waiting", entry, "for running models to end")
                    await self.changed()

    def _reserve(self, entry: Entry, charges: Mapping[str, int]) -> bool:
        others = [e for e in self._residency.entries() if e is not entry]
        limits = self._limits(others, charges)

        def fits() -> bool:
            return all(
                sum(e.charges.get(device, 0) for e in others) + need <= limits[device]
                for device, need in charges.items()
                if device in limits and need
            )

        return self._residency.reserve(entry, charges, fits)

    def _limits(self, others: list[Entry], charges: Mapping[str, int]) -> dict[str, int]:
        limits = {}
        for device in charges:
            taken = sum(_taken(e, device) for e in others)
            limit = self._residency.memory.limit(device, taken)
            if limit is not None:
                limits[device] = limit
        return limits

    def _plan(self, entry: Entry, charges: Mapping[str, int]) -> Plan:
        others = [e for e in self._residency.entries() if e is not entry]
        now_s = self._residency.now_s()
        seats = [
            Seat(
                name=e.key.digest,
                charges=e.charges,
                busy=e.hard > 0 or e.state is not State.HOT,
                open_handles=self._residency.handles(e.key),
                idle_s=max(now_s - e.last_used_s, 0.0),
                uses=e.uses,
                reload_s=e.load_s,
            )
            for e in others
        ]
        return plan(seats, charges, self._limits(others, charges))

    async def _evict(self, victims: tuple[str, ...]) -> None:
        for entry in self._residency.entries():
            # Checked again: the plan is a moment old, and a model in use never leaves.
            if entry.key.digest in victims and entry.hard == 0 and entry.state is State.HOT:
                await self._residency.free(entry, "evicted")

    async def _evict_idle(self, entry: Entry) -> bool:
        idle = [
            e
            for e in self._residency.entries()
            if e is not entry and e.hard == 0 and e.state is State.HOT
        ]
        for other in idle:
            await self._residency.free(other, "evicted")
        return bool(idle)

    def _refusal(self, entry: Entry, charges: Mapping[str, int], decided: Plan) -> ProviderError:
        wanted = ", ".join(f"{size_text(n)} on {d}" for d, n in charges.items())
        short = ", ".join(f"{size_text(n)} on {d}" for d, n in decided.short.items())
        others = [r for r in self._residency.residents() if r.key != entry.key.digest]
        why = (
            "models that are running did not end in time"
            if decided.verdict == "wait"
            else "that is more than the budget"
        )
        return InsufficientMemoryError(
            f"{entry.spec} needs {wanted}, {short} too much: {why}.\n{ledger(others)}",
            hint="Unload something (nbp.unload_all()), choose a smaller model or dtype, or raise "
            "NBPROVIDERS_BUDGET.",
        )


def _taken(entry: Entry, device: str) -> int:
    """Return the bytes that a charge has really taken by now, and that free memory no longer shows."""
    charge = entry.charges.get(device, 0)
    loading = entry.state in (State.COLD, State.WAITING, State.LOADING)
    return min(charge, entry.progress.done_bytes) if loading else charge
