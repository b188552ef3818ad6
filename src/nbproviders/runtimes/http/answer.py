"""One request and its answer: redirects, statuses, limits; what the HTTP library raises becomes ours here."""

from __future__ import annotations

import asyncio
import builtins
import io
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

from nbproviders.errors import ClosedError, ProviderError
from nbproviders.runtimes.http import failures
from nbproviders.runtimes.http.call import Call, origin_of
from nbproviders.runtimes.http.deadlines import Deadline
from nbproviders.runtimes.http.failures import connect_s
from nbproviders.runtimes.http.pool import Pool

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
# A service that sends a little from time to time is never silent; a whole answer takes no more than this.
WHOLE_TIMEOUTS = 10
_LARGE_BYTES = 2**20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Of an error's body the beginning is enough, and the status is known without it.
_ERROR_BYTES = 64 * 2**10
_ERROR_BODY_S = 5.0
# The library's own limit for connecting, which may be the same, comes first: it says more.
_LATER_S = 0.1
_SILENT = "no further piece of the answer"


@dataclass(frozen=True, slots=True, repr=False)
class Sent:
    """What goes out beside the body: the parts of a request that the HTTP library takes."""

    method: str
    url: str
    headers: Mapping[str, str]
    proxy: str | None


class Answer:
    """A successful answer whose body is still to be read. Close it, whatever happens.

    Parameters
    ----------
    began_s
        When it was asked for, by the loop's clock.
    """

    def __init__(
        self, pool: Pool, call: Call, response: aiohttp.ClientResponse, began_s: float
    ) -> None:
        self._pool, self._call, self._response = pool, call, response
        self._began_s = began_s
        self.headers: Mapping[str, str] = response.headers

    @property
    def kind(self) -> str:
        """The content type."""
        return self._response.content_type

    async def piece(self) -> bytes:
        """Return the next piece of the body, as soon as there is one; ``b""`` at its end."""
        deadline = Deadline(self._pool.deadlines, self._call.timeout_s)
        reading = self._response.content.readany()
        return await at_the_edge(self._pool, self._call, reading, _SILENT, deadline)

    async def whole(self, limit_bytes: int = MAX_JSON_BYTES) -> bytes:
        """Return the body.

        Raises
        ------
        ServiceUnavailableError
            If it breaks off, or is larger than the limit; it is read no further than that.
        TimeoutError
            If it is silent for too long, or takes too long as a whole.
        """
        call = self._call
        if (self._response.content_length or 0) <= limit_bytes:
            limit_s = WHOLE_TIMEOUTS * call.timeout_s
            deadline = Deadline(self._pool.deadlines, call.timeout_s)
            reading = self._body(limit_bytes, deadline, self._began_s + limit_s)
            try:
                body = await at_the_edge(self._pool, call, reading, _SILENT, deadline)
            except builtins.TimeoutError:
                if deadline.end_s < self._began_s + limit_s:
                    raise
                raise failures.late(call, "no whole answer", limit_s) from None
            if body is not None:
                return body
        raise failures.too_large(call, "the answer", limit_bytes)

    async def _body(self, limit_bytes: int, deadline: Deadline, last_s: float) -> bytes | None:
        """Return the body; None if it passes the limit."""
        body = bytearray()  # no list: a thousand tiny pieces shall take no more than they hold
        while piece := await self._response.content.readany():
            if len(body) + len(piece) > limit_bytes:
                return None
            body += piece
            deadline.move(self._call.timeout_s, last_s)
        return bytes(body)

    async def beginning(self) -> bytes:
        """Return the beginning of the body, or as much of it as comes soon."""
        body = bytearray()
        try:
            async with asyncio.timeout(min(self._call.timeout_s, _ERROR_BODY_S)):
                while len(body) < _ERROR_BYTES and (piece := await self.piece()):
                    body += piece
        except (ProviderError, builtins.TimeoutError):
            pass  # what came will do
        return bytes(body[:_ERROR_BYTES])

    def close(self) -> None:
        """Give the connection back, or end it if the body was not read to its end."""
        self._response.close()


async def answered(pool: Pool, call: Call, sent: Sent, data: bytes | None) -> Answer:
    """Send a request and return its answer if that is a success.

    Raises
    ------
    ProviderError
        Of the class that the status or the failure stands for.
    """
    began_s = pool.loop.time()
    large = data is not None and len(data) > _LARGE_BYTES  # it has its own time to go out
    limit_s = call.timeout_s * (WHOLE_TIMEOUTS if large else 1)
    deadline = Deadline(pool.deadlines, limit_s + _LATER_S)
    asking = _response(pool, call, sent, data, large)
    response = await at_the_edge(pool, call, asking, "no answer", deadline)
    answer = Answer(pool, call, response, began_s)
    if 200 <= response.status < 300:
        return answer
    try:
        body = await answer.beginning()
    finally:
        answer.close()
    raise failures.refused(call, response.status, response.headers, body)


async def _response(
    pool: Pool, call: Call, sent: Sent, data: bytes | None, large: bool
) -> aiohttp.ClientResponse:
    """Follow redirects within the origin; the key goes nowhere else."""
    for _ in range(MAX_REDIRECTS + 1):
        response = await pool.session.request(
            sent.method,
            sent.url,
            headers=sent.headers,
            # The library writes bytes at once; a large prompt, such as one with images, goes in pieces.
            data=io.BytesIO(data or b"") if large else data,
            timeout=_timeout(call.timeout_s, large),
            proxy=sent.proxy,
            allow_redirects=False,
        )
        location = response.headers.get("Location") if response.status in _REDIRECTS else None
        if location is None:
            return response
        response.close()
        sent = replace(sent, url=_target(call, sent.url, location))
        if response.status == 303:  # the result is elsewhere; the others mean the same again
            sent, data, large = replace(sent, method="GET"), None, False
    raise failures.endless(call)


def _target(call: Call, url: str, location: str) -> str:
    """Return where a redirect leads to, within the origin."""
    try:
        target = urljoin(url, location)
        if origin_of(target) == origin_of(url):
            return target
        there = urlsplit(location)
        shown = f"{there.scheme or 'http'}://{there.netloc.rpartition('@')[2]}"
    except ValueError:
        shown = "no address"
    raise failures.elsewhere(call, shown)


@lru_cache(maxsize=64)
def _timeout(timeout_s: float, large: bool) -> aiohttp.ClientTimeout:
    """Return the limits that the library watches: it knows when it connects, and when a body is sent."""
    import aiohttp

    return aiohttp.ClientTimeout(
        connect=connect_s(timeout_s), sock_read=timeout_s if large else None
    )


async def at_the_edge(
    pool: Pool, call: Call, work: Awaitable[T], phase: str, deadline: Deadline
) -> T:
    """Await what the HTTP library does; its exceptions become ours, and keep none of its frames."""
    import aiohttp

    failure: ProviderError
    try:
        with deadline:
            return await work
    except ProviderError:
        raise
    except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
        if pool.session.closed:
            failure = ClosedError(call.says("the wire was closed while it was in use."))
        else:
            failure = failures.broken(call, error, phase)
    raise failure
