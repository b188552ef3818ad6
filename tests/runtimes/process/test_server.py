"""Promises of a managed server: how it starts, how that fails, how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    ProviderError,
    ServiceUnavailableError,
    TimeoutError,
)
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import server, state
from nbproviders.runtimes.process.server import ManagedServer
from nbproviders.runtimes.process.starting import Command
from tests.runtimes.process.servers import BOUND_S, files, healthy, left, program
from tests.timing import at_best_awaited


async def start(command: Callable[..., Command] | None = None, **more: Any) -> ManagedServer:
    """Start a stand-in with what most tests want."""
    asked: dict[str, Any] = {"ready": healthy, "timeout_s": BOUND_S, "progress": Progress()} | more
    return await server.start("lab", command or program(), **asked)


async def never(base_url: str, key: str) -> bool:
    """Say that no server is ready."""
    return False


async def test_a_server_starts_and_ends(folder: Path) -> None:
    """It answers on loopback to its key alone, shows no key, and ends without a trace."""
    one = await start(program("print('key', KEY, flush=True)\nserve()"))
    assert one.alive
    assert one.base_url.startswith("http://127.0.0.1:")
    assert await healthy(one.base_url, one.key)
    assert not await healthy(one.base_url, "wrong")
    assert one.key not in f"{one!r} {one.key!r} {one.tail()}"
    assert "****" in one.tail()
    assert one.log_path.stat().st_mode & 0o777 == 0o600
    assert one.log_path.parent.stat().st_mode & 0o777 == 0o700
    await one.release()
    await one.release()
    assert not one.alive
    assert "key" in one.tail()
    assert left(folder) == []
    assert files(folder) == []
    with pytest.raises(ClosedError, match="ended"), one.in_use():
        pass


async def test_a_flood_of_output_does_not_stall_a_server() -> None:
    """50 MB before it is ready are drained; of them the log keeps beginning and end within 5 MB."""
    flood = """
    print("the first line")
    for n in range(500):
        print("x" * 99_999)
    print("the last line", flush=True)
    # A client that has gone, as one that asked too early may have, writes no further line.
    http.server.ThreadingHTTPServer.handle_error = lambda *_: None
    serve()
    """
    one = await start(program(flood))
    assert one.log_path.stat().st_size <= 5_000_100
    assert one.log_path.read_text().startswith("the first line")
    assert "bytes left out" in one.log_path.read_text()
    assert one.tail(1) == "the last line"
    await one.stop()


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("print('no such model')\nsys.exit(3)", "exit status 3"),
        ("print('no such model', flush=True)\nos.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
async def test_an_early_end_is_told_at_once(body: str, how: str, folder: Path) -> None:
    """A server that ends before it is ready is an error with its status and its last lines."""
    began_s = time.monotonic()
    with pytest.raises(ProviderError, match=how) as caught:
        await start(program(body), ready=never, timeout_s=60)
    assert "no such model" in str(caught.value)
    assert time.monotonic() - began_s < BOUND_S
    assert (left(folder), files(folder)) == ([], [])


async def test_a_late_server_is_killed(folder: Path) -> None:
    """When time is over it is killed, grandchildren too, and the error shows its last lines, keyless."""
    body = "ignore(); grandchild(); print('api_key', KEY, 'loading', flush=True)\nserve()"
    with pytest.raises(TimeoutError, match=r"within 0\.5 s") as caught:
        await start(program(body), ready=never, timeout_s=0.5)
    assert "loading" in str(caught.value)
    assert "****" in str(caught.value)
    assert (left(folder), files(folder)) == ([], [])


async def test_a_check_that_hangs_does_not_outlast_the_time() -> None:
    """The time holds for a check that never answers; one that raises is told when it is over."""

    async def hang(base_url: str, key: str) -> bool:
        await asyncio.sleep(60)
        return True

    async def fail(base_url: str, key: str) -> bool:
        raise KeyError("nothing there")

    with pytest.raises(TimeoutError):
        await start(ready=hang, timeout_s=0.3)
    with pytest.raises(TimeoutError, match="KeyError: 'nothing there'"):
        await start(ready=fail, timeout_s=0.3)


@pytest.mark.parametrize("listens", [True, False])
async def test_what_a_late_server_answers_is_told(listens: bool) -> None:
    """Its refusals are, in one sentence; that nobody answers yet is what "not ready" says already."""

    async def refused(base_url: str, key: str) -> bool:
        while listens and not await healthy(base_url, key):
            await asyncio.sleep(0.02)
        raise ServiceUnavailableError("HTTP 503 from POST /v1: Still broken.", hint="Wait.")

    body = "serve()" if listens else "time.sleep(60)"
    with pytest.raises(TimeoutError) as caught:
        await start(program(body), ready=refused, timeout_s=2 if listens else 0.3)
    told = " When asked, it failed: HTTP 503 from POST /v1: Still broken." if listens else ""
    expected = rf"lab was not ready within \S+ s\.{re.escape(told)} It said (nothing\.|at last:)"
    assert re.match(expected, caught.value.message)
    assert caught.value.hint.endswith("start_timeout_s=…")


async def test_an_error_that_no_waiting_mends_ends_the_start() -> None:
    """A check may say for good that it will not work."""

    async def refuse(base_url: str, key: str) -> bool:
        raise AuthenticationError("No.")

    with pytest.raises(AuthenticationError):
        await start(ready=refuse, timeout_s=60)


async def test_a_missing_program_is_a_configuration_error(folder: Path) -> None:
    """It says what cannot be run and what to do."""
    with pytest.raises(ConfigurationError, match="no-such-program") as caught:
        await start(lambda port, key: Command(["no-such-program"]))
    assert "installed" in str(caught.value)
    assert files(folder) == []


async def test_a_cancelled_start_leaves_nothing(folder: Path) -> None:
    """Whether the caller is cancelled or the load is no longer wanted, its processes are gone."""
    progress = Progress()
    for give_up in (None, progress.cancel):
        task = asyncio.create_task(start(ready=never, timeout_s=60, progress=progress))
        while not left(folder):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        (give_up or task.cancel)()
        with pytest.raises((asyncio.CancelledError, ClosedError)):
            await task
        began_s = time.monotonic()
        while left(folder) or files(folder):
            await asyncio.sleep(0.01)
            assert time.monotonic() - began_s < BOUND_S


async def test_progress_tells_the_last_line() -> None:
    """What is being done and what the server said last, without its key."""
    progress, seen = Progress(), set()
    body = "print('weights', KEY, '7 of 9', flush=True); time.sleep(0.6)\nserve()"
    task = asyncio.create_task(start(program(body), progress=progress))
    while not task.done():
        seen.add(progress.phase)
        await asyncio.sleep(0.02)
    assert "starting lab: weights **** 7 of 9" in seen
    await task.result().stop()


async def test_grandchildren_end_too_and_the_loop_goes_on(folder: Path) -> None:
    """Those of its group, those that left it, and a server that ignores the first word."""
    body = "ignore(); grandchild(); grandchild(start_new_session=True)\nserve()"

    async def longest_wait() -> float:
        one = await start(program(body), grace_s=0.3)
        assert len(left(folder)) == 4
        longest_s, last_s = 0.0, time.monotonic()
        stopping = asyncio.create_task(one.stop())
        while not stopping.done():
            await asyncio.sleep(0.01)
            longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
        await stopping
        assert left(folder) == []
        return longest_s

    assert await at_best_awaited(longest_wait, 0.25) < 0.25


async def test_a_port_taken_meanwhile_is_noticed() -> None:
    """A server whose port somebody was quicker to take is started again on another."""
    thieves: list[socket.socket] = []

    def command(port: int, key: str) -> Command:
        if not thieves:
            thieves.append(socket.create_server(("127.0.0.1", port)))
        return program()(port, key)

    one = await start(command)
    assert int(one.base_url.rpartition(":")[2]) != thieves[0].getsockname()[1]
    await one.stop()
    thieves[0].close()


async def test_a_port_taken_for_ever_is_an_error() -> None:
    """It is not tried without end."""
    body = "print('OSError: [Errno 98] Address already in use')\nsys.exit(1)"
    with pytest.raises(ServiceUnavailableError, match="3 times"):
        await start(program(body))


async def test_one_identity_is_started_once(folder: Path) -> None:
    """Who asks at once for the same gets the same; it ends with the last who gives it back."""
    calls: list[int] = []

    def command(port: int, key: str) -> Command:
        calls.append(port)
        return program()(port, key)

    quitter = asyncio.create_task(start(command, identity="a"))
    await asyncio.sleep(0.05)
    handles = [asyncio.create_task(start(command, identity="a")) for _ in range(8)]
    await asyncio.sleep(0)
    quitter.cancel()
    found = await asyncio.gather(*handles)
    found.append(await start(command, identity="a"))
    assert len(calls) == 1
    assert len({one.pid for one in found}) == 1
    for one in found[1:]:
        await one.release()
        await one.release()
    assert found[0].alive
    await found[0].release()
    assert left(folder) == []


async def test_a_failed_start_fails_for_all_who_wait() -> None:
    """Each gets an exception of its own, and the next who asks starts anew."""
    asked = (start(program("sys.exit(7)"), identity="a") for _ in range(3))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert all("status 7" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 3
    one = await start(identity="a")
    await one.stop()


async def test_a_server_that_dies_is_known_dead(folder: Path) -> None:
    """Its handle says so, and whoever asks for the same gets a new one."""
    one = await start(identity="a")
    os.kill(one.pid, 9)
    while one.alive:
        await asyncio.sleep(0.01)
    two = await start(identity="a")
    assert two.pid != one.pid
    await one.release()
    assert two.alive
    await two.release()


async def test_a_killed_guardian_takes_its_server_along(folder: Path) -> None:
    """Should somebody kill the guardian, the server does not run on unguarded."""
    one = await start()
    guardian = int(state.proc_stat(one.pid)[1])
    os.kill(guardian, 9)
    while one.alive:
        await asyncio.sleep(0.01)
    await one.release()
    assert (left(folder), files(folder)) == ([], [])
