"""A model's parameters and buffers as views into one flat piece of memory on a device.

One allocation for each model: it goes back to the driver whole, while the tensors stay what they are, with
their identity, ties, hooks and shapes. Nothing here knows where their bytes come from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbproviders.errors import InsufficientMemoryError, foreign, is_out_of_memory
from nbproviders.residency.memory import size_text
from nbproviders.runtimes import devices, peaks, virtual
from nbproviders.runtimes.hostcopy import give_back, main_memory
from nbproviders.runtimes.leaving import Leaving

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ALIGNMENT = 256  # bytes; what CUDA's own allocations have
_GRAIN = 16  # the largest item, complex128


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One tensor's place in an entry.

    Attributes
    ----------
    tensor
        The parameter or buffer itself.
    names
        All its names in the model: tied ones have several.
    begin
        Bytes from the entry's beginning.
    plain
        Whether its items lie in order and without gaps.
    """

    tensor: Tensor
    names: tuple[str, ...]
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    plain: bool


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A run of bytes that tensors share.

    Attributes
    ----------
    begin, end
        Its place in a slab.
    """

    views: tuple[View, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.begin

    @property
    def whole(self) -> View | None:
        """The tensor that fills it, in plain order; None if there is none."""
        for view in self.views:
            size = math.prod(view.shape) * view.dtype.itemsize
            if view.begin == 0 and size == self.size_bytes and view.plain:
                return view
        return None

    def memory(self) -> Tensor:
        """Return where its bytes are now, ``(size_bytes,) uint8``."""
        import torch

        first = self.views[0]
        storage = first.tensor.untyped_storage()
        begin = first.tensor.storage_offset() * first.dtype.itemsize - first.begin
        raw = torch.empty(0, dtype=torch.uint8, device=first.tensor.device)
        return raw.set_(storage, begin, (self.size_bytes,), (1,)) if self.size_bytes else raw


def layout(model: Any) -> tuple[Entry, ...]:
    """Return a model's entries in the order of its tensors; what shares bytes is one entry."""
    runs: dict[tuple[str, int], list[tuple[int, int, Tensor]]] = {}
    names = _names(model)
    for tensor in tensors_of(model):
        storage = tensor.untyped_storage()
        place = (str(tensor.device), storage.data_ptr() or id(tensor))
        begin = int(tensor.storage_offset()) * tensor.element_size()
        runs.setdefault(place, []).append((begin, begin + _extent(tensor), tensor))
    return packed([_entry(*run, names) for found in runs.values() for run in _merged(found)])


def packed(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return entries one behind the other, each at an aligned place."""
    placed: list[Entry] = []
    offset = 0
    for entry in entries:
        placed.append(dataclasses.replace(entry, begin=offset, end=offset + entry.size_bytes))
        offset = -(-placed[-1].end // ALIGNMENT) * ALIGNMENT
    return tuple(placed)


def slab_bytes(entries: Sequence[Entry]) -> int:
    """Return the length of the slab that a layout needs."""
    return entries[-1].end if entries else 0


def tensors_of(model: Any) -> list[Tensor]:
    """Return a model's parameters and buffers, each once."""
    return list({id(t): t for t in (*model.parameters(), *model.buffers())}.values())


def tensor_bytes(model: Any) -> dict[str, int]:
    """Return bytes of parameters and buffers on each device, shared ones counted once."""
    total: dict[str, int] = {}
    for entry in layout(model):
        found = entry.views[0].tensor.device
        device = "cpu" if found.type == "cpu" else str(found)
        total[device] = total.get(device, 0) + entry.size_bytes
    return total


def _names(model: Any) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            found[id(tensor)] = (*found.get(id(tensor), ()), name)
    return found


def _extent(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first item to behind its last."""
    if not tensor.numel():
        return 0
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def _merged(
    found: list[tuple[int, int, Tensor]],
) -> list[tuple[int, int, list[Tensor]]]:
    """Return runs of one storage, those that overlap as one."""
    merged: list[tuple[int, int, list[Tensor]]] = []
    for begin, end, tensor in sorted(found, key=lambda run: run[:2]):
        if merged and begin < merged[-1][1]:
            first, last, tensors = merged[-1]
            merged[-1] = (first, max(last, end), [*tensors, tensor])
        else:
            merged.append((begin, end, [tensor]))
    return merged


def _entry(begin: int, end: int, tensors: list[Tensor], names: dict[int, tuple[str, ...]]) -> Entry:
    # A view must begin at a multiple of its item, in the slab as in its storage.
    if any((t.storage_offset() * t.element_size() - begin) % t.element_size() for t in tensors):
        begin -= begin % _GRAIN
    views = tuple(
        View(
            tensor,
            names.get(id(tensor), ()),
            int(tensor.storage_offset()) * tensor.element_size() - begin,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            tensor.is_contiguous(),
        )
        for tensor in tensors
    )
    return Entry(views, 0, end - begin)


class TooLargePieceError(InsufficientMemoryError):
    """A device with room gives it in smaller pieces only, as Metal does."""


class Slab:
    """One flat piece of a device's memory.

    Parameters
    ----------
    device
        ``cpu``, ``cuda:0``, ``mps``, or a virtual one.
    size_bytes
        How much.

    Attributes
    ----------
    bytes
        All of it, ``(size_bytes,) uint8``; gone after `free`.

    Raises
    ------
    InsufficientMemoryError
        If the device has not so much left.
    TooLargePieceError
        If it has, but does not give it in one piece.
    """

    def __init__(self, device: str, size_bytes: int) -> None:
        self._left: Leaving | None = None
        self._pointed = False
        self._taking = virtual.Taking(device, size_bytes) if virtual.is_virtual(device) else None
        with ExitStack() as undone:
            if self._taking is not None:
                undone.callback(self._taking.release)
            peaks.disturb(devices.computes_on(device))
            self.bytes = _allocated(devices.computes_on(device), size_bytes)
            undone.pop_all()

    @property
    def size_bytes(self) -> int:
        """Bytes it takes now; after `free` those that stay for somebody else."""
        return self.bytes.numel() if self._left is None else self._left.left_bytes

    def point(self, entries: Sequence[Entry]) -> None:
        """Make tensors views into it; what they are, and who refers to them, stays."""
        import torch

        self._pointed = True
        storage, first = self.bytes.untyped_storage(), self.bytes.storage_offset()
        with torch.no_grad():
            for entry in entries:
                for view in entry.views:
                    at = (first + entry.begin + view.begin) // view.dtype.itemsize
                    made = torch.empty(0, dtype=view.dtype, device=self.bytes.device)
                    view.tensor.data = made.set_(storage, at, view.shape, view.stride)

    def free(self) -> None:
        """Give it back, whoever of the model refers to it; a second time does nothing.

        Its tensors are to be emptied first.
        """
        empty((), self)

    def leave(self, leaving: Leaving) -> None:
        """Let go of the memory."""
        if self._left is None:
            self._left = leaving
            if self._pointed:
                leaving.add(self.bytes)
            else:  # nobody has seen it but who was to fill it, in whose frames it lives as long as his error
                give_back(self.bytes)
            del self.bytes

    def settle(self) -> None:
        """Tell the device that it has the memory again."""
        if self._taking is not None:
            self._taking.release()
        devices.release_cached()


def _allocated(device: str, size_bytes: int) -> Tensor:
    import torch

    if device == "cpu":
        return main_memory(size_bytes)
    try:
        return torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        asked = f"{size_text(size_bytes)} were asked for. {foreign(error)}"
        if "Invalid buffer size" in str(error):  # so Metal says that it never gives so much at once
            raise TooLargePieceError(
                f"{device} gives no piece of memory so large: {asked}",
                hint="Choose a smaller model, or another dtype.",
            ) from foreign(error)
        if is_out_of_memory(error):
            raise InsufficientMemoryError(
                f"{device} is out of memory: {asked}",
                hint="Unload a model, or end other programs that use the device.",
            ) from foreign(error)
        raise


def emptied(entries: Sequence[Entry], slab: Slab | None = None) -> None:
    """Make tensors hold nothing; see `empty`."""
    empty([view.tensor for entry in entries for view in entry.views], slab)


def discard(entries: Sequence[Entry]) -> None:
    """Give back the memory of tensors that nobody has seen yet, whatever frames still refer to it."""
    import torch

    with torch.no_grad():
        for view in (view for entry in entries for view in entry.views):
            storage = view.tensor.untyped_storage()
            view.tensor.data = torch.empty(0, dtype=view.dtype, device=view.tensor.device)
            if storage.resizable():
                storage.resize_(0)


def empty(tensors: Iterable[Tensor], slab: Slab | None = None) -> int:
    """Make tensors hold nothing and give back the memory that they were in; return its bytes.

    They become tensors without items: a mere storage without bytes would crash whoever reads them. What
    others see of it stays, see `leaving`.

    Parameters
    ----------
    slab
        Freed with them.
    """
    import torch

    leaving = Leaving()
    with torch.no_grad():
        for tensor in tensors:
            leaving.add(tensor)
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    if slab is not None:
        slab.leave(leaving)
    size = leaving.size_bytes
    leaving.settle()
    if slab is not None:
        slab.settle()
    return size
