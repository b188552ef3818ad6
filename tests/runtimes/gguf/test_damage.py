"""Nothing that is let through kills the process: the small, seeded form of benchmarks/gguf_damage.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gguf_damage
from tests.gguf_files import write_llama_gguf

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("vocab", ["spm", "bpe"])
def test_damaged_files_never_kill(
    vocab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty damages and six random files each: refused, or loaded and used, and the user lives."""
    monkeypatch.setenv("NBPROVIDERS_CACHE", str(tmp_path / "cache"))
    source = write_llama_gguf(tmp_path / "m.gguf", vocab=vocab, dtype="Q8_0")
    tally = gguf_damage.run(source, times=30, randoms=6, seed=11)
    assert tally.total() == 36
    assert tally["DIED"] == 0
    assert tally["loaded"] > 3
    assert tally["refused by us"] > 6
    assert tally["refused by the trial"] > 0


def test_the_kernel_can_die(tmp_path: Path) -> None:
    """The worker that stands for the kernel notices: without our checks such a file kills it."""
    path = write_llama_gguf(tmp_path / "m.gguf", metadata={"llama.rope.scaling.type": "bent"})
    kernel = gguf_damage.Kernel()
    try:
        assert kernel.use(path).startswith("died")
        assert kernel.use(write_llama_gguf(path)) == "used"
    finally:
        kernel.close()
