"""Drives a real IPython kernel cell by cell, as a notebook front end does."""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager


@dataclass
class Cell:
    """What one cell gave: its printed text, its status, and how long it took."""

    text: str = ""
    status: str = ""
    error: str = ""
    seconds: float = 0.0
    outputs: list[dict[str, Any]] = field(default_factory=list)


class Kernel:
    """A running kernel."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, code: str, timeout_s: float = 120) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.start(code), timeout_s)

    def start(self, code: str) -> str:
        """Start a cell and return its message id."""
        return str(self.client.execute(code))

    def wait_for_text(self, message: str, text: str, timeout_s: float = 120) -> None:
        """Read a running cell's output until a text appears in it."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            got = self.client.get_iopub_msg(timeout=timeout_s)
            if got["parent_header"].get("msg_id") != message:
                continue
            if got["msg_type"] == "error":
                raise AssertionError("\n".join(got["content"]["traceback"]))
            if text in got["content"].get("text", ""):
                return
        raise AssertionError(f"{text!r} did not appear")

    def interrupt(self) -> None:
        """Press stop."""
        os.kill(self.manager.provisioner.pid, signal.SIGINT)  # type: ignore[union-attr]

    def finish(self, message: str, timeout_s: float = 120) -> Cell:
        """Wait until a cell is over and return what it gave."""
        began_s = time.perf_counter()
        cell = Cell()
        while True:
            try:
                got = self.client.get_iopub_msg(timeout=timeout_s)
            except queue.Empty:
                raise AssertionError(f"no end within {timeout_s} s; so far: {cell}") from None
            if got["parent_header"].get("msg_id") != message:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "stream" and content["name"] == "stdout":
                cell.text += content["text"]
            elif kind in ("execute_result", "display_data"):
                cell.outputs.append(content["data"])
            elif kind == "error":
                cell.status, cell.error = "error", f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                cell.status = cell.status or "ok"
                cell.seconds = time.perf_counter() - began_s
                return cell


@contextmanager
def kernel() -> Iterator[Kernel]:
    """Start a kernel of this interpreter; it is gone at the end."""
    manager = KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable  # type: ignore[union-attr]
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
