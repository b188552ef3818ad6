"""Bytes on their way to a device: complete, in order, cancellable, and as fast as the device says."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nbproviders.errors import ClosedError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import transfers, virtual

torch = pytest.importorskip("torch")


class SmallLane(transfers.Lane):
    """Chunks of 256 bytes, so that there are many."""

    chunk_bytes = 256

    def __init__(self) -> None:
        self.finished = 0

    def finish(self) -> None:
        self.finished += 1


def pattern(size: int) -> Any:
    return (torch.arange(size) * 31 % 251).to(torch.uint8)


def bringer(whole: Any) -> transfers.Bring:
    def bring(begin: int, end: int, out: Any) -> None:
        out.copy_(whole[begin:end])

    return bring


@pytest.mark.parametrize("size", [1, 255, 256, 10_001])
@pytest.mark.parametrize("kept", [False, True])
def test_everything_arrives_and_a_host_copy_keeps_it(size: int, kept: bool) -> None:
    """Any length arrives whole, by a ring or by a copy that is kept; progress ends at the total."""
    whole, target = pattern(size), torch.zeros(size, dtype=torch.uint8)
    host = torch.zeros(size, dtype=torch.uint8) if kept else None
    progress, ends = Progress(), []
    transfers.fill(
        target, bringer(whole), SmallLane(), progress, "going", host=host, arrived=ends.append
    )
    assert torch.equal(target, whole)
    assert host is None or torch.equal(host, whole)
    assert (progress.done_bytes, progress.total_bytes, progress.phase) == (size, size, "going")
    assert ends == sorted(ends)
    assert ends[-1] == size


def test_a_host_copy_comes_back_whole() -> None:
    """Replayed, a host copy is on the device as it is in memory."""
    whole, target = pattern(10_001), torch.zeros(10_001, dtype=torch.uint8)
    progress = Progress()
    transfers.replay(target, whole, SmallLane(), progress, "waking")
    assert torch.equal(target, whole)
    assert progress.fraction == 1


@pytest.mark.parametrize("kept", [False, True])
def test_a_cancelled_transfer_ends_between_chunks(kept: bool) -> None:
    """Cancelled in the middle nothing reads on, no copy is under way, and the ring is given back."""
    progress, lane = Progress(), SmallLane()
    host = torch.zeros(100_000, dtype=torch.uint8) if kept else None
    places = []

    def bring(begin: int, end: int, out: Any) -> None:
        places.append(out)
        if begin >= 5_120:
            progress.cancel()

    with pytest.raises(ClosedError):
        transfers.fill(
            torch.zeros(100_000, dtype=torch.uint8), bring, lane, progress, "going", host=host
        )
    assert lane.finished
    assert len(places) < 100_000 / 256 / 2
    count = len(places)
    assert not [t for t in threading.enumerate() if t.name.startswith("nbproviders-reading")]
    assert len(places) == count
    if not kept:
        assert places[0].untyped_storage().nbytes() == 0


def test_a_reader_that_fails_fails_the_transfer() -> None:
    """What a source raises comes out as it is."""

    def bring(begin: int, end: int, out: Any) -> None:
        raise LookupError("planted")

    with pytest.raises(LookupError, match="planted"):
        transfers.fill(torch.zeros(999, dtype=torch.uint8), bring, SmallLane(), Progress(), "going")


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self, progress: Progress, ends_s: float = 1e9) -> None:
        self.now_s, self._progress, self._ends_s = 0.0, progress, ends_s

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.05  # between two of them it can be cancelled
        self.now_s += seconds * 1.1  # nobody wakes on time
        if self.now_s > self._ends_s:
            self._progress.cancel()


def test_a_virtual_device_is_as_fast_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies take the time of bytes by speed, though each single sleep is a little too long."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=1GiB@1MiB/s")
    size, progress = 2**21, Progress()
    clock = Clock(progress)
    monkeypatch.setattr(transfers, "time", clock)
    whole, target = pattern(size), torch.zeros(size, dtype=torch.uint8)
    with transfers.lane("virtual:0", progress.check) as lane:
        transfers.replay(target, whole, lane, progress, "waking")
    assert torch.equal(target, whole)
    assert clock.now_s == pytest.approx(2.0, abs=0.05)


def test_a_slow_copy_is_cancelled_within_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to a slow device looks for a cancellation many times a second."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=1GiB@1KiB/s")
    progress = Progress()
    clock = Clock(progress, ends_s=1.0)
    monkeypatch.setattr(transfers, "time", clock)
    whole = pattern(2**16)
    with (
        pytest.raises(ClosedError),
        transfers.lane("virtual:0", progress.check) as lane,
    ):
        transfers.replay(torch.zeros_like(whole), whole, lane, progress, "waking")
    assert clock.now_s < 1.1


def test_entries_are_brought_from_their_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a slab is put together of all entries that it touches, each from its own source."""
    from nbproviders.runtimes.slab import layout, slab_bytes
    from nbproviders.runtimes.weightfiles import MemorySource

    model = torch.nn.Module()
    for at, size in enumerate((3, 700, 64, 1)):
        model.register_buffer(f"b{at}", pattern(size * (at + 1))[:size])
    entries = layout(model)
    bring = transfers.bringing(entries, [MemorySource(entry.memory()) for entry in entries])
    target = torch.zeros(slab_bytes(entries), dtype=torch.uint8)
    for begin in range(0, len(target), 256):
        end = min(begin + 256, len(target))
        bring(begin, end, target[begin:end])
    for entry in entries:
        assert torch.equal(target[entry.begin : entry.end], entry.memory())
