"""`Wire`: requests to one base URL. It knows HTTP and JSON, and nothing of what a service means by them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from nbproviders.core.config import Secret
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    mapped,
)
from nbproviders.runtimes.http import failures
from nbproviders.runtimes.http.answer import Answer, Sent, answered
from nbproviders.runtimes.http.call import Call, origin_of
from nbproviders.runtimes.http.events import MAX_EVENT_BYTES, Event, Events, Lines, TooLong
from nbproviders.runtimes.http.pool import Pool, proxy_for
from nbproviders.runtimes.http.values import parsed

logger = logging.getLogger(__name__)

_JSON, _EVENTS, _LINES = "application/json", "text/event-stream", "application/x-ndjson"
_FORM = "application/x-www-form-urlencoded"
_PREPARED = 64
# Method, path, accepted type, type of the body, and timeout.
_Asked = tuple[str, str, str, str, float | None]
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_NOTHING: Mapping[str, str] = MappingProxyType({})
_NO_EVENTS = frozenset({_JSON, "text/html"})


class Wire:
    """Requests to one base URL.

    Sessions are pooled by origin and by whether certificates are checked, shared by wires, and closed
    when the last wire closes. A wire belongs to the event loop of its first request. Nothing is retried,
    but for a GET whose kept connection ends before any answer (RFC 9112, section 9.3.1).

    Parameters
    ----------
    base_url
        ``https://host/v1``, without user and password.
    headers
        Sent with each request; a function is called for each, so that a token can change.
    timeout_s
        Until an answer begins (of which connecting may take 10 s at most), and for each silence between
        two pieces of a body or stream. A whole answer takes at most ten times that; a stream as long as
        it speaks.
    verify_ssl
        Whether certificates are checked.
    what
        Named in errors, such as ``openai:gpt-x``.

    Raises
    ------
    ConfigurationError
        For a URL or timeout that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] = _NOTHING,
        timeout_s: float = 60.0,
        verify_ssl: bool = True,
        what: str = "",
    ) -> None:
        try:
            named = origin_of(base_url)[-1]
        except ValueError:  # not shown: it may be a key in the wrong place
            raise ConfigurationError(
                "base_url must be a URL.", hint="Such as https://api.example.com/v1."
            ) from None
        if named:
            raise ConfigurationError(
                "base_url must not hold a user or password.", hint="Give the key as api_key=…"
            )
        parts = urlsplit(base_url)
        self._origin = f"{parts.scheme}://{parts.netloc.lower()}"
        self._base = self._origin + parts.path.rstrip("/")
        self._base_query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._headers = headers
        self._timeout_s = _seconds(timeout_s)
        self._verify_ssl = verify_ssl
        self._what = what
        self._prepared: dict[_Asked, tuple[Mapping[str, str], Call, Sent]] = {}
        self._pool: Pool | None = None
        self._proxy: str | None = None
        self._closed = False
        if not verify_ssl:
            logger.warning("Certificates of %s are not checked (verify_ssl=False).", self._origin)

    def __repr__(self) -> str:
        return f"Wire({self._base!r})"

    async def json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] = _NOTHING,
        query: Mapping[str, str] = _NOTHING,
        form: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the parsed JSON of a 2xx answer; None if that has no body.

        Parameters
        ----------
        path
            Below the base URL.
        body
            Sent as JSON; None sends none.
        query
            Sent with the URL, and never shown.
        form
            Sent as a web form instead of `body`.

        Raises
        ------
        AuthenticationError, RateLimitError, InvalidRequestError, TimeoutError, ServiceUnavailableError
            As the status, the answer or the connection says.
        """
        pool = self._pool_here()
        call, sent, data = self._request(method, path, _JSON, body, headers, query, form, timeout_s)
        async with pool.places:
            answer = await answered(pool, call, sent, data)
            try:
                raw, told = await answer.whole(), answer.headers
            finally:
                answer.close()
        if not raw:
            return None
        try:
            value = parsed(raw)
        except ValueError:
            raise failures.malformed(call, "is not JSON", raw) from None
        failure = failures.told_by(call, value, told)
        if failure is not None:
            raise failure
        return value

    async def events(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] = _NOTHING,
        query: Mapping[str, str] = _NOTHING,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield the server-sent events of an answer; for the arguments and errors see `json`.

        An event that tells of an error is raised. Leaving the loop closes the connection. Whether the
        stream said all it had to say only its last event can tell: look for that.
        """
        request = method, path, _EVENTS, body, headers, query, None, timeout_s
        async with self._streamed("an event", *request) as (call, answer):
            if answer.kind in _NO_EVENTS:
                raise await _no_events(call, answer)
            parser = Events()
            while piece := await answer.piece():
                for event in parser.feed(piece):
                    _check(call, event, answer)
                    yield event

    async def lines(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] = _NOTHING,
        query: Mapping[str, str] = _NOTHING,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Yield the JSON values of an answer, one a line; else as `events`."""
        request = method, path, _LINES, body, headers, query, None, timeout_s
        async with self._streamed("a line", *request) as (call, answer):
            lines = Lines()
            while piece := await answer.piece():
                for line in lines.feed(piece):
                    if line.strip():
                        yield _value(call, line, answer)
            if (rest := lines.rest()).strip():
                yield _value(call, rest, answer)

    async def aclose(self) -> None:
        """Leave the sessions; the last wire to do so closes them. Called twice, it does nothing more.

        Raises
        ------
        ConfigurationError
            On another event loop than that of the first request.
        """
        if self._pool is not None and not self._closed:
            pool = self._pool_here()
            self._forgotten.detach()
            self._closed, self._pool = True, None
            await pool.left()
        self._closed = True

    @asynccontextmanager
    async def _streamed(self, one: str, *request: Any) -> AsyncIterator[tuple[Call, Answer]]:
        """Ask for an answer that is read `one` after the other; the connection is closed behind it."""
        pool = self._pool_here()
        call, sent, data = self._request(*request)
        answer = await answered(pool, call, sent, data)
        try:
            yield call, answer
        except TooLong:
            raise failures.too_large(call, one, MAX_EVENT_BYTES) from None
        finally:
            answer.close()

    def _pool_here(self) -> Pool:
        if self._closed:
            raise ClosedError(
                f"{self._what or self._base} was used after its end.", hint="Open it anew."
            )
        if self._pool is None:
            self._proxy = proxy_for(self._base)
            self._pool = Pool.joined(self._origin, self._verify_ssl)
            self._forgotten = weakref.finalize(self, self._pool.forgotten)
            self._forgotten.atexit = False
        elif self._pool.loop is not asyncio.get_running_loop():
            raise ConfigurationError(
                f"{self._what or self._base} was opened on another event loop.",
                hint="Use a wire on one loop only, such as the engine's; make another one here.",
            )
        return self._pool

    def _request(
        self,
        method: str,
        path: str,
        accept: str,
        body: Any,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        form: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> tuple[Call, Sent, bytes | None]:
        """Return what errors may tell of a request, what it says, and its body."""
        own = self._headers
        if callable(own):
            try:
                own = own()
            except Exception:  # mapped where it is rare: it is asked for each request
                with mapped(self._what or self._base):
                    raise
        kind = "" if body is None else _JSON
        if form is not None:
            kind = _FORM
        plain = not (headers or query or form)  # as nearly all are: then only the body differs
        asked = method, path, accept, kind, timeout_s
        known = self._prepared.get(asked) if plain else None
        if known is None or known[0] != own:
            call, sent = self._made(asked, {**own, **headers}, query, form)
            if plain:
                if len(self._prepared) >= _PREPARED:  # paths may hold names
                    self._prepared.clear()
                self._prepared[asked] = _masked(own), call, sent
        else:
            _, call, sent = known
        return call, sent, _data(call, body, form)

    def _made(
        self,
        asked: _Asked,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        form: Mapping[str, str] | None,
    ) -> tuple[Call, Sent]:
        """Return all of a request but its body."""
        method, path, accept, kind, timeout_s = asked
        url = f"{self._base}/{path.lstrip('/')}" if path else self._base
        if self._base_query or query:
            url += f"?{urlencode({**self._base_query, **query})}"
        patience_s = self._timeout_s if timeout_s is None else _seconds(timeout_s)
        call = Call(self._what, method, url, headers, form or _NOTHING, patience_s)
        sent_headers = {"Accept": accept, **({"Content-Type": kind} if kind else {}), **headers}
        if accept != _JSON:  # a compressed stream would come late, in blocks
            sent_headers["Accept-Encoding"] = "identity"
        _check_headers(call, sent_headers)
        return call, Sent(method, url, sent_headers, self._proxy)


def _check(call: Call, event: Event, answer: Answer) -> None:
    """Raise the error that an event tells of."""
    named = event.name == "error"
    if not named and '"error"' not in event.data:  # in a model's text the quotes are escaped
        return
    try:
        failure = failures.told_by(call, json.loads(event.data), answer.headers)
    except (ValueError, RecursionError):
        failure = None
    if failure is None and named:
        failure = failures.told_as_text(call, event.data, answer.headers)
    if failure is not None:
        raise failure


async def _no_events(call: Call, answer: Answer) -> ProviderError:
    """Return the error of an answer that is JSON or a page where a stream was asked for."""
    body = await answer.beginning()
    try:
        failure = failures.told_by(call, json.loads(body), answer.headers)
    except (ValueError, RecursionError):
        failure = None
    return failure or failures.malformed(call, f"is {answer.kind}, not a stream of events", body)


def _value(call: Call, line: bytes, answer: Answer) -> Any:
    """Return the JSON value of a line; an error that it tells of is raised."""
    try:
        value = parsed(line)
    except ValueError:
        raise failures.malformed(call, "has a line that is not JSON", line) from None
    failure = failures.told_by(call, value, answer.headers)
    if failure is not None:
        raise failure
    return value


def _data(call: Call, body: Any, form: Mapping[str, str] | None) -> bytes | None:
    """Return what is sent as a body."""
    if form is not None:
        return urlencode(form).encode()
    if body is None:
        return None
    try:
        return _ENCODER.encode(body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            call.says(f"what was to be sent cannot be written as JSON ({type(error).__name__})."),
            hint="Give plain values: str, int, finite float, bool, None, list and dict.",
        ) from None


def _masked(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers as they may be kept: a key among them does not show."""
    return {name: Secret(text) for name, text in headers.items()}


def _check_headers(call: Call, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not isinstance(value, str) or not value.isprintable():
            raise ConfigurationError(
                call.says(f"the header {name!r} is no text of one line."),
                hint="Is there a line break at the end of the key, or no key at all?",
            )


def _seconds(timeout_s: float) -> float:
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ConfigurationError(f"timeout_s={timeout_s!r} must be above 0.", hint="In seconds.")
    return timeout_s
