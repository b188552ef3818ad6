"""Run as a program: a kernel with a page in the ledger, told line by line what to do.

Arguments: the ledger's folder, its label. Each line is JSON, a command and its arguments, and is answered by
one line of JSON. Ends with its input. `Kernel` is the test's end of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbproviders.errors import ProviderError
from nbproviders.residency import locks
from nbproviders.residency.ledger import Ledger, Row

GPU = "gpu-1"


def row(key: str = "a", count: int = 100, *, idle: bool = True, device: str = GPU) -> Row:
    return Row(key, f"echo:{key}", device, count, count, "hot", idle)


class Kernel:
    """A process with a page in the ledger."""

    def __init__(self, folder: Path, label: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.residency.kernels", str(folder), label],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[2],
        )
        self.pid = self.process.pid

    def tell(self, command: str, *arguments: object) -> None:
        """Give a command, and go on; `answer` returns what comes of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, command: str, *arguments: object) -> Any:
        self.tell(command, *arguments)
        return self.answer()

    def stop(self) -> None:
        """Stop it as Ctrl-Z does; it has stopped when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Commands:
    """What a kernel can be told."""

    def __init__(self, folder: str, label: str) -> None:
        self.ledger = Ledger(Path(folder), label)
        self.rows: list[Row] = []
        self.asked: list[int] = []

    async def publish(self, *rows: list[Any]) -> None:
        """Publish rows of a key, bytes, and whether they are idle."""
        self.rows = [row(key, count, idle=idle) for key, count, idle in rows]
        self.ledger.publish(self.rows)

    async def others(self, device: str) -> list[list[Any]]:
        return [[one.key, one.process] for one in self.ledger.others(device)]

    async def serve(self, how: str = "") -> None:
        """Give idle rows away when asked; or refuse, or never say anything."""

        async def give(device: str, need_bytes: int) -> int:
            self.asked.append(need_bytes)
            if how == "refuse":
                raise ProviderError("No.")
            if how == "hang":
                await asyncio.Event().wait()
            freed = sum(one.taken_bytes for one in self.rows if one.idle)
            self.rows = [one for one in self.rows if not one.idle]
            self.ledger.publish(self.rows)
            return freed

        self.ledger.serve(give)

    async def calls(self) -> list[int]:
        return self.asked

    async def reserve(self, tries: int, limit: int, seed: int) -> list[int]:
        """Try to reserve again and again; return the most that was ever charged in all, and the successes."""
        dice, most, granted = random.Random(seed), 0, 0
        for _ in range(tries):
            need = dice.randrange(1, limit)
            with self.ledger.reserving(GPU):
                charged = sum(one.charged_bytes for one in self.ledger.others(GPU))
                if charged + need <= limit:
                    self.ledger.publish([replace(row(), charged_bytes=need, taken_bytes=0)])
                    charged = sum(one.charged_bytes for one in self.ledger.others(GPU))
                    most, granted = max(most, charged + need), granted + 1
            if dice.random() < 0.5:
                self.ledger.publish([])
        self.ledger.publish([])
        return [most, granted]

    async def hold(self, fork: str = "") -> None:
        """Take the device's lock, fork perhaps, say so, and never give it back."""
        with self.ledger.reserving(GPU):
            child = await self.fork() if fork else None
            print(json.dumps(child and child[0]), flush=True)
            sys.stdin.read()

    async def fork_while_reserving(self, how: str) -> int:
        with self.ledger.reserving(GPU):
            child = await (self.fork() if how == "fork" else self.fork_in_c())
        return child[0] if isinstance(child, list) else child

    async def leave_in_child(self) -> bool:
        """Fork while reserving, and tell whether a file that the child opened is left alone by it."""
        reading, writing = os.pipe()
        with self.ledger.reserving(GPU):
            pid = os.fork()
            opened = os.open("/dev/null", os.O_RDONLY) if pid == 0 else reading
        if pid == 0:
            try:
                os.fstat(opened)
                os.write(writing, b"y")
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            return told.read() == "y"

    async def forget_the_start(self) -> None:
        """Be on a system that does not tell when a process started."""
        locks.process_started = lambda _: ""

    async def flicker(self) -> None:
        """Publish one long page and one short one in turns, until killed; say so after the first."""
        for turn in range(10**9):
            self.ledger.publish([row(f"{i}", i + 1) for i in range((1, 200)[turn % 2])])
            if turn == 1:
                print("null", flush=True)

    async def fork(self) -> list[Any]:
        """Fork a child that enters the ledger itself, and tell its pid and what it sees of us."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            seen = await self.others(GPU)
            self.ledger.publish([row("child")])
            os.write(writing, json.dumps(seen).encode() + b"\n")
            while True:
                signal.pause()
        with os.fdopen(reading) as told:
            os.close(writing)
            return [pid, json.loads(told.readline())]

    async def fork_in_c(self) -> int:
        """Fork a child as a C library does, without Python's hooks; it has all files open that we have."""
        libc = ctypes.PyDLL(None)
        pid = int(libc.fork())
        if pid == 0:
            while True:
                libc.pause()
        return pid

    async def fill_the_disk(self) -> None:
        """Let no file grow any more."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    async def close(self) -> None:
        await self.ledger.close()


async def main(folder: str, label: str) -> None:
    commands = Commands(folder, label)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, *arguments = json.loads(line)
        command: Callable[..., Any] = getattr(commands, name)
        print(json.dumps(await command(*arguments)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
