"""How long something takes when nothing else is in its way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

TRIES = 5


def at_best(measure: Callable[[], float], within_s: float) -> float:
    """Return the least seconds measured, at most five times.

    A busy machine is late now and then, a defect always.
    """
    least_s = measure()
    for _ in range(TRIES - 1):
        if least_s < within_s:
            break
        least_s = min(least_s, measure())
    return least_s


async def at_best_awaited(measure: Callable[[], Awaitable[float]], within_s: float) -> float:
    """Return what `at_best` does, of what is awaited."""
    least_s = await measure()
    for _ in range(TRIES - 1):
        if least_s < within_s:
            break
        least_s = min(least_s, await measure())
    return least_s
