"""How the memory of each device is shared out, for people to see."""

from __future__ import annotations

from nbproviders.residency.entry import Entry
from nbproviders.residency.ledger import strangers
from nbproviders.residency.memory import HOST, Memory
from nbproviders.residency.residents import DeviceUse
from nbproviders.residency.room import Room
from nbproviders.residency.sharing import Sharing
from nbproviders.residency.table import Table


def uses(table: Table, memory: Memory, sharing: Sharing) -> list[DeviceUse]:
    """Return the share of each device that has models or a budget, accelerators first."""
    charged = {device for entry in table.all() for device, n in entry.charges.items() if n}
    there = charged | memory.named() | memory.seen | {"cpu"}
    found = [_use(device, table, memory, sharing) for device in sorted(there, key=_rank)]
    return [use for use in found if use.total > 0 or use.in_use + use.idle > 0]


def _rank(device: str) -> tuple[int, str]:
    return ({"cpu": 1, HOST: 2}.get(device, 0), device)


def _use(device: str, table: Table, memory: Memory, sharing: Sharing) -> DeviceUse:
    entries = table.all()
    idle = sum(_charged(entry, device) for entry in entries if entry.idle)
    in_use = sum(_charged(entry, device) for entry in entries) - idle
    others = sharing.others(device)
    peers = sum(row.charged_bytes for row in others)
    limit = Room(table, memory, sharing).limits({device: 1}).get(device)
    reading = None if device == HOST else memory.reading(device)
    total = reading.total_bytes if reading is not None else limit or 0
    unknown = 0
    if reading is not None and memory.sees_others(device):
        used = reading.total_bytes - reading.free_bytes
        taken = sum(entry.taken(kind) for entry in entries for kind in _kinds(device))
        unknown = strangers(memory.identity(device), used, others, taken)
    left = max(total - in_use - idle - peers - unknown, 0)
    free = left
    if limit is not None:
        # Copies are told with main memory, and are no part of what models there may be charged.
        limit += in_use + idle - sum(entry.charges.get(device, 0) for entry in entries)
        free = min(left, max(limit - in_use - idle, 0))
    return DeviceUse(device, limit, total, in_use, idle, peers, unknown, free, left - free)


def _kinds(device: str) -> tuple[str, ...]:
    # Copies of weights are in main memory, whatever their charge is called.
    return (device, HOST) if device == "cpu" else (device,)


def _charged(entry: Entry, device: str) -> int:
    return sum(entry.charges.get(kind, 0) for kind in _kinds(device))
