"""Bytes on their way to a device: read ahead by several threads, copied beside the reading, in chunks.

Between two chunks a transfer can be cancelled, and says how far it is.
"""

from __future__ import annotations

import ctypes
import os
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from nbproviders.residency.progress import Progress
from nbproviders.runtimes import devices, virtual
from nbproviders.runtimes.hostcopy import HostBuffer
from nbproviders.runtimes.slab import ALIGNMENT, Entry

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 16 * 2**20
_READERS = min(max(os.cpu_count() or 4, 4), 8)
_RING = 2 * _READERS  # chunks: while some are copied, others are read
_UNDER_WAY = 4  # copies begun and not waited for: a bus is kept busy by two
_SLICE_S = 0.02

Wait = Callable[[], object]
Bring = Callable[[int, int, "Tensor"], None]


class Source(Protocol):
    """Gives bytes of one entry."""

    def read(self, begin: int, end: int, out: Tensor) -> None:
        """Write the bytes from `begin` to `end` to `out`."""


class Lane:
    """Copies to a device; this one to main memory."""

    locks_for = ""  # the device for which main memory is page-locked that is copied from
    chunk_bytes = CHUNK

    def put(self, target: Tensor, source: Tensor) -> Wait:
        """Begin a copy; what is returned waits for its end."""
        target.copy_(source)
        return _nothing

    def finish(self) -> None:
        """Wait for all copies."""


def _nothing() -> None:
    pass


class InPlace(Lane):
    """For bytes that are read to where they belong."""

    def put(self, target: Tensor, source: Tensor) -> Wait:
        """Nothing is left to do."""
        return _nothing


class VirtualLane(Lane):
    """Copies as slowly as the virtual device says.

    Parameters
    ----------
    bytes_per_s
        Its speed; None is as fast as it goes.
    check
        Raises if the transfer is not wanted any more; asked 50 times a second.
    """

    def __init__(self, bytes_per_s: int | None, check: Callable[[], None]) -> None:
        self._speed, self._check = bytes_per_s, check
        self._due_s = time.perf_counter()
        if bytes_per_s:
            slices = int(bytes_per_s * _SLICE_S) // ALIGNMENT
            self.chunk_bytes = min(CHUNK, max(slices, 1) * ALIGNMENT)

    def put(self, target: Tensor, source: Tensor) -> Wait:
        """Copy, and come back no sooner than the bus would have."""
        # A sleep that took too long is made up for, or many short copies would be too slow.
        begun_s = max(time.perf_counter() - _SLICE_S, self._due_s)
        # Not by torch: its threads wait for each other, which is slow where readers have the cores.
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)
        if self._speed:
            self._due_s = begun_s + source.nbytes / self._speed
            while (left_s := self._due_s - time.perf_counter()) > 0:
                self._check()
                time.sleep(min(left_s, _SLICE_S))
        return _nothing


class CudaLane(Lane):
    """Copies on a stream of its own, beside what the device computes."""

    def __init__(self, device: str) -> None:
        import torch

        self.locks_for = device
        self._stream = torch.cuda.Stream(device)
        # The slab may lie where memory was used by work that is still queued.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def put(self, target: Tensor, source: Tensor) -> Wait:
        """Queue the copy; `source` stays as it is until that was waited for."""
        import torch

        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            ended = torch.cuda.Event()
            ended.record(self._stream)
        waits: Wait = ended.synchronize
        return waits

    def finish(self) -> None:
        """Wait for all copies."""
        self._stream.synchronize()


@contextmanager
def lane(device: str, check: Callable[[], None]) -> Iterator[Lane]:
    """Yield what copies to a device; at its end no copy is under way."""
    made: Lane
    if virtual.is_virtual(device):
        made = VirtualLane(virtual.device(device).bytes_per_s, check)
    elif device.startswith("cuda"):
        made = CudaLane(device)
    else:
        made = Lane()
    try:
        yield made
    finally:
        made.finish()


def bringing(entries: Sequence[Entry], sources: Sequence[Source]) -> Bring:
    """Return what brings any part of a slab from the sources of its entries."""
    begins = [entry.begin for entry in entries]

    def bring(begin: int, end: int, out: Tensor) -> None:
        at = max(bisect_right(begins, begin) - 1, 0)
        while at < len(entries) and begins[at] < end:
            entry = entries[at]
            first, last = max(begin, entry.begin), min(end, entry.end)
            if first < last:
                part = out[first - begin : last - begin]
                sources[at].read(first - entry.begin, last - entry.begin, part)
            at += 1

    return bring


def fill(
    target: Tensor,
    bring: Bring,
    lane: Lane,
    progress: Progress,
    phase: str,
    *,
    host: Tensor | None = None,
    arrived: Callable[[int], None] = lambda end: None,
) -> None:
    """Fill a device's memory, from its first byte to its last.

    Parameters
    ----------
    target
        Where to, ``uint8``.
    bring
        Writes the bytes of a part to main memory; called by several threads.
    lane
        Copies them to the device.
    progress
        Told of bytes that have arrived; raises to end it.
    phase
        What to call it there.
    host
        Main memory of the same size that keeps what is brought. None: a ring of a few chunks, given back at
        the end.
    arrived
        Told how far everything has been brought.
    """
    total = target.numel()
    size = lane.chunk_bytes
    ring = None
    if host is None:
        ring = HostBuffer(size * min(_RING, -(-total // size) or 1), device=lane.locks_for)
    try:
        places = _Places(host, ring.bytes if ring is not None else None, size)
        with _reading() as submit:
            todo = deque((at, min(at + size, total)) for at in range(0, total, size))
            read: deque[tuple[int, int, Tensor, Future[None]]] = deque()
            progress.report(0, total, phase)
            while todo or read:
                while todo and len(read) < _RING and (place := places.take(*todo[0])) is not None:
                    begin, end = todo.popleft()
                    read.append((begin, end, place, submit(bring, begin, end, place)))
                if not read:  # all places hold what is being copied
                    places.await_one(progress)
                    continue
                begin, end, place, brought = read.popleft()
                brought.result()
                places.leave(end, lane.put(target[begin:end], place), place)
                arrived(end)
                places.report(progress)
            lane.finish()
            progress.report(total)
    finally:
        lane.finish()  # nothing reads the ring any more
        if ring is not None:
            ring.free()


def replay(target: Tensor, host: Tensor, lane: Lane, progress: Progress, phase: str) -> None:
    """Fill a device's memory from a whole copy of it in main memory."""
    total, size = target.numel(), lane.chunk_bytes
    under_way: deque[tuple[int, Wait]] = deque()
    progress.report(0, total, phase)
    for begin in range(0, total, size):
        end = min(begin + size, total)
        under_way.append((end, lane.put(target[begin:end], host[begin:end])))
        if len(under_way) >= _UNDER_WAY:
            done, wait = under_way.popleft()
            wait()
            progress.report(done)
    lane.finish()
    progress.report(total)


class _Places:
    """Where chunks are brought to: their own part of a host copy, or a free one of a ring."""

    def __init__(self, host: Tensor | None, ring: Tensor | None, size: int) -> None:
        self._host = host
        self._free = deque(ring.split(size)) if ring is not None else deque()
        self._copied: deque[tuple[int, Wait, Tensor]] = deque()

    def take(self, begin: int, end: int) -> Tensor | None:
        if self._host is not None:
            return self._host[begin:end]
        return self._free.popleft()[: end - begin] if self._free else None

    def leave(self, end: int, wait: Wait, place: Tensor) -> None:
        self._copied.append((end, wait, place))

    def report(self, progress: Progress) -> None:
        """Wait for the oldest copies, so that few are under way, and tell of them."""
        while len(self._copied) > _UNDER_WAY:
            self.await_one(progress)
        progress.check()

    def await_one(self, progress: Progress) -> None:
        end, wait, place = self._copied.popleft()
        wait()
        if self._host is None:
            self._free.append(place)
        progress.report(end)


@contextmanager
def _reading() -> Iterator[Callable[..., Future[None]]]:
    """Yield what calls a function on one of a few threads; at its end none of them runs."""
    pool = ThreadPoolExecutor(
        _READERS, "nbproviders-reading", initializer=lambda: devices.suit_threads(1)
    )

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[None]:
        return pool.submit(function, *arguments)

    try:
        yield submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
