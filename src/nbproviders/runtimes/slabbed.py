"""Weights in one slab on an accelerator, with a copy in main memory or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nbproviders.residency.progress import Progress
from nbproviders.runtimes import devices, transfers
from nbproviders.runtimes.hostcopy import HostBuffer
from nbproviders.runtimes.placement import (
    WAKING,
    Fixed,
    Placement,
    allowance,
    files_of,
    obstacle,
    spans_of,
    told,
)
from nbproviders.runtimes.slab import (
    Entry,
    Slab,
    TooLargePieceError,
    discard,
    emptied,
    layout,
    slab_bytes,
)
from nbproviders.runtimes.weightfiles import (
    ComparedSource,
    MemorySource,
    Span,
    WeightFiles,
    file_source,
)

if TYPE_CHECKING:
    from torch import Tensor

HOST = "host"


def place(model: Any, device: str, folder: Path | None, progress: Progress) -> Placement:
    """Move a model from the CPU to an accelerator.

    Parameters
    ----------
    model
        On the CPU.
    device
        Where to.
    folder
        With the safetensors that it was loaded from, if there are any.
    progress
        Of the load; `Progress.host_bytes` says what a copy in main memory may take.

    Raises
    ------
    InsufficientMemoryError
        If there is no room; nothing is held then.
    """
    reason = obstacle(model) or _without_views(devices.computes_on(device))
    if not reason:
        try:
            return Slabbed(model, device, files_of(folder), progress)
        except TooLargePieceError:
            reason = "the device gives no piece of memory so large"
    model.to(devices.computes_on(device))
    return Fixed(model, reason)


class Slabbed(Placement):
    """Weights in one slab; `place` makes one.

    Each tensor is compared with what its file holds while it is loaded. What no file holds is kept in main
    memory, if it is little: then the whole can wake from the files.

    Parameters
    ----------
    model
        On the CPU; plain tensors.
    device
        Where to.
    files
        That it was loaded from.
    progress
        As in `place`.
    """

    def __init__(
        self, model: Any, device: str, files: WeightFiles | None, progress: Progress
    ) -> None:
        entries = layout(model)
        self._device, self._files = device, files
        self._size = slab_bytes(entries)
        self._spans = spans_of(model, entries, files)
        self._kept: dict[int, Tensor] = {}  # by an entry's number
        self._host: HostBuffer | None = None
        self._left: list[Slab] = []  # of earlier sleeps, as long as somebody looks into them
        self._slab = Slab(device, self._size)
        progress.allocated_bytes[device] = self._size
        self.entries = entries  # for `free`
        with ExitStack() as undone:
            undone.callback(self.free)
            undone.callback(discard, entries)  # the last is done first
            # Granted by the tensors' bytes; what aligns them in a slab is less than a thousandth.
            if 0 < sum(entry.size_bytes for entry in entries) <= progress.host_bytes:
                self._host = HostBuffer(self._size, device=device)
            reason = self._filled(entries, progress)
            self._slab.point(entries)
            undone.pop_all()
        devices.release_cached()  # what was cast on the way lay in blocks that the heap would keep
        super().__init__(model, entries, reason)

    def _filled(self, entries: Sequence[Entry], progress: Progress) -> str:
        """Fill the slab, and return what stands against sleeping."""
        opening: AbstractContextManager[Mapping[Path, BinaryIO]]
        opening = self._files.opened() if self._files is not None else nullcontext({})
        with opening as files, transfers.lane(self._device, progress.check) as lane:
            sources = [
                _compared(entry, span, files)
                for entry, span in zip(entries, self._spans, strict=True)
            ]
            arrivals = _Arrivals(entries, sources, keep=self._host is None)
            transfers.fill(
                self._slab.bytes,
                transfers.bringing(entries, sources),
                lane,
                progress,
                "to the device",
                host=self._host.bytes if self._host is not None else None,
                arrived=arrivals,
            )
        for number in arrivals.elsewhere:
            self._spans[number] = None
        self._kept = arrivals.kept
        if self._host is not None or not arrivals.too_much:
            return ""
        names = told([entries[number] for number in arrivals.elsewhere])
        return f"main memory keeps no copy of its weights, and not all are as the files hold them ({names})"

    @property
    def held(self) -> dict[str, int]:
        """The slab and its copy. What no file holds is little: like the structure, it is not counted."""
        host = self._host.size_bytes if self._host is not None else 0
        there = self._slab.size_bytes + sum(slab.size_bytes for slab in self._left)
        there += self._others_bytes
        return {place: size for place, size in ((self._device, there), (HOST, host)) if size}

    def _leave(self, progress: Progress) -> int:
        emptied(self.entries, self._slab)
        return 0

    def _return(self, progress: Progress) -> tuple[int, str]:
        slab = Slab(self._device, self._size)
        progress.allocated_bytes[self._device] = self._size
        with ExitStack() as undone:
            undone.callback(slab.free)
            with transfers.lane(self._device, progress.check) as lane:
                if self._host is not None:
                    transfers.replay(slab.bytes, self._host.bytes, lane, progress, WAKING)
                else:
                    self._read(slab, lane, progress)
            slab.point(self.entries)
            undone.pop_all()
        self._left = [old for old in (*self._left, self._slab) if old.size_bytes]
        self._slab = slab
        return self._size, "host copy" if self._host is not None else "files"

    def _read(self, slab: Slab, lane: transfers.Lane, progress: Progress) -> None:
        assert self._files is not None
        with self._files.opened() as files:
            sources = [
                MemorySource(self._kept[number])
                if span is None
                else file_source(entry, span, files)
                for number, (entry, span) in enumerate(zip(self.entries, self._spans, strict=True))
            ]
            bring = transfers.bringing(self.entries, sources)
            transfers.fill(slab.bytes, bring, lane, progress, WAKING)

    def _give_up(self) -> None:
        self._kept.clear()
        if self._host is not None:
            self._host.free()

    def free(self) -> None:
        """Give back slab, host copy and what was kept."""
        self._give_up()
        emptied(self.entries, self._slab)


class _Arrivals:
    """What is noted of each entry once all of it is on its way to the device.

    Attributes
    ----------
    elsewhere
        Numbers of those whose bytes no file holds.
    kept
        Copies of these, if they are few bytes.
    too_much
        Whether they are not.
    """

    def __init__(
        self, entries: Sequence[Entry], sources: Sequence[transfers.Source], *, keep: bool
    ) -> None:
        self._entries, self._sources, self._keep = entries, sources, keep
        self._next = 0
        self._allowed = allowance(entries)
        self.elsewhere: list[int] = []
        self.kept: dict[int, Tensor] = {}
        self.too_much = False

    def __call__(self, end: int) -> None:
        """Everything up to `end` has been brought."""
        while self._next < len(self._entries) and self._entries[self._next].end <= end:
            self._note(self._next)
            self._next += 1

    def _note(self, number: int) -> None:
        entry, source = self._entries[number], self._sources[number]
        if not (isinstance(source, ComparedSource) and source.equal):
            self.elsewhere.append(number)
            self._allowed -= entry.size_bytes
            self.too_much = self._allowed < 0
            if self._keep and not self.too_much:
                self.kept[number] = entry.memory().clone()
            else:
                self.kept.clear()
        self._release(number)

    def _release(self, number: int) -> None:
        """Give back what the library read it to: else main memory would hold the model once more."""
        storage = self._entries[number].views[0].tensor.untyped_storage()
        following = self._entries[number + 1 : number + 2]  # those of one storage lie side by side
        shared = any(
            entry.views[0].tensor.untyped_storage().data_ptr() == storage.data_ptr()
            for entry in following
        )
        if storage.resizable() and not shared:
            storage.resize_(0)


def _compared(
    entry: Entry, span: Span | None, files: Mapping[Path, BinaryIO]
) -> ComparedSource | MemorySource:
    memory = MemorySource(entry.memory())
    return memory if span is None else ComparedSource(file_source(entry, span, files), memory)


@cache
def _without_views(device: str) -> str:
    """Return why a device's memory cannot be both bytes and numbers; empty if it can."""
    if device == "cpu" or device.startswith("cuda"):
        return ""
    import torch

    try:
        raw = torch.zeros(512, dtype=torch.uint8, device=device)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
            made = torch.empty(0, dtype=dtype, device=device)
            made.set_(raw.untyped_storage(), 256 // dtype.itemsize, (2, 2), (2, 1)).fill_(1)
        seen = bool(raw[256:].any()) and not bool(raw[:256].any())
    except (RuntimeError, TypeError):  # NotImplementedError is one of the former
        seen = False
    return "" if seen else f"the device {device} has no views of bytes as numbers"
