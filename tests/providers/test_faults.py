"""The fault matrix through the waist: what a service can do wrong, and what comes of it for who asks.

The wire's own table is in `tests.runtimes.http.test_faults`; this one is about the provider above it, its
retries, and what of a half-read stream is told.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import nbproviders as nbp
from nbproviders.authoring import service
from nbproviders.core.retry import Retry
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError as Invalid,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError as Unavailable,
    TimeoutError,
)
from tests.runtimes.http.faults import (
    EVENTS,
    Fault,
    Server,
    answers,
    repeats,
    resets,
    self_signed,
    served,
    stalls,
    streams,
)
from tests.runtimes.http.test_faults import HELLO, MIB, event, openai, told
from tests.services.anthropic import AnthropicServer
from tests.services.keys import FAKE, fake
from tests.services.ollama import OllamaServer

FAULTS = {
    "401",
    "403",
    "404",
    "422",
    "429",
    "429 for seconds",
    "429 until a date",
    "429 for longer than 30 s",
    "quota used up",
    "500",
    "503",
    "connection refused",
    "reset before headers",
    "reset in mid-body",
    "reset in mid-stream",
    "truncated JSON",
    "malformed JSON",
    "malformed UTF-8",
    "events split at any byte",
    "wrong content type",
    "error inside a 200 answer",
    "error before the first piece",
    "error after the first piece",
    "slow headers",
    "silent stall",
    "early end in good order",
    "body of 100 MB",
    "event without end",
    "redirect to another host",
    "redirect on the same host",
    "expired token",
    "self-signed certificate",
}
PROMPT = "tell me of otters"
RETRIES = 2
SHORT_S = 0.4
WISH_S = 0.3
JSON = "application/json"


@dataclass(frozen=True)
class Cell:
    """What comes of a fault, asked one way.

    Attributes
    ----------
    fault
        What the server does; None: nobody is there.
    error, says
        What is raised, and words of its message; without an error, `got` is the text.
    retries, asked
        How often it is tried again, and how many requests the server sees: by itself one more.
    got
        What of a stream was read before the error.
    gathered
        Whether the whole answer is read from a stream, so that streams' faults can befall it.
    wish_s
        How long each retry has to wait, at least.
    """

    fault: Fault | None
    error: type[ProviderError] | None
    says: tuple[str, ...] = ()
    retries: int = RETRIES
    asked: int | None = None
    got: str = ""
    gathered: bool = False
    timeout_s: float = 5.0
    wish_s: float = 0.0
    tls: bool = False
    provider: str = "openai"


def both(
    fault: Fault | None, error: type[ProviderError] | None, *says: str, **more: Any
) -> tuple[Cell, Cell]:
    """Return the same cell for the whole answer and for the stream."""
    cell = Cell(fault, error, says, **more)
    return cell, cell


def broken_off(
    fault: Fault, error: type[ProviderError], *says: str, **more: Any
) -> tuple[Cell, Cell]:
    """Return the cells of a stream that fails after its first piece: nobody gets half of two answers."""
    gathered = Cell(fault, error, says, gathered=True, **more)
    return gathered, Cell(fault, error, says, retries=0, got="Hello", **more)


def piece(text: str) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": None}]})


def whole(text: str) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]}, ensure_ascii=False).encode()


END = event({"choices": [{"delta": {}, "finish_reason": "stop"}]}) + b"data: [DONE]\n\n"
SLOW = openai("Slow down", "rate_limit_error", "rate_limit_exceeded")


async def works(request: web.Request) -> web.StreamResponse:
    """Answer as it should be, whole or as a stream."""
    if (await request.json()).get("stream"):
        return await streams(HELLO, END)(request)
    return await answers(whole("Hello"))(request)


def until_a_date() -> Fault:
    """Refuse all until the next full second, and say so with its date."""
    dates: list[int] = []

    async def fault(request: web.Request) -> web.StreamResponse:
        first = not dates
        if first:
            dates.append(int(time.time()) + 1)
        if not first and time.time() >= dates[0] - 0.01:
            return await works(request)
        wish = {"Retry-After": formatdate(dates[0], usegmt=True)}
        return await answers(SLOW, 429, headers=wish)(request)

    return fault


async def elsewhere(request: web.Request) -> web.StreamResponse:
    return web.Response(
        status=307, headers={"Location": f"http://me:{FAKE}@localhost:9/x?key={FAKE}"}
    )


async def moved(request: web.Request) -> web.StreamResponse:
    if request.path.endswith("/new"):
        return await works(request)
    return web.Response(status=307, headers={"Location": "/v1/new"})


def expired() -> Fault:
    """Give access tokens, of which the first is refused."""
    given: list[str] = []

    async def fault(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/oauth"):
            given.append(fake(f"token-{len(given)}"))
            told = {"access_token": given[-1], "expires_at": (time.time() + 1800) * 1000}
            return await answers(told)(request)
        if request.headers["Authorization"] != f"Bearer {fake('token-1')}":
            told = {"status": 401, "message": f"Token has expired: {given[0]}"}
            return await answers(told, 401)(request)
        return await works(request)

    return fault


def bytewise(raw: bytes, kind: str) -> Fault:
    return streams(*(raw[place : place + 1] for place in range(len(raw))), kind=kind)


# fmt: off
def table() -> dict[str, tuple[Cell, Cell]]:
    """Return what becomes of the whole answer and of the stream, by fault; made anew for each test."""
    letters = "wie grün, 日本 🦦"
    failed = event(openai(f"it broke for {FAKE}", "server_error"))
    page = "<!doctype html><title>Log in</title>"
    return {
        "401": both(answers(openai(f"Incorrect API key provided: {FAKE}."), 401), AuthenticationError,
                    "HTTP 401", "provided: ****.", retries=0),
        "403": both(answers(openai(f"{FAKE} may not"), 403), AuthenticationError,
                    "HTTP 403", "**** may not", retries=0),
        "404": both(answers(openai("no such thing"), 404), Invalid, "HTTP 404", "base_url", retries=0),
        "422": both(answers({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422), Invalid,
                    "HTTP 422", "field required", retries=0),
        "429": both(answers(SLOW, 429), RateLimitError, "HTTP 429", "Slow down"),
        "429 for seconds": both(answers(SLOW, 429, headers={"Retry-After": str(WISH_S)}), RateLimitError,
                                "HTTP 429", wish_s=WISH_S),
        "429 until a date": (Cell(until_a_date(), None, retries=1, got="Hello"),
                             Cell(until_a_date(), None, retries=1, got="Hello")),
        "429 for longer than 30 s": both(answers(SLOW, 429, headers={"Retry-After": "31"}), RateLimitError,
                                         "HTTP 429", retries=0),
        "quota used up": both(answers(openai("You exceeded your quota", "insufficient_quota"), 429),
                              RateLimitError, "exceeded your quota", "waiting does not help", retries=0),
        "500": both(answers(openai(f"boom, {FAKE}"), 500), Unavailable, "HTTP 500", "boom, ****"),
        "503": both(answers(b"", 503), Unavailable, "HTTP 503"),
        "connection refused": both(None, Unavailable, "no connection to POST", "is the server running?"),
        "reset before headers": both(resets, Unavailable, "broke"),
        "reset in mid-body": (
            Cell(streams(whole("Hello")[:20], kind=JSON, then=resets), Unavailable, ("broke",)),
            Cell(streams(HELLO[:20], then=resets), Unavailable, ("broke",))),
        "reset in mid-stream": broken_off(streams(HELLO, then=resets), Unavailable, "broke"),
        "truncated JSON": (
            Cell(answers(whole("Hello")[:20]), Unavailable, ("is not JSON", "begins")),
            Cell(streams(b'data: {"choices": [{"mess\n\n', END), Unavailable, ("is not JSON",))),
        "malformed JSON": (
            Cell(answers(f"Hello {FAKE}, I am no JSON"), Unavailable, ("is not JSON", "Hello ****")),
            Cell(streams(HELLO, f"data: {FAKE} is no JSON\n\n".encode()), Unavailable, ("is not JSON",),
                 retries=0, got="Hello")),
        # A stream of events is decoded with replacements, as its standard says; a body is no JSON then.
        "malformed UTF-8": (
            Cell(answers(whole("Hello").replace(b"ll", b"\xff\xfe")), Unavailable, ("is not JSON",)),
            Cell(streams(HELLO.replace(b"ll", b"\xff\xfe"), END), None, retries=0, got="He\ufffd\ufffdo")),
        "events split at any byte": (
            Cell(bytewise(whole(letters), JSON), None, retries=0, got=letters),
            Cell(bytewise(piece(letters) + END, EVENTS), None, retries=0, got=letters)),
        "wrong content type": (
            Cell(answers(page, kind="text/html"), Unavailable, ("is not JSON", "<!doctype", "login page")),
            Cell(answers(page, kind="text/html"), Unavailable, ("is text/html", "<!doctype", "login page"))),
        "error inside a 200 answer": both(answers(openai(f"it broke for {FAKE}", "server_error")),
                                          Unavailable, "an error in the answer", "it broke for ****"),
        "error before the first piece": (
            Cell(streams(failed), Unavailable, ("it broke for ****",), gathered=True),
            Cell(streams(failed), Unavailable, ("it broke for ****",))),
        "error after the first piece": broken_off(streams(HELLO, failed), Unavailable, "it broke for ****"),
        "slow headers": both(stalls, TimeoutError, "no answer within 0.4 s", "timeout=", timeout_s=SHORT_S),
        "silent stall": (
            Cell(streams(b"[", kind=JSON, then=stalls), TimeoutError, ("no further piece",),
                 timeout_s=SHORT_S),
            Cell(streams(HELLO, then=stalls), TimeoutError, ("no further piece",), retries=0, got="Hello",
                 timeout_s=SHORT_S)),
        "early end in good order": broken_off(streams(HELLO), Unavailable, "ended before the completion did"),
        "body of 100 MB": (
            Cell(repeats(b"x" * MIB, 96), Unavailable, ("larger than 64 MiB",), retries=0),
            Cell(streams(*[b" " * MIB] * 96, kind=JSON), Unavailable, ("application/json, not a stream",))),
        "event without end": (
            Cell(repeats(b"data: " + b"x" * MIB), Unavailable, ("larger than 16 MiB",), retries=0,
                 gathered=True),
            Cell(repeats(b"data: " + b"x" * MIB), Unavailable, ("larger than 16 MiB",), retries=0)),
        "redirect to another host": both(elsewhere, ConfigurationError, "another place, 'http://localhost:9'",
                                         "base_url", retries=0),
        "redirect on the same host": both(moved, None, retries=0, asked=2, got="Hello"),
        "expired token": (
            Cell(expired(), None, retries=0, asked=4, got="Hello", provider="gigachat"),
            Cell(expired(), None, retries=0, asked=4, got="Hello", provider="gigachat")),
        "self-signed certificate": both(works, Unavailable, "SSL_CERT_FILE", "verify_ssl=False", retries=0,
                                        asked=0, tls=True),
    }
# fmt: on


def test_every_fault_has_its_row() -> None:
    """No fault of the list is left out, and none is there that the list does not name."""
    assert set(table()) == FAULTS


@pytest.fixture(autouse=True)
def waits_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for a millisecond, unless the service tells how long."""
    monkeypatch.setattr(service, "Retry", functools.partial(Retry, first_wait_s=0.001))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Everything that anybody logs, at any level."""
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text + "".join(repr(vars(record)) for record in caplog.records)


@asynccontextmanager
async def reached(
    cell: Cell, folder: Path, moments: list[float]
) -> AsyncIterator[tuple[str, Server]]:
    """Run the cell's server; moments are added for each request that it sees."""
    if cell.fault is None:
        with socket.socket() as taken:  # bound, but it does not listen: refused at once
            taken.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1", Server()
        return
    fault = cell.fault

    async def timed(request: web.Request) -> web.StreamResponse:
        moments.append(time.monotonic())
        return await fault(request)

    async with served(timed, self_signed(folder) if cell.tls else None) as server:
        yield server.url, server


async def outcome(m: Any, prompt: str, *, stream: bool) -> tuple[str, ProviderError | None]:
    """Return the text that came, and the error that ended it."""
    got: list[str] = []
    try:
        if stream:
            async with m.stream(prompt) as pieces:
                async for one in pieces:
                    got.append(str(one))
        else:
            got.append(str(await m.generate(prompt)))
    except ProviderError as error:
        return "".join(got), error
    return "".join(got), None


def tells_nothing(error: ProviderError, prompt: str, logged: str) -> None:
    """Neither keys, nor the query, nor the prompt are in what may be shown of an error."""
    shown = {
        "message": f"{error.message} {error.hint}",
        "traceback": told(error),
        "traceback's variables": told(error, variables=True),
        "log": logged,
    }
    assert [where for where, text in shown.items() if FAKE in text] == []
    del shown["traceback's variables"]  # the request is among them
    assert [where for where, text in shown.items() if prompt in text] == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", table())
async def test_fault(
    name: str,
    stream: bool,
    tmp_path: Path,
    logged: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each fault is one error, or none; it is retried where that may help, and tells no secret."""
    cell, moments = table()[name][stream], list[float]()
    async with reached(cell, tmp_path, moments) as (url, server):
        more = {"auth_url": f"{url}/oauth?x={FAKE}"} if cell.provider == "gigachat" else {}
        provider = nbp.create_provider(
            cell.provider,
            api_key=FAKE,
            base_url=f"{url}?tenant={fake('query')}",
            timeout=cell.timeout_s,
            max_retries=RETRIES,
            stream=cell.gathered,
            **more,
        )
        async with provider.model("gpt-x") as m:
            text, error = await outcome(m, PROMPT, stream=stream)
    assert type(error) is (cell.error or type(None))
    assert text == cell.got
    if error is not None:
        assert str(error).startswith(f"{cell.provider}:gpt-x: ")
        assert [words for words in cell.says if words not in str(error)] == []
        tells_nothing(error, PROMPT, logged())
    retries = sum(record.name == "stamina" for record in caplog.records)
    requests = 0 if cell.fault is None else cell.retries + 1
    assert (retries, len(server.seen)) == (
        cell.retries,
        requests if cell.asked is None else cell.asked,
    )
    waits = [after - before for before, after in itertools.pairwise(moments)]
    assert all(wait >= cell.wish_s for wait in waits)


# The same in short for two more protocols, whose servers break in their own way


@dataclass(frozen=True)
class Short:
    """One fault of a protocol's own server: what becomes of a stream, and of a whole answer."""

    name: str
    befall: Callable[[Any, str], None]
    error: type[ProviderError]
    begun: bool = False  # whether something of the stream came before
    retries: int = RETRIES


def refuses(status: int) -> Callable[[Any, str], None]:
    def befall(server: Any, path: str) -> None:
        body = server.error_body(status, f"no, {FAKE}")
        server.fail_next(status, body, {"Retry-After": "0"}, times=9, path=path)

    return befall


def breaks(how: Any) -> Callable[[Any, str], None]:
    return lambda server, path: server.break_next(how, times=9, path=path)


SHORT = [
    Short("401", refuses(401), AuthenticationError, retries=0),
    Short("429", refuses(429), RateLimitError),
    Short("503", refuses(503), Unavailable),
    Short("reset in mid-stream", breaks("cut"), Unavailable, begun=True),
    Short("error in the stream", breaks("error_in_stream"), Unavailable, begun=True),
    Short("early end", breaks("early_end"), Unavailable, begun=True),
    Short("stall", breaks("stall"), TimeoutError, begun=True),
]
LONG = "one two three four five six"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
@pytest.mark.parametrize("protocol", ["anthropic", "ollama"])
async def test_fault_of_other_protocols(
    protocol: str, row: Short, stream: bool, logged: Callable[[], str]
) -> None:
    """Each fault is the same error by any protocol, retried only before the first piece."""
    kind, model, path = {
        "anthropic": (AnthropicServer, "claude-3-haiku", "/messages"),
        "ollama": (OllamaServer, "words", "/chat"),
    }[protocol]
    with kind(key=FAKE) as server:
        provider = nbp.create_provider(
            protocol,
            api_key=FAKE,
            base_url=server.base_url,
            timeout=SHORT_S if row.error is TimeoutError else 5.0,
            max_retries=RETRIES,
        )
        async with provider.model(model) as m:
            row.befall(server, path)
            text, error = await outcome(m, LONG, stream=stream)
            server.recover()
        seen = [one for one in server.requests if one.path.endswith(path)]
    assert type(error) is row.error
    begun = row.begun and stream
    assert len(seen) == 1 + (0 if begun else row.retries)
    assert bool(text) is begun
    assert LONG.startswith(text)
    assert text != LONG
    assert str(error).startswith(f"{protocol}:{model}")
    tells_nothing(error, LONG, logged())
