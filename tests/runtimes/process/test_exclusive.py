"""Promises of a constraint: what one server at a time can have."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ConfigurationError, ServiceUnavailableError, TimeoutError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import server
from tests.runtimes.process.servers import BOUND_S, healthy, left, program


async def start(what: str, **more: Any) -> server.ManagedServer:
    asked: dict[str, Any] = {"ready": healthy, "timeout_s": BOUND_S, "progress": Progress()} | more
    return await server.start(what, program(), exclusive="cuda:0", **asked)


async def test_refusing_names_the_holder() -> None:
    """Who has it is told, and it goes on; another constraint is not concerned."""
    one = await start("first")
    with pytest.raises(ServiceUnavailableError, match=rf"first \(process {one.pid}\)"):
        await start("second", policy="refuse")
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for 'cuda:0', which first"):
        await start("second", queue_s=0.1)
    assert one.alive
    with pytest.raises(ConfigurationError, match="'wait' is unknown"):
        await start("second", policy="wait")
    await one.stop()


async def test_queueing_waits_for_the_end_of_the_other(folder: Path) -> None:
    """It starts when the holder has ended, and says meanwhile for whom it waits."""
    one, progress = await start("first"), Progress()
    task = asyncio.create_task(start("second", progress=progress))
    while "first" not in progress.phase:
        await asyncio.sleep(0.02)
    assert not task.done()
    await one.stop()
    two = await task
    assert two.alive
    await two.stop()


async def test_a_queued_start_can_be_cancelled(folder: Path) -> None:
    """Then nothing of it is left, and the holder goes on."""
    one, progress = await start("first"), Progress()
    before = len(left(folder))
    task = asyncio.create_task(start("second", progress=progress))
    while "first" not in progress.phase:
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while len(left(folder)) > before:
        await asyncio.sleep(0.02)
    assert one.alive
    await one.stop()


async def test_evicting_ends_an_idle_one_and_waits_for_a_busy_one() -> None:
    """A server in use is left alone until it is not; then it makes room."""
    one, progress = await start("first"), Progress()
    with one.in_use():
        task = asyncio.create_task(start("second", policy="evict", progress=progress))
        while "first" not in progress.phase:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.2)
        assert one.alive
    two = await task
    assert not one.alive
    assert two.alive
    await two.stop()


async def test_one_that_is_being_evicted_is_not_handed_out() -> None:
    """While it is ended for another it counts as ended: who asks for it starts it anew, in its turn."""
    asked = {"ready": healthy, "timeout_s": BOUND_S, "progress": Progress(), "exclusive": "cuda:0"}
    last = "threading.Timer(0.7, os._exit, (0,)).start()"
    slow = program(f"import threading\nsignal.signal(15, lambda *_: {last})\nserve()")
    one = await server.start("first", slow, identity="a", **asked)  # type: ignore[arg-type]
    await asyncio.sleep(1.1)  # one that is just ready is left to whoever asked for it
    other = asyncio.create_task(start("second", policy="evict"))
    while one.alive:
        await asyncio.sleep(0.01)
    assert await healthy(one.base_url, one.key)  # it has not ended yet
    again = asyncio.create_task(server.start("first", slow, identity="a", **asked))  # type: ignore[arg-type]
    two = await other
    await two.stop()
    three = await again
    assert three.pid != one.pid
    await three.stop()
