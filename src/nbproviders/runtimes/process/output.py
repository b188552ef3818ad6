"""A server's output on disk, bounded: its beginning and its end are kept, what lies between is dropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nbproviders.errors import scrub

LIMIT_BYTES = 5_000_000
_TAIL_BYTES = 64 << 10


class BoundedLog:
    """A file that never grows beyond a limit, whatever is written to it."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._size = 0
        self._dropped = 0
        self._file = self._open(path)

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def write(self, data: bytes) -> None:
        """Append; a full disk loses lines, never the server that writes them."""
        with suppress(OSError):
            if self._size + len(data) > self._limit:
                self._shorten(data)
            else:
                self._append(data)

    def _append(self, data: bytes) -> None:
        while data:
            done = os.write(self._file, data)
            self._size += done
            data = data[done:]

    def _shorten(self, data: bytes) -> None:
        """Write the file anew: a fifth for the beginning, two for the end, two to grow into."""
        part = self._limit // 5
        head = os.pread(self._file, part, 0)
        head = (head + data)[:part] if len(head) < part else head
        since = max(self._size - 2 * part, 0)
        tail = (os.pread(self._file, self._size - since, since) + data)[-2 * part :]
        self._dropped += self._size + len(data) - len(head) - len(tail)
        new = self._path.with_suffix(".new")
        file = self._open(new)
        os.close(self._file)
        self._file, self._size = file, 0
        self._append(b"%b\n[... about %d bytes left out ...]\n%b" % (head, self._dropped, tail))
        new.replace(self._path)  # a reader sees the old file or the new one

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def tail(path: Path, lines: int, hidden: Sequence[str] = ()) -> str:
    """Return the last lines of a log without keys; empty if there is none.

    Parameters
    ----------
    hidden
        Texts to mask, besides all that looks like a key.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    for one in hidden:
        text = text.replace(one, "****") if one else text
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return scrub("\n".join(kept[-lines:]))
