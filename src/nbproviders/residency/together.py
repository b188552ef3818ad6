"""Several models in memory together: all of them or none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from nbproviders.core.model import Model
from nbproviders.errors import setup_failed
from nbproviders.residency.entry import Entry, Loader, State
from nbproviders.residency.moving import FOREIGN, Left, Mover
from nbproviders.residency.queue import OUTSIDE, Want
from nbproviders.residency.table import Table


async def ready_all(mover: Mover, table: Table, loaders: Sequence[Loader]) -> list[Entry]:
    """Return the entries of models that can compute, each with a hard lease taken for the caller.

    Room is made for all at once, so that two who ask for the same models never hold one each and wait
    for the other.

    Raises
    ------
    InsufficientMemoryError
        At once if they do not fit together.
    ProviderError
        If one cannot be loaded: then no lease is taken. What loaded stays until it is in the way.
    """
    while True:
        held = _Held(mover, table)
        with ExitStack() as undone, suppress(Left):
            undone.callback(held.drop)
            await held.take(loaders)
            undone.pop_all()
            return [held.again(loader) for loader in loaders]


class _Held:
    """Hard leases on their way; whoever fails drops them all."""

    def __init__(self, mover: Mover, table: Table) -> None:
        self._mover, self._table = mover, table
        self._entries: dict[object, Entry] = {}
        self._waiters: list[tuple[Entry, asyncio.Future[Model]]] = []
        self._granted: list[Entry] = []
        self._given: set[object] = set()

    async def take(self, loaders: Sequence[Loader]) -> None:
        """Reserve room for all, then have each come in."""
        # Each is looked at again after every wait: one that was there may be unloaded meanwhile.
        while leaving := self._leaving(loaders):
            await leaving.gone.wait()
        with self._table.lock:
            self._entries = {loader.key: self._table.obtain(loader) for loader in loaders}
            for entry in self._entries.values():
                entry.groups += 1
        try:
            await self._admitted(list(self._entries.values()))
        finally:
            for entry in self._entries.values():
                entry.groups -= 1
        self._mover.admission.changes.tell()
        for _, waiter in self._waiters:
            await waiter

    def _leaving(self, loaders: Sequence[Loader]) -> Entry | None:
        found = (self._table.leaving.get(loader.key) for loader in loaders)
        return next((entry for entry in found if entry is not None), None)

    async def _admitted(self, entries: Sequence[Entry]) -> None:
        while any(entry.state is State.DRAINING for entry in entries):
            await self._mover.admission.changes.wait()
        wants = [await self._wanted(entry) for entry in entries]
        self._mover.admission.require_possible(wants)  # before anything is downloaded for it
        await self._here(entries)
        wants = [want if want.now else await self._wanted(want.entry) for want in wants]
        await self._mover.admission.admit(wants)
        # No await from here to the last waiter: what was reserved is still as it was.
        for entry in entries:
            there = self._table.entries.get(entry.key) is entry
            if not there or entry.state is State.DRAINING:
                raise Left
        for entry in entries:
            self._claim(entry)

    async def _here(self, entries: Sequence[Entry]) -> None:
        """Have all brought to this machine at the same time; one that cannot be had ends it for all."""
        coming = [asyncio.ensure_future(self._brought(entry)) for entry in entries]
        try:
            await asyncio.gather(*coming)
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def _brought(self, entry: Entry) -> None:
        if entry.state not in OUTSIDE or entry.model is not None:
            return
        try:
            await self._mover.downloading.bring(entry)
        except FOREIGN as error:
            raise setup_failed(entry.spec, error) from None

    async def _wanted(self, entry: Entry) -> Want:
        try:
            return await self._mover.wanted(entry)
        except FOREIGN as error:
            raise setup_failed(entry.spec, error) from None

    def _claim(self, entry: Entry) -> None:
        if entry.state is State.HOT:
            with self._table.lock:
                entry.hard += 1
                self._table.used(entry)
            self._granted.append(entry)
            return
        waiter: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        self._waiters.append((entry, waiter))
        if entry.state in OUTSIDE:
            entry.admitted = (
                True  # also for one that waits in the queue by itself: it is served now
            )
        if entry.moving is None:
            self._mover.go_on(entry)

    def again(self, loader: Loader) -> Entry:
        """Return the entry of a loader; one that was asked for twice gets a second lease."""
        entry = self._entries[loader.key]
        if loader.key in self._given:
            with self._table.lock:
                entry.hard += 1
        self._given.add(loader.key)
        return entry

    def drop(self) -> None:
        """Give everything back."""
        for entry in self._granted:
            with self._table.lock:
                entry.hard -= 1
        for entry, waiter in self._waiters:
            if not waiter.done():
                waiter.cancel()
            self._mover.abandon(entry, waiter)
        for entry in self._entries.values():
            self._mover.forget(entry)
        self._mover.admission.changes.tell()
