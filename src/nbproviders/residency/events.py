"""What happened to models and when: a bounded record, also logged."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger("nbproviders.residency")

Kind = Literal[
    "created",
    "reused",
    "leased",
    "released",
    "slept",
    "woken",
    "evicted",
    "freed",
    "waiting",
    "failed",
]
_DEBUG_KINDS = frozenset({"reused", "leased", "released"})
_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a model.

    Attributes
    ----------
    time_s
        Seconds since the epoch.
    kind
        created, reused, leased, released, slept, woken, evicted, freed, waiting or failed.
    spec
        The model's reference.
    bytes
        What it was charged, on all devices together.
    detail
        More, in words.
    """

    time_s: float
    kind: Kind
    spec: str
    bytes: int = 0
    detail: str = ""


class Record:
    """The last ten thousand events."""

    def __init__(self) -> None:
        # Plain tuples: leasing a resident model takes microseconds, and so must its record.
        self._kept: deque[tuple[float, Kind, str, int, str]] = deque(maxlen=_KEPT)

    def add(self, kind: Kind, spec: str, count: int = 0, detail: str = "") -> None:
        """Record that something happened now, and log it (leases at DEBUG, the rest at INFO)."""
        self._kept.append((time.time(), kind, spec, count, detail))
        level = logging.DEBUG if kind in _DEBUG_KINDS else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s %s (%d bytes) %s", kind, spec, count, detail)

    def events(self) -> list[Event]:
        """Return what is kept, oldest first."""
        return [Event(*row) for row in list(self._kept)]
