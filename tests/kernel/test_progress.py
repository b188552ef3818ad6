"""In a real kernel: a cell that waits for a model says so, and its traceback after Stop is short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.driver import Kernel, kernel

pytest.importorskip("torch")

SETUP = """
import os
os.environ["NBPROVIDERS_VIRTUAL"] = "virtual:0=8MiB@100KiB/s"
import nbproviders as nbp
spec = "transformers:demo-s?device=virtual:0"
m = nbp.load_sync(spec)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Kernel]:
    with kernel() as started:
        cell = started.run(SETUP)
        assert cell.status == "ok", cell.error
        yield started


@pytest.mark.parametrize(
    "code", ["nbp.wake(spec)", "text = m.generate('1+1=')", "m = await nbp.load(spec)"]
)
def test_waking_is_told_below_the_cell(running: Kernel, code: str) -> None:
    """Blocking or awaited, an open handle's call or an opening: one line, and only while it wakes."""
    cell = running.run(f"_ = nbp.sleep(spec)\n{code}")
    assert cell.status == "ok", cell.error
    (line,) = cell.outputs
    assert line["text/plain"].startswith("Waking transformers:demo-s?device=virtual:0, 1 s  ")
    assert running.run(code).outputs == []  # it is awake


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("nbp.wake(spec)", "KeyboardInterrupt: "),
        ("await nbp.load(spec)", "CancelledError: Stopped before its end."),
        ("await nbp.compare(spec, ['x'])", "CancelledError: Stopped before its end."),
    ],
)
def test_stop_is_told_in_a_few_lines(running: Kernel, code: str, error: str) -> None:
    """Of what it interrupted, nobody sees the frames of libraries that waited for it."""
    begun = running.start(f"_ = nbp.sleep(spec)\n{code}")
    while running.client.get_iopub_msg(timeout=60)["msg_type"] != "display_data":
        pass  # until its line is there
    running.interrupt()
    cell = running.finish(begun)
    assert cell.error == error
    shown = running.run("import sys, traceback; print(*traceback.format_tb(sys.last_traceback))")
    assert "asyncio" not in shown.text
    assert "concurrent" not in shown.text
    assert "threading" not in shown.text
