"""What a process has beside its memory: threads, tasks, child processes, sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from nbproviders.core import engine
from nbproviders.runtimes.process.state import proc_stat

# A loop's own pool for blocking calls: bounded, and kept for the next one.
_POOL = "asyncio_"
_LOOK_S = 0.02
Footprint = Mapping[str, frozenset[object]]


async def footprint() -> Footprint:
    """Return what there is now; children and sockets on Linux only, where they can be seen."""
    threads = (t for t in threading.enumerate() if not t.name.startswith(_POOL))
    return {
        "thread": frozenset(threads),
        "task on the engine": frozenset(await engine.default().call(_tasks)),
        "child process": frozenset(_children()),
        "socket": frozenset(_sockets()),
    }


async def more_than(before: Footprint, timeout_s: float) -> list[str]:
    """Return what is there that was not there before, each by a name; what is ending may end."""
    until_s = time.monotonic() + timeout_s
    while True:
        now = await footprint()
        more = [f"{kind} {_name(one)}" for kind in now for one in now[kind] - before[kind]]
        if not more or time.monotonic() > until_s:
            return more
        gc.collect()  # what nobody holds any more is closed by it
        await asyncio.sleep(_LOOK_S)


async def _tasks() -> set[asyncio.Task[object]]:
    mine = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not mine}


def _children() -> set[int]:
    if sys.platform != "linux":
        return set()
    me, found = str(os.getpid()), set()
    for entry in Path("/proc").glob("[0-9]*"):
        if proc_stat(entry.name)[1:2] == [me]:
            found.add(int(entry.name))
    return found


def _sockets() -> set[str]:
    if sys.platform != "linux":
        return set()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def _name(one: object) -> str:
    if isinstance(one, threading.Thread):
        return repr(one.name)
    return repr(one.get_name()) if isinstance(one, asyncio.Task) else str(one)
