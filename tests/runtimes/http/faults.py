"""A real local server that does to each request what a fault says, and remembers what it saw."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.scripted import BOUND_S

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]
EVENTS = "text/event-stream"


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Server:
    """Where it is, what it saw, and whether a client left before the answer's end."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def was_left(self) -> None:
        """Return when a client has gone in mid-answer."""
        async with asyncio.timeout(BOUND_S):
            await self.left.wait()


@asynccontextmanager
async def served(fault: Fault, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run a server on this loop for the length of a block."""
    server = Server()

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        server.seen.append(Seen(request.method, request.path_qs, request.headers.copy(), body))
        server.began.set()
        try:
            return await fault(request)
        except (asyncio.CancelledError, ConnectionError):
            server.left.set()
            raise

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def answers(
    body: Any = None,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    kind: str = "application/json",
) -> Fault:
    """Answer with a status and a body: bytes or text as they are, anything else as JSON."""

    async def fault(request: web.Request) -> web.Response:
        if isinstance(body, bytes | str):
            raw = body if isinstance(body, bytes) else body.encode()
            return web.Response(body=raw, status=status, headers=headers, content_type=kind)
        return web.json_response(body, status=status, headers=headers)

    return fault


def streams(
    *pieces: bytes, status: int = 200, kind: str = EVENTS, then: Fault | None = None
) -> Fault:
    """Answer with a stream whose pieces come one by one; then something else may happen."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": kind})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        if then is not None:
            await then(request)
        return response

    return fault


def repeats(piece: bytes, times: int | None = None, *, status: int = 200) -> Fault:
    """Stream one piece many times, or without end."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": EVENTS})
        await response.prepare(request)
        count = 0
        while times is None or count < times:
            await response.write(piece)
            count += 1
            await asyncio.sleep(0)
        return response

    return fault


def dribbles(status: int = 200) -> Fault:
    """Say a little from time to time, without end."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        while True:
            await response.write(b" x")
            await asyncio.sleep(0.05)

    return fault


async def resets(request: web.Request) -> web.StreamResponse:
    """Cut the connection without a word."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def writes(raw: bytes) -> Fault:
    """Write bytes that need not be HTTP, and close."""

    async def fault(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(raw)  # type: ignore[attr-defined]
        request.transport.close()
        return web.Response()

    return fault


async def stalls(request: web.Request) -> web.StreamResponse:
    """Say nothing, and keep the connection."""
    await asyncio.Event().wait()
    return web.Response()


def cut_off(body: bytes, promised_bytes: int) -> Fault:
    """Promise a length and close in mid-body."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = promised_bytes
        await response.prepare(request)
        await response.write(body)
        assert request.transport is not None
        request.transport.close()
        return response

    return fault


def promises(length: int) -> Fault:
    """Announce a long body, and begin it."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = length
        await response.prepare(request)
        await response.write(b"[")
        return await stalls(request)

    return fault


def by_turns(*faults: Fault) -> Fault:
    """Do one thing at the first request, another at the second; the last one from then on."""
    left = list(faults)

    async def fault(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return fault


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return the server side of a certificate that nobody vouches for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed; it makes the certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=BOUND_S)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
