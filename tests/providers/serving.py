"""Servers that providers start in tests: stand-ins, kernels that own them, and a folder for each test.

Run as a program it is a kernel: it opens the references that it is given, tells of each when it was there
and when its first token came, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import session
from nbproviders.runtimes.process import server as processes, state
from tests.runtimes.process.servers import nothing_left

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).with_name("standin.py")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is left is looked for in /proc")


def command(*arguments: object) -> list[str]:
    """Return what runs the stand-in instead of a server, as the option `command` takes it."""
    return [sys.executable, "-I", "-S", str(STANDIN), *map(str, arguments)]


@contextmanager
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give servers a folder of their own, and check that none of them is left in the end."""
    folder = tmp_path / "state"
    monkeypatch.setenv(state.STATE_VARIABLE, str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with nothing_left(folder):
        yield folder
        session.unload_all(force=True, timeout_s=20)


def starts(note: Path) -> list[dict[str, Any]]:
    """Return what each start of a stand-in with ``--note`` wrote down."""
    return [json.loads(line) for line in note.read_text().splitlines()] if note.exists() else []


def records() -> list[state.Record]:
    """Return the servers that run."""
    return state.records(state.root())


def pids() -> dict[str, int]:
    """Return the process of each server that runs, by its provider."""
    return {record.what.partition(":")[0]: record.pid for record in records()}


def logs(folder: Path) -> bytes:
    """Return what servers have written so far."""
    return b"".join(path.read_bytes() for path in folder.rglob("*.log"))


def arguments(pid: int) -> bytes:
    """Return what a process was called with, as everybody on this machine may read it."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def end_kept() -> None:
    """End the servers that were kept."""
    for record in records():
        found = await processes.find(record.identity)
        assert found is not None
        await found.stop()


class Kernel:
    """A process that opened models; `told` has a row for each."""

    def __init__(self, *references: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.providers.serving", *references],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None
        lines = [self._child.stdout.readline() for _ in references]
        self.told: dict[str, dict[str, Any]] = {
            row["name"]: row for row in (json.loads(line) for line in lines)
        }

    def kill(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()


async def _kernel(references: list[str]) -> None:
    models = []
    for reference in references:
        began_s = time.perf_counter()
        m = await nbp.load(reference)
        opened_s = time.perf_counter() - began_s
        async for _ in m.stream("12+30=", temperature=0):
            break
        first_s = time.perf_counter() - began_s
        name = reference.partition(":")[0]
        row = {"name": name, "pid": pids()[name], "opened_s": opened_s, "first_s": first_s}
        print(json.dumps(row), flush=True)
        models.append(m)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_kernel(sys.argv[1:]))
