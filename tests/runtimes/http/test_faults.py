"""The fault matrix: what a service or the way to it can do wrong, and the error that comes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
import traceback
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web

from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError as Invalid,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError as Unavailable,
    TimeoutError,
)
from nbproviders.runtimes.http import Wire, answer as answering
from tests.runtimes.http.faults import (
    Fault,
    answers,
    cut_off,
    dribbles,
    promises,
    repeats,
    resets,
    self_signed,
    served,
    stalls,
    streams,
    writes,
)
from tests.scripted import BOUND_S

KEY = "plain words"  # no pattern knows it for a key; it is one since it was sent as one
HEADERS = {"Authorization": f"Bearer {KEY}"}
SHORT_S = 0.2
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One fault: what the server does, how it is asked, and what must come of it."""

    name: str
    fault: Fault
    error: type[ProviderError]
    says: tuple[str, ...] = ()
    again: bool = False  # whether asking again may help: retryable and not final
    ask: str = "json"
    timeout_s: float = 5.0
    requests: int = 1
    retry_after_s: float | None = None


def openai(message: str, kind: str = "", code: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def event(value: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()


async def _until_a_date(request: web.Request) -> web.StreamResponse:
    # made when it is asked: the tests may have been collected long before
    date = formatdate(time.time() + 3600, usegmt=True)
    return web.Response(status=429, headers={"Retry-After": date})


async def _redirects(request: web.Request) -> web.StreamResponse:
    return web.Response(
        status=307, headers={"Location": f"http://user:{KEY}@localhost:9/x?key={KEY}"}
    )


REQUEST_ID = {"x-request-id": "req_123"}
HELLO = event({"choices": [{"delta": {"content": "Hello"}}]})
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

# fmt: off
STATUSES = [
    Row("401", answers(openai(f"Incorrect API key provided: {KEY}."), 401, headers=REQUEST_ID),
        AuthenticationError, ("HTTP 401", "Incorrect API key provided: ****.", "req_123", "api_key=")),
    Row("401 of an expired token", answers({"status": 401, "message": "Token has expired"}, 401),
        AuthenticationError, ("Token has expired",)),
    Row("403", answers({"message": f"{KEY} may not"}, 403), AuthenticationError,
        ("HTTP 403", "**** may not")),
    Row("404", answers({"error": "model 'llama9' not found"}, 404), Invalid,
        ("HTTP 404", "model 'llama9' not found", "base_url")),
    Row("405", answers("<h1>Not Allowed</h1>", 405, kind="text/html"), Invalid, ("Not Allowed",)),
    Row("413", answers(b"", 413), Invalid, ("HTTP 413", "shorten")),
    Row("422", answers({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422), Invalid,
        ("HTTP 422", "field required")),
    Row("400 in many words", answers(openai("long " * 999), 400), Invalid, ("long long", "…")),
    Row("408", answers(b"", 408), TimeoutError, ("HTTP 408",), again=True),
    Row("402", answers({"error": {"message": "Insufficient Balance"}}, 402), RateLimitError,
        ("Insufficient Balance", "waiting does not help")),
    Row("429", answers(openai("Slow down"), 429), RateLimitError, ("HTTP 429", "Slow down"), again=True),
    Row("429 for seconds", answers(openai("Slow down"), 429, headers={"Retry-After": "7"}), RateLimitError,
        again=True, retry_after_s=7),
    Row("429 until a date",
        _until_a_date, RateLimitError, again=True, retry_after_s=3600),
    Row("429 of a used-up quota",
        answers(openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), 429,
                headers={"Retry-After": "1"}),
        RateLimitError, ("exceeded your current quota", "waiting does not help")),
    Row("500", answers(openai("boom"), 500), Unavailable, ("HTTP 500", "boom"), again=True),
    Row("502 as a page", answers("<title>502 Bad Gateway</title><p>x</p>", 502, kind="text/html"),
        Unavailable, ("502 Bad Gateway",), again=True),
    Row("503", answers(b"", 503, headers={"Retry-After": "3"}), Unavailable, ("HTTP 503",),
        again=True, retry_after_s=3),
    Row("529", answers(OVERLOADED, 529), Unavailable, ("HTTP 529", "Overloaded"), again=True),
    Row("500 with a body without end", repeats(b"x" * MIB, status=500), Unavailable, ("HTTP 500", ": xxx"),
        again=True),
    Row("500 with a body that dribbles", dribbles(500), Unavailable, ("HTTP 500", "x x"), again=True,
        timeout_s=SHORT_S),
    Row("500 whose body stalls", streams(b"it broke ", status=500, then=stalls), Unavailable,
        ("HTTP 500 from", "it broke"), again=True, timeout_s=SHORT_S),
    Row("500 whose body is reset", streams(b"it broke ", status=500, then=resets), Unavailable,
        ("HTTP 500",), again=True),
    Row("a stream refused", answers(openai("No such model"), 404), Invalid, ("No such model",),
        ask="events"),
    Row("lines refused", answers({"error": "no such model"}, 404), Invalid, ("no such model",),
        ask="lines"),
]

CONNECTIONS = [
    Row("reset before headers", resets, Unavailable, ("broke",), again=True),
    Row("reset in mid-body", streams(b'{"a": ', kind="application/json", then=resets), Unavailable,
        ("broke",), again=True),
    Row("reset in mid-stream", streams(HELLO, then=resets), Unavailable, ("broke",), again=True,
        ask="events"),
    Row("reset in mid-lines", streams(b'{"a": 1}\n', then=resets), Unavailable, ("broke",), again=True,
        ask="lines"),
    Row("a body cut off", cut_off(b'{"a": 1', 100), Unavailable, ("broke",), again=True),
    Row("no HTTP at all", writes(b"220 mail.example.com ESMTP\r\n"), Unavailable, ("broke",), again=True),
    Row("headers without end", writes(b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * 100_000), Unavailable, ("broke",),
        again=True),
    Row("chunks that are none", writes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        Unavailable, ("broke",), again=True),
    Row("an encoding that is unknown", answers(b"xyz", headers={"Content-Encoding": "br"}), Unavailable,
        again=True),
    Row("slow headers", stalls, TimeoutError, ("no answer within 0.2 s", "timeout="), again=True,
        timeout_s=SHORT_S),
    Row("slow headers of a stream", stalls, TimeoutError, ("no answer within 0.2 s",), again=True,
        ask="events", timeout_s=SHORT_S),
    Row("silence in mid-body", streams(b"[", kind="application/json", then=stalls), TimeoutError,
        ("no further piece of the answer within 0.2 s",), again=True, timeout_s=SHORT_S),
    Row("silence in mid-stream", streams(HELLO, then=stalls), TimeoutError, ("no further piece",), again=True,
        ask="events", timeout_s=SHORT_S),
]

BODIES = [
    Row("truncated JSON", answers(b'{"choices": [{"mess'), Unavailable,
        ("is not JSON", '{"choices": [{"mess'), again=True),
    Row("malformed JSON", answers(f"Hello {KEY}, I am no JSON".encode()), Unavailable,
        ("is not JSON", "Hello ****, I am no JSON"), again=True),
    Row("JSON nested too deep", answers(b"[" * 200_000), Unavailable, ("is not JSON",), again=True),
    Row("JSON that is not UTF-8", answers(b'{"a": "\xff\xfe"}'), Unavailable, ("is not JSON",),
        again=True),
    Row("a page instead of JSON", answers("<!doctype html><title>Log in</title>", kind="text/html"),
        Unavailable, ("is not JSON", "<!doctype html>", "base_url"), again=True),
    Row("a page instead of events", answers("<!doctype html>", kind="text/html"), Unavailable,
        ("is text/html, not a stream of events",), again=True, ask="events"),
    Row("JSON instead of events", answers({"choices": []}), Unavailable,
        ("is application/json, not a stream",), again=True, ask="events"),
    Row("a page instead of lines", answers("<!doctype html>\n", kind="text/html"), Unavailable,
        ("a line that is not JSON", "<!doctype html>"), again=True, ask="lines"),
    Row("a last line cut off", streams(b'{"a": 1}\n{"a'), Unavailable, ("a line that is not JSON",),
        again=True, ask="lines"),
    Row("an announced body of 100 MB", promises(100_000_000), Unavailable, ("larger than 64 MiB",)),
    Row("a body of 100 MB", repeats(b"x" * MIB, 96), Unavailable, ("larger than 64 MiB",)),
    Row("a gzip bomb", answers(gzip.compress(b" " * 96 * MIB, 1), headers={"Content-Encoding": "gzip"}),
        Unavailable, ("larger than 64 MiB",)),
    Row("one event without end", repeats(b"data: " + b"x" * MIB), Unavailable,
        ("an event", "larger than 16 MiB"), ask="events"),
    Row("one event of endless lines", repeats(b"data: " + b"x" * MIB + b"\n"), Unavailable,
        ("an event", "larger than 16 MiB"), ask="events"),
    Row("one line without end", repeats(b"x" * MIB), Unavailable, ("a line", "larger than 16 MiB"),
        ask="lines"),
    Row("a gzip bomb of events", answers(gzip.compress(b"x" * 96 * MIB, 1), kind="text/event-stream",
                                         headers={"Content-Encoding": "gzip"}),
        Unavailable, ("an event", "larger than 16 MiB"), ask="events"),
    Row("a gzip that is none", answers(b"no gzip", headers={"Content-Encoding": "gzip"}), Unavailable,
        ("broke",), again=True),
]

INSIDE = [
    Row("an error in a 200", answers(openai(f"No credit for {KEY}", "insufficient_quota")), RateLimitError,
        ("No credit for ****", "waiting does not help")),
    Row("an error with a code in a 200", answers({"error": {"message": "Slow", "code": 429}}), RateLimitError,
        ("Slow",), again=True),
    Row("OpenAI's error in a stream",
        streams(HELLO, event(openai(f"{KEY} is too long", "invalid_request_error"))), Invalid,
        ("an error in the answer", "**** is too long"), ask="events"),
    Row("OpenAI's server error in a stream", streams(HELLO, event(openai("oh", "server_error"))),
        Unavailable, ("oh",), again=True, ask="events"),
    Row("vLLM's error in a stream",
        streams(event({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400})),
        Invalid, ("too long",), ask="events"),
    Row("Anthropic's error in a stream", streams(HELLO, event(OVERLOADED, "error")), Unavailable,
        ("Overloaded",), again=True, ask="events"),
    Row("Anthropic's rate limit in a stream",
        streams(event({"type": "error", "error": {"type": "rate_limit_error", "message": "Wait"}}, "error")),
        RateLimitError, ("Wait",), again=True, ask="events"),
    Row("an error event in plain words", streams(b"event: error\ndata: it broke\n\n"), Unavailable,
        ("it broke",), again=True, ask="events"),
    Row("Ollama's error in a stream", streams(b'{"response": "Hi"}\n{"error": "model runner stopped"}\n'),
        Unavailable, ("model runner stopped",), again=True, ask="lines"),
    Row("an error as JSON instead of events", answers(openai("bad key", code="invalid_api_key")),
        AuthenticationError, ("bad key",), ask="events"),
]

REDIRECTS = [
    Row("a redirect to another host", _redirects, ConfigurationError,
        ("another place, 'http://localhost:9'", "base_url")),
    Row("a redirect of a stream", _redirects, ConfigurationError, ("another place",), ask="events"),
    Row("a redirect to nonsense", answers(b"", 307, headers={"Location": "http://[x"}), ConfigurationError,
        ("another place, 'no address'",)),
    Row("a redirect with a password", answers(b"", 307, headers={"Location": "//me:pass@127.0.0.1/x"}),
        ConfigurationError, ("another place, 'http://127.0.0.1'",)),
    Row("redirects without end", answers(b"", 307, headers={"Location": "/v1/again"}), ConfigurationError,
        ("again and again",), requests=6),
    Row("a redirect to no address", answers(b"", 307, headers={"Location": "mailto:x"}), ConfigurationError,
        ("another place",)),
]
# fmt: on


async def ask(wire: Wire, how: str) -> object:
    """Make one request and read the answer to its end."""
    if how == "json":
        return await wire.json("POST", "chat", {"prompt": "Hi"})
    read = wire.events if how == "events" else wire.lines
    return [item async for item in read("POST", "chat", {"prompt": "Hi"})]


def told(error: BaseException, *, variables: bool = False) -> str:
    """Return all that may be shown of an error; with the variables of each frame but the tests'."""
    trace = error.__traceback__
    while variables and trace is not None and "tests" in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    shown = traceback.TracebackException(type(error), error, trace, capture_locals=variables)
    return f"{error} {error!r} {vars(error)!r} {''.join(shown.format())}"


@pytest.mark.parametrize(
    "row", [*STATUSES, *CONNECTIONS, *BODIES, *INSIDE, *REDIRECTS], ids=lambda row: row.name
)
async def test_fault(row: Row) -> None:
    """Each fault is one error of ours, says what was wrong, tells no secret, and is tried only once."""
    async with served(row.fault) as server:
        wire = Wire(server.url, headers=HEADERS, timeout_s=row.timeout_s, what="openai:gpt-x")
        with pytest.raises(ProviderError) as caught:
            await ask(wire, row.ask)
        await wire.aclose()
        assert len(server.seen) == row.requests
    error = caught.value
    assert type(error) is row.error
    assert str(error).startswith("openai:gpt-x: ")
    assert "POST http://127.0.0.1:" in str(error)
    for words in row.says:
        assert words in str(error)
    assert (error.retryable and not error.final) == row.again
    asked_s = getattr(error, "retry_after_s", None)
    assert asked_s == (row.retry_after_s and pytest.approx(row.retry_after_s, rel=0.1))
    assert len(error.message) < 700
    assert KEY not in told(error)


@pytest.mark.parametrize("how", ["json", "events", "lines"])
@pytest.mark.parametrize(
    "fault", [resets, answers(b"", 500), answers(b"<p>")], ids=["cut", "500", "page"]
)
async def test_variables_tell_no_key(fault: Fault, how: str) -> None:
    """A traceback that prints each frame's variables shows no header that was sent."""
    async with served(fault) as server:
        wire = Wire(server.url, headers=HEADERS)
        with pytest.raises(ProviderError) as caught:
            await ask(wire, how)
        await wire.aclose()
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in told(caught.value, variables=True)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("how", ["json", "events", "lines"])
async def test_nobody_there(how: str) -> None:
    """A refused connection is an error that asks whether the server runs."""
    wire = Wire(f"http://127.0.0.1:{free_port()}", headers=HEADERS, what="ollama:x")
    with pytest.raises(Unavailable, match="ollama:x: no connection to POST http://127") as caught:
        await ask(wire, how)
    await wire.aclose()
    assert "is the server running?" in str(caught.value)
    assert caught.value.retryable
    assert not caught.value.final
    assert KEY not in told(caught.value)


async def test_no_such_host() -> None:
    """A host that no name server knows is an error that asks for base_url and network."""
    wire = Wire("http://nowhere.invalid", headers=HEADERS)
    with pytest.raises(Unavailable, match="No connection to POST http://nowhere.invalid/chat"):
        await ask(wire, "json")
    await wire.aclose()


@pytest.mark.parametrize("how", ["json", "events", "lines"])
async def test_self_signed(how: str, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused before anything is sent; asking again is no use."""
    async with served(answers({"a": 1}), self_signed(tmp_path)) as server:
        wire = Wire(server.url, headers=HEADERS)
        with pytest.raises(Unavailable, match="(?i)self.signed") as caught:
            await ask(wire, how)
        await wire.aclose()
        assert server.seen == []
    assert "SSL_CERT_FILE" in str(caught.value)
    assert "verify_ssl=False" in str(caught.value)
    assert caught.value.final
    assert KEY not in told(caught.value)


async def test_self_signed_and_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With verify_ssl=False it is reached, and the log warns."""
    async with served(answers({"a": 1}), self_signed(tmp_path)) as server:
        wire = Wire(server.url, headers=HEADERS, verify_ssl=False)
        assert await ask(wire, "json") == {"a": 1}
        await wire.aclose()
    assert "not checked (verify_ssl=False)" in caplog.text
    assert KEY not in caplog.text


async def test_authority_named_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE, set at any time before, vouches for a service's own certificate, as the hint says."""
    async with served(answers({"a": 1}), self_signed(tmp_path)) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        wire = Wire(server.url, headers=HEADERS)
        assert await ask(wire, "json") == {"a": 1}
        await wire.aclose()


async def test_plain_where_tls_is_spoken(tmp_path: Path) -> None:
    """https to a port that speaks http is told as a failed TLS connection, not as a foreign error."""
    async with served(answers({})) as server:
        wire = Wire(server.url.replace("http:", "https:"), headers=HEADERS)
        with pytest.raises(Unavailable, match="No trusted connection"):
            await ask(wire, "json")
        await wire.aclose()


async def test_token_expired_and_renewed() -> None:
    """A token that a function gives is taken anew for each request: the next one after a 401 works."""
    tokens = ["old", "new"]

    async def fault(request: web.Request) -> web.StreamResponse:
        known = request.headers["Authorization"] == "Bearer new"
        return await answers({"ok": known}, 200 if known else 401)(request)

    async with served(fault) as server:
        wire = Wire(server.url, headers=lambda: {"Authorization": f"Bearer {tokens.pop(0)}"})
        with pytest.raises(AuthenticationError):
            await ask(wire, "json")
        assert await ask(wire, "json") == {"ok": True}
        await wire.aclose()
        assert len(server.seen) == 2


async def test_a_connection_that_comes_to_nothing() -> None:
    """A host that takes connections and then says nothing is told as one that cannot be connected to."""
    left = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    wire = Wire(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=SHORT_S)
    with pytest.raises(TimeoutError, match="no connection within 0.2 s"):
        await ask(wire, "json")
    await wire.aclose()
    await asyncio.wait_for(left.wait(), BOUND_S)
    server.close()
    await server.wait_closed()


async def test_only_a_get_is_sent_twice() -> None:
    """A POST costs money and is sent once; a GET whose connection ends without an answer, once more."""
    async with served(resets) as server:
        wire = Wire(server.url)
        for method in ("POST", "GET"):
            with pytest.raises(Unavailable):
                await wire.json(method, "x")
        await wire.aclose()
        assert [seen.method for seen in server.seen] == ["POST", "GET", "GET"]


async def test_redirect_carries_nothing_away() -> None:
    """Another origin is not asked at all, so it sees neither key nor prompt."""
    async with served(answers({})) as other:
        there = answers(b"", 302, headers={"Location": f"{other.url}/chat"})
        async with served(there) as server:
            wire = Wire(server.url, headers=HEADERS)
            with pytest.raises(ConfigurationError, match="another place"):
                await ask(wire, "json")
            await wire.aclose()
        assert other.seen == []


async def test_endless_stream_of_small_events() -> None:
    """Whoever reads bounds a stream of small events: leaving it ends the connection."""
    async with served(repeats(event({"n": 1}))) as server:
        wire = Wire(server.url)
        count = 0
        stream = wire.events("POST", "chat")
        async for _ in stream:
            count += 1
            if count == 1000:
                break
        await stream.aclose()
        await server.was_left()
        await wire.aclose()


async def test_an_errors_body_is_not_read_on() -> None:
    """Of an error's body the beginning is read, however fast the rest would come."""
    async with served(repeats(b"x" * MIB, status=500)) as server:
        wire = Wire(server.url, timeout_s=30)
        async with asyncio.timeout(3):
            with pytest.raises(Unavailable, match="HTTP 500"):
                await ask(wire, "json")
        await server.was_left()
        await wire.aclose()


async def test_a_dribble_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole answer that comes byte by byte, never silent, ends with a timeout all the same."""
    monkeypatch.setattr(answering, "WHOLE_TIMEOUTS", 2)
    async with served(dribbles()) as server:
        wire = Wire(server.url, timeout_s=SHORT_S)
        with pytest.raises(TimeoutError, match="no whole answer within 0.4 s"):
            await ask(wire, "json")
        await server.was_left()
        await wire.aclose()
