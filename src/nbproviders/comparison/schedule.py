"""The turns of models that compute here, what the next one reads meanwhile, and what was moved for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nbproviders.comparison.grid import Contender
from nbproviders.core import engine
from nbproviders.errors import foreign
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Loader
from nbproviders.residency.leased import LeasedModel
from nbproviders.residency.memory import size_text
from nbproviders.residency.progress import Progress

logger = logging.getLogger(__name__)


def in_order(contenders: Sequence[Contender]) -> list[Contender]:
    """Return models in the order to run them.

    Those in memory come first, so that they are not evicted for others before their turn; then those that
    sleep, the quickest to wake first; then those that have to be loaded, as they were given. One model under
    several names runs at one go. So each is brought in once at most, whatever the budget, if it alone fits.
    """
    groups: dict[object, list[Contender]] = {}
    for one in sorted(contenders, key=_standing):
        loader = loader_of(one)
        groups.setdefault(one.name if loader is None else loader.key, []).append(one)
    return [one for group in groups.values() for one in group]


def _standing(contender: Contender) -> tuple[int, float]:
    loader = loader_of(contender)
    if loader is None:  # an object of the user's, which is there
        return (0, 0.0)
    cost_s = residencies.default().cost_s(loader.key)
    if cost_s is None:
        return (2, 0.0)
    return (0, 0.0) if cost_s == 0 else (1, cost_s)


def loader_of(contender: Contender) -> Loader | None:
    """Return how a model is loaded; None for one that no residency holds, or that cannot be opened."""
    if isinstance(contender.model, LeasedModel):
        return contender.model.loader
    return contender.context.loader if contender.context is not None else None


@asynccontextmanager
async def prefetched(contender: Contender | None) -> AsyncIterator[None]:
    """Have the files of the next model downloaded, and read into main memory, while the block runs.

    Only what nobody else needs the room for; speculation evicts nothing, and its failure is nobody's.
    """
    loader = None if contender is None else loader_of(contender)
    if loader is None or residencies.default().cost_s(loader.key) is not None:
        yield
        return
    ahead = _Ahead(loader)
    work = asyncio.ensure_future(engine.default().call(ahead.run))
    try:
        yield
    finally:
        engine.default().post(ahead.stop)
        try:
            await work
        except Exception as error:  # a provider's border; the load will tell, if it matters
            logger.info("Reading ahead for %s failed: %s", loader.spec, foreign(error))


class _Ahead:
    """What is done for a model before its turn, on the engine; it ends before the model is loaded."""

    def __init__(self, loader: Loader) -> None:
        self._loader, self._progress = loader, Progress()
        self._coming: asyncio.Future[None] | None = None

    async def run(self) -> None:
        if getattr(self._loader, "download", None) is not None and not self._progress.cancelled:
            self._coming = asyncio.ensure_future(residencies.default().download(self._loader))
            await asyncio.wait({self._coming})
            if self._coming.cancelled():
                return
            self._coming.result()
        prefetch = getattr(self._loader, "prefetch", None)
        if prefetch is not None:
            await prefetch(self._progress)

    def stop(self) -> None:
        self._progress.cancel()
        if self._coming is not None:
            self._coming.cancel()


@dataclass(frozen=True, slots=True)
class Movement:
    """What a comparison moved into memory.

    Attributes
    ----------
    loads
        How often a model was loaded or woken.
    moved_bytes
        Bytes of weights that were read or copied for that.
    least_loads, least_bytes
        What it had been if each model that was not in memory had come once: no order can do with less.
    """

    loads: int
    moved_bytes: int
    least_loads: int
    least_bytes: int

    def __str__(self) -> str:
        times = f"{self.loads} {'load' if self.loads == 1 else 'loads'}"
        moved = f"{times}, {size_text(self.moved_bytes)} moved into memory"
        if self.loads == self.least_loads:
            return f"{moved}: the least there can be."
        return (
            f"{moved}; at least {self.least_loads} and {size_text(self.least_bytes)} were needed."
        )


class Meter:
    """Counts what a comparison moves: made before it runs, read after it."""

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self._residency = residencies.default()
        loaders = [loader for one in contenders if (loader := loader_of(one)) is not None]
        self._before = {loader.key: self._residency.moved(loader.key) for loader in loaders}
        self._hot = {key for key in self._before if self._residency.cost_s(key) == 0}

    def read(self) -> Movement | None:
        """Return what was moved since; None if nothing was."""
        loads = moved = least_loads = least = 0
        for key, (times_before, bytes_before) in self._before.items():
            times, count = self._residency.moved(key)
            times, count = times - times_before, count - bytes_before
            loads, moved = loads + times, moved + count
            if times and key not in self._hot:
                least_loads, least = least_loads + 1, least + count // times
        return Movement(loads, moved, least_loads, least) if loads else None
