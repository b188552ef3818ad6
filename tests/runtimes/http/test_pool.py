"""Promises about proxies: the environment names them, this machine is reached without, keys stay apart."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nbproviders.errors import ConfigurationError, ServiceUnavailableError
from nbproviders.runtimes.http import Wire
from nbproviders.runtimes.http.pool import proxy_for
from tests.runtimes.http.faults import answers, self_signed, served


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("settings", "url", "proxy"),
    [
        ({}, "https://api.example.com/v1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://api.example.com/v1", "http://p:1"),
        ({"https_proxy": "http://p:1"}, "https://api.example.com/v1", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://api.example.com/v1", None),
        ({"HTTP_PROXY": "p:1"}, "http://api.example.com/v1", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http://api.example.com/v1", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http://localhost:11434", None),
        ({"ALL_PROXY": "http://p:1"}, "http://127.0.0.1:11434", None),
        ({"ALL_PROXY": "http://p:1"}, "http://[::1]:11434", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "example.com"}, "http://api.example.com", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "example.com:8"}, "http://example.com:8/", None),
        (
            {"ALL_PROXY": "http://p:1", "NO_PROXY": "example.com:8"},
            "http://example.com:9/",
            "http://p:1",
        ),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://api.example.com", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "x, 10.0.0.0/8"}, "http://10.1.2.3", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://11.1.2.3", "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "a/b"}, "http://11.1.2.3", "http://p:1"),
    ],
)
def test_environment(
    settings: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables mean what they mean elsewhere; this machine is reached without a proxy."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


async def test_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be used is an error: to go past it would show the traffic."""
    monkeypatch.setenv("ALL_PROXY", "socks5://user:pass1234@p:1")
    wire = Wire("https://api.example.com")
    with pytest.raises(ConfigurationError, match="proxy of kind 'socks5'") as caught:
        await wire.json("GET", "x")
    assert "pass1234" not in str(caught.value)
    await wire.aclose()


async def test_plain_requests_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain request goes to the proxy, which learns its own password and the whole address."""
    async with served(answers({"ok": 1})) as proxy:
        address = proxy.url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", f"http://user:pass@{address}")
        wire = Wire("http://service.invalid/v1")
        assert await wire.json("GET", "x") == {"ok": 1}
        await wire.aclose()
    headers = proxy.seen[0].headers
    assert headers["Host"] == "service.invalid"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"user:pass").decode()


@asynccontextmanager
async def tunnel(status: str = "200 OK") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy that connects through to whatever it is asked for; what it was told is kept."""
    told: list[bytes] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if status != "200 OK":
            writer.close()
            return
        host, port = told[-1].split()[1].decode().rsplit(":", 1)
        there, onwards = await asyncio.open_connection(
            host.replace("service.invalid", "127.0.0.1"), port
        )
        await asyncio.gather(carry(reader, onwards), carry(there, writer), return_exceptions=True)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", told
    finally:
        server.close()
        await server.wait_closed()


async def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Over TLS the proxy learns host and port, and nothing of the request."""
    async with served(answers({"ok": 1}), self_signed(tmp_path)) as server, tunnel() as (url, told):
        monkeypatch.setenv("HTTPS_PROXY", url)
        wire = Wire(
            server.url.replace("127.0.0.1", "service.invalid"),
            headers={"Authorization": "Bearer plainword"},
            verify_ssl=False,
        )
        assert await wire.json("GET", "x") == {"ok": 1}
        await wire.aclose()
    assert told[0].startswith(b"CONNECT service.invalid:")
    assert b"plainword" not in told[0]


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "502 Bad Gateway"])
async def test_a_proxy_that_refuses(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses is named as the one that did, with the settings to look at."""
    async with tunnel(status) as (url, _):
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", "//user:pass1234@"))
        wire = Wire("https://service.invalid")
        with pytest.raises(
            ServiceUnavailableError, match=f"proxy on the way.*{status[:3]}"
        ) as caught:
            await wire.json("GET", "x")
        await wire.aclose()
    assert "NO_PROXY" in str(caught.value)
    assert "pass1234" not in f"{caught.value} {caught.value.__cause__!r}"


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be reached is told as such."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass1234@127.0.0.1:9")
    wire = Wire("https://service.invalid")
    with pytest.raises(
        ServiceUnavailableError, match="The proxy on the way to GET https"
    ) as caught:
        await wire.json("GET", "x")
    await wire.aclose()
    assert "pass1234" not in f"{caught.value} {caught.value.__cause__!r}"
