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
    "pinned",
    "unpinned",
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
        created, reused, leased, released, slept, woken, evicted, freed, waiting, failed, pinned or
        unpinned.
    spec
        The model's reference.
    bytes
        What came or went on all devices together: what it is charged, or what a sleep gave back.
    detail
        More, in words.
    moved_bytes
        What was copied between devices or read from files for it.
    """

    time_s: float
    kind: Kind
    spec: str
    bytes: int = 0
    detail: str = ""
    moved_bytes: int = 0


class Record:
    """The last ten thousand events."""

    def __init__(self) -> None:
        # Plain tuples: leasing a resident model takes microseconds, and so must its record.
        self._kept: deque[tuple[float, Kind, str, int, str, int]] = deque(maxlen=_KEPT)

    def add(
        self, kind: Kind, spec: str, count: int = 0, detail: str = "", moved_bytes: int = 0
    ) -> None:
        """Record that something happened now, and log it (leases at DEBUG, the rest at INFO)."""
        self._kept.append((time.time(), kind, spec, count, detail, moved_bytes))
        level = logging.DEBUG if kind in _DEBUG_KINDS else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s %s (%d bytes) %s", kind, spec, count, detail)

    def events(self) -> list[Event]:
        """Return what is kept, oldest first."""
        return [Event(*row) for row in list(self._kept)]
