"""A door before a server that knows no keys: it lets requests pass that bring ours.

One request for each connection: once its head is checked, bytes flow both ways as they come, so streams
and server-sent events are neither parsed nor held up. It runs in the guardian, because a kept server
outlives the kernel, and is made of asyncio alone, because the guardian shall start in a tenth of a second.
The server's own port stays open to programs of this machine; what the door keeps out is whoever was
told or guessed the address that we give away, web pages in a browser among them.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from contextlib import suppress

LOOPBACK = "127.0.0.1"
_HEAD_BYTES = 64 << 10
_HEAD_S = 30.0
_CHUNK_BYTES = 64 << 10
# The key is for the door; and as the server shall end the connection, so shall nobody keep it alive.
_OWN = {b"authorization", b"x-api-key", b"connection", b"keep-alive", b"proxy-connection"}


class Gate:
    """Listens on a loopback port of its own and passes on to the server's.

    Parameters
    ----------
    key
        Asked for as ``Authorization: Bearer <key>`` or ``X-Api-Key: <key>``.
    port
        Of the server.
    """

    def __init__(self, key: str, port: int) -> None:
        self._key = key.encode()
        self._upstream = port
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()

    async def open(self) -> int:
        """Start listening and return the port."""
        self._server = await asyncio.start_server(self._visit, LOOPBACK, 0, limit=_HEAD_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for visit in self._visits:
            visit.cancel()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        try:
            await self._pass(reader, writer)
        except (OSError, asyncio.CancelledError):  # gone, or we are closing: both end the visit
            return
        finally:
            self._visits.discard(task)
            await _closed(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return
        except asyncio.IncompleteReadError as error:
            if error.partial:
                await _refuse(writer, 400, "Bad Request", "The request has no end.")
            return
        except asyncio.LimitOverrunError:
            await _refuse(writer, 431, "Request Header Fields Too Large", "The head is too long.")
            return
        lines = head[:-4].split(b"\r\n")
        if any(line[:1] in (b" ", b"\t") or b":" not in line for line in lines[1:]):
            await _refuse(writer, 400, "Bad Request", "A header cannot be read.")
        elif not self._has_key(lines[1:]):
            await _refuse(writer, 401, "Unauthorized", "The API key is missing or wrong.")
        else:
            await self._relay(lines, reader, writer)

    def _has_key(self, headers: list[bytes]) -> bool:
        for name, _, value in (line.partition(b":") for line in headers):
            told = value.strip()
            if name.lower() == b"authorization" and told[:7].lower() == b"bearer ":
                told = told[7:].strip()
            elif name.lower() != b"x-api-key":
                continue
            if hmac.compare_digest(told, self._key):
                return True
        return False

    async def _relay(
        self, lines: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            answers, requests = await asyncio.open_connection(
                LOOPBACK, self._upstream, limit=_HEAD_BYTES
            )
        except OSError:
            await _refuse(writer, 503, "Service Unavailable", "The server does not answer.")
            return
        kept = [line for line in lines[1:] if line.partition(b":")[0].lower() not in _OWN]
        requests.write(b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""]))
        ways = {
            asyncio.create_task(_copy(reader, requests)),
            asyncio.create_task(_answer(answers, writer)),
        }
        try:
            # A client that goes away ends its request, so that the server stops writing for nobody.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _closed(requests)


async def _answer(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copy an answer, and have its head say that the connection ends with it; not all servers do."""
    with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            lines = (await source.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
            if lines[0].partition(b" ")[2][:1] == b"1":  # 100 Continue: the answer is still to come
                target.write(b"\r\n".join([*lines, b"", b""]))
                continue
            kept = [line for line in lines[1:] if line.partition(b":")[0].lower() not in _OWN]
            target.write(b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""]))
            break
    await _copy(source, target)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()


async def _refuse(writer: asyncio.StreamWriter, status: int, reason: str, why: str) -> None:
    body = json.dumps({"error": {"message": why, "type": reason, "code": status}}).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
    tail = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write((head + tail).encode() + body)
    await writer.drain()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
