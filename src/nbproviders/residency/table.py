"""The table: every key that is in memory, coming or leaving, under one lock."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from nbproviders.core.spec import ResourceKey
from nbproviders.residency.entry import Entry, Loader
from nbproviders.residency.residents import Resident
from nbproviders.residency.reuse import Reuse

# On the scale of `Reuse`: less than one that was ever used, but not nothing.
_NEVER_USED = 0.1


class Table:
    """Entries and soft leases of this process.

    Attributes
    ----------
    lock
        Guards all of it; never held across an await or anything slow.
    entries
        In memory or coming.
    leaving
        On their way out; never handed out, never doubled.
    now_s
        The clock, in monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.Lock()
        self.entries: dict[ResourceKey, Entry] = {}
        self.leaving: dict[ResourceKey, Entry] = {}
        self.now_s = clock
        self._open: dict[ResourceKey, Counter[str]] = {}
        self._reuse: dict[ResourceKey, Reuse] = {}
        self._moved: dict[ResourceKey, tuple[int, int]] = {}
        self._turn = 0
        self._last: ResourceKey | None = None

    def find(self, key: ResourceKey) -> Entry | None:
        """Return the entry of a key, if it is in memory, asleep or loading."""
        with self.lock:
            return self.entries.get(key)

    def all(self) -> list[Entry]:
        """Return all that is charged now: in memory, coming or leaving."""
        with self.lock:
            return [*self.entries.values(), *self.leaving.values()]

    def obtain(self, loader: Loader) -> Entry:
        """Return the entry of a key, a new one if there is none; the lock is held."""
        entry = self.entries.get(loader.key)
        if entry is None:
            entry = Entry(loader.key, loader.spec, loader, self.now_s())
            self.entries[loader.key] = entry
        entry.specs.add(loader.spec.text)
        return entry

    def used(self, entry: Entry) -> None:
        """Note a use, for what may be wanted next; the lock is held.

        Time is counted in changes of the model: a night without use says nothing of any.
        """
        entry.uses += 1
        entry.last_used_s = self.now_s()
        if self._last != entry.key:
            self._last = entry.key
            self._turn += 1
            self._reuse.setdefault(entry.key, Reuse()).used(self._turn)

    def moved(self, key: ResourceKey) -> tuple[int, int]:
        """Return how often a key was loaded or woken, and the bytes that took."""
        return self._moved.get(key, (0, 0))

    def came(self, key: ResourceKey, count: int) -> None:
        """Note that a key was loaded or woken, and the bytes of it."""
        times, total = self.moved(key)
        self._moved[key] = (times + 1, total + count)

    def chance(self, key: ResourceKey) -> float:
        """Return how likely a key is to be wanted next, on a scale that all share."""
        with self.lock:  # any thread may note a use
            reuse = self._reuse.get(key)
            return reuse.chance(self._turn) if reuse is not None else _NEVER_USED

    # Soft leases

    def hold(self, key: ResourceKey, opened_in: str) -> None:
        """Count a soft lease; the lock is held."""
        self._open.setdefault(key, Counter())[opened_in] += 1

    def give_back(self, key: ResourceKey, opened_in: str) -> Entry | None:
        """Forget a soft lease, and return the entry if there is one."""
        with self.lock:
            found = self._open[key]
            found[opened_in] -= 1
            if found[opened_in] <= 0:
                del found[opened_in]
            if not found:
                del self._open[key]
            return self.entries.get(key)

    def handles(self, key: ResourceKey) -> int:
        """Return how many soft leases a key has."""
        found = self._open.get(key)
        return found.total() if found else 0

    def opened_in(self, key: ResourceKey) -> tuple[str, ...]:
        """Return the cells that hold a key open."""
        with self.lock:
            return tuple(name for name in self._open.get(key, ()) if name)

    # What is told

    def residents(self) -> list[Resident]:
        """Return what is in memory, coming or leaving, in the order it came."""
        now_s = self.now_s()
        return [self._told(entry, now_s) for entry in self.all()]

    def _told(self, entry: Entry, now_s: float) -> Resident:
        still = entry.hard or entry.coming
        return Resident(
            spec=entry.spec.text,
            state=entry.state,
            bytes=dict(entry.charges),
            handles=self.handles(entry.key),
            running=entry.hard,
            idle_s=0.0 if still else now_s - entry.last_used_s,
            uses=entry.uses,
            load_s=entry.load_s,
            progress=entry.shown.fraction if entry.on_the_move else None,
            key=entry.key.digest,
            notes=entry.model.info.notes if entry.model is not None else (),
            pinned=entry.pinned,
            opened_in=self.opened_in(entry.key),
            sleeps=entry.sleeper is not None,
        )
