"""Having the files of a model brought to this machine, before room is looked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nbproviders.core.spec import ResourceKey
from nbproviders.errors import ClosedError
from nbproviders.residency.entry import Entry
from nbproviders.residency.progress import Progress


@dataclass(eq=False)
class _Download:
    """One that is under way, how many wait for it, and whether it was told to stop."""

    task: asyncio.Task[None]
    progress: Progress
    wanted: int = 0
    stopping: bool = False

    def stop(self) -> None:
        self.stopping = True
        self.task.cancel()


class Downloading:
    """One download at a time for a key, however many want the model; it stops when nobody does any more."""

    def __init__(self) -> None:
        self._under_way: dict[ResourceKey, _Download] = {}

    async def bring(self, entry: Entry) -> None:
        """Have here what a model is loaded from.

        Raises
        ------
        ClosedError
            If it was stopped for all who want it.
        """
        if getattr(entry.loader, "download", None) is None:
            return
        # One that was told to stop takes a moment: what has come is there for the next.
        while (one := self._under_way.get(entry.key)) is not None and one.stopping:
            await asyncio.wait({one.task})
        one = one or self._begin(entry)
        one.wanted += 1
        entry.download = one.progress
        try:
            await asyncio.wait({one.task})
        finally:
            one.wanted -= 1
            if not one.wanted or one.task.done():
                entry.download = None
            if not one.wanted and not one.task.done():
                one.stop()
        if one.task.cancelled():
            raise ClosedError(f"The download of {entry.spec} was cancelled.")
        one.task.result()

    def stop(self, entry: Entry) -> None:
        """Stop a download for all who want it."""
        one = self._under_way.get(entry.key)
        if one is not None:
            one.stop()

    def _begin(self, entry: Entry) -> _Download:
        progress, download = Progress(), getattr(entry.loader, "download", None)
        assert download is not None
        task = asyncio.get_running_loop().create_task(download(progress))
        one = self._under_way[entry.key] = _Download(task, progress)
        task.add_done_callback(lambda _: self._ended(entry.key, one))
        return one

    def _ended(self, key: ResourceKey, one: _Download) -> None:
        if self._under_way.get(key) is one:
            del self._under_way[key]
        if not one.task.cancelled():
            one.task.exception()  # told to those who wait; there may be none
