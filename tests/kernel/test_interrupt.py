"""Stop in a real kernel: the cell ends at once, nothing is left held, the next cell works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.driver import Kernel, kernel
from tests.tiny import write_llama

pytest.importorskip("torch")

TRIALS = 20

SETUP = """
import asyncio, nbproviders as nbp
from nbproviders.residency import residency
spec = "transformers:{path}"
m = await nbp.load(spec)
def held():
    return [one.running for one in nbp.residents() if one.spec == spec]
async def until_free():
    while held() != [0]:
        await asyncio.sleep(0.01)
"""
LONG = """
print("begun", flush=True)
text = await m.generate("x", raw=True)
print("finished by itself")
"""
AFTER = """
await asyncio.wait_for(until_free(), 10)
print(held(), len(await m.generate("x", raw=True, max_tokens=3)) >= 0)
"""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that goes on for minutes: a long context and no end token."""
    return write_llama(
        tmp_path_factory.mktemp("endless"), hidden=256, layers=8, context=32_768, ends=False
    )


@pytest.fixture(scope="module")
def running(endless: Path) -> object:
    with kernel() as started:
        cell = started.run(SETUP.format(path=endless))
        assert cell.status == "ok", cell.error
        # IPython imports its traceback printer at a kernel's first error, whatever raised it: 100 to
        # 300 ms that are not ours to count.
        started.run("1/0")
        yield started


def stop_once(running: Kernel, code: str) -> float:
    """Return seconds from the interrupt to the cell's end."""
    message = running.start(code)
    running.wait_for_text(message, "begun")
    running.interrupt()
    cell = running.finish(message)
    assert cell.status == "error", cell.text
    assert "finished" not in cell.text
    return cell.seconds


def test_stop_ends_a_long_generation_and_gives_the_lease_back(running: Kernel) -> None:
    """An interrupt ends the cell, the hard lease is back, and the next cell generates at once."""
    taken = []
    for _ in range(TRIALS):
        taken.append(stop_once(running, LONG))
        after = running.run(AFTER)
        assert after.status == "ok", after.error
        assert after.text.strip() == "[0] True"
    print("ms:", *(f"{one * 1e3:.0f}" for one in taken), f"worst {max(taken) * 1e3:.0f}")
    # No figure is asserted as a claim here; a cell that waited for the work would take minutes.
    assert max(taken) < 5


def test_stop_ends_a_stream(running: Kernel) -> None:
    """An interrupt while chunks are read ends the cell and frees the model."""
    code = """
print("begun", flush=True)
async for chunk in m.stream("x", raw=True):
    pass
print("finished by itself")
"""
    assert stop_once(running, code) < 5
    after = running.run(AFTER)
    assert after.text.strip() == "[0] True", after.error


def test_stop_ends_a_blocking_call(running: Kernel) -> None:
    """Ctrl-C ends a call of a SyncClient in a plain cell."""
    code = """
with nbp.model(spec) as blocking:
    print("begun", flush=True)
    blocking.generate("x", raw=True)
print("finished by itself")
"""
    assert stop_once(running, code) < 5
    after = running.run(AFTER)
    assert after.text.strip() == "[0] True", after.error


def test_stop_ends_a_comparison(running: Kernel) -> None:
    """An interrupt ends a running comparison, and the model is free again."""
    code = """
print("begun", flush=True)
await nbp.compare([spec], ["x"] * 4, {"max_tokens": 30000})
print("finished by itself")
"""
    assert stop_once(running, code) < 5
    after = running.run(AFTER)
    assert after.text.strip() == "[0] True", after.error
