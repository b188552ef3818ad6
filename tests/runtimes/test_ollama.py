"""Promises of Ollama's protocol as pure functions: addresses and names."""

from __future__ import annotations

import importlib

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.ollama import server
from nbproviders.runtimes.ollama.names import address, is_remote, same, short
from tests.services.keys import FAKE


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("example.com:56789/", "http://example.com:56789"),
        ("example.com/path/", "http://example.com:11434/path"),
        ("http://example.com", "http://example.com"),
        ("HTTPS://Example.com", "https://example.com"),
        ("https://example.com:56789/path", "https://example.com:56789/path"),
        ("https://ollama.com/api", "https://ollama.com"),
        ("[0001:002:003:0004::1]", "http://[0001:002:003:0004::1]:11434"),
        ("https://[::1]:56789/", "https://[::1]:56789"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        (' "localhost:1" ', "http://localhost:1"),
    ],
)
def test_addresses(told: str, url: str) -> None:
    """Each form that Ollama's own client takes is the URL that it would ask; one to listen at is here."""
    assert address(told) == url


@pytest.mark.parametrize(
    "told",
    ["host:port", "host:70000", "ftp://host", f"me:{FAKE}@host", "[::1"],
    ids=["port", "large", "ftp", "password", "bracket"],
)
def test_no_addresses(told: str) -> None:
    """What is no address is refused, and not shown: it may hold a password."""
    with pytest.raises(ConfigurationError, match="OLLAMA_HOST") as caught:
        address(told)
    assert told not in str(caught.value)


def test_addresses_as_ollama_has_them() -> None:
    """The same as the parser of Ollama's own package, but for the ports that go without saying."""
    pytest.importorskip("ollama", reason="its parser is the judge")
    parse = importlib.import_module("ollama._client")._parse_host
    for told in ("", "h", "h:1", ":1", "http://h", "https://h", "https://h:2/p/", "[::1]:3", "h/p"):
        wanted = parse(told)
        for scheme, port in (("http", ":80"), ("https", ":443")):
            if wanted.startswith(f"{scheme}:"):
                wanted = wanted.removesuffix(port)
        assert address(told) == wanted


def test_names() -> None:
    """A name without a tag is the latest; a tag of the cloud says where it runs."""
    assert short("a:latest") == "a"
    assert same("Llama3.2", "llama3.2:latest")
    assert not same("llama3.2", "llama3.2:1b")
    assert [is_remote(name) for name in ("a:cloud", "a:1b-cloud", "cloud:1b")] == [
        True,
        True,
        False,
    ]


def test_what_a_server_does_not_tell() -> None:
    """Missing fields are none, and times that cannot be read are no times."""
    rows = [{"name": "a"}, {"model": "b:latest", "expires_at": "0001-01-01T00:00:00Z"}]
    one, two = server.loaded({"models": rows}, "x")
    assert (one.name, one.bytes, one.context_tokens, one.expires) == ("a", 0, None, None)
    assert (two.name, two.expires) == ("b", None)
    (ends,) = server.loaded(
        {"models": [{"name": "a", "expires_at": "2026-08-10T11:35:59.096427359-04:00"}]}, "x"
    )
    assert ends.expires is not None
    assert ends.expires.minute == 35
    assert server.shown({}, "x") == server.Shown(None, True, False)
