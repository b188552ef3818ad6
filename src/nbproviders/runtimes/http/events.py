"""Streams of text in pieces: server-sent events, and lines. They know bytes and limits, no connection.

The rules for events are the WHATWG's (HTML Living Standard, section 9.2, server-sent events).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 16 * 2**20
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One server-sent event; `name` is ``message`` unless the service gave one."""

    name: str
    data: str


class TooLong(Exception):
    """An event or line passed the limit."""


class Lines:
    """Cuts pieces of bytes into lines that end with LF, CRLF or CR.

    A line counts as ended with its CR, so that no event waits for the LF of the next piece.
    """

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pending = bytearray()
        self._after_cr = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the lines that a piece ends, without their endings.

        Raises
        ------
        TooLong
            If a line passes the limit.
        """
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return
        self._after_cr = piece.endswith(b"\r")
        for line in piece.splitlines(keepends=True):
            if len(self._pending) + len(line) > self._limit_bytes:
                raise TooLong
            if not line.endswith((b"\n", b"\r")):
                self._pending += line
            elif self._pending:
                whole = bytes(self._pending + line)
                self._pending.clear()
                yield whole.rstrip(b"\r\n")
            else:
                yield line.rstrip(b"\r\n")

    def rest(self) -> bytes:
        """Return what came after the last line's end."""
        return bytes(self._pending)


class Events:
    """Reads server-sent events from pieces of bytes."""

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._lines = Lines(limit_bytes)
        self._limit_bytes = limit_bytes
        self._name = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._first = True

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that a piece ends; one that the stream's end cuts off never comes.

        Raises
        ------
        TooLong
            If an event passes the limit.
        """
        for line in self._lines.feed(piece):
            if self._first:
                self._first = False
                line = line.removeprefix(_BOM)
            if line:
                self._take(line)
            elif self._data:
                yield self._ended()
            else:  # an event without data is none
                self._name = ""

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data_bytes += len(line)
            if self._data_bytes > self._limit_bytes:
                raise TooLong
            self._data.append(value.decode("utf-8", "replace"))
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        # Comments, id, retry and unknown fields say nothing to a reader that never reconnects.

    def _ended(self) -> Event:
        event = Event(self._name or "message", "\n".join(self._data))
        self._name = ""
        self._data.clear()
        self._data_bytes = 0
        return event
