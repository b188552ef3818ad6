"""Opening a model: from a resolved reference to a client, with progress while it loads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from nbproviders.authoring.blocks import Blocks
from nbproviders.authoring.progress import watch_call, watch_opening
from nbproviders.catalog import aliases
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.params import GenerationParams
from nbproviders.core.watch import Watch
from nbproviders.residency import lease as leases, residency as residencies
from nbproviders.residency.entry import Loader
from nbproviders.residency.lease import Lease
from nbproviders.residency.leased import LeasedModel

T = TypeVar("T")


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
            "Its block has ended, or it was closed. Open it again: "
            f'async with provider.model("{loader.spec.name}") as m: …, or keep it: '
            f'm = await nbp.load("{loader.spec}")'
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
            lease = await shown(
                [self.loader], lambda: self._residency.lease(self.loader, opened_in)
            )
        return self.client_of(lease)

    def client_of(self, lease: Lease) -> Client:
        """Return a client that gives this lease back."""
        return Client(self.model, lease.release, self._reopen, self._watching)

    def client_now(self, timeout_s: float | None = None) -> SyncClient:
        """Return a blocking client, loading the model if it is not in memory."""
        __tracebackhide__ = True
        lease = self._residency.lease_now(self.loader)
        if lease is None:
            opened_in = leases.here()
            lease = shown_now(
                [self.loader], lambda: self._residency.lease(self.loader, opened_in), timeout_s
            )
        return self.client_now_of(lease)

    def client_now_of(self, lease: Lease) -> SyncClient:
        """Return a blocking client that gives this lease back."""
        return SyncClient(self.model, lease.release, self._reopen, self._watching)

    def _watching(self) -> Watch | None:
        return watch_call(self.loader)


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
        self._blocks: Blocks[Client | SyncClient] = Blocks()

    @property
    def opened(self) -> Opened:
        """The resolved reference, for what opens several at once."""
        return self._opened

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
        __tracebackhide__ = True
        return self._opened.client_now(timeout_s)

    async def __aenter__(self) -> Client:
        __tracebackhide__ = True
        client = await self._opened.client()
        self._blocks.enter(asyncio.current_task(), client)
        return client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._blocks.leave(asyncio.current_task()).close()

    def __enter__(self) -> SyncClient:
        __tracebackhide__ = True
        client = self._opened.client_now()
        self._blocks.enter(threading.get_ident(), client)
        return client

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._blocks.leave(threading.get_ident()).close()

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


async def shown(loaders: Sequence[Loader], lease: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Wait for loads; show a line of progress if it takes longer than a second."""
    __tracebackhide__ = True
    # On the engine itself nobody looks: a comparison or a widget shows progress of its own.
    return await engine.default().call(lease, watch_opening(loaders))


def shown_now(
    loaders: Sequence[Loader],
    work: Callable[[], Coroutine[Any, Any, T]],
    timeout_s: float | None = None,
    doing: str = "",
) -> T:
    """Block until what needs these models is done; show a line if it takes longer than a second.

    `doing` is told while none of them is on its way into memory.

    Raises
    ------
    TimeoutError
        After `timeout_s` seconds.
    """
    __tracebackhide__ = True
    return engine.default().wait(work, timeout_s, watch_opening(loaders, doing))
