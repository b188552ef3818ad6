"""What other processes of this user have on the same devices, and what this one tells them.

A folder with a page for each process. Charges are told before memory is taken, under a lock on the device:
two that load at once see each other. Who dies takes its page along, however it died.

The ledger is a courtesy. Where its folder cannot be used, which is logged once, and on Windows, models load
as if there were no other process. It knows neither models nor budgets.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from nbproviders.core import engine
from nbproviders.residency import locks, pages, peers
from nbproviders.residency.pages import Page, Row as Row
from nbproviders.residency.peers import Give, Listener, Peer

logger = logging.getLogger(__name__)

RESERVE_S = 2.0
ASK_S = 2.0
_DEVICE = ".device"
_RETRY_S = (50e-6, 5e-3)  # a device is held for less than a millisecond


def strangers(device: str, used_bytes: int, rows: Sequence[Row], own_bytes: int) -> int:
    """Return the bytes that programs outside the ledger hold on a device.

    Parameters
    ----------
    used_bytes
        What the device's driver says is in use, by whomever.
    rows
        Of other processes.
    own_bytes
        What this process has allocated there.
    """
    taken = sum(row.taken_bytes for row in rows if row.device == device)
    return max(used_bytes - taken - own_bytes, 0)


def default_folder() -> Path:
    """Return where this user's processes on this machine meet.

    In ``$XDG_RUNTIME_DIR`` if that is a folder of ours that nobody else can write to, else in a private one
    among the temporary files.
    """
    if sys.platform == "win32":
        return Path(tempfile.gettempdir()) / "nbproviders" / "ledger"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    with suppress(OSError):
        found = runtime.stat()
        ours = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
        if runtime.is_absolute() and stat.S_ISDIR(found.st_mode) and ours:
            return runtime / "nbproviders" / "ledger"
    return Path(tempfile.gettempdir()) / f"nbproviders-{os.geteuid()}" / "ledger"


class Ledger:
    """The page of this process, and a view of the others'. For one thread: the engine's.

    Parameters
    ----------
    folder
        Where; None is `default_folder`. The same for all processes that shall see each other.
    label
        How this process is told to others, such as the notebook's name; of a path only the last part.
    """

    def __init__(self, folder: Path | None = None, label: str = "") -> None:
        self._chosen = folder
        self._label = pages.clean(label)
        self._base: Path | None = None  # of our page's files, while we are in
        self._lock = -1
        self._written = ""
        self._rows: tuple[Row, ...] = ()
        self._reserved: set[int] = set()
        self._listener: Listener | None = None
        self._warned = False
        _ledgers.add(self)

    def __del__(self) -> None:
        if getattr(self, "_base", None) is not None:
            self._withdraw()

    def publish(self, rows: Sequence[Row]) -> None:
        """Tell what this process has, in place of what it told before."""
        self._rows = tuple(rows)
        self._tell()

    def others(self, device: str) -> list[Row]:
        """Return what living processes have on a device; the files of those that died are removed."""
        return [row for page in self._pages() for row in page.rows if row.device == device]

    @contextmanager
    def reserving(self, device: str) -> Iterator[None]:
        """Hold a device for all processes, while a reservation is decided and published.

        Not across an await, and not nested for one device; several are taken in sorted order. After two
        seconds it goes on without the lock, and logs it: whoever holds it was stopped in the middle.
        """
        held = self._reserve(device)
        try:
            yield
        finally:
            if held in self._reserved:  # not so in a child that was forked meanwhile
                self._reserved.discard(held)
                locks.unlock(held)

    def serve(self, give: Give) -> None:
        """Answer peers that ask for memory, on the running loop; a second call does nothing.

        Parameters
        ----------
        give
            Frees so many bytes of a device as far as it can, publishes what is left, and returns how many it
            freed. It is called for one peer at a time.
        """
        if self._listener is not None or sys.platform == "win32":
            return
        with self._harmless():
            self._listener = Listener(give)
        if self._base is not None:
            self._tell()

    async def ask(self, device: str, need_bytes: int, deadline_s: float = ASK_S) -> int:
        """Ask others to put idle models of a device to sleep; return the bytes they say they freed.

        Who hangs, refuses or dies costs no more than the deadline, all of them together.
        """
        asked = []
        for page in self._pages():
            idle = sum(row.taken_bytes for row in page.rows if row.device == device and row.idle)
            if idle and page.port:
                asked.append(Peer(page.port, page.token, idle))
        return await peers.ask(asked, device, need_bytes, deadline_s)

    async def close(self) -> None:
        """Leave the ledger. A later `publish` enters it again."""
        listener, self._listener = self._listener, None
        self._rows = ()
        self._withdraw()
        if listener is not None:
            await listener.close()

    def _tell(self) -> None:
        if sys.platform == "win32":
            return
        with self._harmless():
            base = self._entered()
            page = pages.own(self._rows, self._label)
            if self._listener is not None:
                page = replace(page, port=self._listener.port, token=self._listener.token)
            text = page.text()
            if text != self._written:
                pages.write(base, text)
                self._written = text
            return
        # What was told last is no longer so. Without a page our bytes are a stranger's, which is true.
        self._withdraw()

    def _entered(self) -> Path:
        """Return our page's place, locked for as long as we live; a new one if it was cleared away."""
        folder, base = self._folder(), self._base
        if base is not None and locks.same_file(self._lock, base.with_name(base.name + pages.LOCK)):
            return base
        self._withdraw()
        while True:
            name = secrets.token_hex(8)
            # Who looks before it is locked takes it for one left by the dead; then another name is taken.
            held = locks.try_lock(folder / (name + pages.LOCK))
            if held is not None:
                self._base, self._lock = folder / name, held
                return self._base

    def _withdraw(self) -> None:
        base, self._base, self._written = self._base, None, ""
        if base is not None:
            pages.remove(base)
            locks.unlock(self._lock)

    def _forget(self) -> None:
        """In a forked child: page and locks are the parent's, and must end with the parent.

        So they are closed here and not unlocked, which would unlock them for the parent too.
        """
        own = [] if self._base is None else [self._lock]
        for descriptor in (*own, *self._reserved):
            with suppress(OSError):
                os.close(descriptor)
        self._base, self._written, self._rows = None, "", ()
        self._reserved.clear()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.forget()

    def _pages(self) -> list[Page]:
        """Return the pages of all other processes that live."""
        found: list[Page] = []
        if sys.platform == "win32":
            return found
        with self._harmless():
            folder = self._folder()
            for name in pages.names(folder):
                page = pages.living(folder / name) if folder / name != self._base else None
                if page is not None:
                    found.append(page)
        return found

    def _reserve(self, device: str) -> int:
        """Return a descriptor that holds the device, or -1 for going on without."""
        if sys.platform == "win32":
            return -1
        with self._harmless():
            path = self._folder() / (quote(device, safe="") + _DEVICE)
            until_s, (pause_s, longest_s) = time.monotonic() + RESERVE_S, _RETRY_S
            while (held := locks.try_lock(path)) is None:
                if time.monotonic() >= until_s:
                    logger.warning(
                        "Another process has held the ledger of %s for %g s; going on without it.",
                        device,
                        RESERVE_S,
                    )
                    return -1
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            self._reserved.add(held)
            return held
        return -1

    def _folder(self) -> Path:
        """Return the folder, made if need be, and private: looked at each time, as it may be cleared away."""
        folder = self._base.parent if self._base is not None else self._chosen or default_folder()
        if not folder.is_dir():
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        for one in [folder] if self._chosen else [folder.parent, folder]:
            locks.check_private(one)
        return folder

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let a disk, or a file system without locks, not come between a user and a model."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "Notebooks that share a device cannot tell each other what they hold: %s (%s). "
                    "Models load all the same.",
                    error.strerror or type(error).__name__,
                    error.filename or self._chosen or "the ledger's folder",
                )


_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _forked() -> None:
    for one in list(_ledgers):
        one._forget()


engine.after_fork([_forked])
