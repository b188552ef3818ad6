"""Promises of the guardian: no server outlives its kernel unless it is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbproviders.runtimes.process import state
from tests.runtimes.process.servers import left, soon
from tests.timing import at_best

ROOT = Path(__file__).parents[3]


def kernel(what: str, keep_s: float = 0, lines: int = 1) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a kernel and return it with the numbers it printed, the server's last."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.runtimes.process.kernel", what, str(keep_s)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    return child, [int(child.stdout.readline()) for _ in range(lines)]


def killed(child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """End a kernel by a signal."""
    child.send_signal(number)
    child.wait()  # not for the end of its output: a child of its own may hold that
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        pipe.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_server_ends_with_its_kernel(number: int, folder: Path) -> None:
    """Whatever signal ends the kernel, server, guardian and files are gone within a second."""

    def ended() -> float:
        child, (pid,) = kernel("start")
        assert state.process_started(pid)
        killed(child, number)
        took_s = soon(lambda: not state.process_started(pid))
        soon(lambda: not left(folder))
        return took_s

    assert at_best(ended, 1) < 1


@pytest.mark.parametrize("what", ["fork", "exec"])
def test_a_child_of_the_kernel_does_not_keep_a_server(what: str, folder: Path) -> None:
    """Neither a forked child nor a program that inherits all files counts as the kernel."""

    def ended() -> float:
        child, (other, pid) = kernel(what, lines=2)
        killed(child)
        took_s = soon(lambda: not state.process_started(pid))
        assert state.process_started(other)
        os.kill(other, signal.SIGKILL)
        return took_s

    assert at_best(ended, 1) < 1


def test_a_kernel_that_ends_by_itself_leaves_nothing(folder: Path) -> None:
    """Without any call at its end, by `os._exit` even."""
    child, (pid,) = kernel("gate")
    assert len(left(folder)) == 4
    child.communicate()
    soon(lambda: not state.process_started(pid))
