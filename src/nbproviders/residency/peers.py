"""How kernels on one device ask each other for memory: one small JSON line each way, over loopback.

Knows ports, tokens and bytes; neither models nor the ledger that the ports are found in. Whoever does not
bring the token gets no answer at all.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import operator
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from nbproviders.errors import ProviderError

logger = logging.getLogger(__name__)

Give = Callable[[str, int], Awaitable[int]]

LOOPBACK = "127.0.0.1"
_LINE_BYTES = 1024
_LINE_S = 1.0
_MOST_VISITS = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """Another process that may be asked.

    Attributes
    ----------
    port, token
        Of its `Listener`.
    idle_bytes
        What it could give at once, as it said last.
    """

    port: int
    token: str = field(repr=False)
    idle_bytes: int


@dataclass(frozen=True, slots=True)
class _Request:
    device: str
    need_bytes: int
    expires_s: float  # wall time: the one clock that all processes of a machine share

    @property
    def wanted(self) -> bool:
        """Whether the asker still waits: one that was stopped must not evict for who left long ago."""
        return time.time() < self.expires_s


class Listener:
    """Answers peers, on the loop that it is made on.

    Parameters
    ----------
    give
        Frees bytes of a device and returns how many it did; called for one peer at a time, so that no
        byte is told to two.

    Raises
    ------
    OSError
        If there is no loopback to listen on.
    """

    def __init__(self, give: Give) -> None:
        self.token = secrets.token_urlsafe(32)
        self._give = give
        self._turn = asyncio.Lock()
        self._visits: set[asyncio.Task[None]] = set()
        # Bound here and not by asyncio, so that the port is known without an await.
        self._socket = socket.create_server((LOOPBACK, 0), backlog=_MOST_VISITS)
        self.port: int = self._socket.getsockname()[1]
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._visit, sock=self._socket, limit=_LINE_BYTES)

    def forget(self) -> None:
        """In a forked child: let go of the socket. The loop's own list of sockets is the parent's."""
        with suppress(OSError):
            socket.close(self._socket.detach())

    async def close(self) -> None:
        """Stop listening and end all connections."""
        server = await self._starting
        server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._visits) < _MOST_VISITS:
                self._visits.add(task)
                await self._answer(reader, writer)
        except (OSError, asyncio.CancelledError):  # gone, or we are closing: both end the visit
            return
        finally:
            self._visits.discard(task)
            await _closed(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = self._read(await _line(reader, _LINE_S))
        if request is None:
            return
        async with self._turn:
            if not request.wanted:
                return
            try:
                freed = await self._give(request.device, request.need_bytes)
            except ProviderError as error:  # its own user is told where the model is used
                logger.debug("Nothing was freed for another process: %s", error.message)
                freed = 0
        writer.write(json.dumps({"freed_bytes": freed}).encode() + b"\n")
        await writer.drain()

    def _read(self, line: bytes) -> _Request | None:
        try:
            told = json.loads(line)
            if not hmac.compare_digest(told["token"].encode(), self.token.encode()):
                return None
            return _Request(
                device=str(told["device"]),
                need_bytes=max(operator.index(told["need_bytes"]), 0),
                expires_s=float(told["expires_s"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # no request; hostile ones nest as deep as a line allows


async def ask(peers: Sequence[Peer], device: str, need_bytes: int, deadline_s: float) -> int:
    """Ask as few peers as can give the bytes, and return how many they say they freed.

    The one with most idle bytes is asked first. Who gives less, refuses, or says nothing for half the
    time is made up for by the next; all of it together ends at the deadline.
    """
    now_s, expires_s = asyncio.get_running_loop().time, time.time() + deadline_s
    until_s, patience_s = now_s() + deadline_s, deadline_s / 2
    left = sorted(peers, key=lambda peer: -peer.idle_bytes)
    asked: dict[asyncio.Task[int], tuple[int, float]] = {}  # the share, and when we stop to hope
    freed = 0
    try:
        while freed < need_bytes and now_s() < until_s:
            hoped = freed + sum(share for share, due_s in asked.values() if now_s() < due_s)
            while left and hoped < need_bytes:
                peer = left.pop(0)
                share = min(peer.idle_bytes, need_bytes - hoped)
                hoped += share
                visit = asyncio.create_task(_asked(peer, _Request(device, share, expires_s)))
                asked[visit] = share, now_s() + patience_s
            if not asked:
                break
            dues = [due_s for _, due_s in asked.values() if now_s() < due_s and left]
            wait_s = min([until_s, *dues]) - now_s()
            done, _ = await asyncio.wait(
                asked, timeout=max(wait_s, 0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                del asked[task]
                freed += task.result()
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return freed


async def _asked(peer: Peer, request: _Request) -> int:
    """Ask one peer, until cancelled; what is no answer is no bytes."""
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, peer.port, limit=_LINE_BYTES)
    except OSError:
        return 0
    try:
        writer.write(json.dumps({"token": peer.token, **asdict(request)}).encode() + b"\n")
        return max(operator.index(json.loads(await _line(reader))["freed_bytes"]), 0)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0
    finally:
        await _closed(writer)


async def _line(reader: asyncio.StreamReader, wait_s: float | None = None) -> bytes:
    """Return one line; nothing if there is none in time, or it has no end."""
    try:
        async with asyncio.timeout(wait_s):
            return await reader.readuntil(b"\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return b""


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
