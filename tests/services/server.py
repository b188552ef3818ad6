"""An HTTP server on a thread of its own that records what it was sent, and fails when it is told to.

It knows HTTP and streams; what a service asks and answers is known by the modules beside it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

from tests.scripted import BOUND_S, happened

Break = Literal["drop", "cut", "early_end", "stall", "error_in_stream", "no_end_mark"]
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"


@dataclass(frozen=True)
class Recorded:
    """One request as it came; `body` is its JSON, its form as a dict, or None."""

    method: str
    path: str  # without the query
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)  # they hold keys
    body: Any


@dataclass
class Refused(Exception):
    """What a service answers instead: a status, and a body in its own form."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Streamed:
    """A streamed answer: frames, the protocol's mark of the end, and its way to tell an error midway.

    `finished` is called when all of it has been sent.
    """

    frames: Sequence[bytes]
    end: bytes
    error: bytes
    kind: str = EVENTS
    finished: Callable[[], None] | None = None


@dataclass
class _Failure:
    """What becomes of the next requests whose path ends with `path`, instead of an answer."""

    times: int
    path: str
    refused: Refused | None = None
    broken: Break | None = None


Answer = Callable[[Recorded], Any]


class LocalServer:
    """Answers as `answer` says, at a free port of this machine, for the length of a block.

    Attributes
    ----------
    base_url
        What a client is configured with; `root_url` is the same without the service's prefix.
    requests
        All requests so far, those that were made to fail too.
    delay_s, chunk_delay_s
        How long it waits before it answers anything, and before each piece of a stream but the first.
    piece_bytes
        If set, streams are sent in pieces of this size, which end in mid-frame and in mid-character.
    keep_alive
        Whether a connection outlives its answer; set before the block begins.
    reached, left
        Set when a request has come, and when a client has gone in mid-answer.
    most_at_once
        How many requests were being answered at the same time, at most.
    """

    prefix = ""

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        chunk_delay_s: float = 0.0,
        piece_bytes: int | None = None,
        keep_alive: bool = True,
    ) -> None:
        self.delay_s, self.chunk_delay_s, self.piece_bytes = delay_s, chunk_delay_s, piece_bytes
        self.keep_alive = keep_alive
        self.requests: list[Recorded] = []
        self.reached, self.left = threading.Event(), threading.Event()
        self.most_at_once = 0
        self.root_url = ""
        self._at_once = 0
        self._answers: dict[tuple[str, str], Answer] = {}
        self._failures: deque[_Failure] = deque()
        self._lock = threading.Lock()
        self._defects: list[Exception] = []

    @property
    def base_url(self) -> str:
        return self.root_url + self.prefix

    def answer(self, method: str, path: str, answer: Answer | object) -> None:
        """Answer a path, which may hold ``{names}``, with an object, or with what a function makes.

        A function takes the recorded request and returns an object (sent as JSON), a `Streamed`, or any
        response of aiohttp's; or it raises `Refused`.
        """
        made = answer if callable(answer) else lambda _: answer
        self._answers[method, self.prefix + path] = made

    def fail_next(
        self,
        status: int,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        *,
        path: str = "",
    ) -> None:
        """Answer the next requests with a status; the body is the service's own, or text, bytes or JSON.

        Failures come in the order they were asked for, to requests whose path ends with `path`.
        """
        made = (
            self.error_body(status, f"status {status}, as the test asked") if body is None else body
        )
        refused = Refused(status, made, headers or {})
        with self._lock:
            self._failures.append(_Failure(times, path, refused=refused))

    def break_next(self, how: Break, times: int = 1, *, path: str = "") -> None:
        """Break the next answers.

        ``drop``: the connection ends before any answer. ``cut``: it breaks off halfway. ``stall``: nothing
        comes after half of it. Of streams only, ``early_end``: it ends in good order, but halfway;
        ``no_end_mark``: all of it comes but the mark of its end; ``error_in_stream``: half of it comes, then
        an error in the service's form. An answer that is no stream is an error with status 200 then.
        """
        with self._lock:
            self._failures.append(_Failure(times, path, broken=how))

    def recover(self) -> None:
        """Forget the failures that have not come yet."""
        with self._lock:
            self._failures.clear()

    def error_body(self, status: int, message: str) -> Any:
        """Return an error as this service words it."""
        return {"error": message}

    def check(self, seen: Recorded) -> None:
        """Raise `Refused` for a request that the service would not let in, whatever it asks."""

    async def was_left(self) -> None:
        """Return when a client has gone in mid-answer."""
        await happened(self.left)

    # A thread, and its loop

    def __enter__(self) -> Self:
        self._started: Future[str] = Future()
        self._thread = threading.Thread(
            target=self._run_loop, name=type(self).__name__, daemon=True
        )
        self._thread.start()
        self.root_url = self._started.result(BOUND_S)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive(), "the server did not stop"
        if self._defects and error is None:
            raise self._defects[0]  # the test's own mistake: the client saw only a status 500

    def _run_loop(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        if not self.keep_alive:
            app.on_response_prepare.append(_close_after)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        self._started.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await self._stopping.wait()
        await runner.cleanup()

    # One request

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = await _recorded(request)
        self.requests.append(seen)
        self._at_once += 1
        self.most_at_once = max(self._at_once, self.most_at_once)
        self.reached.set()
        try:
            return await self._respond(request, seen)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        finally:
            self._at_once -= 1

    async def _respond(self, request: web.Request, seen: Recorded) -> web.StreamResponse:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        failure = self._next_failure(seen.path)
        if failure is not None and failure.broken == "drop":
            return _abort(request)
        try:
            if failure is not None and failure.refused is not None:
                raise failure.refused
            self.check(seen)
            made = self._find(seen)(seen)
        except Refused as refused:
            return _whole(refused.body, refused.status, refused.headers)
        except Exception as error:
            self._defects.append(error)
            return _whole({"defect": type(error).__name__}, 500)
        broken = failure.broken if failure is not None else None
        if isinstance(made, Streamed):
            return await self._stream(request, made, broken)
        if isinstance(made, web.StreamResponse):
            return made
        return await self._plain(request, made, broken)

    def _next_failure(self, path: str) -> _Failure | None:
        with self._lock:
            for failure in self._failures:
                if path.endswith(failure.path):
                    failure.times -= 1
                    if failure.times <= 0:
                        self._failures.remove(failure)
                    return failure
        return None

    def _find(self, seen: Recorded) -> Answer:
        paths = [(method, path) for method, path in self._answers if _fits(path, seen.path)]
        for method, path in paths:
            if method == seen.method:
                return self._answers[method, path]
        status, why = (405, "Method Not Allowed") if paths else (404, "Not Found")
        raise Refused(status, self.error_body(status, f"{why}: {seen.method} {seen.path}"))

    async def _plain(
        self, request: web.Request, made: Any, broken: Break | None
    ) -> web.StreamResponse:
        if broken is None:
            return _whole(made)
        if broken == "error_in_stream":
            return _whole(self.error_body(500, "the error that the test asked for"))
        if broken == "stall":
            await asyncio.Event().wait()
        if broken != "cut":
            self._defects.append(ValueError(f"break_next({broken!r}) is for streams only"))
            return _whole({"defect": broken}, 500)
        body = json.dumps(made).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        return _abort(request)

    async def _stream(
        self, request: web.Request, made: Streamed, broken: Break | None
    ) -> web.StreamResponse:
        half = made.frames[: max(1, len(made.frames) // 2)]
        frames = [*(made.frames if broken in (None, "no_end_mark") else half)]
        if broken == "error_in_stream":
            frames.append(made.error)
        elif broken is None:
            frames.append(made.end)
        response = web.StreamResponse(headers={"Content-Type": made.kind})
        await response.prepare(request)
        for count, piece in enumerate(_pieces(frames, self.piece_bytes)):
            await asyncio.sleep(self.chunk_delay_s if count else 0)
            await response.write(piece)
        if broken == "stall":
            await asyncio.Event().wait()
        if broken == "cut":
            return _abort(request, response)
        if broken is None and made.finished is not None:
            made.finished()
        return response


async def _close_after(request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()
    response.headers["Connection"] = "close"


async def _recorded(request: web.Request) -> Recorded:
    raw = await request.read()
    body: Any = None
    if request.content_type == "application/x-www-form-urlencoded":
        body = dict(await request.post())
    elif raw:
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw
    headers = request.headers.copy()
    return Recorded(request.method, request.path, dict(request.query), headers, body)


def _fits(pattern: str, path: str) -> bool:
    """Whether a path is of this pattern; ``{name}`` stands for one part of it, or at its end for the rest."""
    asked, parts = pattern.split("/"), path.split("/")
    if asked[-1].startswith("{"):
        parts = [*parts[: len(asked) - 1], "/".join(parts[len(asked) - 1 :])]
    return len(asked) == len(parts) and all(
        a == b or (a.startswith("{") and b) for a, b in zip(asked, parts, strict=True)
    )


def _pieces(frames: Sequence[bytes], size: int | None) -> Sequence[bytes]:
    if size is None:
        return [frame for frame in frames if frame]
    whole = b"".join(frames)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _whole(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    if isinstance(body, bytes | str):
        raw = body if isinstance(body, bytes) else body.encode()
        return web.Response(body=raw, status=status, headers=headers)
    return web.json_response(body, status=status, headers=headers)


def _abort(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """End the connection without another word."""
    assert request.transport is not None
    request.transport.abort()
    return response if response is not None else web.Response()


def event(data: Any, name: str | None = None) -> bytes:
    """Return one server-sent event; what is no text is sent as JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


def line(data: Any) -> bytes:
    """Return one line of JSON."""
    return f"{json.dumps(data, ensure_ascii=False)}\n".encode()
