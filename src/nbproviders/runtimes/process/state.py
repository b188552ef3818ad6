"""What is known of running servers on this machine: one private folder for each, with its record and its log.

A process is known by its id and the time it started, so that a recycled id is not mistaken for it.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from nbproviders.errors import ConfigurationError

STATE_VARIABLE = "NBPROVIDERS_STATE"
_RECORD, _LOG = "server.json", "server.log"
_UNWRITTEN_S = 60.0  # so long may a new folder be without a record


@dataclass(frozen=True, slots=True)
class Record:
    """One server, as its guardian writes it down; a kept one with what is needed to adopt it."""

    id: str
    what: str
    guardian: int = 0
    guardian_started: str = ""
    pid: int = 0
    started: str = ""
    exclusive: str = ""
    identity: str = ""
    base_url: str = ""
    key: str = field(default="", repr=False)
    probe: str = ""
    keep_s: float = 0.0
    control: int = 0
    reference: str = ""
    secret: str = field(default="", repr=False)

    @property
    def alive(self) -> bool:
        """Whether guardian and server are the very processes that were written down."""
        return self.guarded and self.started != "" and process_started(self.pid) == self.started

    @property
    def guarded(self) -> bool:
        """Whether its guardian lives."""
        return (
            self.guardian_started != "" and process_started(self.guardian) == self.guardian_started
        )


def base() -> Path:
    """Return this user's state folder, or the one that ``NBPROVIDERS_STATE`` names; not made yet."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_state_path("nbproviders")


def root() -> Path:
    """Return the folder of this user's servers on this machine, made if need be.

    Raises
    ------
    ConfigurationError
        If it belongs to somebody else or cannot be made.
    """
    # A home may be shared by machines; ids of processes and locks are not.
    folder = base() / "servers" / (platform.node() or "here")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(folder)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {str(folder)!r} for running servers cannot be used: {error.strerror}.",
            hint=f"Name a folder of your own: {STATE_VARIABLE}=…",
        ) from None
    return folder


def _make_private(folder: Path) -> None:
    if sys.platform == "win32":
        return
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"The folder {str(folder)!r} for running servers belongs to another user.",
            hint=f"Name a folder of your own: {STATE_VARIABLE}=…",
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def new_folder(root: Path) -> Path:
    """Return a new private folder for one server."""
    folder = root / secrets.token_hex(8)
    folder.mkdir(mode=0o700)
    return folder


def log_of(folder: Path) -> Path:
    """Return where a server's output goes."""
    return folder / _LOG


def write(folder: Path, record: Record) -> None:
    """Write a record so that a reader sees the old one or the new one, and nobody else sees any."""
    new = folder / f"{_RECORD}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
    new.replace(folder / _RECORD)


def remove(folder: Path) -> None:
    """Remove a server's folder, there or not."""
    shutil.rmtree(folder, ignore_errors=True)


def records(root: Path) -> list[Record]:
    """Return the records of servers whose guardian lives; what others left behind is removed."""
    found = []
    for folder in sorted(root.iterdir()):
        if not folder.is_dir():
            continue
        record = _read(folder)
        if record is not None and record.guarded:
            found.append(record)
        elif record is not None:
            _bury(folder, record)
        elif _age_s(folder) > _UNWRITTEN_S:
            remove(folder)
    return found


def _read(folder: Path) -> Record | None:
    try:
        values = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        # What another version does not write has its default: its servers run, and can be ended.
        return Record(
            **{one.name: values[one.name] for one in fields(Record) if one.name in values}
        )
    except (OSError, ValueError, TypeError):  # gone, or half-made
        return None


def _bury(folder: Path, record: Record) -> None:
    """Clean up after a guardian that was killed: its server, should it live, and its folder."""
    if record.started and process_started(record.pid) == record.started:
        signal_group(record.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    remove(folder)


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False if there is nobody left in it."""
    if sys.platform == "win32" or group <= 1:
        return False
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter: macOS, when only zombies are left
        return False
    return True


def process_started(pid: int) -> str:
    """Return when a process started, as a text to compare; empty if there is no such process."""
    if pid <= 0:
        return ""
    if Path("/proc/self/stat").exists():
        values = proc_stat(pid)
        return f"{_boot()}:{values[19]}" if values and values[0] not in "ZX" else ""
    if sys.platform == "win32":
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False).stdout
        state, _, began = told.strip().partition(" ")
        return "" if state.startswith("Z") else began.strip()
    return ""


def proc_stat(pid: int | str) -> list[str]:
    """Return the fields of Linux's ``/proc/<pid>/stat`` from the state on; none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # a process may have any name, brackets included


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
