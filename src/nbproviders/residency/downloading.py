"""Having the files of a model brought to this machine, before room is looked for."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from nbproviders.core.spec import ResourceKey
from nbproviders.residency.entry import Entry
from nbproviders.residency.progress import Progress


class Downloading:
    """One download at a time for a key, however many want the model."""

    def __init__(self) -> None:
        # Not of the entry: it may be unloaded meanwhile, and asked for anew.
        self._locks: WeakValueDictionary[ResourceKey, asyncio.Lock] = WeakValueDictionary()

    async def bring(self, entry: Entry) -> None:
        """Have here what a model is loaded from: what it will take may be known only then."""
        download = getattr(entry.loader, "download", None)
        if download is None:
            return
        async with self._locks.setdefault(entry.key, asyncio.Lock()):
            entry.download = Progress()
            try:
                await download(entry.download)
            finally:
                entry.download = None
