"""The residency: load once, lease, evict, free.

One lock guards the table and is never held across an await. Leasing a model that is there takes the lock
on the caller's thread; loads and evictions are decided under it and carried out on the engine's loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from nbproviders.core import engine
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import (
    ClosedError,
    ProviderError,
    foreign,
    fresh,
    mapped,
    setup_failed,
)
from nbproviders.residency.admission import Admission
from nbproviders.residency.entry import Entry, Lease, Loader, Resident, State
from nbproviders.residency.events import Event, Kind, Record
from nbproviders.residency.memory import Memory
from nbproviders.residency.using import Using

_FOREIGN = (Exception, SystemExit, KeyboardInterrupt)


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
        self, memory: Memory | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.memory = memory or Memory()
        self._clock = clock
        self._lock = threading.Lock()
        self._table: dict[ResourceKey, Entry] = {}
        self._leaving: dict[ResourceKey, Entry] = {}
        self._handles: Counter[ResourceKey] = Counter()
        self._record = Record()
        self._admission = Admission(self)
        self._pid = os.getpid()

    # Leases: any thread

    def lease_now(self, loader: Loader) -> Lease | None:
        """Return a soft lease at once if the model is in memory, else None. Any thread."""
        key = loader.key
        self._check_process(loader)
        with self._lock:
            entry = self._table.get(key)
            if entry is None or entry.state is not State.HOT:
                return None
            self._handles[key] += 1
            entry.uses += 1
            entry.last_used_s = self._clock()
        text, count = entry.spec.text, entry.charged_bytes
        self._record.add("reused", text, count)
        self._record.add("leased", text, count)
        return Lease(loader, self._give_back)

    async def lease(self, loader: Loader) -> Lease:
        """Return a soft lease, loading the model first if it is not in memory.

        Raises
        ------
        ProviderError
            ``Failed to setup resource '<spec>': <cause>``; nothing is left behind.
        """
        ready = self.lease_now(loader)
        if ready is not None:
            return ready
        entry = await self._ready(loader)
        with self._lock:
            entry.hard -= 1
            self._handles[loader.key] += 1
        self._record.add("leased", loader.spec.text, entry.charged_bytes)
        self._admission.wake()
        return Lease(loader, self._give_back)

    def _check_process(self, loader: Loader) -> None:
        # A forked child has a copy of this table, and none of the threads that its models live on.
        if self._pid != os.getpid():
            raise ClosedError(
                f"{loader.spec} was opened before this process was forked.", hint="Open it again."
            )

    def _give_back(self, loader: Loader) -> None:
        with self._lock:
            self._handles[loader.key] -= 1
            if self._handles[loader.key] <= 0:
                del self._handles[loader.key]
            entry = self._table.get(loader.key)
        count = entry.charged_bytes if entry is not None else 0
        self._record.add("released", loader.spec.text, count)

    def using(self, loader: Loader) -> Using:
        """Hold a model for one operation (a hard lease), loading it again if it has left."""
        return Using(loader, self._ready, self._used)

    def _used(self, entry: Entry) -> None:
        with self._lock:
            entry.hard -= 1
            entry.last_used_s = self._clock()
        self._admission.wake()

    # Loading: the engine's loop

    async def _ready(self, loader: Loader) -> Entry:
        """Return the entry of a model in memory, with a hard lease taken for the caller."""
        self._check_process(loader)
        # A model on its way out is never handed out, and never doubled: wait until it is gone.
        while (leaving := self._leaving.get(loader.key)) is not None:
            await leaving.gone.wait()
        with self._lock:
            entry = self._table.get(loader.key)
            if entry is None:
                entry = Entry(loader.key, loader.spec, self._clock())
                self._table[loader.key] = entry
            entry.specs.add(loader.spec.text)
            if entry.state is State.HOT:
                entry.hard += 1
                entry.uses += 1
                return entry
            waiter: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
        if entry.loading is None:
            entry.loading = asyncio.get_running_loop().create_task(self._load(entry, loader))
            entry.loading.add_done_callback(lambda task: self._cancelled(entry, task))
        try:
            await waiter
        except asyncio.CancelledError:
            self._abandon(entry, waiter)
            raise
        return entry

    def _abandon(self, entry: Entry, waiter: asyncio.Future[Model]) -> None:
        """Forget a waiter that was cancelled; a load that nobody waits for is cancelled too."""
        with self._lock:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                entry.hard -= 1  # granted in the same moment as it was cancelled
            alone = not entry.waiters and entry.loading is not None
        if alone and entry.loading is not None and entry.state is not State.HOT:
            # Out of the table at once: whoever asks now waits until it is gone, and loads anew.
            self._cancel(entry)
            self._leave(entry, "freed")
        self._admission.wake()

    def _cancel(self, entry: Entry) -> None:
        entry.progress.cancel()
        if entry.loading is not None:
            entry.loading.cancel()

    def _cancelled(self, entry: Entry, task: asyncio.Task[None]) -> None:
        # Not inside the task: one that is cancelled before its first step never runs at all.
        if task.cancelled():
            self._drop(entry, ClosedError(f"The load of {entry.spec} was cancelled."))

    async def _load(self, entry: Entry, loader: Loader) -> None:
        began_s = self._clock()
        try:
            model = await self._admission.load(entry, loader)
        except _FOREIGN as error:  # a provider's border; every waiter sees it
            self._drop(entry, setup_failed(loader.spec, error))
            return
        with self._lock:
            entry.model = model
            entry.charges = dict(model.info.memory_bytes or entry.charges)
            entry.state = State.HOT
            entry.loading = None
            entry.last_used_s = self._clock()
            entry.load_s = entry.last_used_s - began_s
            granted = [waiter for waiter in entry.waiters if not waiter.done()]
            entry.waiters.clear()
            entry.hard += len(granted)
            entry.uses += len(granted)
        self._record.add("created", loader.spec.text, entry.charged_bytes, f"{entry.load_s:.3f} s")
        for waiter in granted:
            waiter.set_result(model)

    def _drop(self, entry: Entry, error: ProviderError) -> None:
        """Leave nothing of a load that failed; tell every waiter, each with an error of its own."""
        with self._lock:
            if self._table.get(entry.key) is entry:
                del self._table[entry.key]
            entry.charges = {}
            entry.loading = None
            entry.state = State.FAILED
            waiters, entry.waiters = entry.waiters, []
        self._record.add("failed", entry.spec.text, 0, error.message)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(fresh(error))
        self._admission.wake()

    # Leaving: the engine's loop

    async def free(self, entry: Entry, kind: Kind = "freed") -> None:
        """Take a model out of memory; `kind` is what is recorded: evicted or freed.

        Goes on to its end even if the caller is cancelled: memory is never half given back.

        Raises
        ------
        ProviderError
            If its own closing failed; it is out of the table all the same.
        """
        self._leave(entry, kind)
        if entry.freeing is not None:
            await asyncio.shield(entry.freeing)

    def _leave(self, entry: Entry, kind: Kind) -> None:
        """Take an entry out of the table and start to free it, once."""
        with self._lock:
            if self._table.get(entry.key) is not entry:
                return
            del self._table[entry.key]
            self._leaving[entry.key] = entry
            if entry.loading is None:
                entry.state = State.DRAINING
        entry.freeing = asyncio.get_running_loop().create_task(self._free(entry, kind))

    async def _free(self, entry: Entry, kind: Kind) -> None:
        while entry.hard > 0 or entry.loading is not None:
            await self._admission.changed()
        entry.state, count = State.DRAINING, entry.charged_bytes
        held = entry.model is not None
        try:
            if entry.model is not None:
                with mapped(f"Closing {entry.spec} failed"):
                    await entry.model.aclose()
        finally:
            with self._lock:
                self._leaving.pop(entry.key, None)
                entry.model = None
                entry.charges = {}
                entry.state = State.COLD
            entry.gone.set()
            if held:
                self._record.add(kind, entry.spec.text, count)
            self._admission.wake()

    async def unload(self, chosen: Callable[[Entry], bool], *, force: bool = False) -> int:
        """Free all chosen models and return the bytes that came back.

        Running operations are waited for; `force` cancels them with an error. Handles that are still
        open load again at their next use.

        Raises
        ------
        ProviderError
            Telling every failed closing; the others are freed all the same.
        """
        with self._lock:
            there = [*self._table.values(), *self._leaving.values()]
            entries = [entry for entry in there if chosen(entry)]
        freed = sum(entry.charged_bytes for entry in entries)
        for entry in entries:
            if force:
                self._force(entry)
        ended = await asyncio.gather(
            *(self.free(entry, "freed") for entry in entries), return_exceptions=True
        )
        failures = [error for error in ended if isinstance(error, BaseException)]
        if len(failures) == 1 and isinstance(failures[0], ProviderError):
            raise fresh(failures[0])
        if failures:
            raise ProviderError("\n".join(str(foreign(error)) for error in failures))
        return freed

    def _force(self, entry: Entry) -> None:
        entry.forced = True
        self._cancel(entry)
        for task in list(entry.running):
            task.cancel()

    # What is told

    def entries(self) -> list[Entry]:
        """Return all that is charged now: in memory, loading or leaving."""
        with self._lock:
            return [*self._table.values(), *self._leaving.values()]

    def handles(self, key: ResourceKey) -> int:
        """Return how many soft leases a key has."""
        return self._handles.get(key, 0)

    def residents(self) -> list[Resident]:
        """Return what is in memory, loading or leaving, in the order it came."""
        now_s = self._clock()
        return [self._told(entry, now_s) for entry in self.entries()]

    def _told(self, entry: Entry, now_s: float) -> Resident:
        loading = entry.state in (State.LOADING, State.WAITING, State.COLD)
        return Resident(
            spec=entry.spec.text,
            state=entry.state,
            bytes=dict(entry.charges),
            handles=self.handles(entry.key),
            running=entry.hard,
            idle_s=0.0 if entry.hard or loading else now_s - entry.last_used_s,
            uses=entry.uses,
            load_s=entry.load_s,
            progress=entry.progress.fraction if loading else None,
            key=entry.key.digest,
            notes=entry.model.info.notes if entry.model is not None else (),
        )

    def find(self, key: ResourceKey) -> Entry | None:
        """Return the entry of a key, if it is in memory or loading."""
        with self._lock:
            return self._table.get(key)

    def record(self, kind: Kind, entry: Entry, detail: str = "") -> None:
        """Record an event of the admission."""
        self._record.add(kind, entry.spec.text, 0, detail)

    def events(self) -> list[Event]:
        """Return what happened, oldest first."""
        return self._record.events()

    def reserve(self, entry: Entry, charges: Mapping[str, int], fits: Callable[[], bool]) -> bool:
        """Charge an entry if `fits` says so, in one step under the lock."""
        with self._lock:
            if not fits():
                return False
            entry.charges = dict(charges)
            return True

    async def close(self) -> None:
        """Free everything, whatever is running; for the interpreter's end."""
        await self.unload(lambda _: True, force=True)

    def now_s(self) -> float:
        """The residency's clock."""
        return self._clock()


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
