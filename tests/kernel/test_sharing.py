"""Several kernels on one device: together they never take more than it has, and nobody is told of it."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from nbproviders.residency.ledger import Ledger
from tests.kernel.driver import Kernel, kernel

pytest.importorskip("torch")

DEVICE = "virtual:0"
# Two of the largest take 95 % of what models may take, a tenth being headroom: three kernels that run one
# each wait for one another, and what they all would keep is more than the device has.
LARGEST_BYTES = 5_900_000
TOTAL_BYTES = int(2 * LARGEST_BYTES / 0.95 / 0.9)
ACQUIRES = 500

# What is really allocated is counted by the test itself, for all kernels in one file: each notes what its
# slabs take, under a lock, and writes down what it saw if that is more than the device has.
COUNTED = """
import fcntl, json, random
import nbproviders as nbp
from nbproviders.runtimes import virtual

def count(change):
    with open({taken!r}, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        taken = json.load(file)
        taken[{name!r}] = taken.get({name!r}, 0) + change
        if sum(taken.values()) > {total}:
            taken["over"] = taken.get("over", 0)
            open({over!r}, "a").write(json.dumps(taken) + "\\n")
        # In one write of one length: this process may be killed at any time.
        file.seek(0), file.write(json.dumps(taken).ljust(200)), file.flush()

class Counted(virtual.Taking):
    def __init__(self, name, size):
        super().__init__(name, size)
        self.size = size
        count(size)
    def release(self):
        if self.size:
            count(-self.size)
            self.size = 0
        super().release()

virtual.Taking = Counted
specs = [
    f"transformers:{{model}}?device={device}&dtype={{dtype}}"
    for model in ("demo-xs", "demo-s", "demo-m") for dtype in ("float32", "bfloat16")
]
chosen = random.Random({seed})
print("ready")
"""
ACQUIRE = """
for n in range({times}):
    async with nbp.model(chosen.choice(specs)) as m:
        assert await m.generate("12+30=", max_tokens=2)
    if n == 20:
        print("under way", flush=True)
print("done", nbp.residents().__len__())
"""


@pytest.mark.skipif(os.name == "nt", reason="the ledger is for Linux and macOS")
def test_three_kernels_fill_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 random acquires, one kernel killed in the midst: no error, never too much, and a true ledger."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    monkeypatch.setenv("NBPROVIDERS_VIRTUAL", f"{DEVICE}={TOTAL_BYTES}@1GiB/s")
    taken, over = tmp_path / "taken.json", tmp_path / "over.txt"
    taken.write_text("{}")
    with ExitStack() as stack:
        kernels = [stack.enter_context(kernel()) for _ in range(3)]
        for n, one in enumerate(kernels):
            begin(one, n, taken, over)
        running = [one.start(ACQUIRE.format(times=ACQUIRES // 3 + 1)) for one in kernels]
        kernels[2].wait_for_text(running[2], "under way")
        os.kill(kernels[2].manager.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
        forget(taken, "kernel 2")
        for one, message in zip(kernels[:2], running[:2], strict=True):
            cell = one.finish(message)
            assert (cell.status, "done" in cell.text) == ("ok", True), cell.error
        assert not over.exists(), over.read_text()
        seen = Ledger(tmp_path / "nbproviders" / "ledger").others(DEVICE)
        alive = {one.manager.provisioner.pid for one in kernels[:2]}  # type: ignore[union-attr]
        assert {row.pid for row in seen} <= alive
        told = sum(row.taken_bytes for row in seen)
        really = sum(json.loads(taken.read_text()).values())
        print(f"told {told:,} bytes, really {really:,}, of {TOTAL_BYTES:,}; {len(seen)} models")
        assert told == really > 0


def begin(one: Kernel, number: int, taken: Path, over: Path) -> None:
    cell = one.run(
        COUNTED.format(
            taken=str(taken),
            over=str(over),
            name=f"kernel {number}",
            total=TOTAL_BYTES,
            device=DEVICE,
            seed=number,
        )
    )
    assert cell.status == "ok", cell.error


def forget(taken: Path, name: str) -> None:
    """Take what a killed kernel had out of the count: the system has it back."""
    import fcntl

    with taken.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        counted = json.load(file)
        counted.pop(name, None)
        file.seek(0)
        file.write(json.dumps(counted).ljust(200))
