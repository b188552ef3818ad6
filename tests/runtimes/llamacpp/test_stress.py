"""A kernel that lives through everything people do to a GGUF model at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nbproviders as nbp

pytest.importorskip("llama_cpp")

SCRIPT = Path(__file__).with_name("stress.py")


def run(*arguments: str, timeout_s: float = 240) -> str:
    """Run the script in a process of its own: a crash of native code must be seen, not suffered."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_cancel_close_and_generate_from_eight_threads() -> None:
    """In any order, with unloading in between: no crash, no hang, every lease back, no thread left."""
    told = run("250")
    assert "leases back: yes" in told
    assert "threads left: 0" in told


def test_a_long_run_of_one_letter_is_tokenised() -> None:
    """What overflows the stack of native code in one piece is cut; no letter is lost."""
    with nbp.model("llama-cpp:demo-m") as m, pytest.raises(nbp.InvalidRequestError, match="40004"):
        m.generate("x" * 40_000)


@pytest.mark.parametrize(
    "text", ["x" * 20_000, "ab " * 9_000, "1" * 8_000 + " " * 9_000 + "é_" * 9_000]
)
def test_cutting_long_runs_keeps_the_text(text: str) -> None:
    """The pieces put together are the text, and no piece has a run that is too long."""
    from nbproviders.runtimes.llamacpp.vocabulary import _LONGEST_RUN, _RUNS, _short_runs

    pieces = _short_runs(text)
    assert "".join(pieces) == text
    longest = max((len(found[0]) for piece in pieces for found in _RUNS.finditer(piece)), default=0)
    assert longest <= _LONGEST_RUN
    assert _short_runs("a b c") == ["a b c"]
