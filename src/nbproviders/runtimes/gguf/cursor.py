"""Reading a GGUF header step by step, never more than the file has and a header may hold.

Knows the scalar and array encodings, not what keys mean. Reads through a file, not a map: a file that
shrinks while it is read is an error, where a map would kill the process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

# A header of 500 tensors and a vocabulary of 260,000 tokens has 16 MB.
MAX_HEADER_BYTES = 256 << 20
MAX_STRING_BYTES = 16 << 20
MAX_ITEMS = 8 << 20
_CHUNK_BYTES = 1 << 20

# GGUF value types by their number: name, struct code and bytes. 8 is a string, 9 an array.
SCALARS = {
    0: ("u8", "B", 1),
    1: ("i8", "b", 1),
    2: ("u16", "H", 2),
    3: ("i16", "h", 2),
    4: ("u32", "I", 4),
    5: ("i32", "i", 4),
    6: ("f32", "f", 4),
    7: ("bool", "?", 1),
    10: ("u64", "Q", 8),
    11: ("i64", "q", 8),
    12: ("f64", "d", 8),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class DamageError(Exception):
    """What is wrong with the bytes; whoever knows the file's name says it better."""


class Cursor:
    """A place in a file's header that moves forward.

    Parameters
    ----------
    file
        Opened for reading bytes, at its beginning.
    size
        Bytes of the whole file.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._buffer = bytearray()
        self.size = size
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes of the file behind this place."""
        return self.size - self.at

    def passed(self, end: int) -> bytes:
        """Return the file's bytes from its beginning to `end`, which has been reached."""
        return bytes(self._buffer[:end])

    def take(self, count: int, what: str) -> int:
        """Move over so many bytes and return where they begin in the buffer."""
        begin, end = self.at, self.at + count
        if end > self.size:
            raise DamageError(
                f"it ends at byte {self.size:,}, inside {what}, which needs bytes up to {end:,}"
            )
        if end > MAX_HEADER_BYTES:
            raise DamageError(f"its header is larger than {MAX_HEADER_BYTES:,} bytes, at {what}")
        if end > len(self._buffer):
            more = max(end - len(self._buffer), min(_CHUNK_BYTES, self.size - len(self._buffer)))
            self._buffer += self._file.read(more)
            if end > len(self._buffer):
                raise DamageError(f"it became shorter while it was read, at byte {begin:,}")
        self.at = end
        return begin

    def u32(self, what: str) -> int:
        """Return the next 4 bytes as an unsigned number."""
        return int(_U32.unpack_from(self._buffer, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """Return the next 8 bytes as an unsigned number."""
        return int(_U64.unpack_from(self._buffer, self.take(8, what))[0])

    def text(self, what: str) -> str:
        """Return a string with its length before it; bytes that are no UTF-8 as lone surrogates."""
        length = self.u64(what)
        if length > min(MAX_STRING_BYTES, self.left):
            raise DamageError(
                f"{what} claims a string of {length:,} bytes, where {self.left:,} are left"
            )
        begin = self.take(length, what)
        return self._buffer[begin : begin + length].decode("utf-8", "surrogateescape")

    def value(self, what: str) -> tuple[str, Any]:
        """Return type name and value of what follows; arrays as tuples (``"arr[i32]"``)."""
        kind = self.u32(what)
        if kind == _STRING:
            return "str", self.text(what)
        if kind == _ARRAY:
            return self._array(what)
        name, values = self._numbers(kind, 1, what)
        return name, values[0]

    def _array(self, what: str) -> tuple[str, tuple[Any, ...]]:
        kind = self.u32(what)
        count = self.u64(what)
        if count > MAX_ITEMS:
            raise DamageError(
                f"{what} claims an array of {count:,} items, where {MAX_ITEMS:,} are allowed"
            )
        if kind == _STRING:
            if count * 8 > self.left:
                raise DamageError(
                    f"{what} claims {count:,} strings, where {self.left:,} bytes are left"
                )
            return "arr[str]", self._texts(count, what)
        name, values = self._numbers(kind, count, what)
        return f"arr[{name}]", values

    def _texts(self, count: int, what: str) -> tuple[str, ...]:
        """Return many strings: `text` without its checks where the buffer holds them anyway."""
        texts: list[str] = []
        add: Callable[[str], None] = texts.append
        unpack = _U64.unpack_from
        while len(texts) < count:
            add(self.text(what))
            buffer, at, held = self._buffer, self.at, len(self._buffer) - 8
            for _ in range(count - len(texts)):
                if at > held:
                    break
                end = at + 8 + unpack(buffer, at)[0]
                if end > held + 8:
                    break
                add(buffer[at + 8 : end].decode("utf-8", "surrogateescape"))
                at = end
            self.at = at
        return tuple(texts)

    def _numbers(self, kind: int, count: int, what: str) -> tuple[str, tuple[Any, ...]]:
        if kind not in SCALARS:
            raise DamageError(f"{what} has the unknown value type {kind}")
        name, code, size = SCALARS[kind]
        begin = self.take(count * size, what)
        return name, struct.unpack_from(f"<{count}{code}", self._buffer, begin)
