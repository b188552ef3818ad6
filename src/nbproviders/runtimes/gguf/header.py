"""What a GGUF file says of itself: metadata, tensors and the parts of a split model.

Our own reader, because a damaged file must become an error that names the damage before llama.cpp, which
ends the process on some of them, opens it. It believes no number of the file before it has checked it.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nbproviders.errors import ModelAccessError, foreign
from nbproviders.runtimes.gguf.cursor import Cursor, DamageError
from nbproviders.runtimes.gguf.kinds import looks_like

AGAIN = "Was the download complete? Download it again, or restore it."
_OTHER_FILE = "Give a .gguf file. Models of other kinds are for the provider transformers."
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

# Tensor types by their number: name, elements of a block, bytes of a block (ggml.h, ggml-common.h).
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
_REMOVED_TYPES = {4, 5, 31, 32, 33, 36, 37, 38}
_MAX_NAME_BYTES = 63
_MAX_KEY_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes
    ----------
    shape
        ggml's order: the length of a row first.
    type
        As ggml calls it: ``"Q4_0"``, ``"F16"``.
    offset
        Bytes behind the beginning of the file's data section.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """All of a file but its weights.

    Attributes
    ----------
    metadata
        Values by key; arrays are tuples.
    types
        The type each value is stored in: ``"u32"``, ``"str"``, ``"arr[f32]"``.
    data_offset
        Where the weights begin in the file.
    digest
        SHA-256 of the bytes before them, in hexadecimal.
    """

    path: Path
    size: int
    version: int
    metadata: Mapping[str, Any] = field(repr=False)
    types: Mapping[str, str] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    data_offset: int
    digest: str

    @property
    def architecture(self) -> str:
        """The name before the model's own keys, such as ``"llama"``; empty if none is told."""
        found = self.metadata.get("general.architecture", "")
        return found if isinstance(found, str) else ""

    @property
    def parameters(self) -> int:
        """Elements of all tensors of this file."""
        return sum(_elements(tensor.shape) for tensor in self.tensors)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the architecture's own value: ``get("block_count")`` reads ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_header(path: Path) -> Header:
    """Read what stands before the weights of one file.

    Raises
    ------
    ModelAccessError
        If it is missing, no file, may not be read, is no GGUF file, is truncated or damaged, or of a
        version or tensor type that llama.cpp does not read.
    """
    path = Path(path).expanduser()
    _require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(path, file, size)
    except DamageError as error:
        raise ModelAccessError(
            f"The GGUF file {str(path)!r} is damaged: {error}.", hint=AGAIN
        ) from None
    except OSError as error:
        raise ModelAccessError(
            f"The file {str(path)!r} cannot be read: {error.strerror or error}.",
            hint="Check its permissions and its disk.",
        ) from foreign(error)


def read_files(path: Path) -> tuple[Header, ...]:
    """Read the header of a file, or of all parts of the split model that any part belongs to.

    Raises
    ------
    ModelAccessError
        As `read_header`; and if a part is missing, renamed, or of another model.
    """
    path = Path(path).expanduser()
    given = read_header(path)
    count = _split_number(given, "count", 0)
    if count <= 1:
        return (given,)
    name = _PART.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise ModelAccessError(
            f"{str(path)!r} is one of the {count} parts of a split model, but is not named like one.",
            hint=f"llama.cpp finds the parts by name: …-00001-of-{count:05}.gguf. Name them so.",
        )
    parts = []
    for number in range(count):
        part = path.with_name(f"{name['stem']}-{number + 1:05}-of-{count:05}.gguf")
        if not part.exists():
            raise ModelAccessError(
                f"The part {str(part)!r} of a model split into {count} files is missing.",
                hint="Download it into the same folder.",
            )
        header = given if part == path else read_header(part)
        if _split_number(header, "no", -1) != number or _split_number(header, "count", 0) != count:
            raise ModelAccessError(
                f"{str(part)!r} says that it is part {_split_number(header, 'no', -1) + 1} of "
                f"{_split_number(header, 'count', 0)}, where its name says {number + 1} of {count}.",
                hint="It was renamed, or belongs to another model. Download the parts again.",
            )
        parts.append(header)
    _check_parts(parts)
    return tuple(parts)


def _split_number(header: Header, key: str, default: int) -> int:
    """Return a number of the split; it must be of the type that llama.cpp asserts, or it aborts."""
    key = f"split.{key}"
    wanted = "i32" if key == "split.tensors.count" else "u16"
    if key in header.metadata and header.types[key] != wanted:
        raise ModelAccessError(
            f"In {str(header.path)!r}, {key!r} is stored as {header.types[key]}, not as {wanted}.",
            hint=AGAIN,
        )
    return int(header.metadata.get(key, default))


def _check_parts(parts: list[Header]) -> None:
    names: dict[str, Path] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in names:
                raise ModelAccessError(
                    f"The tensor {tensor.name!r} is both in {names[tensor.name].name!r} and in "
                    f"{part.path.name!r}.",
                    hint="They are parts of different models. Download all parts again.",
                )
            names[tensor.name] = part.path
    told = _split_number(parts[0], "tensors.count", -1)
    if told != len(names):
        raise ModelAccessError(
            f"The {len(parts)} parts of {str(parts[0].path)!r} hold {len(names)} tensors, where "
            f"{told if told >= 0 else 'no number'} is told.",
            hint="They are parts of different models. Download all parts again.",
        )


def _require_file(path: Path) -> None:
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.gguf"))[:5]
        raise ModelAccessError(
            f"{str(path)!r} is a folder, not a .gguf file.",
            hint=f"Give one of its files: {', '.join(files)}." if files else _OTHER_FILE,
        )
    if not path.exists():
        raise ModelAccessError(f"There is no file {str(path)!r}.", hint="Check the path.")
    if not path.is_file():
        raise ModelAccessError(f"{str(path)!r} is no regular file.", hint=_OTHER_FILE)


def _read(path: Path, file: BinaryIO, size: int) -> Header:
    start = file.read(512)
    file.seek(0)
    if start[:4] != b"GGUF":
        raise ModelAccessError(
            f"{str(path)!r} is no GGUF file: {looks_like(start)} ({size:,} bytes).",
            hint=_OTHER_FILE,
        )
    cursor = Cursor(file, size)
    cursor.take(4, "the magic")
    version = _version(path, cursor.u32("the version"))
    tensor_count = cursor.u64("the number of tensors")
    value_count = cursor.u64("the number of metadata values")
    # The smallest tensor entry has 24 bytes, the smallest metadata value 13.
    if tensor_count * 24 + value_count * 13 > cursor.left:
        raise DamageError(
            f"it claims {tensor_count:,} tensors and {value_count:,} metadata values, which cannot stand "
            f"in the {cursor.left:,} bytes behind"
        )
    metadata, types = _metadata(cursor, value_count)
    alignment = _alignment(metadata, types)
    tensors = tuple(_tensors(cursor, tensor_count))
    end = cursor.at
    data_offset = end + -end % alignment if tensors else end
    _check_places(tensors, data_offset, alignment, size)
    digest = hashlib.sha256(cursor.passed(end)).hexdigest()
    return Header(path, size, version, metadata, types, tensors, data_offset, digest)


def _version(path: Path, version: int) -> int:
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        what, hint = "is big-endian", "Download the little-endian file, or convert the model again."
    elif version == 1:
        what, hint = (
            "is of GGUF version 1",
            "llama.cpp no longer reads it: convert the model again.",
        )
    elif 3 < version < 100:
        what, hint = f"is of GGUF version {version}", "Versions 2 and 3 are read here."
    else:
        what, hint = f"has the impossible GGUF version {version:,}", AGAIN
    raise ModelAccessError(f"The file {str(path)!r} {what}.", hint=hint)


def _metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, str]]:
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    key = ""
    for index in range(count):
        behind = f"metadata key {index + 1} of {count}" + (f" (behind {key!r})" if key else "")
        key = _name(cursor, behind, _MAX_KEY_BYTES)
        if key in metadata:
            raise DamageError(f"the metadata key {key!r} occurs twice")
        types[key], metadata[key] = cursor.value(f"the value of {key!r}")
    return metadata, types


def _name(cursor: Cursor, what: str, longest: int) -> str:
    name = cursor.text(what)
    if not name or len(name) > longest or not name.isprintable():
        raise DamageError(f"{what} is {name[:80]!r}, which is no name")
    return name


def _alignment(metadata: Mapping[str, Any], types: Mapping[str, str]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if types.get("general.alignment", "u32") != "u32" or alignment.bit_count() != 1:
        raise DamageError(f"its alignment is {str(alignment)[:80]!r}, which is no power of two")
    return int(alignment)


def _tensors(cursor: Cursor, count: int) -> Iterator[Tensor]:
    seen: set[str] = set()
    name = ""
    for index in range(count):
        behind = f"the name of tensor {index + 1} of {count}" + (
            f" (behind {name!r})" if name else ""
        )
        name = _name(cursor, behind, _MAX_NAME_BYTES)
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise DamageError(f"the tensor name {name!r} has more than {_MAX_NAME_BYTES} bytes")
        if name in seen:
            raise DamageError(f"the tensor {name!r} occurs twice")
        seen.add(name)
        yield _tensor(cursor, name)


def _tensor(cursor: Cursor, name: str) -> Tensor:
    what = f"the entry of tensor {name!r}"
    dimensions = cursor.u32(what)
    if dimensions > 4:
        raise DamageError(f"the tensor {name!r} claims {dimensions:,} dimensions; 4 are the most")
    shape = tuple(cursor.u64(what) for _ in range(dimensions))
    number = cursor.u32(what)
    if number in _REMOVED_TYPES:
        raise DamageError(
            f"the tensor {name!r} is of type {number}, which llama.cpp no longer reads (convert again)"
        )
    if number not in TENSOR_TYPES:
        raise DamageError(f"the tensor {name!r} is of the unknown type {number:,}")
    kind, block, block_bytes = TENSOR_TYPES[number]
    # A row first: the product must not wrap around in 63 bits, as it would in C.
    if 0 in shape or _elements(shape) >= 1 << 62:
        raise DamageError(f"the tensor {name!r} has the impossible shape {shape}")
    if (shape[0] if shape else 1) % block:
        raise DamageError(
            f"the tensor {name!r} has rows of {shape[0] if shape else 1:,}, no multiple of the {block} "
            f"elements in a block of {kind}"
        )
    return Tensor(name, shape, kind, cursor.u64(what), _elements(shape) // block * block_bytes)


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _check_places(tensors: tuple[Tensor, ...], data_offset: int, alignment: int, size: int) -> None:
    """Check that the tensors stand one behind the other, as llama.cpp wants, and inside the file."""
    expected = 0
    for tensor in tensors:
        if tensor.offset != expected:
            how = (
                "overlaps the one before" if tensor.offset < expected else "leaves a gap before it"
            )
            how = f"does not stand on {alignment}" if tensor.offset % alignment else how
            raise DamageError(
                f"the tensor {tensor.name!r} {how}: it is at {tensor.offset:,}, not at {expected:,}"
            )
        end = data_offset + tensor.offset + tensor.bytes
        if end > size:
            raise DamageError(
                f"it is truncated: it has {size:,} bytes, and the tensor {tensor.name!r} needs them up to "
                f"{end:,}"
            )
        expected += tensor.bytes + -tensor.bytes % alignment
