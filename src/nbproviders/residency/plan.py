"""Who leaves so that this fits: a pure function of what is there, without I/O or clock."""

from __future__ import annotations

import functools
import math
import operator
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MoveKind = Literal["sleep", "free"]

# Losing a model that somebody holds open surprises them at their next call.
OPEN_HANDLE_FACTOR = 4.0
# Combinations of moves among which the cheapest is found for sure: those of 12 models with two moves each,
# or of 19 with one.
EXACT_COMBINATIONS = 3**12


@dataclass(frozen=True, slots=True)
class Move:
    """One way in which a resident can give bytes back.

    Attributes
    ----------
    kind
        ``sleep``: the device copy goes, the host copy stays; ``free``: all goes.
    frees
        Bytes that each device gets back.
    cost_s
        Seconds that it will take to bring the model back to use.
    """

    kind: MoveKind
    frees: Mapping[str, int]
    cost_s: float


@dataclass(frozen=True, slots=True)
class Seat:
    """One resident as the planner sees it.

    Attributes
    ----------
    name
        Any label; moves are told by it.
    charges
        Bytes on each device.
    busy
        A hard lease or a load is under way: it stays for now.
    pinned
        It stays, and waiting for it is in vain.
    open_handles
        Soft leases: its moves cost four times as much.
    reuse
        How likely it is to be wanted next, on a scale that all seats share.
    idle_s
        Seconds since its last use. Decides between moves of equal price.
    moves
        What it could do. One of them should give back at least what each of the others does.
    """

    name: str
    charges: Mapping[str, int]
    busy: bool = False
    pinned: bool = False
    open_handles: int = 0
    reuse: float = 1.0
    idle_s: float = 0.0
    moves: tuple[Move, ...] = ()

    def price(self, move: Move) -> float:
        """Return the seconds that a move will cost, weighted by how likely they are."""
        return move.cost_s * self.reuse * (OPEN_HANDLE_FACTOR if self.open_handles else 1.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """The verdict: ``fits`` once the moves are made; ``wait`` for busy ones; or ``never``.

    Attributes
    ----------
    verdict
        As above.
    moves
        Who makes which move, cheapest first.
    short
        Bytes missing on each device: with ``wait``, when all that is idle has left; with ``never``, when
        all that runs has left as well.
    price
        What the moves cost together.
    """

    verdict: Literal["fits", "wait", "never"]
    moves: tuple[tuple[str, MoveKind], ...] = ()
    short: dict[str, int] = field(default_factory=dict)
    price: float = 0.0


class _Set(NamedTuple):
    """Moves made together, at most one a seat. Sets compare by price, then by number, then by seats."""

    price: float
    made: int
    seats: int  # one bit a seat, the longest unused lowest: the lesser spares those that were used last
    frees: tuple[int, ...]  # of each device that is short; no more than is missing
    moves: tuple[tuple[float, int, str, MoveKind], ...]  # price, rank, seat and kind of each


_Choices = list[list[_Set]]  # for each seat the moves it could make


def plan(seats: Sequence[Seat], need: Mapping[str, int], limits: Mapping[str, int]) -> Plan:
    """Return which moves make room for `need` beside the others at the least price.

    Of equal prices, the fewest moves; then those of the longest unused; then by name.

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
    short = _short((seat.charges for seat in seats), need, limits)
    if not short:
        return Plan("fits")
    idle = [seat for seat in seats if not seat.busy and not seat.pinned]
    made = _cheapest(idle, short)
    if made is not None:
        moves = tuple((name, kind) for _, _, name, kind in sorted(made.moves))
        return Plan("fits", moves, price=made.price)
    later = [seat for seat in seats if seat.pinned or not seat.busy]
    still = _short((seat.charges for seat in later), need, limits)
    if _cheapest(idle, still) is not None:
        return Plan("wait", short=_short(map(_stays, seats), need, limits) or short)
    return Plan("never", short=_short(map(_stays, later), need, limits) or short)


def _short(
    charges: Iterable[Mapping[str, int]], need: Mapping[str, int], limits: Mapping[str, int]
) -> dict[str, int]:
    """Return the bytes missing on each device where any are."""
    charged = list(charges)
    short = {}
    for device, wanted in need.items():
        if device in limits and wanted > 0:
            taken = sum(each.get(device, 0) for each in charged)
            if taken + wanted > limits[device]:
                short[device] = taken + wanted - limits[device]
    return short


def _stays(seat: Seat) -> dict[str, int]:
    """Return the bytes that a seat keeps whatever it may do now."""
    moves = () if seat.busy or seat.pinned else seat.moves
    return {
        device: charge - max((_freed(seat, move, device) for move in moves), default=0)
        for device, charge in seat.charges.items()
    }


def _freed(seat: Seat, move: Move, device: str) -> int:
    """Return the bytes a move gives back, which are never more than the seat has."""
    return max(min(move.frees.get(device, 0), seat.charges.get(device, 0)), 0)


def _cheapest(idle: Sequence[Seat], short: Mapping[str, int]) -> _Set | None:
    """Return the moves that free what is missing; None if all together do not."""
    ranked = sorted(idle, key=lambda seat: (-seat.idle_s, seat.name))
    choices = [_useful(seat, rank, short) for rank, seat in enumerate(ranked)]
    choices = [moves for moves in choices if moves]
    missing = tuple(short.values())
    if math.prod(len(moves) + 1 for moves in choices) <= EXACT_COMBINATIONS:
        return _exact(choices, missing)
    return _greedy(choices, missing)


def _useful(seat: Seat, rank: int, short: Mapping[str, int]) -> list[_Set]:
    """Return the moves of a seat that help, less those that free no more than one that costs less."""
    useful: list[_Set] = []
    for move in sorted(seat.moves, key=seat.price):
        frees = tuple(min(_freed(seat, move, device), short[device]) for device in short)
        beyond = all(any(map(int.__gt__, frees, other.frees)) for other in useful)
        if any(frees) and beyond:
            price = seat.price(move)
            moves = ((price, rank, seat.name, move.kind),)
            useful.append(_Set(price, 1, 1 << rank, frees, moves))
    return useful


def _exact(choices: _Choices, missing: tuple[int, ...]) -> _Set | None:
    """Return the cheapest set of moves that suffices: for each set of one half, its best complement.

    Bounded: the halves take seats in turn, those with most moves first, so that one has at most
    ``sqrt(3 * EXACT_COMBINATIONS)`` = 1263 sets, if no seat has more than two moves (12 seats with two
    each: 729). All sets that free enough of one device are bits of one number, so that a complement takes
    one search and one conjunction a device. So steps are in the thousands, where trying all is 531,441.
    """
    halves = sorted(choices, key=len, reverse=True)
    ones, others = _sets(halves[::2], missing), _sets(halves[1::2], missing)
    enough = [_Enough([other.frees[n] for other in others]) for n in range(len(missing))]
    best: _Set | None = None
    for one in ones:
        if best is not None and one.price > best.price:
            break
        complements = (1 << len(others)) - 1
        for n, bytes_missing in enumerate(missing):
            complements &= enough[n].of(bytes_missing - one.frees[n])
        if complements:
            cheapest = (complements & -complements).bit_length() - 1
            both = _both(one, others[cheapest], missing)
            best = both if best is None else min(best, both)
    return best


class _Enough:
    """Which of some amounts are at least so many, as bits: the first amount is the lowest."""

    def __init__(self, amounts: Sequence[int]) -> None:
        order = sorted(range(len(amounts)), key=amounts.__getitem__, reverse=True)
        self._amounts = [amounts[n] for n in reversed(order)]
        self._bits = [0]
        for n in order:
            self._bits.append(self._bits[-1] | 1 << n)

    def of(self, least: int) -> int:
        return self._bits[len(self._amounts) - bisect_left(self._amounts, least)]


def _sets(choices: _Choices, missing: tuple[int, ...]) -> list[_Set]:
    """Return all sets of moves of some seats, cheapest first."""
    sets = [_none(missing)]
    for moves in choices:
        sets += [_both(one, move, missing) for one in sets for move in moves]
    return sorted(sets)


def _none(missing: tuple[int, ...]) -> _Set:
    return _Set(0.0, 0, 0, (0,) * len(missing), ())


def _both(one: _Set, other: _Set, missing: tuple[int, ...]) -> _Set:
    frees = tuple(map(min, map(operator.add, one.frees, other.frees), missing))
    return _Set(
        one.price + other.price,
        one.made + other.made,
        one.seats | other.seats,
        frees,
        one.moves + other.moves,
    )


def _greedy(choices: _Choices, missing: tuple[int, ...]) -> _Set | None:
    """Return a cheap set of moves that suffices: by price for the share of what is missing it frees.

    Bounded: no move is made twice, so there are at most as many steps as moves, and each looks at each.
    """
    none = _none(missing)
    made: dict[int, _Set] = {}
    left = [(n, move) for n, moves in enumerate(choices) for move in moves]
    while True:
        freed = [sum(move.frees[n] for move in made.values()) for n in range(len(missing))]
        ranked = []
        for n, move in left:
            old = made.get(n, none)
            gain = sum(
                (min(has - less + more, most) - min(has, most)) / most
                for has, less, more, most in zip(freed, old.frees, move.frees, missing, strict=True)
            )
            if gain > 0:
                ranked.append(((move.price - old.price) / gain, move, n))
        if not ranked:
            break
        _, move, n = min(ranked)
        made[n] = move
        left.remove((n, move))
    return _pruned(choices, made, missing)


def _pruned(choices: _Choices, made: dict[int, _Set], missing: tuple[int, ...]) -> _Set | None:
    """Return the moves made, the dearest first replaced by none or the cheapest that still suffices."""

    def together(moves: Iterable[_Set]) -> _Set:
        return functools.reduce(
            lambda one, other: _both(one, other, missing), moves, _none(missing)
        )

    if together(made.values()).frees != missing:
        return None
    for n in sorted(made, key=made.__getitem__, reverse=True):
        rest = together(move for other, move in made.items() if other != n)
        made[n] = next(
            move
            for move in (_none(missing), *choices[n])
            if _both(rest, move, missing).frees == missing
        )
    return together(made.values())
