"""Where a model's tensors lie in its safetensors files, and reading them again from there.

Knows bytes and dtypes; what transformers makes of a checkpoint (new names, merged or turned weights) it
does not: what it finds by a name has to be compared before it is relied upon.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nbproviders.errors import ModelAccessError, ProviderError, foreign
from nbproviders.runtimes.slab import Entry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Bytes or items handled at a time: while they are in the processor's cache.
_BLOCK = 2**20
_SAMPLE = 4096
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""What safetensors calls a dtype, and what torch does."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where one tensor lies.

    Attributes
    ----------
    path
        The file, links resolved.
    offset
        From the file's beginning, in bytes.
    dtype
        torch's name of what is stored.
    """

    path: Path
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


class WeightFiles:
    """The safetensors of one folder, as they are now.

    Parameters
    ----------
    folder
        Of the checkpoint.

    Attributes
    ----------
    spans
        Of each tensor, by its name in the files.

    Raises
    ------
    ModelAccessError
        If a header cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.spans: dict[str, Span] = {}
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        for path in _paths(folder):
            real = path.resolve()
            try:
                with real.open("rb") as file:
                    self._stamps[real] = _stamp(file)
                    self.spans.update(_spans(file, real))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ModelAccessError(
                    f"The weights file {path.name!r} cannot be read: {foreign(error)}.",
                    hint="Download it again, or restore it.",
                ) from foreign(error)

    def find(self, entry: Entry, prefix: str = "") -> Span | None:
        """Return where the tensor that fills an entry seems to lie: by name and shape.

        Parameters
        ----------
        entry
            Of a layout.
        prefix
            What names in the files may have before the model's, or lack.
        """
        for name in (name for view in entry.views for name in view.names):
            for told in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
                span = self.spans.get(told)
                if span is not None and fits(entry, span):
                    return span
        return None

    @contextmanager
    def opened(self) -> Iterator[Mapping[Path, BinaryIO]]:
        """Open all files, if they are those whose headers were read.

        Raises
        ------
        ProviderError
            If one is gone, or has changed.
        """
        with ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            for path, stamp in self._stamps.items():
                try:
                    file = stack.enter_context(path.open("rb", buffering=0))
                    now = _stamp(file)
                except OSError as error:
                    raise _unusable(path, f"cannot be opened: {foreign(error)}") from foreign(error)
                if now != stamp:
                    raise _unusable(path, "has changed since the model was loaded")
                files[path] = file
            yield files


def _unusable(path: Path, what: str) -> ProviderError:
    return ProviderError(
        f"The weights file {path.name!r} {what}, so the model cannot wake from it.",
        hint="Unload the model and load it again; that takes what the folder holds now.",
    )


def _paths(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelAccessError(
                f"The file {_INDEX!r} of {str(folder)!r} is damaged: {foreign(error)}.",
                hint="Download it again, or restore it.",
            ) from foreign(error)
        return sorted(folder / str(name) for name in names)
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    return sorted(folder.glob("*.safetensors"))


def _stamp(file: BinaryIO) -> tuple[int, int, int]:
    told = os.fstat(file.fileno())
    return told.st_size, told.st_mtime_ns, told.st_ino


def _spans(file: BinaryIO, path: Path) -> dict[str, Span]:
    import torch

    length = int.from_bytes(file.read(8), "little")
    if length > _stamp(file)[0]:
        raise ValueError("its header is longer than itself")
    header = json.loads(file.read(length))
    found = {}
    for name, told in header.items():
        if name == "__metadata__" or not hasattr(torch, TORCH_NAMES.get(told["dtype"], "?")):
            continue
        begin, end = told["data_offsets"]
        found[name] = Span(
            path, 8 + length + begin, end - begin, TORCH_NAMES[told["dtype"]], tuple(told["shape"])
        )
    return found


def fits(entry: Entry, span: Span) -> bool:
    """Whether a stored tensor can have become the one that fills an entry, by a cast at most."""
    import torch

    whole = entry.whole
    if whole is None or span.shape != whole.shape:
        return False
    stored = getattr(torch, span.dtype)
    return stored == whole.dtype or (stored.is_floating_point and whole.dtype.is_floating_point)


# Sources: each gives bytes of one entry, in the dtype that is loaded


class MemorySource:
    """An entry's bytes as main memory has them.

    Parameters
    ----------
    memory
        All of them, ``(size_bytes,) uint8``.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    def read(self, begin: int, end: int, out: Tensor) -> None:
        """Copy a part, without Python's lock."""
        ctypes.memmove(out.data_ptr(), self.memory[begin:end].data_ptr(), end - begin)


class FileSource:
    """An entry's bytes as a file has them, cast if it stores another dtype.

    Parameters
    ----------
    file
        An open one; several threads may read it at once.
    span
        Where they lie.
    dtype
        What they are loaded as.
    """

    def __init__(self, file: BinaryIO, span: Span, dtype: torch.dtype) -> None:
        import torch

        self._file, self._span = file, span
        self._dtype, self._stored = dtype, getattr(torch, span.dtype)

    def read(self, begin: int, end: int, out: Tensor) -> None:
        """Read a part.

        Raises
        ------
        ProviderError
            If the file ends before.
        """
        import torch

        if self._stored == self._dtype:
            self._into(out, begin)
            return
        count = (end - begin) // self._dtype.itemsize
        stored = torch.empty(min(count, _BLOCK), dtype=self._stored)
        cast, first = out.view(self._dtype), begin // self._dtype.itemsize
        for at in range(0, count, _BLOCK):
            part = stored[: count - at]
            self._into(part.view(torch.uint8), (first + at) * self._stored.itemsize)
            cast[at : at + len(part)].copy_(part)

    def _into(self, out: Tensor, begin: int) -> None:
        size = out.numel()
        memory = memoryview((ctypes.c_char * size).from_address(out.data_ptr())).cast("B")
        done = 0
        while done < size:
            try:
                got = _read_at(self._file, memory[done:], self._span.offset + begin + done)
            except OSError as error:
                raise _unusable(self._span.path, f"cannot be read: {foreign(error)}") from foreign(
                    error
                )
            if not got:
                raise _unusable(self._span.path, "ends before its last tensor")
            done += got


def _read_at(file: BinaryIO, into: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [into], offset)
    with Path(file.name).open("rb", buffering=0) as own:  # a position of its own, for this thread
        own.seek(offset)
        return own.readinto(into) or 0


class ComparedSource:
    """An entry's bytes as memory has them, read from the file as long as that has the same ones.

    A file is read at several times the speed at which a mapping of it is paged in, and each byte that was
    read has been seen to be the one that the model has.

    Attributes
    ----------
    equal
        Whether all that was read was the same.
    """

    def __init__(self, file: FileSource, memory: MemorySource) -> None:
        self.file, self.memory = file, memory
        self.equal = True

    def read(self, begin: int, end: int, out: Tensor) -> None:
        """Give a part as memory has it; several threads may."""
        for at in range(begin, end, _BLOCK):
            last = min(at + _BLOCK, end)
            part = out[at - begin : last - begin]
            if self.equal:
                self.file.read(at, last, part)
                if same(part, self.memory.memory[at:last]):
                    continue
                self.equal = False  # never True again: other threads read other parts meanwhile
            self.memory.read(at, last, part)


def file_source(entry: Entry, span: Span, files: Mapping[Path, BinaryIO]) -> FileSource:
    """Return what reads an entry from its file, among those that are open."""
    whole = entry.whole
    assert whole is not None  # or it would not fit
    return FileSource(files[span.path], span, whole.dtype)


def resembles(entry: Entry, span: Span, files: Mapping[Path, BinaryIO]) -> bool:
    """Whether a file holds the first and the last bytes of an entry."""
    import torch

    memory, source, size = entry.memory(), file_source(entry, span, files), entry.size_bytes
    step = min(_SAMPLE, size)
    tail = (size - step) // 16 * 16  # where an item of any dtype begins
    for begin, end in ((0, step), (tail, size)) if size else ():
        out = torch.empty(end - begin, dtype=torch.uint8)
        source.read(begin, end, out)
        if not same(out, memory[begin:end]):
            return False
    return True


def same(one: Tensor, other: Tensor) -> bool:
    """Whether bytes are the same; eight at a time, which is seven times as fast as one by one."""
    import torch

    if one.storage_offset() % 8 or other.storage_offset() % 8:
        return torch.equal(one, other)
    head = one.numel() // 8 * 8
    # As whole numbers: of floating ones a NaN equals nothing, and 0.0 equals -0.0.
    eights = (memory[:head].view(torch.int64) for memory in (one, other))
    return torch.equal(*eights) and torch.equal(one[head:], other[head:])


def mapped_bytes(file: BinaryIO) -> Tensor:
    """Return all of a file as ``uint8``, paged in when used; writing to it changes no file."""
    import torch

    return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
