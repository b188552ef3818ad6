"""Moving one model: into memory, to sleep, awake again, and out for good. Lives on the engine's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from nbproviders.core.model import Model
from nbproviders.errors import (
    ClosedError,
    InsufficientMemoryError,
    ProviderError,
    UnsupportedError,
    fresh,
    mapped,
    setup_failed,
)
from nbproviders.residency.admission import Admission
from nbproviders.residency.downloading import Downloading
from nbproviders.residency.entry import Entry, Loader, State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.events import Kind, Record
from nbproviders.residency.excess import Excess
from nbproviders.residency.keeping import Keeping
from nbproviders.residency.memory import HOST, Memory
from nbproviders.residency.plan import MoveKind
from nbproviders.residency.progress import Progress
from nbproviders.residency.queue import OUTSIDE, Want
from nbproviders.residency.table import Table

FOREIGN = (Exception, SystemExit, KeyboardInterrupt)


class Left(Exception):
    """The model has left before the waiter had it: he asks again."""


class Mover:
    """Carries out what is decided of entries; at any time an entry makes one move.

    Parameters
    ----------
    table, memory, record
        The residency's.
    """

    def __init__(self, table: Table, memory: Memory, record: Record) -> None:
        self._table, self._memory, self._record = table, memory, record
        self.admission = Admission(table, memory, record, self._make, self.go_on)
        self.excess = Excess(table, self.admission.room, self._make)
        self.downloading = Downloading()
        self.keeping = Keeping(table, memory, lambda one, why: self.excess.make(one, "free", why))

    # In

    async def ready(self, loader: Loader) -> Entry:
        """Return the entry of a model that can compute, with a hard lease taken for the caller."""
        while True:
            # A model on its way out is never handed out, and never doubled: wait until it is gone.
            while (leaving := self._table.leaving.get(loader.key)) is not None:
                await leaving.gone.wait()
            entry, waiter = self._asked(loader)
            if waiter is None:
                return entry
            self.go_on(entry)
            try:
                await waiter
            except asyncio.CancelledError:
                self.abandon(entry, waiter)
                raise
            except Left:
                continue
            return entry

    def _asked(self, loader: Loader) -> tuple[Entry, asyncio.Future[Model] | None]:
        with self._table.lock:
            entry = self._table.obtain(loader)
            if entry.state is State.HOT and not entry.yielding:
                entry.hard += 1
                self._table.used(entry)
                return entry, None
            waiter: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            entry.loader = loader
        return entry, waiter

    def go_on(self, entry: Entry) -> None:
        """Let those go on who wait for an entry, unless it is moving or makes a break."""
        if entry.moving is not None or not entry.waiters:
            return
        if entry.state is not State.HOT:
            self.start(entry, self._bring(entry))
        elif not entry.yielding:
            self._grant(entry)

    def start(self, entry: Entry, work: Coroutine[Any, Any, None]) -> None:
        """Have an entry make a move."""
        entry.progress = Progress()
        task = asyncio.get_running_loop().create_task(work)
        entry.moving = task
        task.add_done_callback(lambda done: self._ended(entry, done))

    def _grant(self, entry: Entry) -> None:
        assert entry.model is not None
        with self._table.lock:
            granted = [waiter for waiter in entry.waiters if not waiter.done()]
            entry.waiters.clear()
            entry.hard += len(granted)
            for _ in granted:
                self._table.used(entry)
        for waiter in granted:
            waiter.set_result(entry.model)

    def abandon(self, entry: Entry, waiter: asyncio.Future[Model]) -> None:
        """Forget a waiter that was cancelled."""
        with self._table.lock:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                entry.hard -= 1  # granted in the same moment as it was cancelled
        self.forget(entry)
        self.admission.changes.tell()

    def forget(self, entry: Entry) -> None:
        """Undo what was begun or reserved for a model, if nobody wants it any more."""
        with self._table.lock:
            moving, wanted = entry.moving is not None, bool(entry.waiters or entry.groups)
            if not moving and entry.state in OUTSIDE:
                self._unreserve(entry, wanted)
        if moving and entry.coming and not wanted:
            self.cancel(entry)
            if entry.model is None:
                # Out of the table at once: whoever asks now waits until it is gone, and loads anew.
                self._leave(entry, "freed")
        self.excess.used()

    def _unreserve(self, entry: Entry, wanted: bool) -> None:
        entry.admitted = False
        entry.charges = dict(entry.held) if entry.model is not None else {}
        if wanted:
            return
        if entry.model is not None:
            entry.state = State.WARM
        elif self._table.entries.get(entry.key) is entry:
            del self._table.entries[entry.key]

    def cancel(self, entry: Entry) -> None:
        """Stop a load or a wake; a model that goes to sleep does so, or is as it was."""
        entry.progress.cancel()
        if entry.moving is not None and entry.coming:
            entry.moving.cancel()

    def _ended(self, entry: Entry, task: asyncio.Task[None]) -> None:
        """Settle what a move left. Not inside the task: one cancelled before its first step never runs."""
        if entry.moving is task:
            entry.moving = None
        failure = None if task.cancelled() else task.exception()
        # One that was told to stop may say so before its cancellation reaches it.
        if task.cancelled() or (failure is not None and entry.progress.cancelled):
            error = ClosedError(f"The load of {entry.spec} was cancelled.")
            self._failed(entry, error, cancelled=True)
        elif failure is not None:
            self._failed(entry, setup_failed(entry.spec, failure))
        self.admission.sharing.publish()
        self.admission.changes.tell()
        self.go_on(entry)
        self.excess.used()  # what was granted in its last step may be idle by now

    async def _bring(self, entry: Entry) -> None:
        try:
            if entry.model is None:
                await self._load(entry)
            else:
                await self._wake(entry)
        except (SystemExit, KeyboardInterrupt) as error:  # of a task it would end the engine
            raise setup_failed(entry.spec, error) from None
        entry.admitted = False
        self._grant(entry)

    async def _load(self, entry: Entry) -> None:
        self._memory.check()
        if not entry.admitted:
            entry.progress.phase = "measuring"
            await self.downloading.bring(entry)
            await self.admission.admit([await self.wanted(entry)])
        entry.state = State.LOADING
        want = Want(entry, entry.charges, entry.reserve, entry.optional)
        granted = await self.admission.reserve_optional(want)
        entry.progress.host_bytes = granted.get(HOST, 0)
        began_s = self._table.now_s()  # a download is not paid again, nor the wait for room
        model = await self.admission.tried_twice(entry, lambda: entry.loader.load(entry.progress))
        with self._table.lock:
            promised, held = entry.charges, dict(model.info.memory_bytes)
            entry.model = model
            if held:  # else it does not say, and is charged what was told before
                entry.charges = entry.awake_with(held)
            self._is_hot(entry)
            entry.load_s = entry.last_used_s - began_s
            entry.awake = dict(entry.charges)
        self.excess.loaded(entry, promised)
        moved = sum(n for device, n in held.items() if device != HOST)
        moved = min(moved, entry.weights_bytes or moved)  # a cache was made, not moved
        self._table.came(entry.key, moved)
        detail = f"{entry.load_s:.3f} s"
        self._record.add("created", entry.spec.text, entry.charged_bytes, detail, moved)

    async def wanted(self, entry: Entry) -> Want:
        """Return what a model will take when it can compute."""
        if entry.state not in OUTSIDE:
            return Want(entry, entry.charges, entry.reserve)
        if entry.model is not None:
            return Want(entry, entry.awake, entry.reserve)
        prepare = getattr(entry.loader, "prepare", None)
        if prepare is not None:
            await prepare()
        estimate = Estimate.of(await entry.loader.estimate())
        entry.optional = dict(estimate.optional)
        entry.weights_bytes = sum(estimate.weights.values())
        return Want(entry, dict(estimate), estimate.reserve, estimate.optional)

    async def _wake(self, entry: Entry) -> None:
        sleeper = entry.sleeper
        assert sleeper is not None
        if not entry.admitted:
            await self.admission.admit([await self.wanted(entry)])
        entry.state = State.WAKING
        entry.progress.phase = "waking"
        promised, began_s = entry.charges, self._table.now_s()
        transfer = await self.admission.tried_twice(entry, lambda: sleeper.wake(entry.progress))
        with self._table.lock:
            entry.woke(transfer.held)
            self._is_hot(entry)
            entry.wake_s = entry.last_used_s - began_s
        self.excess.loaded(entry, promised)
        self._table.came(entry.key, transfer.moved_bytes)
        detail = f"{entry.wake_s:.3f} s from {transfer.source or 'memory'}"
        count = entry.charged_bytes - sum(entry.held.values())
        self._record.add("woken", entry.spec.text, count, detail, transfer.moved_bytes)

    def _is_hot(self, entry: Entry) -> None:
        entry.state = State.HOT
        entry.last_used_s = self._table.now_s()

    def _failed(self, entry: Entry, error: ProviderError, *, cancelled: bool = False) -> None:
        """Leave nothing of a move that failed; tell every waiter, each with an error of its own."""
        asleep = entry.model is not None
        with self._table.lock:
            entry.admitted = False
            if not asleep and self._table.entries.get(entry.key) is entry:
                del self._table.entries[entry.key]
            entry.charges = dict(entry.held) if asleep else {}
            entry.state = State.WARM if asleep else State.FAILED
            # A wake that was cancelled for want of waiters is not the fault of those who came since.
            told = [] if asleep and cancelled and not entry.forced else entry.waiters
            if told:
                entry.waiters = []
        if not (asleep and cancelled):
            self._record.add("failed", entry.spec.text, 0, error.message)
        for waiter in told:
            if not waiter.done():
                waiter.set_exception(fresh(error))
        if asleep and not cancelled and not isinstance(error, InsufficientMemoryError):
            self._leave(entry, "freed")  # what it would wake from is gone: the next use loads anew

    # Asleep

    def used(self) -> None:
        """Note that a model was used."""
        self.admission.sharing.hint()
        self.keeping.used()
        self.excess.used()

    def settle(self) -> None:
        """Have idle models leave that are too much, or there too long, after a change of what is allowed."""
        self.keeping.look()
        self.excess.lower()

    async def _make(self, entry: Entry, kind: MoveKind, why: str) -> None:
        """Carry out a planned move; a model whose closing fails has left all the same.

        Plans are a moment old: what is in use or pinned by now stays.
        """
        with suppress(ProviderError):
            if kind == "sleep" and entry.idle and await self.sleep(entry, why):
                return
            if entry.idle:
                await self.free(entry, "evicted", why)
        if entry.freeing is not None:  # it could not even sleep
            with suppress(ProviderError):
                await asyncio.shield(entry.freeing)

    async def sleep(self, entry: Entry, why: str = "") -> bool:
        """Put a model to sleep; False if it cannot, is in use, or is pinned."""
        with self._table.lock:
            if not entry.idle or entry.state is not State.HOT or entry.sleeper is None:
                return False
            entry.state, entry.refused = State.DRAINING, None
        self.start(entry, self._sleep(entry, why))
        assert entry.moving is not None
        await asyncio.shield(entry.moving)
        return entry.refused is None

    async def _sleep(self, entry: Entry, why: str) -> None:
        sleeper = entry.sleeper
        assert sleeper is not None
        before, taken_before = entry.charged_bytes, entry.taken_bytes
        try:
            transfer = await sleeper.sleep(entry.progress)
        except UnsupportedError as error:  # it is as it was
            entry.state, entry.refused = State.HOT, fresh(error)
            return
        except FOREIGN as error:
            if entry.progress.cancelled:  # so is this one
                entry.state, entry.refused = State.HOT, ClosedError(f"{entry.spec} was unloaded.")
                return
            with self._table.lock:
                # Nobody knows what it still holds: it counts until it is closed.
                entry.held = dict(entry.charges)
            raise setup_failed(entry.spec, error) from None
        with self._table.lock:
            entry.held = dict(transfer.held)
            entry.charges = dict(transfer.held)
            entry.state = State.WARM
            entry.slept_bytes = taken_before - entry.taken_bytes
        freed = before - entry.charged_bytes
        self._record.add("slept", entry.spec.text, freed, why, transfer.moved_bytes)

    # Out

    async def free(self, entry: Entry, kind: Kind = "freed", why: str = "") -> None:
        """Take a model out of memory; `kind` (evicted or freed) and `why` are recorded.

        Goes on to its end even if the caller is cancelled: memory is never half given back.

        Raises
        ------
        ProviderError
            If its own closing failed; it is out of the table all the same.
        """
        self._leave(entry, kind, why)
        if entry.freeing is not None:
            await asyncio.shield(entry.freeing)

    def _leave(self, entry: Entry, kind: Kind, why: str = "") -> None:
        """Take an entry out of the table and start to free it, once."""
        with self._table.lock:
            if self._table.entries.get(entry.key) is not entry:
                return
            del self._table.entries[entry.key]
            self._table.leaving[entry.key] = entry
            entry.pinned = False
            left: list[asyncio.Future[Model]] = []
            if entry.moving is None:
                entry.state = State.DRAINING
            if not entry.coming:
                left, entry.waiters = entry.waiters, []  # they waited for a break or a sleep to end
        for waiter in left:
            if not waiter.done():
                waiter.set_exception(Left())
        entry.freeing = asyncio.get_running_loop().create_task(self._free(entry, kind, why))

    async def _free(self, entry: Entry, kind: Kind, why: str) -> None:
        while entry.hard > 0 or entry.moving is not None:
            await self.admission.changes.wait()
        entry.state, count = State.DRAINING, entry.charged_bytes
        held = entry.model is not None
        try:
            if entry.model is not None:
                with mapped(f"Closing {entry.spec} failed"):
                    await entry.model.aclose()
        finally:
            with self._table.lock:
                self._table.leaving.pop(entry.key, None)
                entry.model = None
                entry.charges = {}
                entry.state = State.COLD
            entry.gone.set()
            if held:
                self._record.add(kind, entry.spec.text, count, why)
            self.admission.sharing.publish()
            self.admission.changes.tell()
            self.excess.used()

    def force(self, entry: Entry) -> None:
        """Cancel all that runs with a model."""
        entry.forced = True
        self.cancel(entry)
        self.downloading.stop(entry)
        for task in list(entry.running):
            task.cancel()
