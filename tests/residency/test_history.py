"""Promises of what is kept of estimates and measurements."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from nbproviders.residency.history import MOST_RECORDS, History, Measured

ONE = Measured(
    time_s=1.5,
    spec="transformers:org/name",
    architecture="LlamaForCausalLM",
    device="cuda:0",
    weights_bytes=1000,
    cache_bytes=100,
    workspace_bytes=100,
    measured_weights_bytes=1000,
    measured_peak_bytes=1150,
    context_tokens=4096,
    measured_tokens=4000,
)


def peak(count: int, **others: object) -> Measured:
    return dataclasses.replace(ONE, measured_peak_bytes=count, **others)  # type: ignore[arg-type]


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    """In order, by the same object, another one, and one that had read before."""
    early = History(tmp_path / "state")
    assert early.records() == ()
    made = History(tmp_path / "state")
    made.add(ONE)
    assert early.records() == (ONE,)
    made.add(peak(1))
    assert made.records() == early.records() == (ONE, peak(1))


def test_nothing_is_touched_before_its_use(tmp_path: Path) -> None:
    """Making and asking it makes no folder; what it makes is the user's alone."""
    history = History(tmp_path / "state")
    assert history.p95_error() is None
    assert history.correction("LlamaForCausalLM", "cpu") == 1.0
    assert list(tmp_path.iterdir()) == []
    history.add(ONE)
    (path,) = (tmp_path / "state").iterdir()
    assert path.stat().st_mode & 0o077 == 0


def test_options_of_a_reference_are_not_kept(tmp_path: Path) -> None:
    """A reference may carry what is nobody's business."""
    history = History(tmp_path)
    history.add(dataclasses.replace(ONE, spec="transformers:a/b?token=hf_verysecret&dtype=float16"))
    assert history.records()[0].spec == "transformers:a/b"
    assert b"verysecret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"spec": "x"}',
        json.dumps({**dataclasses.asdict(ONE), "weights_bytes": "many"}).encode(),
        json.dumps({**dataclasses.asdict(ONE), "weights_bytes": -1}).encode(),
        json.dumps({**dataclasses.asdict(ONE), "time_s": float("nan")}).encode(),
        json.dumps({**dataclasses.asdict(ONE), "more": 1}).encode(),
        json.dumps(dataclasses.asdict(ONE)).encode()[:-9],
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    """Whatever is in it; lines before and after are read, and one that was cut off ends there."""
    history = History(tmp_path)
    history.add(ONE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + damage)
    history.add(peak(7))
    assert history.records() == (ONE, peak(7))


def test_the_last_thousand_are_kept(tmp_path: Path) -> None:
    """Of more, the oldest are forgotten, in memory and in the file."""
    history = History(tmp_path)
    history.add(ONE)
    (path,) = tmp_path.iterdir()
    line = path.read_bytes()
    path.write_bytes(line * (2**20 // len(line) + 1))
    history.add(peak(7))
    kept = history.records()
    assert len(kept) == MOST_RECORDS
    assert kept[-1] == peak(7)
    assert path.stat().st_size <= (MOST_RECORDS + 1) * len(line)


def test_processes_add_at_once(tmp_path: Path) -> None:
    """No line of any of them is lost or mixed with another's."""
    code = (
        "import sys; from pathlib import Path\n"
        "from nbproviders.residency.history import History\n"
        "from tests.residency.test_history import peak\n"
        "history = History(Path(sys.argv[1]))\n"
        "for i in range(100): history.add(peak(int(sys.argv[2]) + i))\n"
    )
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(first)], cwd=root)
        for first in (0, 1000, 2000)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    found = sorted(one.measured_peak_bytes or 0 for one in History(tmp_path).records())
    assert found == [first + i for first in (0, 1000, 2000) for i in range(100)]


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Loads go on without a history; that is logged once."""
    (tmp_path / "state").write_text("in the way")
    history = History(tmp_path / "state")
    with caplog.at_level(logging.WARNING, "nbproviders"):
        history.add(ONE)
        history.add(ONE)
    assert history.records() == ()
    assert len(caplog.records) == 1


def test_the_error_that_95_of_100_did_not_exceed(tmp_path: Path) -> None:
    """Of all bytes where the peak is known, else of the weights; of an architecture, and a kind of device."""
    history = History(tmp_path)
    for count in range(1, 21):
        history.add(peak(1200 * 100 // (100 + count)))
    assert history.p95_error() == pytest.approx(0.19, abs=0.01)
    assert history.p95_error("LlamaForCausalLM", "cuda") == history.p95_error()
    assert history.p95_error("GPT2LMHeadModel") is None
    assert history.p95_error(device="cpu") is None
    told = dataclasses.replace(ONE, measured_peak_bytes=None, measured_weights_bytes=800)
    assert told.error == 0.25


def test_a_workspace_is_corrected_by_what_was_measured(tmp_path: Path) -> None:
    """Step by step towards the measurements, for its own architecture and kind of device."""
    history = History(tmp_path)
    history.add(peak(1300))
    first = history.correction("LlamaForCausalLM", "cuda:1")
    assert first == pytest.approx(1 + 1 / 3)
    for _ in range(20):
        history.add(peak(1300))
    assert history.correction("LlamaForCausalLM", "cuda:1") == pytest.approx(2.0, abs=0.01)
    assert history.correction("LlamaForCausalLM", "cpu") == 1.0
    assert history.correction("GPT2LMHeadModel", "cuda:0") == 1.0


def test_a_short_text_says_nothing_against_an_estimate(tmp_path: Path) -> None:
    """It can show that a workspace was told too low, not that it was too high."""
    history = History(tmp_path)
    history.add(peak(1110, measured_tokens=50))
    assert history.correction("LlamaForCausalLM", "cuda:0") == 1.0
    history.add(peak(1110))
    assert history.correction("LlamaForCausalLM", "cuda:0") < 1.0
    history.add(peak(1900, measured_tokens=50))
    assert history.correction("LlamaForCausalLM", "cuda:0") > 1.0


@pytest.mark.parametrize("count", [0, 10**9])
def test_a_correction_has_bounds(tmp_path: Path, count: int) -> None:
    """Something else was measured when a workspace is a thousandfold: it does not run away."""
    history = History(tmp_path)
    for _ in range(50):
        history.add(peak(count))
    assert 0.5 <= history.correction("LlamaForCausalLM", "cuda:0") <= 4.0
