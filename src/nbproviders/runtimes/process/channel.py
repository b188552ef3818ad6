"""The kernel's side of a guardian: the connection that says the kernel lives, and what comes over it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbproviders.core.engine import Mailbox
from nbproviders.errors import ProviderError, ServiceUnavailableError, UnsupportedError, foreign
from nbproviders.runtimes.process import locks, ports
from nbproviders.runtimes.process.guardian import BOOT

_CONNECT_S = 5.0

# Held while a connection is made and until it is listed here: a fork in between would copy it unseen, and
# the copy would tell the guardian that the kernel lives for as long as the forked child does.
_fork_lock = threading.Lock()
_open: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """A connection to a guardian. While it is open, this process owns the server.

    Parameters
    ----------
    connection
        To the guardian.
    child
        The guardian, if it is a child of this process.
    """

    def __init__(
        self, connection: socket.socket, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        self._connection = connection
        self._child = child
        self._lock = threading.Lock()
        self._told: dict[str, dict[str, Any]] = {}
        self._over = False
        self._watchers: list[tuple[str, Mailbox, asyncio.Future[None]]] = []
        _open.add(self)

    def listen(self) -> None:
        """Start taking note of what the guardian tells."""
        threading.Thread(target=self._listen, name="nbproviders-server", daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                self._note(message["event"], message)
        if self._child is not None:
            self._child.wait()
        with self._lock:
            self._over = True
        self._note("over", {"event": "over"})

    def _note(self, event: str, message: dict[str, Any]) -> None:
        with self._lock:
            self._told[event] = message
            waiting = [one for one in self._watchers if one[0] == event or self._over]
            self._watchers = [one for one in self._watchers if one not in waiting]
        for _, mailbox, future in waiting:
            mailbox.post(_settle, future)

    @property
    def over(self) -> bool:
        """Whether the guardian is gone, and with it the server."""
        return self._over

    def told(self, event: str) -> dict[str, Any] | None:
        """Return what the guardian last said of a kind; None if it did not yet."""
        with self._lock:
            return self._told.get(event)

    async def event(self, event: str, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Wait for what the guardian says of a kind; None if it is gone, or the time is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        watcher = (event, Mailbox(loop), future)
        with self._lock:
            if event in self._told or self._over:
                return self._told.get(event)
            self._watchers.append(watcher)
        try:
            await asyncio.wait({future}, timeout=timeout_s)
        finally:
            with self._lock, suppress(ValueError):
                self._watchers.remove(watcher)
        return self.told(event)

    def send(self, **message: Any) -> None:
        """Tell the guardian; nothing happens if it is gone."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def kill(self) -> None:
        """Kill a guardian that does not do as it is told."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """Give up owning the server."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def abandon(self) -> None:
        """Close this forked process's copy; the parent's stays as it is."""
        self._over = True
        descriptor = (
            self._connection.detach()
        )  # a thread that is no more reads it: close() would wait
        if descriptor >= 0:
            os.close(descriptor)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def errors_of(folder: Path) -> Path:
    """Return where a guardian's own errors go, should it have any."""
    return folder / "guardian.log"


def launch(folder: Path) -> Channel:
    """Start a guardian; what it shall guard is sent to it."""
    if sys.platform == "win32":
        raise UnsupportedError(
            "Servers can be managed on Linux and macOS only.",
            hint="Start the server yourself and use the openai provider with its base_url.",
        )
    path = json.dumps([one or str(Path.cwd()) for one in sys.path])
    with _fork_lock, errors_of(folder).open("wb") as errors:
        ours, its = socket.socketpair()
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOT, path],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ProviderError(f"No guardian can be started: {foreign(error)}") from None
        finally:
            its.close()
        return Channel(ours, child)


def connect(port: int, **greeting: Any) -> Channel | None:
    """Connect to the guardian of a kept server as an owner; None if it is gone or will not."""
    with _fork_lock:
        try:
            connection = socket.create_connection((ports.LOOPBACK, port), _CONNECT_S)
            connection.settimeout(None)  # owning lasts
        except OSError:
            return None
        channel = Channel(connection)
    channel.send(**greeting)
    return channel


def ask(port: int, **question: Any) -> dict[str, Any]:
    """Ask the guardian of a kept server something, without becoming an owner; blocks.

    Raises
    ------
    ServiceUnavailableError
        If it does not answer.
    """
    try:
        with (
            socket.create_connection((ports.LOOPBACK, port), _CONNECT_S) as connection,
            connection.makefile("rb") as lines,
        ):
            connection.sendall(json.dumps(question).encode() + b"\n")
            found: dict[str, Any] = json.loads(lines.readline())
            return found
    except (OSError, ValueError) as error:
        raise ServiceUnavailableError(
            f"The guardian of a kept server does not answer: {foreign(error)}"
        ) from None


def _forked() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()
    for channel in list(_open):
        channel.abandon()
    locks.forget()
    ports.forget()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=lambda: _fork_lock.acquire(),
        after_in_parent=lambda: _fork_lock.release(),
        after_in_child=_forked,
    )
