"""Opening a model: from a resolved reference to a client, with progress while it loads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from nbproviders.authoring.progress import Line, bar
from nbproviders.catalog import aliases
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.params import GenerationParams
from nbproviders.errors import ClosedError
from nbproviders.residency import lease as leases, residency as residencies
from nbproviders.residency.entry import Loader
from nbproviders.residency.lease import Lease
from nbproviders.residency.leased import LeasedModel
from nbproviders.residency.memory import size_text

_SHOW_AFTER_S = 1.0
_REFRESH_S = 0.2


class Opened:
    """A resolved reference, ready to be leased any number of times.

    Parameters
    ----------
    loader
        How it is loaded.
    chat, alone
        What requests that do not say take.
    alias_version
        Of the alias table it was resolved by.
    watch
        Files that decide what it is; if one changes, it must be resolved anew.
    defaults
        Parameters that requests take where they give none.
    """

    def __init__(
        self,
        loader: Loader,
        chat: bool | None,
        alone: bool,
        alias_version: int,
        watch: tuple[Path, ...] = (),
        defaults: GenerationParams | None = None,
    ) -> None:
        self.loader = loader
        self._alias_version = alias_version
        self._watch = [(str(path), _stamp(str(path))) for path in watch]
        self._residency = residencies.default()
        self.model = LeasedModel(self._residency, loader, chat=chat, alone=alone, defaults=defaults)
        self._reopen = (
            f'It ended with its block. Open it again: async with provider.model("{loader.spec.name}")'
            f' as m: …, or keep it: m = await nbp.load("{loader.spec}")'
        )

    def fresh(self) -> bool:
        """Whether it still means what it meant."""
        if self._alias_version != aliases.version() or self._residency is not residencies.default():
            return False
        return all(_stamp(path) == stamp for path, stamp in self._watch)

    async def client(self) -> Client:
        """Return a client, loading the model if it is not in memory."""
        __tracebackhide__ = True
        lease = self._residency.lease_now(self.loader)
        if lease is None:
            opened_in = leases.here()
            lease = await _shown(self.loader, lambda: self._residency.lease(self.loader, opened_in))
        return Client(self.model, lease.release, self._reopen)

    def client_now(self, timeout_s: float | None = None) -> SyncClient:
        """Return a blocking client, loading the model if it is not in memory."""
        __tracebackhide__ = True
        lease = self._residency.lease_now(self.loader)
        if lease is None:
            opened_in = leases.here()
            lease = engine.default().wait(
                lambda: self._residency.lease(self.loader, opened_in), timeout_s
            )
        return SyncClient(self.model, lease.release, self._reopen)



def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  # each microsecond counts here
    except OSError:  # gone: that is a change as well
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


class ModelContext:
    """``provider.model(…)``: enter it with ``async with`` or ``with``, as often as you like."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        # Entered at once by several tasks or threads, each leaves with its own client.
        self._clients: dict[object, list[Client | SyncClient]] = {}

    @property
    def loader(self) -> Loader:
        """How the model is loaded, for fronts that show the load themselves."""
        return self._opened.loader

    @property
    def spec(self) -> str:
        """The model's reference."""
        return self._opened.loader.spec.text

    @property
    def resident(self) -> bool:
        """Whether the model is in memory now."""
        entry = residencies.default().find(self._opened.loader.key)
        return entry is not None and entry.model is not None

    @property
    def remote(self) -> bool:
        """Whether another machine computes; see `ModelInfo`."""
        return bool(getattr(self._opened.loader, "remote", False))

    async def open(self) -> Client:
        """Return a client to keep; whoever opens it closes it."""
        __tracebackhide__ = True
        return await self._opened.client()

    def open_sync(self, timeout_s: float | None = None) -> SyncClient:
        """Return a blocking client to keep; whoever opens it closes it."""
        return self._opened.client_now(timeout_s)

    async def __aenter__(self) -> Client:
        __tracebackhide__ = True
        client = await self._opened.client()
        self._clients.setdefault(asyncio.current_task(), []).append(client)
        return client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(asyncio.current_task())

    def __enter__(self) -> SyncClient:
        __tracebackhide__ = True
        client = self._opened.client_now()
        self._clients.setdefault(threading.get_ident(), []).append(client)
        return client

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(threading.get_ident())

    def _leave(self, who: object) -> None:
        # A fixture may be left by another task than entered it: then the oldest is meant.
        place = who if who in self._clients else next(iter(self._clients), None)
        if place is None:
            raise ClosedError("This block was left more often than it was entered.")
        clients = self._clients[place]
        clients.pop().close()
        if not clients:
            del self._clients[place]

    def __repr__(self) -> str:
        return f"<model {self._opened.loader.spec}; use it as: async with … as m, or with … as m>"

    def __getattr__(self, name: str) -> NoReturn:
        # Only what is not found otherwise comes here, and most of that is meant for the open model.
        said = f"{type(self).__name__} has no attribute {name!r}"
        if hasattr(Client, name):
            spec = self._opened.loader.spec if "_opened" in self.__dict__ else "…"
            said += (
                f": {spec} is not open yet. Write async with … as m, or m = await nbp.load({str(spec)!r}); "
                f"in a script with … as m, or m = nbp.load_sync({str(spec)!r}). Then m.{name}(…)."
            )
        raise AttributeError(said)


async def _shown(loader: Loader, lease: Callable[[], Any]) -> Lease:
    """Wait for a load; show a progress bar if it takes longer than a second."""
    __tracebackhide__ = True
    if engine.default().here:  # a comparison or a widget, which shows progress of its own
        found: Lease = await lease()
        return found
    work: asyncio.Task[Lease] = asyncio.ensure_future(engine.default().call(lease))
    try:
        done, _ = await asyncio.wait({work}, timeout=_SHOW_AFTER_S)
        if not done:
            await _bar(loader, work)
        return await work
    except asyncio.CancelledError:
        work.cancel()
        raise


async def _bar(loader: Loader, work: asyncio.Task[Lease]) -> None:
    residency = residencies.default()
    began_s = time.monotonic()
    with Line() as line:
        while not work.done():
            entry = residency.find(loader.key)
            if entry is not None:
                progress = entry.progress
                text = (
                    f"Loading {loader.spec}: {progress.phase}, {time.monotonic() - began_s:.0f} s"
                )
                if progress.fraction is not None:
                    done, total = map(size_text, (progress.done_bytes, progress.total_bytes))
                    text += f"  {bar(progress.fraction)}  {done} of {total}"
                line.show(text)
            await asyncio.wait({work}, timeout=_REFRESH_S)
