"""Where an Ollama server is, and what models are called there."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from nbproviders.errors import ConfigurationError

HOST_VARIABLE = "OLLAMA_HOST"
_PORT = 11434
_LATEST = ":latest"


def address(text: str) -> str:
    """Return the URL that a host means, as Ollama's own client reads ``OLLAMA_HOST``.

    Parameters
    ----------
    text
        ``host``, ``host:port``, ``:port``, ``[::1]:port``, ``https://host/path``; empty: this machine. An
        address to listen at, such as ``0.0.0.0``, is this machine.

    Raises
    ------
    ConfigurationError
        If it is none of these.

    Examples
    --------
    >>> address("0.0.0.0"), address("https://gpu.example.org/ollama/")
    ('http://127.0.0.1:11434', 'https://gpu.example.org/ollama')
    """
    told = text.strip().strip("\"'").strip()
    scheme, mark, rest = told.partition("://")
    if not mark:
        scheme, rest = "http", told
    scheme = scheme.lower()
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        if "@" in parts.netloc or scheme not in ("http", "https"):
            raise ValueError("no address of a host")
        port = parts.port or (None if mark else _PORT)
        host = _reachable(parts.hostname or "")
    except ValueError:  # not shown: a password may be in it
        raise ConfigurationError(
            f"{HOST_VARIABLE} or base_url is no address of an Ollama server.",
            hint="Such as localhost:11434 or https://host; without user and password.",
        ) from None
    path = parts.path.rstrip("/").removesuffix("/api")
    return f"{scheme}://{host}{'' if port is None else f':{port}'}{path}"


def _reachable(host: str) -> str:
    """Return a host that can be asked; one to listen at, or none, is this machine."""
    try:
        known = ipaddress.ip_address(host)
    except ValueError:
        return host or "127.0.0.1"
    if known.is_unspecified:
        return "127.0.0.1" if known.version == 4 else "[::1]"
    return host if known.version == 4 else f"[{host}]"


def short(name: str) -> str:
    """Return a model's name without what is the default.

    Examples
    --------
    >>> short("llama3.2:latest"), short("llama3.2:1b")
    ('llama3.2', 'llama3.2:1b')
    """
    return name.removesuffix(_LATEST)


def same(one: str, other: str) -> bool:
    """Whether two names mean one model."""
    return short(one).lower() == short(other).lower()


def is_remote(name: str) -> bool:
    """Whether a name says that the model runs in Ollama's cloud, as ``gpt-oss:120b-cloud`` does."""
    tag = name.rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")
