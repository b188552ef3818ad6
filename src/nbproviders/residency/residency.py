"""The residency: what is in memory, who leases it, and what may be asked of it. Any thread, unless it says.

Leasing a model that is there takes the table's lock on the caller's thread; what takes longer is carried
out on the engine's loop, by a `Mover`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from nbproviders.core import engine
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import (
    ClosedError,
    InvalidRequestError,
    ProviderError,
    UnsupportedError,
    foreign,
    fresh,
    mapped,
)
from nbproviders.residency import devices, lease as leases
from nbproviders.residency.entry import Entry, Loader, State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.events import Event, Record
from nbproviders.residency.fit import Fit
from nbproviders.residency.lease import Lease
from nbproviders.residency.memory import Memory
from nbproviders.residency.moving import Mover
from nbproviders.residency.residents import DeviceUse, Resident
from nbproviders.residency.seats import wake_s
from nbproviders.residency.table import Table
from nbproviders.residency.together import ready_all
from nbproviders.residency.using import Using

T = TypeVar("T")


class Residency:
    """All models of this process.

    Parameters
    ----------
    memory
        Budgets and probes.
    clock
        Monotonic seconds; tests give their own.
    """

    def __init__(
        self,
        memory: Memory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory = memory or Memory()
        self._table = Table(clock)
        self._record = Record()
        self._mover = Mover(self._table, self.memory, self._record)
        self._changes = self._mover.admission.changes
        self._pid = os.getpid()

    # Leases

    def lease_now(self, loader: Loader) -> Lease | None:
        """Return a soft lease at once if the model is in memory, else None."""
        key = loader.key
        self._check_process(loader)
        opened_in = leases.here()
        with self._table.lock:
            entry = self._table.entries.get(key)
            if entry is None or entry.state is not State.HOT:
                return None
            self._table.hold(key, opened_in)
            self._table.used(entry)
        text, count = entry.spec.text, entry.charged_bytes
        self._record.add("reused", text, count)
        self._record.add("leased", text, count)
        return Lease(loader, self._give_back, opened_in)

    async def lease(self, loader: Loader, opened_in: str = "") -> Lease:
        """Return a soft lease, loading the model first if it is not in memory. On the engine's loop.

        Raises
        ------
        ProviderError
            ``Failed to setup resource '<spec>': <cause>``; nothing is left behind.
        """
        ready = self.lease_now(loader)
        if ready is not None:
            return ready
        return self._softened(await self._ready(loader), loader, opened_in)

    def _softened(self, entry: Entry, loader: Loader, opened_in: str) -> Lease:
        """Turn a hard lease into a soft one."""
        with self._table.lock:
            entry.hard -= 1
            self._table.hold(loader.key, opened_in)
        self._record.add("leased", loader.spec.text, entry.charged_bytes)
        self._changes.tell()
        self._mover.used()
        return Lease(loader, self._give_back, opened_in)

    async def lease_all(self, loaders: Sequence[Loader], opened_in: str = "") -> list[Lease]:
        """Return a soft lease of each, once all are in memory together: all or none.

        On the engine's loop.

        Raises
        ------
        InsufficientMemoryError
            At once if they do not fit together, whatever else leaves.
        ProviderError
            If one of them cannot be loaded; no lease is left behind.
        """
        for loader in loaders:
            self._check_process(loader)
        entries = await ready_all(self._mover, self._table, loaders)
        return [
            self._softened(entry, loader, opened_in)
            for entry, loader in zip(entries, loaders, strict=True)
        ]

    def _check_process(self, loader: Loader) -> None:
        # A forked child has a copy of this table, and none of the threads that its models live on.
        if self._pid != os.getpid():
            raise ClosedError(
                f"{loader.spec} was opened before this process was forked.", hint="Open it again."
            )

    def _give_back(self, loader: Loader, opened_in: str) -> None:
        entry = self._table.give_back(loader.key, opened_in)
        count = entry.charged_bytes if entry is not None else 0
        self._record.add("released", loader.spec.text, count)

    def using(self, loader: Loader) -> Using:
        """Hold a model for one operation (a hard lease), bringing it back if it has left."""
        return Using(loader, self._ready, self._used)

    async def _ready(self, loader: Loader) -> Entry:
        self._check_process(loader)
        return await self._mover.ready(loader)

    def _used(self, entry: Entry) -> None:
        with self._table.lock:
            entry.hard -= 1
            entry.last_used_s = self._table.now_s()
        self._changes.tell()
        self._mover.used()

    # What may be asked of models; on the engine's loop

    async def unload(self, chosen: Callable[[Entry], bool], *, force: bool = False) -> int:
        """Free all chosen models and return the bytes that came back.

        Running operations are waited for; `force` cancels them with an error. Handles that are still
        open load again at their next use.

        Raises
        ------
        ProviderError
            Telling every failed closing; the others are freed all the same.
        """
        entries = [entry for entry in self._table.all() if chosen(entry)]
        freed = sum(entry.taken_bytes for entry in entries)
        for entry in entries:
            if force:
                self._mover.force(entry)
        ended = await asyncio.gather(
            *(self._mover.free(entry, "freed") for entry in entries), return_exceptions=True
        )
        failures = [error for error in ended if isinstance(error, BaseException)]
        if len(failures) == 1 and isinstance(failures[0], ProviderError):
            raise fresh(failures[0])
        if failures:
            raise ProviderError("\n".join(str(foreign(error)) for error in failures))
        return freed

    async def sleep(self, entry: Entry) -> int:
        """Put a model to sleep once nothing runs on it, and return the bytes that came back.

        Raises
        ------
        InvalidRequestError
            If it is pinned.
        UnsupportedError
            If it cannot sleep, with the reason.
        """
        while not entry.pinned and (entry.hard or entry.moving is not None):
            await self._changes.wait()
        if entry.pinned:
            raise InvalidRequestError(
                f"{entry.spec} is pinned: it stays.", hint=f'nbp.unpin("{entry.spec}") first.'
            )
        if entry.state is State.HOT and entry.sleeper is None:
            notes = entry.model.info.notes if entry.model is not None else ()
            raise UnsupportedError(
                " ".join([f"{entry.spec} cannot sleep.", *notes]),
                hint="Unload it instead: it is loaded again at its next use.",
            )
        if await self._mover.sleep(entry, "by hand"):
            return entry.slept_bytes
        if entry.refused is not None:
            raise fresh(entry.refused)
        return 0

    async def pin(self, loader: Loader) -> None:
        """Have a model in memory, and keep it there whatever else is wanted."""
        async with self.using(loader) as _:
            entry = self.find(loader.key)
            if entry is not None:
                entry.pinned = True
        self._record.add("pinned", loader.spec.text, entry.charged_bytes if entry else 0)

    def settle(self) -> None:
        """Have idle models leave that a change of budget or time leaves no place for."""
        self._mover.settle()

    async def settled(self) -> None:
        """The same, and wait until they have left."""
        self._mover.settle()
        await self._mover.excess.made()

    def set_wait(self, wait_s: float) -> None:
        """Set the longest wait for memory that running models hold, in seconds."""
        self._mover.admission.wait_s = wait_s

    def unpin(self, entry: Entry) -> None:
        """Let a model leave again, should its memory be wanted; nothing if it was not pinned."""
        if not entry.pinned:
            return
        entry.pinned = False
        self._record.add("unpinned", entry.spec.text, entry.charged_bytes)
        self._changes.tell()
        self._mover.excess.unpinned()
        self._mover.used()

    async def download(self, loader: Loader) -> None:
        """Bring to this machine what a model is loaded from; nothing else is done with it."""
        entry = self.find(loader.key) or self._new(loader)
        await self._mover.downloading.bring(entry)

    async def fit(self, loader: Loader) -> Fit:
        """Return what loading a model would mean; nothing is loaded, and nobody leaves."""
        entry = self.find(loader.key) or self._new(loader)
        with mapped(f"Estimating {loader.spec} failed"):
            estimate = Estimate.of(await loader.estimate())
        return self._mover.admission.would(entry, estimate)

    def _new(self, loader: Loader) -> Entry:
        """Return an entry that is in no table."""
        return Entry(loader.key, loader.spec, loader, self._table.now_s())

    async def tried_twice(self, loader: Loader, work: Callable[[], Awaitable[T]]) -> T:
        """Compute with a model; once more after idle others have left, if its device ran out of memory.

        Raises
        ------
        InsufficientMemoryError
            With the table of who holds what, if none could leave, or that was not enough.
        """
        entry = self.find(loader.key)
        return await (work() if entry is None else self._mover.admission.tried_twice(entry, work))

    # What is told

    def entries(self) -> list[Entry]:
        """Return all that is charged now: in memory, coming or leaving."""
        return self._table.all()

    def handles(self, key: ResourceKey) -> int:
        """Return how many soft leases a key has."""
        return self._table.handles(key)

    def residents(self) -> list[Resident]:
        """Return what is in memory, coming or leaving, in the order it came."""
        return self._table.residents()

    def find(self, key: ResourceKey) -> Entry | None:
        """Return the entry of a key, if it is in memory, asleep or loading."""
        return self._table.find(key)

    def cost_s(self, key: ResourceKey) -> float | None:
        """Return the seconds until a model could compute: 0 in memory; None if it has to be loaded."""
        entry = self.find(key)
        if entry is None or entry.model is None:
            return None
        return 0.0 if entry.state is State.HOT else wake_s(entry)

    def moved(self, key: ResourceKey) -> tuple[int, int]:
        """Return how often a model was loaded or woken since the process began, and the bytes that took."""
        return self._table.moved(key)

    def events(self) -> list[Event]:
        """Return what happened, oldest first."""
        return self._record.events()

    def devices(self) -> list[DeviceUse]:
        """Return how the memory of each device is shared out. Reads the devices."""
        return devices.uses(self._table, self.memory, self._mover.admission.sharing)

    async def changed(self) -> None:
        """Wait until something changed, half a second at most. On the engine's loop."""
        await self._changes.wait()

    async def close(self) -> None:
        """Free everything, whatever is running; for the interpreter's end."""
        try:
            await self.unload(lambda _: True, force=True)
        finally:
            await self._mover.admission.sharing.close()


_default: Residency | None = None
_default_lock = threading.Lock()


def default() -> Residency:
    """Return the process's residency; an empty one in a forked child; freed at the very end."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                made = Residency()
                engine.default().at_close(made.close)
                _default = made
    return _default


def _forget() -> None:
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()


engine.after_fork([_forget])
