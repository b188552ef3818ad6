"""Who leaves so that this fits: a pure function of what is there, without I/O or clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

_HALF_LIFE_S = 600.0


@dataclass(frozen=True, slots=True)
class Seat:
    """One resident as the planner sees it.

    Attributes
    ----------
    name
        Any label; victims are told by it.
    charges
        Bytes on each device.
    busy
        A hard lease or a load is under way: it stays.
    pinned
        It stays, and waiting for it is in vain.
    open_handles
        Soft leases: it leaves after those that have none.
    idle_s
        Seconds since its last use.
    uses
        How often it was used.
    reload_s
        Seconds it took to load.
    """

    name: str
    charges: Mapping[str, int]
    busy: bool = False
    pinned: bool = False
    open_handles: int = 0
    idle_s: float = 0.0
    uses: int = 1
    reload_s: float = 1.0

    @property
    def price(self) -> float:
        """What bringing it back would cost, weighted by how likely that is."""
        likely = (1 + self.uses) * float(0.5 ** (self.idle_s / _HALF_LIFE_S))
        return self.reload_s * likely


@dataclass(frozen=True, slots=True)
class Plan:
    """The verdict: ``fits`` once the victims have left; ``wait`` for busy ones; or ``never``.

    Attributes
    ----------
    verdict
        As above.
    victims
        Names of those that leave, cheapest first.
    short
        Bytes missing on each device, when it does not fit.
    """

    verdict: Literal["fits", "wait", "never"]
    victims: tuple[str, ...] = ()
    short: dict[str, int] = field(default_factory=dict)


def plan(seats: Sequence[Seat], need: Mapping[str, int], limits: Mapping[str, int]) -> Plan:
    """Return who must leave so that `need` fits beside the others.

    Parameters
    ----------
    seats
        All that is charged now.
    need
        Bytes wanted on each device.
    limits
        Most bytes that all residents together may be charged on each device; a device that is not
        named has no limit.
    """
    over = _over(seats, need, limits)
    if not over:
        return Plan("fits")
    victims: list[Seat] = []
    for seat in sorted(_idle(seats), key=_rank):
        if not over:
            break
        if any(seat.charges.get(device, 0) for device in over):
            victims.append(seat)
            over = _over(_without(seats, victims), need, limits)
    if not over:
        return Plan("fits", tuple(seat.name for seat in _pruned(seats, victims, need, limits)))
    stays = [seat for seat in seats if seat.pinned]
    short = _over(stays, need, limits)
    return Plan("never", short=short) if short else Plan("wait", short=over)


def _rank(seat: Seat) -> tuple[bool, float, float, str]:
    """Return the order of leaving: what nobody holds open first, then what is cheap to bring back."""
    return (seat.open_handles > 0, seat.price, -seat.idle_s, seat.name)


def _idle(seats: Sequence[Seat]) -> list[Seat]:
    return [seat for seat in seats if not seat.busy and not seat.pinned]


def _without(seats: Sequence[Seat], gone: Sequence[Seat]) -> list[Seat]:
    names = {seat.name for seat in gone}
    return [seat for seat in seats if seat.name not in names]


def _over(
    seats: Sequence[Seat], need: Mapping[str, int], limits: Mapping[str, int]
) -> dict[str, int]:
    """Return by how many bytes each device would be over its limit."""
    over = {}
    for device, wanted in need.items():
        if device in limits and wanted > 0:
            taken = sum(seat.charges.get(device, 0) for seat in seats)
            if taken + wanted > limits[device]:
                over[device] = taken + wanted - limits[device]
    return over


def _pruned(
    seats: Sequence[Seat],
    victims: Sequence[Seat],
    need: Mapping[str, int],
    limits: Mapping[str, int],
) -> list[Seat]:
    """Return the victims less those that need not leave after all, the dearest spared first."""
    leaving = list(victims)
    for seat in reversed(victims):
        rest = [other for other in leaving if other is not seat]
        if not _over(_without(seats, rest), need, limits):
            leaving = rest
    return leaving
