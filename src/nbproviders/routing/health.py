"""How well the members of a router do, and in which order a strategy asks them.

Pure: no I/O, no lock, and the time is told. A member's health is its share of good answers among the last
ones, where each counts half as much every `HALF_LIFE_S`: what failed is asked again after a while.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence

HALF_LIFE_S = 30.0
EXPLORE_AFTER_S = 60.0
_HEALTHY = 0.5
_BENEFIT_OF_DOUBT = (
    0.5  # good answers that everybody is credited with: one failure is below `_HEALTHY`
)


class Health:
    """The last results of one member.

    Parameters
    ----------
    window
        How many results are kept.

    Attributes
    ----------
    turn
        When it was chosen last, counted in choices of the router; 0: never.
    under_way
        Calls that have not ended.
    asked_s
        When it was asked last; None: never.
    """

    def __init__(self, window: int) -> None:
        self._results: deque[tuple[float, bool]] = deque(maxlen=window)
        self._took_s: deque[float] = deque(maxlen=window)
        self.turn = 0
        self.under_way = 0
        self.asked_s: float | None = None

    def began(self, now_s: float) -> None:
        """Count a call that is made now."""
        self.under_way += 1
        self.asked_s = now_s

    def ended(self, now_s: float, *, good: bool | None, took_s: float = 0.0) -> None:
        """Count a call's end; `good` is None if it says nothing of the member, as when it was stopped."""
        self.under_way -= 1
        if good is None:
            return
        self._results.append((now_s, good))
        if good:
            self._took_s.append(took_s)

    def share(self, now_s: float) -> float:
        """Return the share of good answers, 0 to 1; 1 where nothing is known."""
        if self._spotless:
            return 1.0
        return self._share(
            [(0.5 ** (max(now_s - at_s, 0.0) / HALF_LIFE_S)) for at_s, _ in self._results]
        )

    def _share(self, weights: Sequence[float]) -> float:
        good = _BENEFIT_OF_DOUBT + sum(
            weight for weight, (_, well) in zip(weights, self._results, strict=True) if well
        )
        return good / (_BENEFIT_OF_DOUBT + sum(weights))

    @property
    def _spotless(self) -> bool:
        """Whether no failure is remembered; then nothing need be reckoned, for each of many calls."""
        return all(well for _, well in self._results)

    def ready(self, now_s: float) -> bool:
        """Whether it may be asked before others.

        What only time made healthy again is asked by one call at a time, until one is answered.
        """
        if self._spotless:
            return True
        if self.share(now_s) < _HEALTHY:
            return False
        on_trial = self._share([1.0] * len(self._results)) < _HEALTHY
        return not (on_trial and self.under_way)

    @property
    def median_s(self) -> float | None:
        """The median time of its good answers; None without any."""
        return statistics.median(self._took_s) if self._took_s else None

    def unexplored(self, now_s: float) -> bool:
        """Whether too little or too old is what is known of it, and nobody is finding out."""
        if self.under_way:
            return False
        return self.asked_s is None or now_s - self.asked_s > EXPLORE_AFTER_S


Strategy = Callable[[Sequence[Health], float, random.Random], list[int]]


def _round_robin(members: Sequence[Health], now_s: float, rng: random.Random) -> list[int]:
    """Whoever was chosen longest ago, in the order of adding."""
    return _sorted(members, lambda health: (not health.ready(now_s), health.turn))


def _random(members: Sequence[Health], now_s: float, rng: random.Random) -> list[int]:
    """Any, but the unhealthy last."""
    return _sorted(members, lambda health: (not health.ready(now_s), rng.random()))


def _first_available(members: Sequence[Health], now_s: float, rng: random.Random) -> list[int]:
    """In the order of adding, but the unhealthy last."""
    return _sorted(members, lambda health: (not health.ready(now_s),))


def _best_available(members: Sequence[Health], now_s: float, rng: random.Random) -> list[int]:
    """The new and the long unused first, one call each; then by health, to a tenth, and median time."""

    def place(health: Health) -> tuple[float, ...]:
        if not health.ready(now_s):
            return (2, -health.share(now_s))
        if health.unexplored(now_s):
            return (0, -math.inf if health.asked_s is None else health.asked_s)
        unknown = health.median_s is None
        median_s = health.median_s or 0.0
        return (1, -round(health.share(now_s), 1), unknown, median_s, health.under_way)

    return _sorted(members, place)


def _sorted(members: Sequence[Health], place: Callable[[Health], tuple[float, ...]]) -> list[int]:
    return sorted(range(len(members)), key=lambda number: place(members[number]))


# Each returns the places of all members, in the order in which they are to be asked.
STRATEGIES: dict[str, Strategy] = {
    "round-robin": _round_robin,
    "random": _random,
    "first-available": _first_available,
    "best-available": _best_available,
}
