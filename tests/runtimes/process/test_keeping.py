"""Promises of kept servers: they outlive their kernel, are found again, and not for ever."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from nbproviders.core import engine
from nbproviders.errors import ConfigurationError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import channel, keeping, server, state
from nbproviders.runtimes.process.keeping import kept
from tests.runtimes.process.servers import files, healthy, program, soon
from tests.runtimes.process.test_guardian import kernel, killed


@pytest.mark.parametrize("what", ["start", "gate"])
async def test_a_kept_server_is_found_by_the_next_kernel(what: str, folder: Path) -> None:
    """It lives on when its kernel is killed, gate and all, and answers to the key that was written down."""
    child, (pid,) = kernel(what, keep_s=60)
    killed(child)
    await asyncio.sleep(0.3)
    (told,) = kept()
    assert (told.pid, told.identity, told.owners) == (pid, "a", 0)
    assert told.left_s is not None
    assert 50 < told.left_s <= 60
    one = await server.find("a")
    assert one is not None
    assert (one.pid, one.kept, one.alive) == (pid, True, True)
    assert await healthy(one.base_url, one.key)
    assert not await healthy(one.base_url, "wrong")
    assert (kept()[0].owners, kept()[0].left_s) == (1, None)
    assert await server.find("b") is None
    again = await server.start(
        "lab", program(), ready=healthy, timeout_s=10, progress=Progress(), keep=True, identity="a"
    )
    assert again.pid == pid
    await one.stop()
    assert not again.alive
    assert kept() == []
    assert files(folder) == []


async def test_adopting_lasts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owning a found server does not end with the time that connecting to it may take."""
    monkeypatch.setattr(channel, "_CONNECT_S", 0.2)
    child, _ = kernel("start", keep_s=0.2)
    one = await server.find("a")
    assert one is not None
    killed(child)
    await asyncio.sleep(0.8)
    assert one.alive
    assert await healthy(one.base_url, one.key)
    await one.release()


async def test_a_cancelled_adoption_owns_nothing(folder: Path) -> None:
    """Stopped while the found server is asked whether it is well, nobody stays its owner."""
    child, _ = kernel("start", keep_s=60)
    killed(child)
    await soon_unowned()
    asked = asyncio.Event()

    async def slow(base_url: str, key: str) -> bool:
        asked.set()
        await asyncio.sleep(60)
        return True

    work = asyncio.create_task(keeping.adopt("a", slow))
    await asked.wait()
    assert kept()[0].owners == 1
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await soon_unowned()
    (one,) = kept()
    await keeping.stop(one)


async def soon_unowned() -> None:
    async with asyncio.timeout(10):
        while kept()[0].owners:
            await asyncio.sleep(0.02)


def test_records_are_private(folder: Path) -> None:
    """Key and secret are in a file for its owner alone, in folders for its owner alone."""
    child, _ = kernel("start", keep_s=0.01)
    (path,) = folder.rglob("server.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700
    (record,) = state.records(state.root())
    assert record.key not in repr(record)
    killed(child)


async def test_the_clock_starts_with_the_last_owner(folder: Path) -> None:
    """Two kernels share one server; it stays while either lives, and ends a while after both."""
    first, (pid,) = kernel("start", keep_s=0.5)
    second, (same,) = kernel("start", keep_s=0.5)
    assert same == pid
    assert kept()[0].owners == 2
    killed(first)
    await asyncio.sleep(0.8)
    assert kept()[0].owners == 1
    killed(second)
    assert 0.3 < soon(lambda: not state.process_started(pid)) < 2


def test_kernels_that_ask_at_once_start_one(folder: Path) -> None:
    """Two that start the same kept server in the same moment share it."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        started = list(pool.map(lambda _: kernel("start", keep_s=0.1), range(3)))
    assert len({pid for _, (pid,) in started}) == 1
    assert kept()[0].owners == 3
    for child, _ in started:
        killed(child)


def test_giving_it_back_starts_the_clock(folder: Path) -> None:
    """A kernel that releases a kept server and lives on does not keep it."""
    child, (pid,) = kernel("release", keep_s=0.3)
    assert child.stdin is not None
    child.stdin.close()
    assert child.stdout is not None
    assert child.stdout.readline() == "released\n"
    soon(lambda: not state.process_started(pid))
    child.kill()
    child.wait()
    child.stdout.close()


async def test_another_process_is_not_mistaken_for_it(folder: Path) -> None:
    """A record whose ids now belong to others is removed, and those others are left in peace."""
    root = state.root()
    other = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 - not waited for
    for name, guardian, began in (
        ("0" * 16, 2**22 + 1, "long ago"),
        ("1" * 16, other.pid, "long ago"),
        ("2" * 16, 2**22 + 1, ""),
    ):
        record = state.Record(name, "lab", guardian, began, other.pid, "long ago", identity="a")
        (root / name).mkdir()
        state.write(root / name, dataclasses.replace(record, control=1))
    assert kept() == []
    assert await server.find("a") is None
    assert files(folder) == []
    assert other.poll() is None
    other.kill()
    other.wait()


async def test_a_kept_server_that_does_not_answer_is_ended(folder: Path) -> None:
    """One that hangs is not handed out; nobody owns it, so it makes room."""
    child, (pid,) = kernel("start", keep_s=60)
    killed(child)
    os.kill(pid, signal.SIGSTOP)

    async def no(base_url: str, key: str) -> bool:
        return False

    assert await server.find("a", ready=no) is None
    assert not state.process_started(pid)
    assert files(folder) == []


async def test_stopping_ends_it_for_everyone(folder: Path) -> None:
    """A kept server is ended though a kernel owns it, nothing of it is left, and nobody else is touched."""
    child, (pid,) = kernel("gate", keep_s=60)
    (told,) = kept()
    await keeping.stop(told)
    assert not state.process_started(pid)
    assert files(folder) == []
    assert child.poll() is None
    await keeping.stop(told)  # it has ended already
    killed(child)


async def test_stopping_one_that_hangs(folder: Path) -> None:
    """One that does not end by itself is killed when its grace is over."""
    child, (pid,) = kernel("start", keep_s=60)
    killed(child)
    os.kill(pid, signal.SIGSTOP)
    (told,) = kept()
    await keeping.stop(told, grace_s=0.2)
    assert not state.process_started(pid)
    assert files(folder) == []


async def test_what_took_its_numbers_is_not_stopped(folder: Path) -> None:
    """A record whose processes ended, and whose numbers others have now, ends nobody."""
    child, _ = kernel("start", keep_s=60)
    (told,) = kept()
    root = state.root()
    record = next(one for one in state.records(root) if one.id == told.id)
    await keeping.stop(told)
    killed(child)
    other = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 - not waited for
    (root / told.id).mkdir()
    state.write(root / told.id, dataclasses.replace(record, pid=other.pid, guardian=other.pid))
    assert kept() == []
    await keeping.stop(told)
    assert other.poll() is None
    other.kill()
    other.wait()
    assert files(folder) == []


async def test_who_wants_it_longest_decides(folder: Path) -> None:
    """A later owner may extend how long it is kept, here or in another process, and never shortens it."""

    async def opened(keep_s: float, reference: str) -> server.ManagedServer:
        return await server.start(
            "lab",
            program(),
            ready=healthy,
            timeout_s=10,
            progress=Progress(),
            keep=True,
            keep_s=keep_s,
            identity="a",
            reference=reference,
        )

    child, (pid,) = kernel("start", keep_s=30)  # another process
    one = await opened(60, "first")
    killed(child)
    for keep_s, reference in ((50, "shorter"), (70, "longest"), (20, "last")):
        two = await opened(keep_s, reference)
        assert two.pid == pid
        await two.release()
    soon(lambda: kept()[0].reference == "longest")
    other, (same,) = kernel("start", keep_s=90)
    assert same == pid
    killed(other)
    two = await opened(80, "of one that does not know of the 90")
    await two.release()
    await one.release()
    soon(lambda: kept()[0].left_s is not None)
    (told,) = kept()
    assert told.left_s is not None
    assert 80 < told.left_s <= 90
    await keeping.stop(told)


def test_a_record_of_another_version_is_read(folder: Path) -> None:
    """What it lacks has a default, what it has besides is nobody's business: its server can be ended."""
    child, _ = kernel("start", keep_s=60)
    (path,) = folder.rglob("server.json")
    told = json.loads(path.read_text())
    del told["reference"]
    path.write_text(json.dumps({**told, "colour": "red"}))
    (one,) = kept()
    assert (one.id, one.reference) == (told["id"], "")
    engine.default().wait(lambda: keeping.stop(one))
    assert files(folder) == []
    killed(child)


async def test_keeping_needs_an_identity() -> None:
    """What could never be found again is not kept."""
    with pytest.raises(ConfigurationError, match="identity"):
        await server.start(
            "lab", program(), ready=healthy, timeout_s=1, progress=Progress(), keep=True
        )


async def test_an_unowned_kept_server_is_evicted(folder: Path) -> None:
    """What was kept and is nobody's makes room for another kernel's; what is owned does not."""
    asked = {"ready": healthy, "timeout_s": 10, "progress": Progress(), "exclusive": "cuda:0"}
    one = await server.start("first", program(), keep=True, identity="a", **asked)  # type: ignore[arg-type]
    await one.release()
    two = await server.start("second", program(), policy="evict", **asked)  # type: ignore[arg-type]
    assert kept() == []
    assert not state.process_started(one.pid)
    await two.stop()


def test_what_a_killed_guardian_left_is_buried(folder: Path) -> None:
    """The next look removes its record, its log and, had it survived, its server."""
    child, (pid,) = kernel("start", keep_s=60)
    killed(child)
    os.kill(int(state.proc_stat(pid)[1]), signal.SIGKILL)
    soon(lambda: not state.process_started(pid))
    assert kept() == []
    assert files(folder) == []
