"""One operation with a model in memory: a hard lease for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from nbproviders.core.model import Model
from nbproviders.errors import ClosedError, ProviderError, mapped
from nbproviders.residency.entry import Entry, Loader


class Using:
    """``async with residency.using(loader) as model``. A class, since every call of a model makes one.

    Parameters
    ----------
    loader
        How the model is loaded, should it not be in memory.
    ready
        Returns its entry with a hard lease taken.
    used
        Gives the lease back.
    """

    __slots__ = ("_entry", "_loader", "_ready", "_task", "_used")

    def __init__(
        self,
        loader: Loader,
        ready: Callable[[Loader], Awaitable[Entry]],
        used: Callable[[Entry], None],
    ) -> None:
        self._loader, self._ready, self._used = loader, ready, used

    async def __aenter__(self) -> Model:
        self._entry = entry = await self._ready(self._loader)
        self._task = asyncio.current_task()
        assert entry.model is not None
        if self._task is not None:
            entry.running.add(self._task)
        return entry.model

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._entry.running.discard(self._task)
        self._used(self._entry)
        if isinstance(error, asyncio.CancelledError) and self._entry.forced:
            raise ClosedError(f"{self._loader.spec} was unloaded while it was running.") from None
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, ProviderError):
            with mapped(f"{self._loader.spec} failed"):
                raise error
