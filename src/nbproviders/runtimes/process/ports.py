"""Free ports of the loopback interface, each given to one asker at a time, across threads and processes."""

from __future__ import annotations

import re
import secrets
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from nbproviders.errors import ServiceUnavailableError
from nbproviders.runtimes.process import locks

LOOPBACK = "127.0.0.1"
_TRIES = 1000
# A server binds its port seconds after it was chosen. So it is none of those that systems give out meanwhile,
# to connections and to who asks for any: from 32768 on Linux (ip_local_port_range), 49152 on macOS.
_FIRST, _END = 20_000, 32_768
_TAKEN = re.compile(r"address already in use|EADDRINUSE|errno (?:48|98)\b", re.IGNORECASE)

_reserved: set[int] = set()
_guard = threading.Lock()


def forget() -> None:
    """Let a forked child start with no reservations: they are its parent's."""
    global _guard
    _guard = threading.Lock()
    _reserved.clear()


class Reservation:
    """A port that no other asker is given until this is released."""

    def __init__(self, root: Path, port: int) -> None:
        self._root = root
        self.port = port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the port back; a second time does nothing."""
        with _guard:
            if self.port in _reserved:
                _reserved.remove(self.port)
                locks.unlock(self._root, self.port)
        self.port = 0


def reserve(root: Path, base: int = 0) -> Reservation:
    """Return a port that is free now, and reserved against everyone who asks here.

    A program that does not ask may still take it; a server that finds it so ends early, and is
    started again on another.

    Parameters
    ----------
    base
        Where the search begins; 0 chooses at random.

    Raises
    ------
    ServiceUnavailableError
        If none is free.
    """
    for number in range(_TRIES):
        port = base + number if base else _FIRST + secrets.randbelow(_END - _FIRST)
        with socket.socket() as found:
            try:
                found.bind((LOOPBACK, port))
            except (OSError, OverflowError):  # it is in use; behind the last one there is none
                continue
            with _guard:
                if port not in _reserved and locks.try_lock(root, port):
                    _reserved.add(port)
                    return Reservation(root, port)
    raise ServiceUnavailableError("No port of 127.0.0.1 is free.", hint="Stop some servers.")


def taken(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def says_taken(text: str) -> bool:
    """Whether a server's last words are that its port is in use."""
    return _TAKEN.search(text) is not None
