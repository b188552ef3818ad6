"""How the memory of each device is shared out, for people to see."""

from __future__ import annotations

from nbproviders.residency.ledger import strangers
from nbproviders.residency.memory import HOST, Memory
from nbproviders.residency.residents import DeviceUse
from nbproviders.residency.sharing import Sharing
from nbproviders.residency.table import Table


def uses(table: Table, memory: Memory, sharing: Sharing) -> list[DeviceUse]:
    """Return the share of each device that has models or a budget, accelerators first."""
    charged = {device for entry in table.all() for device, n in entry.charges.items() if n}
    there = charged | memory.named() | {"cpu"}
    return [_use(device, table, memory, sharing) for device in sorted(there, key=_rank)]


def _rank(device: str) -> tuple[int, str]:
    return ({"cpu": 1, HOST: 2}.get(device, 0), device)


def _use(device: str, table: Table, memory: Memory, sharing: Sharing) -> DeviceUse:
    entries = table.all()
    idle = sum(entry.charges.get(device, 0) for entry in entries if entry.idle)
    in_use = sum(entry.charges.get(device, 0) for entry in entries) - idle
    taken = sum(entry.taken(device) for entry in entries)
    others = sharing.others(device)
    peers = sum(row.charged_bytes for row in others)
    limit = memory.limit(device, taken, sharing.promised_bytes(device))
    reading = None if device == HOST else memory.reading(device)
    total = reading.total_bytes if reading is not None else limit or 0
    unknown = 0
    if reading is not None and memory.sees_others(device):
        used = reading.total_bytes - reading.free_bytes
        unknown = strangers(device, used, others, taken)
    free = max(total - in_use - idle - peers - unknown, 0)
    return DeviceUse(device, limit, total, in_use, idle, peers, unknown, free)
