"""How much room there is for models on each device, beside what other kernels and programs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nbproviders.residency.memory import HOST, Memory, headroom
from nbproviders.residency.plan import Seat
from nbproviders.residency.seats import paying_for_copies
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

    def limits(self, needs: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """Return the most that all models here may be charged on each device that is needed."""
        entries = self._table.all()
        limits = {}
        for device in {device for need in needs for device, count in need.items() if count}:
            taken = sum(entry.taken(device) for entry in entries)
            sibling = _SAME_MEMORY.get(device, "")
            beside = sum(entry.taken(sibling) for entry in entries)
            pending = sum(entry.charges.get(sibling, 0) for entry in entries) - beside
            pending += self._sharing.promised_bytes(device)
            limit = self._memory.limit(device, taken, pending, beside)
            if limit is not None:
                limits[device] = limit
        return limits

    def with_copies(
        self, seats: Sequence[Seat], limits: Mapping[str, int]
    ) -> tuple[list[Seat], dict[str, int]] | None:
        """Return seats and limits by which copies in main memory make room for a model of the CPU.

        None if they would not: there are none, or it is the CPU's budget that is used up.
        """
        copies = sum(one.charges.get(HOST, 0) for one in seats)
        budget = self._memory.budget("cpu")
        if not copies or "cpu" not in limits or (budget is not None and limits["cpu"] >= budget):
            return None
        return [paying_for_copies(one) for one in seats], {**limits, "cpu": limits["cpu"] + copies}

    def from_others(self, short: Mapping[str, int]) -> Mapping[str, int]:
        """Return what other kernels would have to give; nothing if all that they have is too little."""
        for device, count in short.items():
            if count > sum(row.charged_bytes for row in self._sharing.others(device)):
                return {}
        return {} if self.beyond_others(short) else short

    def beyond_others(self, short: Mapping[str, int]) -> bool:
        """Whether it would not fit if all others left: for our budget, or for the size of the device."""
        limits = self.limits([short])
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
