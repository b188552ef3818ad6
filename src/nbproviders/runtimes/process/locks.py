"""Locks between processes that no crash leaves behind: byte ranges of one file.

The system drops them when the process that holds them ends, and a forked child does not inherit them.
They do not exclude threads of one process from each other: a lock's user does that.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path

from nbproviders.errors import UnsupportedError

_FILE = "locks"
_PORTS = 1 << 16
_NAMES = 1 << 48

# One descriptor for each file, never closed: closing any of them would drop all of the process's locks.
_files: dict[Path, int] = {}
_guard = threading.Lock()


def forget() -> None:
    """Let a forked child start with no locks and a guard that nobody holds."""
    global _guard
    _guard = threading.Lock()


def place_of(name: str) -> int:
    """Return the byte that stands for a name; the first 65536 stand for ports."""
    digest = hashlib.sha256(name.encode()).digest()
    return _PORTS + int.from_bytes(digest[:8], "big") % _NAMES


def try_lock(root: Path, place: int) -> bool:
    """Lock a place; False if another process holds it."""
    if sys.platform == "win32":
        raise UnsupportedError("Servers can be managed on Linux and macOS only.")
    import fcntl

    try:
        fcntl.lockf(_file(root), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError:  # EACCES or EAGAIN: held
        return False
    return True


def unlock(root: Path, place: int) -> None:
    """Give a place back."""
    if sys.platform != "win32":
        import fcntl

        fcntl.lockf(_file(root), fcntl.LOCK_UN, 1, place)


def _file(root: Path) -> int:
    with _guard:
        if root not in _files:
            _files[root] = os.open(root / _FILE, os.O_RDWR | os.O_CREAT, 0o600)
        return _files[root]
