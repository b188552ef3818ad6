"""One request as errors may tell of it: where it goes, without anything that was sent in secret."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qsl, quote, urlsplit

from nbproviders.errors import scrub

MASK = "****"
_SECRET_NAME = re.compile(r"auth|key|token|secret|passw|credential|cookie|session", re.IGNORECASE)
_URL_USER = re.compile(r"(?i)(https?://)[^\s/@'\"<>]*@")
_URL_QUERY = re.compile(r"(?i)(https?://[^\s?#'\"<>]*)[?#][^\s'\"<>]*")
_LEAST = 4  # shorter ones would blot out common words and protect nothing


@dataclass(frozen=True, slots=True)
class Call:
    """A request under way. It is looked at for secrets only when a message is made.

    Attributes
    ----------
    what
        Who asks, for the beginning of a message; may be empty.
    headers, form
        As sent.
    timeout_s
        Seconds for each phase.
    """

    what: str
    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    form: Mapping[str, str] = field(repr=False)
    timeout_s: float

    @property
    def where(self) -> str:
        """Method and URL without query."""
        return f"{self.method} {self.url.partition('?')[0]}"

    def says(self, text: str) -> str:
        """Return a message that begins with who asks."""
        return f"{self.what}: {text}" if self.what else text[:1].upper() + text[1:]

    def redacted(self, text: str, limit: int) -> str:
        """Return a text that others wrote on one line, without secrets, and no longer than `limit`."""
        for secret in sorted(set(self._secrets()), key=len, reverse=True):
            text = text.replace(secret, MASK)
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        # Cut first: some texts would keep the patterns busy for minutes.
        shown = _URL_QUERY.sub(r"\1", _URL_USER.sub(r"\1", scrub(text[: 4 * limit])))
        whole = len(text) <= 4 * limit and len(shown) <= limit
        return shown if whole else shown[: limit - 1] + "…"

    def _secrets(self) -> Iterator[str]:
        query = dict(parse_qsl(urlsplit(self.url).query))
        for sent in (self.headers, query, self.form):
            for name, value in sent.items():
                if _SECRET_NAME.search(name):
                    for secret in _parts(value):
                        yield from (secret, json.dumps(secret)[1:-1], quote(secret, safe=""))


def _parts(value: str) -> Iterator[str]:
    """Yield a header's value, what follows its scheme, and user and password of a basic one."""
    scheme, _, rest = value.strip().partition(" ")
    found = [value.strip(), rest.strip()]
    if scheme.lower() == "basic":
        try:
            plain = base64.b64decode(rest, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            plain = ""
        found += [plain, plain.partition(":")[2]]
    yield from (part for part in found if len(part) >= _LEAST)


@lru_cache(maxsize=256)
def origin_of(url: str) -> tuple[str, str, int, bool]:
    """Return scheme, host and port of a URL, and whether it names a user.

    Raises
    ------
    ValueError
        If it is no URL of a host.
    """
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    if usual is None or not parts.hostname:
        raise ValueError("no URL of a host")
    return parts.scheme, parts.hostname, parts.port or usual, "@" in parts.netloc
