"""What is told of models in memory: frozen values, and the table that an error message shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbproviders.residency.entry import State
from nbproviders.residency.memory import HOST, size_text

NEXT_TO_NOTHING = 1024  # fewer bytes are not worth a figure


@dataclass(frozen=True, slots=True)
class Resident:
    """What is told of a model in memory.

    Attributes
    ----------
    spec
        Its reference, as first written.
    state
        As in `State`.
    bytes
        Charged on each device; ``host`` is main memory that keeps a copy of the weights.
    handles
        Open soft leases.
    running
        Operations under way.
    idle_s
        Seconds since its last use.
    uses
        How often it was used.
    load_s
        Seconds it took to load.
    progress
        Share of the load, the wake or the falling asleep that is done; None if unknown, or none is under way.
    key
        The key's digest.
    notes
        What its loading tells, such as an optimisation that stepped back and why.
    pinned
        Whether it stays until it is unpinned.
    opened_in
        The cells that hold it open.
    sleeps
        Whether it can sleep; else it is freed, and loaded again.
    """

    spec: str
    state: State
    bytes: Mapping[str, int]
    handles: int
    running: int
    idle_s: float
    uses: int
    load_s: float
    progress: float | None
    key: str
    notes: tuple[str, ...] = ()
    pinned: bool = False
    opened_in: tuple[str, ...] = ()
    sleeps: bool = False


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """How a device's memory is shared out, in bytes; the parts add up to `total` where it is known.

    Attributes
    ----------
    device
        ``cuda:0``, ``cpu``, ``host`` …
    limit
        The most that models of this process may be charged, copies of weights included where they are
        told; None without any limit.
    total
        What the device has; the limit where nobody can tell, 0 without one.
    in_use
        Charged to models that run, wait, load, or are pinned.
    idle
        Charged to models that could sleep or leave at once, also if somebody holds them open.
    peers
        Charged to models of other kernels.
    strangers
        Taken by other programs.
    free
        What models of this process can still have.
    kept
        The rest: nobody has it, and models may not take it, for the reserve or a budget.
    """

    device: str
    limit: int | None
    total: int
    in_use: int
    idle: int
    peers: int
    strangers: int
    free: int
    kept: int = 0


_WORDS = {State.HOT: "ready", State.WARM: "asleep"}


def held_text(residents: Sequence[Resident]) -> str:
    """Return who holds what, as lines of text, for an error message."""
    if not residents:
        return "Nothing is in memory."
    return "In memory:\n" + "\n".join(f"  {_line(one)}" for one in residents)


def _line(one: Resident) -> str:
    held = ", ".join(f"{place(device)} {size_text(n)}" for device, n in one.bytes.items())
    use = f"{one.running} running, {one.handles} open"
    if one.opened_in:
        use += f" in {', '.join(one.opened_in)}"
    state = _WORDS.get(one.state, one.state)
    return f"{one.spec}: {held or '0 B'} ({state}, {use}{', pinned' if one.pinned else ''})"


def place(device: str) -> str:
    """Return a device as people call it."""
    return "main memory" if device == HOST else device
