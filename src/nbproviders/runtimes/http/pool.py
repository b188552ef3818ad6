"""Sessions of the HTTP library, one for each origin and way to check certificates, shared by wires."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import WeakSet, WeakValueDictionary

from nbproviders.core import engine
from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.http.deadlines import Deadlines

if TYPE_CHECKING:
    import ssl

    import aiohttp

REQUESTS_AT_ONCE = 512
_Key = tuple[asyncio.AbstractEventLoop, str, bool]


class Pool:
    """A session, the loop it lives on, and how many wires use it.

    Requests for a whole answer wait for one of `places`; each of them ends by itself. Streams take
    no place: they last as long as somebody reads, and may hold up nobody else.
    """

    def __init__(self, key: _Key) -> None:
        self.loop, origin, verify_ssl = self._key = key
        self.session = _session(secure=origin.startswith("https:"), verify_ssl=verify_ssl)
        self.places = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self.deadlines = Deadlines(self.loop)
        self._users = 0

    @classmethod
    def joined(cls, origin: str, verify_ssl: bool) -> Pool:
        """Return the running loop's pool for an origin, with one user more."""
        key = (asyncio.get_running_loop(), origin, verify_ssl)
        pool = _pools.get(key)
        if pool is None:
            pool = _pools[key] = cls(key)
            _close_at_end()
        pool._users += 1
        return pool

    def forgotten(self) -> None:
        """Take away a user that was garbage before it left; from any thread."""
        with suppress(RuntimeError):  # the loop has ended, and its sessions with it
            self.loop.call_soon_threadsafe(self._leave_soon)

    def _leave_soon(self) -> None:
        task = self.loop.create_task(self.left())
        _leaving.add(task)
        task.add_done_callback(_leaving.discard)

    async def left(self) -> None:
        """Take one user away; the last one closes the session."""
        self._users -= 1
        if self._users == 0:
            _pools.pop(self._key, None)
            self.deadlines.close()
            await self.session.close()


_pools: WeakValueDictionary[_Key, Pool] = WeakValueDictionary()
_parents: list[Pool] = []
_leaving: set[asyncio.Task[None]] = set()
_ending: WeakSet[engine.Engine] = WeakSet()


def _close_at_end() -> None:
    """Have the engine close, when it ends, the sessions of wires that nobody closed."""
    here = engine.default()
    if here.here and here not in _ending:
        _ending.add(here)
        here.at_close(_close_all)


async def _close_all() -> None:
    loop = asyncio.get_running_loop()
    for pool in [pool for pool in _pools.values() if pool.loop is loop]:
        await pool.session.close()


def _forget() -> None:
    """Leave the parent's sessions alone: closing one here would write into the parent's connections."""
    _parents.extend(_pools.values())
    _pools.clear()


engine.after_fork([_forget])


def _session(*, secure: bool, verify_ssl: bool) -> aiohttp.ClientSession:
    import aiohttp

    from nbproviders import __version__

    named = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    checks = _checks(*named) if secure and verify_ssl else verify_ssl
    connector = aiohttp.TCPConnector(
        limit=0, ssl=checks, resolver=aiohttp.ThreadedResolver(), use_dns_cache=True
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # one wire's cookies are no business of another's
        headers={"User-Agent": f"nbproviders/{__version__}"},
        trust_env=False,  # it would read netrc, and ask for proxies in a thread at each request
    )


@lru_cache(maxsize=4)
def _checks(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Return what checks certificates: made once, as it takes 30 ms, but anew for other authorities.

    The library's own is made when it is imported, and would not see a variable that was set later.
    """
    import ssl

    return ssl.create_default_context()


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL; none for this machine itself.

    Raises
    ------
    ConfigurationError
        If it is of a kind that cannot be used, such as SOCKS: passing it by would show the traffic.
    """
    from urllib.request import getproxies_environment

    parts = urlsplit(url)
    proxies = getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or _direct(parts.hostname or "", parts.netloc.rpartition("@")[2], proxies):
        return None
    proxy = found if "://" in found else f"http://{found}"
    scheme = proxy.partition("://")[0]
    if scheme not in ("http", "https"):
        raise ConfigurationError(
            f"The environment names a proxy of kind {scheme!r}, which cannot be used.",
            hint=f"Name an HTTP proxy in {parts.scheme.upper()}_PROXY, or {parts.hostname!r} in NO_PROXY.",
        )
    return proxy


def _direct(host: str, host_and_port: str, proxies: dict[str, str]) -> bool:
    from urllib.request import proxy_bypass

    if host == "localhost" or host.endswith(".localhost"):
        return True
    if proxy_bypass(host_and_port):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or any(_covers(net, address) for net in _networks(proxies))


def _networks(proxies: dict[str, str]) -> list[str]:
    return [entry.strip() for entry in proxies.get("no", "").split(",") if "/" in entry]


def _covers(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
