"""Promises of `Wire` where nothing is wrong: what is sent and read, who shares, what is closed and when."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from nbproviders.core import engine
from nbproviders.errors import ClosedError, ConfigurationError, InvalidRequestError, ProviderError
from nbproviders.runtimes.http import Event, Wire, pool
from tests.runtimes.http.faults import (
    Fault,
    answers,
    by_turns,
    repeats,
    resets,
    self_signed,
    served,
    stalls,
    streams,
)
from tests.scripted import BOUND_S

EVENT = b'data: {"n": 1}\n\n'


def pools() -> list[pool.Pool]:
    """Return the pools of this test's loop."""
    return [one for one in pool._pools.values() if one.loop is asyncio.get_running_loop()]


async def test_json() -> None:
    """Body, headers and query go out as given; the parsed answer comes back."""
    async with served(answers({"text": "Приве\u0301т"})) as server:
        wire = Wire(f"{server.url}/", headers={"Authorization": "Bearer k"}, what="x:y")
        answer = await wire.json(
            "POST", "/chat/completions", {"p": "é"}, headers={"X-A": "1"}, query={"v": "a b&c"}
        )
        await wire.aclose()
    assert answer == {"text": "Приве\u0301т"}
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/v1/chat/completions?v=a+b%26c")
    assert seen.body == '{"p":"é"}'.encode()
    assert seen.headers["Authorization"] == "Bearer k"
    assert seen.headers["X-A"] == "1"
    assert seen.headers["Content-Type"] == seen.headers["Accept"] == "application/json"
    assert seen.headers["User-Agent"].startswith("nbproviders/")


async def test_form() -> None:
    """A form goes out as a web form."""
    async with served(answers({})) as server:
        wire = Wire(server.url)
        await wire.json("POST", "oauth", form={"scope": "A B", "x": "é"})
        await wire.aclose()
    assert server.seen[0].body == b"scope=A+B&x=%C3%A9"
    assert server.seen[0].headers["Content-Type"] == "application/x-www-form-urlencoded"


async def test_query_of_the_base_url() -> None:
    """A base URL that ends with a query, as some gateways want it, keeps it for each request."""
    async with served(answers({})) as server:
        wire = Wire(f"{server.url}?api-version=7")
        await wire.json("GET", "models", query={"n": "1"})
        await wire.aclose()
    assert server.seen[0].path == "/v1/models?api-version=7&n=1"


@pytest.mark.parametrize(
    "fault", [answers(b"", 204), answers(b""), answers(b" ", kind="text/plain")]
)
async def test_no_body(fault: Fault) -> None:
    """An answer without a body is None; a blank one is not, it was to be something."""
    async with served(fault) as server:
        wire = Wire(server.url)
        try:
            assert await wire.json("GET", "health") is None
        except ProviderError as error:
            assert "is not JSON" in str(error)  # noqa: PT017
        await wire.aclose()


async def test_a_large_body() -> None:
    """A body of many megabytes, as prompts with images are, arrives whole, after a redirect too."""
    onwards = answers(b"", 307, headers={"Location": "/v1/there"})
    async with served(by_turns(onwards, answers({}))) as server:
        wire = Wire(server.url)
        await wire.json("POST", "chat", {"image": "x" * 5_000_000})
        await wire.aclose()
    assert [len(seen.body) for seen in server.seen] == [5_000_012] * 2


@pytest.mark.parametrize(
    ("status", "method"), [(301, "POST"), (302, "POST"), (303, "GET"), (307, "POST"), (308, "POST")]
)
async def test_redirects_within_the_origin(status: int, method: str) -> None:
    """They are followed with key and body; only 303 says that the result is fetched elsewhere."""
    onwards = answers(b"", status, headers={"Location": "/v2/chat?x=1"})
    async with served(by_turns(onwards, answers({"ok": 1}))) as server:
        wire = Wire(server.url, headers={"Authorization": "Bearer k"})
        assert await wire.json("POST", "chat", {"a": 1}) == {"ok": 1}
        await wire.aclose()
    last = server.seen[-1]
    assert (last.method, last.path) == (method, "/v2/chat?x=1")
    assert last.headers["Authorization"] == "Bearer k"
    assert last.body == (b'{"a":1}' if method == "POST" else b"")


async def test_events_and_lines() -> None:
    """Streams are read as events or lines, also where the pieces cut characters and lines."""
    raw = 'event: a\r\ndata: {"t": "é"}\r\n\r\ndata: [DONE]\n\n'.encode()
    async with served(streams(*(raw[i : i + 3] for i in range(0, len(raw), 3)))) as server:
        wire = Wire(server.url)
        events = [event async for event in wire.events("POST", "chat", {"a": 1})]
        await wire.aclose()
    assert events == [Event("a", '{"t": "é"}'), Event("message", "[DONE]")]
    assert server.seen[0].headers["Accept"] == "text/event-stream"
    assert server.seen[0].headers["Accept-Encoding"] == "identity"
    pieces = '{"t": "é"}\n\n{"t": 2}\r\n[3'.encode(), b"]"
    async with served(streams(*pieces, kind="application/x-ndjson")) as server:
        wire = Wire(server.url)
        assert [line async for line in wire.lines("POST", "chat")] == [{"t": "é"}, {"t": 2}, [3]]
        await wire.aclose()


async def test_the_word_error_in_a_text() -> None:
    """A model that writes of errors, even as JSON, makes no error."""
    text = json.dumps(
        {"choices": [{"delta": {"content": '{"error": {"message": "x"}}'}}], "error": None}
    )
    async with served(streams(f"data: {text}\n\n".encode())) as server:
        wire = Wire(server.url)
        assert [event.data async for event in wire.events("POST", "chat")] == [text]
        await wire.aclose()


@pytest.mark.parametrize("how", ["aclose", "break", "cancel", "error"])
@pytest.mark.parametrize("kind", ["events", "lines"])
async def test_a_stream_that_is_left(how: str, kind: str) -> None:
    """However its reader goes away, the server sees the connection end."""
    piece = EVENT if kind == "events" else b"1\n"
    async with served(streams(piece, then=stalls)) as server:
        wire = Wire(server.url)
        read = wire.events if kind == "events" else wire.lines
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def reader() -> None:
            stream = read("POST", "chat")
            if how == "break":  # without a word: the last reference is the loop's
                async for _ in stream:
                    return
            async with aclosing(stream):
                async for _ in stream:
                    if how == "aclose":
                        return
                    if how == "error":
                        raise KeyError
                    first.set_result(None)

        task = asyncio.create_task(reader())
        if how == "cancel":
            await first
            task.cancel()
        await asyncio.wait([task], timeout=BOUND_S)
        await server.was_left()
        assert how != "error" or isinstance(task.exception(), KeyError)
        del task
        await wire.aclose()


@pytest.mark.parametrize("kind", ["json", "events"])
async def test_cancelled_before_headers(kind: str) -> None:
    """Cancelling a request that has no answer yet ends it at once, and the server sees it."""
    async with served(stalls) as server:
        wire = Wire(server.url)
        if kind == "json":
            task = asyncio.ensure_future(wire.json("POST", "chat"))
        else:
            task = asyncio.ensure_future(anext(wire.events("POST", "chat")))  # type: ignore[arg-type]
        await server.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.was_left()
        await wire.aclose()


async def test_connections_are_used_again() -> None:
    """Requests one after another, and streams read to their end, need one connection."""
    peers: set[Any] = set()

    async def fault(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return await (streams(EVENT) if request.path.endswith("events") else answers({}))(request)

    async with served(fault) as server:
        one, two = Wire(server.url), Wire(f"{server.url}/below")
        for wire in (one, two):
            await wire.json("GET", "x")
            assert len([event async for event in wire.events("POST", "events")]) == 1
        await one.aclose()
        await two.aclose()
    assert len(peers) == 1


async def test_the_last_wire_closes_the_session() -> None:
    """Wires of one origin share a session; closing one twice leaves it to the others."""
    async with served(answers({})) as server:
        one, two = Wire(server.url), Wire(f"{server.url}/other")
        await one.json("GET", "x")
        await two.json("GET", "x")
        (shared,) = pools()
        session = shared.session
        await one.aclose()
        await one.aclose()
        assert not session.closed
        await two.json("GET", "x")
        await two.aclose()
        assert session.closed
        assert not pools()


async def test_no_cookies() -> None:
    """What a service sets in an answer to one wire goes out with no later request."""
    async with served(answers({}, headers={"Set-Cookie": "a=1"})) as server:
        wire = Wire(server.url)
        await wire.json("GET", "x")
        await wire.json("GET", "x")
        await wire.aclose()
    assert "Cookie" not in server.seen[1].headers


async def test_after_its_end() -> None:
    """A closed wire says so, and one that was never used closes as well."""
    wire = Wire("http://127.0.0.1:9", what="openai:x")
    await wire.aclose()
    with pytest.raises(ClosedError, match="openai:x was used after its end"):
        await wire.json("GET", "x")
    with pytest.raises(ClosedError):
        await anext(wire.events("GET", "x"))


@pytest.mark.parametrize("kind", ["json", "events", "mid-stream"])
async def test_closed_in_use(kind: str) -> None:
    """Closing the last wire ends what is under way with an error that says why."""
    fault = streams(EVENT, then=stalls) if kind == "mid-stream" else stalls
    async with served(fault) as server:
        wire = Wire(server.url)

        async def use() -> None:
            if kind == "json":
                await wire.json("GET", "x")
            async with aclosing(wire.events("GET", "x")) as stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(use())
        await server.began.wait()
        await wire.aclose()
        with pytest.raises(ClosedError, match="closed while it was in use"):
            await asyncio.wait_for(task, BOUND_S)


def test_one_loop() -> None:
    """On a second loop a wire says that it belongs to the first; the session there is still closed there."""

    async def use(wire: Wire) -> object:
        return await wire.json("GET", "x")

    async def both() -> None:
        async with served(answers({})) as server:
            wire = Wire(server.url)
            await use(wire)
            with pytest.raises(ConfigurationError, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(use(wire)))
            with pytest.raises(ConfigurationError, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(wire.aclose()))
            await wire.aclose()

    asyncio.run(both())


async def test_on_the_engine() -> None:
    """It works on the engine's loop, where it lives."""
    async with served(answers({"a": 1})) as server:
        wire = Wire(server.url)

        async def use() -> object:
            try:
                return await wire.json("GET", "x")
            finally:
                await wire.aclose()

        assert await engine.default().call(use) == {"a": 1}


async def test_many_at_once_beside_streams() -> None:
    """512 requests get their answers while more streams are open than there are places for requests."""
    opened = pool.REQUESTS_AT_ONCE + 10

    async def fault(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("events"):
            return await streams(EVENT, then=stalls)(request)
        return await answers({"n": request.query["n"]})(request)

    async with served(fault) as server, asyncio.timeout(6 * BOUND_S):
        wire = Wire(server.url, timeout_s=30)
        held = [wire.events("POST", "events") for _ in range(opened)]
        await asyncio.gather(*(anext(stream) for stream in held))
        numbers = [str(n) for n in range(600)]
        told = await asyncio.gather(*(wire.json("GET", "x", query={"n": n}) for n in numbers))
        assert [answer["n"] for answer in told] == numbers
        for stream in held:
            await stream.aclose()
        await wire.aclose()


async def test_places_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more requests than places are under way at once; the others wait for their turn."""
    monkeypatch.setattr(pool, "REQUESTS_AT_ONCE", 3)
    running, most = 0, 0

    async def fault(request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await answers({})(request)

    async with served(fault) as server:
        wire = Wire(server.url)
        await asyncio.gather(*(wire.json("GET", "x") for _ in range(12)))
        await wire.aclose()
    assert most == 3


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/v1",
        "ftp://example.com",
        "https://",
        "http://[x",
        "http://h:99999",
        "https://user:pass1234@example.com",
        "pass1234",
    ],
)
def test_wrong_base_urls(url: str) -> None:
    """What is no plain URL is refused without showing it: it may hold a password."""
    with pytest.raises(ConfigurationError) as caught:
        Wire(url)
    assert "pass1234" not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_wrong_timeouts(timeout_s: float) -> None:
    """A timeout is a finite number above 0."""
    with pytest.raises(ConfigurationError, match="timeout_s="):
        Wire("http://h", timeout_s=timeout_s)


@pytest.mark.parametrize("value", ["plainkey\n", "a\r\nX-Evil: 1", "a\x00b", None])
async def test_wrong_headers(value: Any) -> None:
    """A key with a line break is told before anything is sent, and not shown."""
    wire = Wire("http://127.0.0.1:9", headers={"Authorization": value})
    with pytest.raises(
        ConfigurationError, match="header 'Authorization'.*\n.*line break"
    ) as caught:
        await wire.json("GET", "x")
    assert "plainkey" not in str(caught.value)
    await wire.aclose()


async def test_headers_that_cannot_be_made() -> None:
    """A function for headers that fails makes an error of ours."""
    wire = Wire("http://127.0.0.1:9", headers=lambda: {}["token"], what="x:y")
    with pytest.raises(ProviderError, match="x:y: KeyError: 'token'"):
        await wire.json("GET", "x")
    await wire.aclose()


@pytest.mark.parametrize("body", [{"a": object()}, {"a": float("nan")}, {"a": "\ud800"}, {(): 1}])
async def test_what_is_no_json(body: Any) -> None:
    """What cannot be written as JSON is refused before anything is sent."""
    wire = Wire("http://127.0.0.1:9")
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
        await wire.json("POST", "x", body)
    await wire.aclose()


def test_repr_tells_no_header() -> None:
    """A wire shows its address only."""
    wire = Wire("http://h/v1?key=plainword", headers={"Authorization": "Bearer k"})
    assert repr(wire) == "Wire('http://h/v1')"


async def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither success nor failure logs anything, at any level."""
    caplog.set_level(1)
    async with served(by_turns(answers({"a": "secret text"}), resets)) as server:
        wire = Wire(server.url, headers={"Authorization": "Bearer plainword"})
        await wire.json("POST", "x", {"prompt": "secret prompt"})
        with pytest.raises(ProviderError):
            await wire.json("POST", "x", {"prompt": "secret prompt"})
        await wire.aclose()
    ours = [record for record in caplog.records if record.name.startswith("nbproviders")]
    assert ours == []
    assert "secret" not in caplog.text
    assert "plainword" not in caplog.text


async def test_a_forgotten_wire_is_closed() -> None:
    """A wire that was dropped and never closed leaves its session closed, and no warning."""
    async with served(answers({})) as server:
        wire = Wire(server.url)
        await wire.json("GET", "x")
        (forgotten,) = pools()
        session, forgotten = forgotten.session, None  # type: ignore[assignment]
        del wire
        gc.collect()
        async with asyncio.timeout(10):
            while not session.closed:
                await asyncio.sleep(0)
        gc.collect()
        assert not pools()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_child_leaves_the_parents_session_alone() -> None:
    """After a fork the parent's connection still works, whatever the child drops."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout.split(), ran.stderr) == (["0", "1", "2"], "")


FORK = """
import asyncio, gc, os
from nbproviders.runtimes.http import Wire, pool
from tests.runtimes.http.faults import answers, served

async def main():
    async with served(answers({})) as server:
        wire = Wire(server.url)
        await wire.json("GET", "x")
        child = os.fork()
        if child == 0:
            del wire
            gc.collect()
            os._exit(len(pool._pools))
        print(os.waitpid(child, 0)[1])
        for _ in range(2):
            await wire.json("GET", "x")
            print(len(server.seen) - 1)
        await wire.aclose()

asyncio.run(main())
"""


async def test_tls_connections_are_used_again(tmp_path: Any) -> None:
    """Many requests over TLS at once, and their sessions close without a warning."""
    async with served(answers({}), self_signed(tmp_path)) as server:
        wire = Wire(server.url, verify_ssl=False)
        await asyncio.gather(*(wire.json("GET", "x") for _ in range(8)))
        await wire.aclose()
    assert len(server.seen) == 8


async def test_a_slow_reader_is_no_silence() -> None:
    """A reader that takes longer than the timeout between events does not end a stream that has more."""
    async with served(repeats(b"data: " + b"x" * 500_000 + b"\n\n", 8)) as server:
        wire = Wire(server.url, timeout_s=0.2)
        count = 0
        async for _ in wire.events("POST", "x"):
            count += 1
            if count == 1:
                await asyncio.sleep(0.5)
        await wire.aclose()
    assert count == 8
