"""Locks between processes that no crash leaves behind, and the private folder that they lie in.

`flock` goes with an open file: the system drops it when the last process that has the file open ends, and
two users in one process exclude each other as two processes do. A forked child has the file open as well;
whoever holds a lock sees to that. Windows has nothing like it: there nothing is ever locked.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a file, made if need be; None if somebody else holds it."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if same_file(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def looked_at(path: Path) -> Iterator[bool]:
    """Tell whether somebody holds the lock of a file; if nobody does, nobody can take it in the block."""
    if sys.platform == "win32":
        yield False
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        # Shared, so that two who look at once do not take each other for its owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        held = False
    except BlockingIOError:
        held = True
    except OSError:
        os.close(descriptor)
        raise
    try:
        yield held
    finally:
        os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Unlock and close: closing alone would leave the lock to a child that is being forked right now."""
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def same_file(descriptor: int, path: Path) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def check_private(folder: Path) -> None:
    """Raise `OSError` for a folder that is not ours; close one of ours to all others."""
    if sys.platform == "win32":
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "It belongs to another user", str(folder))
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def process_started(pid: int) -> str:
    """Return when a process started and the space its id is valid in, as one text to compare.

    Empty if there is no such process here, or this system does not tell (only Linux does).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # A process may have any name, brackets included; the start is the 22nd field of all.
        return f"{Path('/proc/self/ns/pid').readlink()}/{text.rpartition(')')[2].split()[19]}"
    except OSError:
        return ""


def has_ended(pid: int, started: str) -> bool:
    """Return whether a process surely ended; one of another container cannot be looked at from here."""
    space = process_started(os.getpid()).rpartition("/")[0]
    if not space or started.rpartition("/")[0] != space:
        return False
    return process_started(pid) != started
