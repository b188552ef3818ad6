"""Whether a model would fit, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nbproviders.residency.estimate import Estimate

Verdict = Literal["here", "fits", "after", "wait", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Fit:
    """What loading a model would mean.

    Attributes
    ----------
    spec
        Its reference.
    verdict
        ``here``: it is in memory. ``fits``: there is room. ``after``: once others sleep or leave, see
        `moves`. ``wait``: when running models end. ``no``: not with this budget. ``unknown``: nobody can
        tell before it is loaded.
    estimate
        What it will take: weights, cache for `Estimate.context_tokens`, workspace.
    limits
        The most that all models may take on each device; a device without limit is not named.
    taken
        What models take there now.
    moves
        Reference and move (``sleep``, ``free``) of those that would make room, also for `copy_bytes`.
    short
        Bytes missing on each device, where it does not fit.
    copy_bytes
        What it would keep in main memory to wake from; 0 if it wants none, or there is no room for one.
    """

    spec: str
    verdict: Verdict
    estimate: Estimate
    limits: Mapping[str, int]
    taken: Mapping[str, int]
    moves: tuple[tuple[str, str], ...] = ()
    short: Mapping[str, int] | None = None
    copy_bytes: int = 0

    def __bool__(self) -> bool:
        """Whether it can be loaded now, others leaving if need be."""
        return self.verdict in ("here", "fits", "after")
