"""Weights on a CPU as the library has mapped them from files, or cast from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nbproviders.errors import UnsupportedError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import devices, transfers
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
    emptied,
    layout,
    packed,
    slab_bytes,
    tensor_bytes,
)
from nbproviders.runtimes.weightfiles import (
    ComparedSource,
    MemorySource,
    Span,
    WeightFiles,
    file_source,
    mapped_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

_STAYS = 10  # what stays is at most one part in so many: else there is no point


def keep(model: Any, folder: Path | None) -> Placement:
    """Return the placement of a model that is on the CPU, whose weights stay as they are.

    Costs a sample of each tensor: the whole is compared with the files before it sleeps for the first time,
    which reads as much as waking does.
    """
    reason = obstacle(model)
    if reason:
        return Fixed(model, reason)
    files = files_of(folder)
    if files is None:
        return Fixed(model, "it was not loaded from safetensors")
    entries = layout(model)
    leaving, staying = _parted(entries, spans_of(model, entries, files, sample=True))
    size = sum(entry.size_bytes for entry in staying)
    if size > min(allowance(entries), sum(e.size_bytes for e in entries) // _STAYS):
        return Fixed(model, f"not all weights are as the files hold them ({told(staying)})")
    return Mapped(model, leaving, files)


class Mapped(Placement):
    """Weights of a CPU that are in files; `keep` makes one.

    What is stored as it is computed with comes back as a mapping of the file, which takes no time and no
    memory of its own until it is used; what is cast comes back into a slab.

    Parameters
    ----------
    model
        On the CPU.
    leaving
        What is in the files, and where.
    files
        Them.
    """

    def __init__(
        self, model: Any, leaving: Sequence[tuple[Entry, Span]], files: WeightFiles
    ) -> None:
        self._files = files
        self._plain = [(e, span) for e, span in leaving if _is_plain(e, span)]
        cast = [(e, span) for e, span in leaving if not _is_plain(e, span)]
        self._cast_spans = [span for _, span in cast]
        self._cast = packed(entry for entry, _ in cast)
        self._size = sum(entry.size_bytes for entry, _ in leaving)
        self._slab: Slab | None = None
        self._compared = False
        self._staying = tensor_bytes(model).get("cpu", 0) - self._size
        super().__init__(model, [*(entry for entry, _ in self._plain), *self._cast])

    @property
    def held(self) -> dict[str, int]:
        """Bytes of the tensors; those of a mapping too, which the system may take away meanwhile."""
        size = self._staying + (0 if self.asleep else self._size)
        return {"cpu": size} if size else {}

    def _leave(self, progress: Progress) -> int:
        read_bytes = 0 if self._compared else self._compare(progress)
        on_heap = bool(self._cast) and self._slab is None
        self.free()
        if on_heap:  # so the library has cast them, each by itself: blocks that the heap would keep
            devices.release_cached()
        return read_bytes

    def _compare(self, progress: Progress) -> int:
        """See that the files hold everything that is to leave, and return the bytes read for it."""
        import torch

        entries = packed(self.entries)
        spans = [*(span for _, span in self._plain), *self._cast_spans]
        with self._files.opened() as files:
            sources = [
                ComparedSource(file_source(entry, span, files), MemorySource(entry.memory()))
                for entry, span in zip(entries, spans, strict=True)
            ]
            nowhere = torch.empty(slab_bytes(entries), dtype=torch.uint8, device="meta")
            bring = transfers.bringing(entries, sources)
            transfers.fill(nowhere, bring, transfers.InPlace(), progress, "comparing")
        wrong = [e for e, source in zip(entries, sources, strict=True) if not source.equal]
        if wrong:
            self.reason = f"not all weights are as the files hold them ({told(wrong)})"
            raise UnsupportedError(f"This model cannot sleep: {self.reason}.")
        self._compared = True
        return sum(span.size_bytes for span in spans)

    def _return(self, progress: Progress) -> tuple[int, str]:
        progress.report(0, self._size, WAKING)
        size = slab_bytes(self._cast)
        with ExitStack() as undone:
            undone.callback(self.free)
            with self._files.opened() as files:
                if size:
                    self._slab = Slab("cpu", size)
                    self._read(self._slab.bytes, files, progress)
                maps = {span.path: mapped_bytes(files[span.path]) for _, span in self._plain}
            progress.report(self._size, self._size)  # the last that can end it
            undone.pop_all()
        if self._slab is not None:
            self._slab.point(self._cast)
        for entry, span in self._plain:
            _point(entry, maps[span.path], span.offset)
        return sum(span.size_bytes for span in self._cast_spans), "files"

    def _read(self, memory: Tensor, files: Mapping[Path, BinaryIO], progress: Progress) -> None:
        sources = [
            file_source(entry, span, files)
            for entry, span in zip(self._cast, self._cast_spans, strict=True)
        ]
        bring = transfers.bringing(self._cast, sources)
        transfers.fill(memory, bring, transfers.InPlace(), progress, WAKING, host=memory)

    def _give_up(self) -> None:
        """Nothing is."""

    def free(self) -> None:
        """Give back the slab and the maps."""
        slab, self._slab = self._slab, None
        emptied(self.entries, slab)


def _is_plain(entry: Entry, span: Span) -> bool:
    """Whether a mapping of the file can be the tensors' memory."""
    whole = entry.whole
    assert whole is not None
    aligned = all((span.offset + view.begin) % view.dtype.itemsize == 0 for view in entry.views)
    return str(whole.dtype) == f"torch.{span.dtype}" and aligned


def _point(entry: Entry, memory: Tensor, offset: int) -> None:
    import torch

    with torch.no_grad():
        for view in entry.views:
            at = (offset + view.begin) // view.dtype.itemsize
            made = torch.empty(0, dtype=view.dtype)
            view.tensor.data = made.set_(memory.untyped_storage(), at, view.shape, view.stride)


def _parted(
    entries: Sequence[Entry], spans: Sequence[Span | None]
) -> tuple[list[tuple[Entry, Span]], list[Entry]]:
    """Return what can leave, and what stays: all of a storage of which a part does."""
    places = [entry.views[0].tensor.untyped_storage().data_ptr() for entry in entries]
    fixed = {place for place, span in zip(places, spans, strict=True) if span is None}
    leaving: list[tuple[Entry, Span]] = []
    staying: list[Entry] = []
    for entry, span, place in zip(entries, spans, places, strict=True):
        if span is None or place in fixed:
            staying.append(entry)
        else:
            leaving.append((entry, span))
    return leaving, staying
