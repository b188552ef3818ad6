"""One request and its answer: redirects, statuses, limits; what the HTTP library raises becomes ours here."""

from __future__ import annotations

import asyncio
import builtins
import io
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from nbproviders.errors import ClosedError, ProviderError
from nbproviders.runtimes.http import failures
from nbproviders.runtimes.http.call import Call, origin_of
from nbproviders.runtimes.http.pool import Pool

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
_LARGE_BYTES = 2**20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Of an error's body the beginning is enough, and the status is known without it.
_ERROR_BYTES = 64 * 2**10
_ERROR_BODY_S = 5.0
_SILENT = "no further piece of the answer"


@dataclass(frozen=True, slots=True, repr=False)
class Sent:
    """What goes out: the parts of a request that the HTTP library takes."""

    method: str
    url: str
    headers: Mapping[str, str]
    data: bytes | None
    timeout: aiohttp.ClientTimeout
    proxy: str | None

    def options(self) -> dict[str, Any]:
        """Return the library's keyword arguments, for one use."""
        # The library writes bytes at once; a large prompt, such as one with images, goes in pieces.
        large = self.data is not None and len(self.data) > _LARGE_BYTES
        return {
            "headers": self.headers,
            "data": io.BytesIO(self.data or b"") if large else self.data,
            "timeout": self.timeout,
            "proxy": self.proxy,
            "allow_redirects": False,
        }


class Answer:
    """A successful answer whose body is still to be read. Close it, whatever happens."""

    def __init__(self, pool: Pool, call: Call, response: aiohttp.ClientResponse) -> None:
        self._pool, self._call, self._response = pool, call, response
        self.headers: Mapping[str, str] = response.headers
        self.kind = response.content_type

    async def piece(self) -> bytes:
        """Return the next piece of the body, as soon as there is one; ``b""`` at its end."""
        reading = self._response.content.readany()
        return await at_the_edge(self._pool, self._call, reading, _SILENT)

    async def whole(self, limit_bytes: int = MAX_JSON_BYTES) -> bytes:
        """Return the body.

        Raises
        ------
        ServiceUnavailableError
            If it breaks off, or is larger than the limit; it is read no further than that.
        """
        if (self._response.content_length or 0) <= limit_bytes:
            body = await at_the_edge(self._pool, self._call, self._body(limit_bytes), _SILENT)
            if body is not None:
                return body
        raise failures.too_large(self._call, "the answer", limit_bytes)

    async def _body(self, limit_bytes: int) -> bytes | None:
        """Return the body; None if it passes the limit."""
        body = bytearray()  # no list: a thousand tiny pieces shall take no more than they hold
        while piece := await self._response.content.readany():
            if len(body) + len(piece) > limit_bytes:
                return None
            body += piece
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


async def answered(pool: Pool, call: Call, sent: Sent) -> Answer:
    """Send a request and return its answer if that is a success.

    Raises
    ------
    ProviderError
        Of the class that the status or the failure stands for.
    """
    response = await at_the_edge(pool, call, _response(pool, call, sent), "no answer")
    answer = Answer(pool, call, response)
    if 200 <= response.status < 300:
        return answer
    try:
        body = await answer.beginning()
    finally:
        answer.close()
    raise failures.refused(call, response.status, response.headers, body)


async def _response(pool: Pool, call: Call, sent: Sent) -> aiohttp.ClientResponse:
    """Follow redirects within the origin; the key goes nowhere else."""
    for _ in range(MAX_REDIRECTS + 1):
        response = await pool.session.request(sent.method, sent.url, **sent.options())
        location = response.headers.get("Location") if response.status in _REDIRECTS else None
        if location is None:
            return response
        response.close()
        sent = replace(sent, url=_target(call, sent.url, location))
        if response.status == 303:  # the result is elsewhere; the others mean the same again
            sent = replace(sent, method="GET", data=None)
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


async def at_the_edge(pool: Pool, call: Call, work: Awaitable[T], phase: str) -> T:
    """Await what the HTTP library does; its exceptions become ours, and keep none of its frames."""
    import aiohttp

    failure: ProviderError
    try:
        return await work
    except ProviderError:
        raise
    except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
        if pool.session.closed:
            failure = ClosedError(call.says("the wire was closed while it was in use."))
        else:
            failure = failures.broken(call, error, phase)
    raise failure
