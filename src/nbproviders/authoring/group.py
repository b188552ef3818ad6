"""Several models open at once: all of them in memory together, or none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType

from nbproviders.authoring.blocks import Blocks
from nbproviders.authoring.opening import ModelContext, shown, shown_now
from nbproviders.core.client import Client, SyncClient
from nbproviders.errors import ConfigurationError
from nbproviders.residency import lease as leases, residency as residencies
from nbproviders.residency.lease import Lease


class ModelGroup:
    """``models(a, b)``: enter it with ``async with`` or ``with``; it gives a client of each, in order.

    Room is made for all before the first is loaded: they never wait for one another's memory.

    Parameters
    ----------
    contexts
        ``provider.model(…)`` of each.

    Raises
    ------
    ConfigurationError
        For no model at all.
    """

    def __init__(self, contexts: Sequence[ModelContext]) -> None:
        if not contexts:
            raise ConfigurationError(
                "models() takes the models to open, and none was given.",
                hint='Write models("transformers:demo-s", "transformers:demo-m").',
            )
        self._opened = [context.opened for context in contexts]
        self._blocks: Blocks[Sequence[Client | SyncClient]] = Blocks()

    async def open(self) -> tuple[Client, ...]:
        """Return clients to keep; whoever opens them closes them.

        Raises
        ------
        InsufficientMemoryError
            At once if they do not fit together.
        """
        __tracebackhide__ = True
        opened_in = leases.here()
        loaders = [opened.loader for opened in self._opened]
        found = await shown(loaders, lambda: self._lease(opened_in))
        return tuple(
            opened.client_of(lease) for opened, lease in zip(self._opened, found, strict=True)
        )

    def open_sync(self, timeout_s: float | None = None) -> tuple[SyncClient, ...]:
        """Return blocking clients to keep; whoever opens them closes them."""
        __tracebackhide__ = True
        opened_in = leases.here()
        loaders = [opened.loader for opened in self._opened]
        found = shown_now(loaders, lambda: self._lease(opened_in), timeout_s)
        return tuple(
            opened.client_now_of(lease) for opened, lease in zip(self._opened, found, strict=True)
        )

    async def _lease(self, opened_in: str) -> list[Lease]:
        residency = residencies.default()
        return await residency.lease_all([opened.loader for opened in self._opened], opened_in)

    async def __aenter__(self) -> tuple[Client, ...]:
        __tracebackhide__ = True
        clients = await self.open()
        self._blocks.enter(asyncio.current_task(), clients)
        return clients

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _close(self._blocks.leave(asyncio.current_task()))

    def __enter__(self) -> tuple[SyncClient, ...]:
        __tracebackhide__ = True
        clients = self.open_sync()
        self._blocks.enter(threading.get_ident(), clients)
        return clients

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _close(self._blocks.leave(threading.get_ident()))

    def __repr__(self) -> str:
        names = ", ".join(str(opened.loader.spec) for opened in self._opened)
        return f"<models {names}; use them as: async with … as (a, b), or with … as (a, b)>"


def _close(clients: Sequence[Client | SyncClient]) -> None:
    for client in clients:
        client.close()
