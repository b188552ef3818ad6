"""The process between a kernel and one server; run as a program, of the standard library alone.

It talks in JSON lines with each owner, over a connection that only the owner has: when that ends, for
whatever reason, the owner is gone. Without an owner the server is ended: at once, or, if it is kept, after a
while. Whatever the server started ends with it, and its folder is removed.
"""

from __future__ import annotations

import asyncio
import ctypes
import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbproviders.runtimes.process import locks, output, state
from nbproviders.runtimes.process.gate import LOOPBACK, Gate

LINE_BYTES = 16 << 20
ORPHAN_GRACE_S = 2.0
_POLL_S = 0.02
_QUEUE_POLL_S = 0.1
_CHUNK_BYTES = 256 << 10
_TAIL_LINES = 40
_SUBREAPER, _DEATH_SIGNAL = 36, 1  # prctl(2)

# What starts it: the kernel's own sys.path, so that it is this very package that is imported.
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nbproviders.runtimes.process.guardian import main; main()"
)


def main() -> None:
    """Guard the server that the other end of standard input asks for."""
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    _prctl(_SUBREAPER, 1)
    asyncio.run(_guard(channel))


async def _guard(channel: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel, limit=LINE_BYTES)
    line = await reader.readline()
    if line.endswith(b"\n"):
        await Guardian(json.loads(line)).run(reader, writer)


class Guardian:
    """One server and who owns it."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._folder = Path(order["folder"])
        self._record = state.Record(
            id=self._folder.name,
            what=order["what"],
            guardian=os.getpid(),
            guardian_started=state.process_started(os.getpid()),
            exclusive=order["exclusive"],
        )
        self._log = output.BoundedLog(state.log_of(self._folder), order["log_bytes"])
        self._gate = Gate(order["key"], order["port"]) if order["gate"] else None
        self._control: asyncio.Server | None = None
        self._owners: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock: asyncio.TimerHandle | None = None
        self._pid = 0
        self._pipe = -1
        self._status: int | None = None
        self._changed = asyncio.Event()
        self._kill_at_s = float("inf")
        self._ending: asyncio.Task[None] | None = None

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start the server, and return when it has ended and nothing is left of it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._end_soon, ORPHAN_GRACE_S)
        self._owners.add(writer)  # before it attends: it shall be told of the start
        self._start(self._attend(reader, writer))
        failure = ""
        try:
            if await self._wait_for_turn():
                await self._spawn()
                await self._ended()
        except (OSError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            await self._leave_nothing()
        self._tell(
            event="ended",
            status=self._status,
            failure=failure,
            tail=output.tail(state.log_of(self._folder), _TAIL_LINES, [self._order["key"]]),
        )
        self._log.close()
        state.remove(self._folder)
        for owner in list(self._owners):
            owner.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await owner.wait_closed()

    async def _wait_for_turn(self) -> bool:
        """Hold the constraint, once its holder is gone; False if nobody waits for it any more."""
        root, name = self._folder.parent, self._order["exclusive"]
        holder = None
        while self._ending is None:
            if not name or locks.try_lock(root, locks.place_of(f"exclusive {name}")):
                state.write(self._folder, self._record)
                return True
            found = next((one for one in state.records(root) if one.exclusive == name), None)
            if found is not None and found.id != holder:
                holder = found.id
                self._tell(event="busy", holder=holder, what=found.what, pid=found.pid)
            await asyncio.sleep(_QUEUE_POLL_S)
        return False

    async def _spawn(self) -> None:
        self._pipe, into = os.pipe()
        os.set_blocking(self._pipe, False)
        gate_port = await self._gate.open() if self._gate is not None else 0
        try:
            # Its group is its own, and should this guardian be killed, it is as well (on Linux).
            child = subprocess.Popen(  # noqa: ASYNC220 - in its own process
                self._order["argv"],
                env=self._order["env"],
                stdin=subprocess.DEVNULL,
                stdout=into,
                stderr=into,
                start_new_session=True,
                preexec_fn=lambda: _prctl(_DEATH_SIGNAL, signal.SIGKILL),
            )
        finally:
            os.close(into)
        self._pid = child.pid
        child.returncode = 0  # reaped by us, not by it
        asyncio.get_running_loop().add_reader(self._pipe, self._drain)
        started = state.process_started(child.pid)
        self._record = replace(self._record, pid=child.pid, started=started)
        state.write(self._folder, self._record)
        self._tell(event="started", pid=child.pid, gate=gate_port)
        if self._ending is not None:  # asked for while there was nobody to end yet
            self._ending = self._start(self._end())

    def _drain(self) -> bool:
        """Write what the server said to its log; False if there is no more for now."""
        try:
            data = os.read(self._pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe)
        self._log.write(data)
        return bool(data)

    def _reap(self) -> None:
        """Take note of ended children: the server, and what became ours when its parent ended."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._pid:
                    self._status = os.waitstatus_to_exitcode(status)
        self._changed.set()

    async def _ended(self) -> None:
        while self._status is None:
            self._changed.clear()
            await self._changed.wait()

    def _end_soon(self, grace_s: float) -> None:
        """Ask the server to end; it is killed when its grace is over. Asked again, the sooner counts."""
        self._kill_at_s = min(self._kill_at_s, asyncio.get_running_loop().time() + grace_s)
        if self._ending is None:
            self._ending = self._start(self._end())

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        there = state.signal_group(self._pid, signal.SIGTERM)
        while there and loop.time() < self._kill_at_s:
            await asyncio.sleep(_POLL_S)
            there = state.signal_group(self._pid, 0)
        state.signal_group(self._pid, signal.SIGKILL)

    async def _leave_nothing(self) -> None:
        """End what the server left: its group, then processes that went out of it and came to us."""
        if self._pid and state.signal_group(self._pid, 0):
            self._end_soon(ORPHAN_GRACE_S)
        if self._ending is not None:
            await self._ending
        while left := _children():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_S / 4)
            self._reap()
        if self._pipe >= 0:
            while self._drain():
                continue
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
        self._pid = 0
        for listening in (self._gate, self._control):
            if listening is not None:
                listening.close()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve an owner until its connection ends."""
        self._owners.add(writer)
        if self._clock is not None:
            self._clock.cancel()
        try:
            while line := await reader.readline():
                await self._obey(json.loads(line))
        except (OSError, ValueError):  # ended in the middle of a line: it was killed
            pass
        finally:
            self._owners.discard(writer)
            writer.close()
            if not self._owners:
                self._count_down()

    def _count_down(self) -> None:
        """Nobody owns the server: end it, now or when its time is over."""
        if not self._record.identity:
            self._end_soon(ORPHAN_GRACE_S)
        else:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_later(self._record.keep_s, self._end_soon, ORPHAN_GRACE_S)

    async def _obey(self, told: dict[str, Any]) -> None:
        if told["do"] == "end":
            self._end_soon(told["grace_s"])
        elif told["do"] == "keep":
            self._control = await asyncio.start_server(self._adopt, LOOPBACK, 0, limit=LINE_BYTES)
            self._record = replace(
                self._record,
                **told["record"],
                control=self._control.sockets[0].getsockname()[1],
                secret=secrets.token_urlsafe(32),
            )
            state.write(self._folder, self._record)
            self._tell(event="kept", record=self._record.id)

        elif told["do"] == "extend":
            longer = told["keep_s"] > self._record.keep_s  # another owner may have asked for more
            if longer:
                known = {name: told[name] for name in ("keep_s", "reference")}
                self._record = replace(self._record, **known)
                state.write(self._folder, self._record)

    async def _adopt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve somebody who knows the secret: an owner to be, or one who asks how things are."""
        with suppress(OSError, ValueError, KeyError, TimeoutError):
            async with asyncio.timeout(5):
                told = json.loads(await reader.readline())
            known = str(told["secret"]).encode()
            if not hmac.compare_digest(known, self._record.secret.encode()):
                writer.close()
                return
            if told["do"] == "evict" and not self._owners:
                self._end_soon(ORPHAN_GRACE_S)
            owning = told["do"] == "own" and self._ending is None
            answer = {"event": "owned" if owning else "state", **self._state()}
            writer.write(json.dumps(answer).encode() + b"\n")
            if owning:
                await self._attend(reader, writer)
        writer.close()

    def _state(self) -> dict[str, Any]:
        clock = self._clock
        counting = clock is not None and not clock.cancelled()
        now = asyncio.get_running_loop().time()
        left_s = clock.when() - now if clock is not None and counting else None
        return {"id": self._record.id, "owners": len(self._owners), "left_s": left_s}

    def _tell(self, **message: Any) -> None:
        for owner in self._owners:
            owner.write(json.dumps(message).encode() + b"\n")

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _children() -> list[int]:
    """Return the processes whose parent is this one; none where there is no /proc to tell."""
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []
    mine = str(os.getpid())
    return [int(pid) for pid in pids if (values := state.proc_stat(pid)) and values[1] == mine]


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
