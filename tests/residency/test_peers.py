"""Promises of the line between kernels: who may ask, how few are asked, and how long it takes at most."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nbproviders.errors import ProviderError
from nbproviders.residency import peers
from nbproviders.residency.peers import LOOPBACK, Listener, Peer, ask

GPU = "gpu-1"


class Giver:
    """Has so many bytes to give, and keeps what it was asked for."""

    def __init__(self, spare_bytes: int = 100) -> None:
        self.spare_bytes = spare_bytes
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, device: str, need_bytes: int) -> int:
        self.asked.append((device, need_bytes))
        given = min(self.spare_bytes, need_bytes)
        self.spare_bytes -= given
        return given


@asynccontextmanager
async def listening(give: Callable[[str, int], Awaitable[int]]) -> AsyncIterator[Listener]:
    one = Listener(give)
    yield one
    await one.close()


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A peer that says the same to everyone; None says nothing. Its port, and what it is told."""
    told: list[bytes] = []

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.readline())
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(visit, LOOPBACK, 0)
    yield server.sockets[0].getsockname()[1], told
    server.close()


async def say(port: int, line: bytes) -> bytes:
    """Return all that is answered to a line."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(line)
    try:
        return await reader.read()
    except ConnectionResetError:  # closed with some of the line unread
        return b""
    finally:
        writer.close()


def request(token: object, **more: object) -> bytes:
    asked = {"token": token, "device": GPU, "need_bytes": 7, "expires_s": 1e12} | more
    return json.dumps(asked).encode() + b"\n"


async def test_one_line_each_way() -> None:
    """The device and the bytes are told, and what was freed comes back."""
    give = Giver()
    async with listening(give) as one:
        assert await ask([Peer(one.port, one.token, 100)], GPU, 30, 5) == 30
        assert await say(one.port, request(one.token)) == b'{"freed_bytes": 7}\n'
    assert give.asked == [(GPU, 30), (GPU, 7)]
    assert one.token not in repr(Peer(one.port, one.token, 1))


@pytest.mark.parametrize(
    "line",
    [
        request("wrong"),
        request(""),
        request(None),
        request(7),
        request("\ud800"),
        b"\n",
        b"{}\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b'["' + b"[" * 900 + b"\n",
        b"[" * 1020 + b"\n",
        b"\xff\xfe\n",
        b"x" * 100_000 + b"\n",
    ],
)
async def test_a_stranger_learns_nothing(line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Without the token there is no answer of any kind, nothing is freed, and no log grows."""
    give = Giver()
    async with listening(give) as one:
        assert await say(one.port, line) == b""
        assert give.asked == []
        assert await ask([Peer(one.port, one.token, 100)], GPU, 30, 5) == 30
    assert caplog.text == ""


async def test_each_listener_has_its_own_token() -> None:
    """Another's token opens nothing."""
    give = Giver()
    async with listening(give) as one, listening(Giver()) as other:
        assert await ask([Peer(one.port, other.token, 100)], GPU, 30, 5) == 0
    assert give.asked == []


async def test_a_request_that_makes_no_sense_is_refused() -> None:
    """Also of one who has the token."""
    give = Giver()
    async with listening(give) as one:
        for wrong in ({"need_bytes": "7"}, {"need_bytes": 1.5}, {"expires_s": None}):
            assert await say(one.port, request(one.token, **wrong)) == b""
        assert await say(one.port, request(one.token, need_bytes=-5)) != b""
    assert give.asked == [(GPU, 0)]


async def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open connection without a line ends after a moment."""
    monkeypatch.setattr(peers, "_LINE_S", 0.05)
    async with listening(Giver()) as one:
        assert await say(one.port, b"") == b""


async def test_a_crowd_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many may be there at once, and no more; when they have gone there is room again."""
    monkeypatch.setattr(peers, "_MOST_VISITS", 2)
    async with listening(Giver()) as one:
        crowd = [await asyncio.open_connection(LOOPBACK, one.port) for _ in range(2)]
        while len(one._visits) < 2:
            await asyncio.sleep(0)
        assert await say(one.port, request(one.token)) == b""
        for _, writer in crowd:
            writer.close()
        while one._visits:
            await asyncio.sleep(0)
        assert await say(one.port, request(one.token)) == b'{"freed_bytes": 7}\n'


async def test_nothing_is_freed_for_who_has_left() -> None:
    """A request that has expired, on its way or while another was served, is dropped."""
    began, go_on, asked = asyncio.Event(), asyncio.Event(), []

    async def give(device: str, need_bytes: int) -> int:
        asked.append(need_bytes)
        began.set()
        await go_on.wait()
        return need_bytes

    async with listening(give) as one:
        assert await say(one.port, request(one.token, expires_s=time.time() - 1)) == b""
        first = asyncio.create_task(say(one.port, request(one.token)))
        await began.wait()
        peer = Peer(one.port, one.token, 100)
        assert await ask([peer], GPU, 30, 0.1) == 0
        go_on.set()
        assert await first == b'{"freed_bytes": 7}\n'
    assert asked == [7]


async def test_two_that_ask_at_once_are_not_told_the_same_bytes() -> None:
    """They are served one after the other."""
    inside = 0

    async def give(device: str, need_bytes: int) -> int:
        nonlocal inside
        inside += 1
        seen = inside
        for _ in range(5):
            await asyncio.sleep(0)
        inside -= 1
        return seen

    async with listening(give) as one:
        told = await asyncio.gather(*(say(one.port, request(one.token)) for _ in range(3)))
    assert told == [b'{"freed_bytes": 1}\n'] * 3


async def test_a_failure_to_give_is_no_bytes(caplog: pytest.LogCaptureFixture) -> None:
    """The asker is told that nothing was freed, and not why."""

    async def give(device: str, need_bytes: int) -> int:
        raise ProviderError("secret name")

    async with listening(give) as one:
        assert await say(one.port, request(one.token)) == b'{"freed_bytes": 0}\n'


async def test_closing_ends_what_is_under_way() -> None:
    """Who waits for an answer gets none, and nobody can connect any more."""
    began = asyncio.Event()

    async def give(device: str, need_bytes: int) -> int:
        began.set()
        await asyncio.Event().wait()
        return 0

    async with listening(give) as one:
        waiting = asyncio.create_task(say(one.port, request(one.token)))
        await began.wait()
        visits = set(one._visits)
    assert [visit.done() for visit in visits] == [True]
    assert await waiting == b""
    with pytest.raises(ConnectionRefusedError):
        await say(one.port, b"")
    await Listener(give).close()  # in the very moment it was made


async def test_as_few_as_need_be_are_asked() -> None:
    """Those with most to give, each for its share; the rest is left alone."""
    givers = [Giver(count) for count in (10, 50, 30)]
    async with listening(givers[0]) as a, listening(givers[1]) as b, listening(givers[2]) as c:
        known = [Peer(one.port, one.token, give.spare_bytes) for one, give in
                 zip((a, b, c), givers, strict=True)]  # fmt: skip
        assert await ask(known, GPU, 60, 5) == 60
    assert [give.asked for give in givers] == [[], [(GPU, 50)], [(GPU, 10)]]


async def test_who_gives_less_is_made_up_for() -> None:
    """What one had no more is asked of the next, and not what was given already."""
    poor, rich = Giver(20), Giver(40)
    async with listening(poor) as one, listening(rich) as other:
        known = [Peer(one.port, one.token, 100), Peer(other.port, other.token, 40)]
        assert await ask(known, GPU, 50, 5) == 50
    assert (poor.asked, rich.asked) == ([(GPU, 50)], [(GPU, 30)])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"no\n",
        b"[]\n",
        b"{}\n",
        b'{"freed_bytes": "9"}\n',
        b'{"freed_bytes": 1e9}\n',
        b'{"freed_bytes": -9}\n',
        b'{"freed_bytes": 9}',
        b"[" * 1000 + b"\n",
        b"9" * 100_000,
    ],
)
async def test_what_is_no_answer_is_no_bytes(answer: bytes) -> None:
    """Whoever has the port of one that died may say anything; the next is asked at once."""
    give = Giver()
    async with answering(answer) as (port, told), listening(give) as one:
        known = [Peer(port, "t", 500), Peer(one.port, one.token, 100)]
        assert await ask(known, GPU, 80, 30) == 80
    assert len(told) == 1
    assert give.asked == [(GPU, 80)]


async def test_a_port_that_nobody_listens_on_is_no_bytes() -> None:
    """It is known at once; with no peers, or nothing needed, nothing is done."""
    async with answering(b"") as (port, told):
        assert await ask([Peer(port, "t", 500)], GPU, 0, 30) == 0
        assert told == []
    assert await ask([Peer(port, "t", 500)], GPU, 80, 30) == 0
    assert await ask([], GPU, 80, 30) == 0


async def test_all_who_hang_cost_one_deadline_together() -> None:
    """And who answers within it is not lost; half the time is given to the first alone."""
    give = Giver(30)
    async with answering(None) as (one, _), answering(None) as (two, _), listening(give) as three:
        known = [Peer(one, "t", 500), Peer(two, "t", 400), Peer(three.port, three.token, 30)]
        began_s = time.monotonic()
        assert await ask(known, GPU, 430, 0.4) == 30
        assert 0.4 <= time.monotonic() - began_s < 3


async def test_enough_is_enough() -> None:
    """When the bytes are there nobody who hangs is waited for."""
    give = Giver(300)
    async with answering(None) as (one, _), listening(give) as other:
        known = [Peer(one, "t", 500), Peer(other.port, other.token, 300)]
        began_s = time.monotonic()
        assert await ask(known, GPU, 100, 2) == 100
        assert time.monotonic() - began_s < 1.9


async def test_an_ask_that_is_cancelled_leaves_nothing() -> None:
    """The peer sees the connection end."""
    gone = asyncio.Event()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        assert json.loads(line)["need_bytes"] == 80
        asking.cancel()
        assert await reader.read() == b""
        writer.close()
        gone.set()

    server = await asyncio.start_server(visit, LOOPBACK, 0)
    peer = Peer(server.sockets[0].getsockname()[1], "t", 500)
    asking = asyncio.create_task(ask([peer], GPU, 80, 30))
    with pytest.raises(asyncio.CancelledError):
        await asking
    await gone.wait()
    server.close()
