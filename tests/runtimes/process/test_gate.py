"""Promises of the gate: nothing passes without the key, and what passes is not held up."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import server
from nbproviders.runtimes.process.server import ManagedServer
from tests.runtimes.process.servers import BOUND_S, healthy, program


@pytest.fixture
async def gated() -> AsyncIterator[ManagedServer]:
    """A server that knows no keys, behind the gate."""
    one = await server.start(
        "lab", program(gate=True), ready=healthy, timeout_s=10, progress=Progress()
    )
    yield one
    await one.stop()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "KEY"}, 401),
        ({"Authorization": "Bearer KEY"}, 200),
        ({"authorization": "bearer KEY"}, 200),
        ({"X-Api-Key": "KEY"}, 200),
        ({"X-Api-Key": "KE"}, 401),
    ],
)
async def test_only_the_key_opens_it(
    gated: ManagedServer, headers: dict[str, str], status: int
) -> None:
    """The server never sees a request without it, and never sees the key itself."""
    sent = {name: value.replace("KEY", gated.key) for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.get(gated.base_url + "/health", headers=sent) as answer,
    ):
        assert answer.status == status
        text = await answer.text()
    assert ("error" in text) == (status == 401)
    assert "authorization" not in text
    assert "api-key" not in text


async def test_bodies_pass_whole(gated: ManagedServer) -> None:
    """Twenty at once, of 3 MB each, come back byte for byte."""
    bodies = [bytes([n]) * 3_000_000 for n in range(20)]
    headers = {"Authorization": f"Bearer {gated.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def echo(body: bytes) -> bytes:
            async with session.post(gated.base_url + "/echo", data=io.BytesIO(body)) as answer:
                return await answer.read()

        assert await asyncio.gather(*map(echo, bodies)) == bodies


async def test_events_pass_as_they_come(gated: ManagedServer) -> None:
    """The first of a stream of 50 s arrives at once, and leaving ends the server's work."""
    headers = {"Authorization": f"Bearer {gated.key}"}
    began_s = time.monotonic()
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(gated.base_url + "/events") as answer,
    ):
        seen = [await answer.content.readline() for _ in range(5)]
    assert seen == [b"data: %d\n" % n for n in range(5)]
    assert time.monotonic() - began_s < 3
    while "BrokenPipe" not in gated.tail() and "ConnectionReset" not in gated.tail():
        await asyncio.sleep(0.02)
        assert time.monotonic() - began_s < BOUND_S


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nA\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nA: b\r\n Authorization: c\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /health", b"400"),
        (b"\x16\x03\x01\x02\r\n\r\n", b"401"),
    ],
)
async def test_what_is_no_request_is_refused(
    gated: ManagedServer, sent: bytes, status: bytes
) -> None:
    """Whatever comes in, the answer is a refusal and the gate goes on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gated.base_url.split(":")[2]))
    writer.write(sent)
    writer.write_eof()
    assert (await reader.readline()).split()[1] == status
    writer.close()
    assert await healthy(gated.base_url, gated.key)
