"""Memory in a real kernel: it comes back, though IPython keeps a failed cell's frames alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.driver import kernel
from tests.tiny import llama_bytes, write_llama

pytest.importorskip("torch")

HIDDEN, LAYERS = 1024, 8  # 437 MB in float32

WARM = """
import gc, psutil, nbproviders as nbp
def used():
    gc.collect()
    return psutil.Process().memory_info().rss
async with nbp.model("transformers:demo-s") as m:
    await m.generate("12+30=")
nbp.unload_all()
spec = "transformers:{path}"
base = used()
print(base)
"""
RAISE_HOLDING_A_CLIENT = """
async with nbp.model(spec) as m:
    await m.generate("x", raw=True, max_tokens=2)
    inside = m
    raise ValueError("in the middle of a cell")
"""
RAISE_HOLDING_THE_WEIGHTS = """
kept = await nbp.load(spec)
await kept.generate("x", raw=True, max_tokens=2)
def fail(module):
    copy_of_reference = module
    raise ValueError("with the module in a frame")
fail(kept.raw)
"""


def test_memory_comes_back_after_cells_that_raised(tmp_path: Path) -> None:
    """Two cells raise while holding a large model; `unload` gives 90 % of its bytes back."""
    path = write_llama(tmp_path, hidden=HIDDEN, layers=LAYERS)
    size = llama_bytes(HIDDEN, LAYERS)
    assert size >= 400e6
    with kernel() as running:
        base = running.run(WARM.format(path=path))
        assert base.status == "ok", base.error
        for code in (RAISE_HOLDING_A_CLIENT, RAISE_HOLDING_THE_WEIGHTS):
            assert running.run(code).status == "error"
        told = running.run(
            "full = used()\nfreed = nbp.unload(spec)\nprint(full - base, freed, used() - base)"
        )
        assert told.status == "ok", told.error
        full, freed, left = map(int, told.text.split())
        print(f"model {size / 1e6:.0f} MB, held {full / 1e6:.0f} MB, left {left / 1e6:.0f} MB")
        assert size <= freed < 1.001 * size  # a few small buffers come on top of the weights
        assert full > 0.9 * size, "the weights were never in memory: this measures nothing"
        assert left < full - 0.9 * size
        again = running.run("print(await kept.generate('x', raw=True, max_tokens=2) is not None)")
        assert again.text.strip() == "True", again.error
