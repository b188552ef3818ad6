"""How much room there is for models on each device, beside what other kernels and programs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nbproviders.residency.memory import HOST, Memory, headroom
from nbproviders.residency.plan import Plan, Seat, plan
from nbproviders.residency.seats import MAIN_MEMORY, with_main_memory
from nbproviders.residency.sharing import Sharing
from nbproviders.residency.table import Table

# Two kinds of charge that the same memory pays.
_SAME_MEMORY = {"cpu": HOST, HOST: "cpu"}


class Room:
    """Limits as they are this moment; nothing is changed here.

    Parameters
    ----------
    table, memory, sharing
        The residency's.
    """

    def __init__(self, table: Table, memory: Memory, sharing: Sharing) -> None:
        self._table, self._memory, self._sharing = table, memory, sharing

    def limits(self, need: Mapping[str, int]) -> dict[str, int]:
        """Return the most that all models here may be charged on each device that is needed."""
        entries = self._table.all()
        limits = {}
        for device in (device for device, count in need.items() if count):
            taken = sum(entry.taken(device) for entry in entries)
            sibling = _SAME_MEMORY.get(device, "")
            beside = sum(entry.taken(sibling) for entry in entries)
            pending = sum(entry.charges.get(sibling, 0) for entry in entries) - beside
            pending += self._sharing.promised_bytes(device)
            limit = self._memory.limit(device, taken, pending, beside)
            if limit is not None:
                limits[device] = limit
        return limits

    def plan(self, seats: Sequence[Seat], need: Mapping[str, int]) -> Plan:
        """Return who makes room for what is needed; copies in main memory do for a model of the CPU, too."""
        limits = self.limits(need)
        decided = plan(seats, need, limits)
        if decided.verdict == "fits" or "cpu" not in decided.short:
            return decided
        other = self._plan_with_copies(seats, need, limits)
        return decided if other is None or other.verdict == "never" else other

    def _plan_with_copies(
        self, seats: Sequence[Seat], need: Mapping[str, int], limits: Mapping[str, int]
    ) -> Plan | None:
        """Plan main memory as a device of its own, beside the CPU's budget; None if there are no copies."""
        reading, budget = self._memory.reading("cpu"), self._memory.budget("cpu")
        if reading is None or not any(one.charges.get(HOST) for one in seats):
            return None
        entries = self._table.all()
        taken = sum(entry.taken(kind) for entry in entries for kind in _SAME_MEMORY)
        # Of those for whom this is planned, who have no seats.
        own_copies = sum(entry.charges.get(HOST, 0) for entry in entries)
        own_copies -= sum(one.charges.get(HOST, 0) for one in seats)
        reserve = headroom(reading.total_bytes) + self._sharing.promised_bytes("cpu")
        most = min(taken + reading.free_bytes, reading.total_bytes) - reserve
        others = {device: limit for device, limit in limits.items() if device != "cpu"}
        budgets = {} if budget is None else {"cpu": budget}
        decided = plan(
            [with_main_memory(one) for one in seats],
            {**need, MAIN_MEMORY: need["cpu"] + own_copies},
            {**others, **budgets, MAIN_MEMORY: most},
        )
        short = dict(decided.short)
        whole = short.pop(MAIN_MEMORY, 0)
        if whole:
            short["cpu"] = max(whole, short.get("cpu", 0))
        return replace(decided, short=short)

    def from_others(self, short: Mapping[str, int]) -> Mapping[str, int]:
        """Return what other kernels would have to give; nothing if all that they have is too little."""
        for device, count in short.items():
            if count > sum(row.charged_bytes for row in self._sharing.others(device)):
                return {}
        return {} if self.beyond_others(short) else short

    def beyond_others(self, short: Mapping[str, int]) -> bool:
        """Whether it would not fit if all others left: for our budget, or for the size of the device."""
        limits = self.limits(short)
        return any(
            limits.get(device, 0) + count > self._most(device) for device, count in short.items()
        )

    def _most(self, device: str) -> float:
        """Return the most that models here could ever be charged, were they alone."""
        if not self._memory.identity(device):
            return 0  # shared with nobody who could leave
        budget, reading = self._memory.budget(device), self._memory.reading(device)
        most = [budget] if budget is not None else []
        if reading is not None:
            most.append(reading.total_bytes - headroom(reading.total_bytes))
        return min(most, default=float("inf"))


def total(charges: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return what several are charged together."""
    found: dict[str, int] = {}
    for each in charges:
        for device, count in each.items():
            found[device] = found.get(device, 0) + count
    return found
