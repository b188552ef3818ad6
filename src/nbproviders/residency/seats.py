"""Entries as the planner sees them: what each could do, and what that would cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from nbproviders.residency.entry import Entry, State
from nbproviders.residency.memory import HOST
from nbproviders.residency.plan import Move, MoveKind, Seat
from nbproviders.residency.table import Table

# Until a first wake was measured: what a pinned copy and the page cache gave where it was looked at.
_HOST_BYTES_PER_S = 10e9
_FILE_BYTES_PER_S = 2e9
_LEAST_S = 1e-3
# What the CPU's models and the copies for other devices take together, as a device of its own.
MAIN_MEMORY = "main memory"

# Has an entry make a planned move and records why; returns when it is made, or is no longer possible.
Make = Callable[[Entry, MoveKind, str], Awaitable[object]]


def seat(
    entry: Entry, table: Table, *, as_if_idle: bool = False, only: State | None = None
) -> Seat:
    """Return an entry's seat.

    Parameters
    ----------
    as_if_idle
        Whether operations under way are taken to be over.
    only
        Entries in another state stay.
    """
    there = entry.idle or (as_if_idle and entry.state is State.HOT)
    busy = not there or (only is not None and entry.state is not only)
    now_s = table.now_s()
    return Seat(
        name=entry.key.digest,
        charges=entry.charges,
        busy=busy,
        pinned=entry.pinned,
        open_handles=table.handles(entry.key),
        reuse=table.chance(entry.key),
        idle_s=max(now_s - entry.last_used_s, 0.0),
        moves=_moves(entry),
    )


def after_sleep(one: Seat) -> Seat:
    """Return the seat of a model that could sleep, as it will be then."""
    charges = {HOST: one.charges.get(HOST, 0)}
    free = tuple(move for move in one.moves if move.kind == "free")
    return replace(one, charges=charges, busy=False, moves=free)


def with_main_memory(one: Seat) -> Seat:
    """Return a seat that is charged main memory as well: for what it has on the CPU and for its copy."""

    def both(counts: Mapping[str, int]) -> dict[str, int]:
        return {**counts, MAIN_MEMORY: counts.get("cpu", 0) + counts.get(HOST, 0)}

    moves = tuple(replace(move, frees=both(move.frees)) for move in one.moves)
    return replace(one, charges=both(one.charges), moves=moves)


def _moves(entry: Entry) -> tuple[Move, ...]:
    load_s = max(entry.load_s, _LEAST_S)
    free = Move("free", entry.charges, load_s)
    if entry.state is not State.HOT or entry.sleeper is None:
        return (free,)
    frees = {device: n for device, n in entry.charges.items() if device != HOST}
    return (Move("sleep", frees, min(wake_s(entry), load_s)), free)


def wake_s(entry: Entry) -> float:
    """Return the seconds a wake takes: as measured the last time, else by bytes."""
    if entry.wake_s:
        return entry.wake_s
    on_devices = sum(n for device, n in entry.charges.items() if device != HOST)
    rate = _HOST_BYTES_PER_S if entry.charges.get(HOST) else _FILE_BYTES_PER_S
    return max(on_devices / rate, _LEAST_S)
