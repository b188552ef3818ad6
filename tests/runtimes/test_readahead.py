"""Promises of reading ahead: all bytes once, nothing that has no room, an end when it is told to stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbproviders.residency.memory import Reading
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import readahead


def files(folder: Path, *sizes: int) -> list[Path]:
    made = []
    for n, size in enumerate(sizes):
        made.append(folder / f"{n}.bin")
        made[-1].write_bytes(b"x" * size)
    return made


def test_every_byte_is_read_once(tmp_path: Path) -> None:
    """Over several files, told as it goes; one that is gone is left out."""
    progress = Progress()
    paths = [*files(tmp_path, 9 * 2**20, 100), tmp_path / "gone.bin"]
    assert readahead.read_ahead(paths, progress) == 9 * 2**20 + 100
    assert (progress.done_bytes, progress.fraction) == (9 * 2**20 + 100, 1.0)


def test_it_ends_when_nobody_wants_it(tmp_path: Path) -> None:
    """At the next chunk, without an error."""
    progress = Progress()
    progress.cancel()
    assert readahead.read_ahead(files(tmp_path, 20 * 2**20), progress) == 8 * 2**20


def test_nothing_is_read_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would push out what somebody uses."""
    monkeypatch.setattr(readahead, "probe_cpu", lambda: Reading(10_000, 1_500))
    assert readahead.read_ahead(files(tmp_path, 600), Progress()) == 0
    assert readahead.read_ahead(files(tmp_path, 400), Progress()) == 400
