"""A GGUF file's header is read whole, or the error says what is wrong with the file."""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nbproviders.errors import ModelAccessError
from nbproviders.runtimes.gguf.header import Tensor, read_files, read_header
from tests.gguf_files import ARCHITECTURES, write_llama_gguf

pytest.importorskip("gguf")


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return number(len(value.encode())) + value.encode()


def tensor(
    name: str = "a", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    lengths = b"".join(number(length) for length in shape)
    return text(name) + struct.pack("<I", len(shape)) + lengths + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    values: bytes = b"", count: int = 0, tensors: tuple[bytes, ...] = (), data: int = 128
) -> bytes:
    """A file of these parts, its weights all zero; each part may lie."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + values + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    """What the error says; it names the file, and what to do."""
    with pytest.raises(ModelAccessError) as caught:
        read_files(path)
    assert path.name in caught.value.message
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_reads_what_the_gguf_package_wrote(arch: str, tmp_path: Path) -> None:
    """Metadata, tensors and their places agree with that package's own reader."""
    import gguf

    path = write_llama_gguf(tmp_path / "m.gguf", arch=arch, dtype="Q8_0", seed=3)
    header, theirs = read_header(path), gguf.GGUFReader(path)
    assert header.architecture == arch
    assert header.get("block_count") == 2
    assert header.get("no such key", 7) == 7
    for name, field in theirs.fields.items():
        if name.startswith("GGUF."):
            continue
        value = field.contents()
        assert header.metadata[name] == (tuple(value) if isinstance(value, list) else value)
    mine = [
        (t.name, t.shape, t.type, t.bytes, header.data_offset + t.offset) for t in header.tensors
    ]
    assert mine == [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.n_bytes), int(t.data_offset))
        for t in theirs.tensors
    ]
    assert header.parameters == sum(int(t.n_elements) for t in theirs.tensors)


def test_the_digest_is_the_headers(tmp_path: Path) -> None:
    """Other weights leave it as it is; other metadata change it."""
    first = read_header(write_llama_gguf(tmp_path / "a.gguf", seed=1))
    weights = read_header(write_llama_gguf(tmp_path / "b.gguf", seed=2))
    metadata = read_header(write_llama_gguf(tmp_path / "c.gguf", context=256))
    assert first.digest == weights.digest != metadata.digest


def test_a_large_vocabulary_takes_no_time(tmp_path: Path) -> None:
    """150,000 tokens and as many merges are read in well under a second."""
    many = [f"token {index}" for index in range(150_000)]
    merges = [f"a{index} b{index}" for index in range(150_000)]
    own = {"tokenizer.ggml.tokens": many, "tokenizer.ggml.merges": merges}
    path = write_llama_gguf(tmp_path / "m.gguf", vocab="bpe", metadata=own)
    began_s = time.process_time()
    header = read_header(path)
    assert time.process_time() - began_s < 1
    assert header.metadata["tokenizer.ggml.tokens"] == tuple(many)
    assert header.metadata["tokenizer.ggml.merges"] == tuple(merges)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "it is empty"),
        (bytes(600), "begins with zeros"),
        (b"PK\x03\x04abc", "PyTorch checkpoint"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html><body>401", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (number(300) + b'{"__metadata__":{}}', "safetensors"),
        (b"tjgg\x03\x00\x00\x00", "old format GGJT"),
        (b"FUGG", "bytes swapped"),
        (b"GGML", "begins with b'GGML'"),
    ],
)
def test_another_kind_of_file_is_named(start: bytes, words: str, tmp_path: Path) -> None:
    """What is no GGUF file is called what it looks like."""
    assert words in refusal(written(tmp_path / "m.gguf", start))


def test_what_is_no_file_is_told_apart(tmp_path: Path) -> None:
    """A missing file, a folder and a pipe each have an error of their own."""
    assert "There is no file" in refusal(tmp_path / "absent.gguf")
    write_llama_gguf(tmp_path / "x.gguf")
    assert "is a folder" in refusal(tmp_path)
    assert "x.gguf" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "no regular file" in refusal(tmp_path / "pipe.gguf")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    """No permission is told as such, and is no damage."""
    path = written(tmp_path / "m.gguf", gguf_bytes())
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    """However short a file is cut, it is refused, and the numbers are told."""
    content = write_llama_gguf(tmp_path / "m.gguf", hidden=32, layers=1).read_bytes()
    for length in [*range(0, 200), *range(200, len(content), 997), len(content) - 1]:
        assert refusal(written(tmp_path / "cut.gguf", content[:length]))
    assert f"it has {len(content) - 1:,} bytes" in refusal(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (struct.pack("<I", 1), "version 1"),
        (struct.pack("<I", 4), "version 4"),
        (struct.pack(">I", 3), "big-endian"),
        (struct.pack("<I", 0), "impossible GGUF version 0"),
        (struct.pack("<I", 0x01010101), "impossible"),
    ],
)
def test_other_versions_are_refused(version: bytes, words: str, tmp_path: Path) -> None:
    """Old, new and byte-swapped files are told apart."""
    content = bytearray(gguf_bytes())
    content[4:8] = version
    assert words in refusal(written(tmp_path / "m.gguf", bytes(content)))


U32 = struct.pack("<I", 4)
STR = struct.pack("<I", 8)
ARR = struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "cannot stand"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, (1 << 64) - 1), "cannot stand"),
        (gguf_bytes(text("k") + struct.pack("<I", 13) + bytes(8), 1), "unknown value type 13"),
        (gguf_bytes(text("k") + ARR + ARR + number(1), 1), "unknown value type 9"),
        (gguf_bytes(text("k") + ARR + U32 + number(1 << 62), 1), "4,611,686,018,427,387,904 items"),
        (gguf_bytes(text("k") + ARR + STR + number(1 << 20), 1), "1,048,576 strings"),
        (gguf_bytes(text("k") + STR + number(1 << 63), 1), "claims a string"),
        (gguf_bytes((text("k") + U32 + bytes(4)) * 2, 2), "'k' occurs twice"),
        (gguf_bytes(text("") + U32 + bytes(4), 1), "which is no name"),
        (gguf_bytes(number(2) + b"\xff\xfe" + U32 + bytes(4), 1), "which is no name"),
        (gguf_bytes(text("general.alignment") + U32 + struct.pack("<I", 48), 1), "power of two"),
        (gguf_bytes(text("general.alignment") + U32 + bytes(4), 1), "power of two"),
        (gguf_bytes(text("general.alignment") + STR + text("32"), 1), "power of two"),
        (gguf_bytes(tensors=(tensor(), tensor(offset=128))), "'a' occurs twice"),
        (gguf_bytes(tensors=(tensor("x" * 64),)), "which is no name"),
        (gguf_bytes(tensors=(tensor("ж" * 33),)), "more than 63 bytes"),
        (gguf_bytes(tensors=(tensor(shape=(1,) * 5),)), "5 dimensions"),
        (gguf_bytes(tensors=(tensor(shape=(0, 3)),)), "impossible shape (0, 3)"),
        (gguf_bytes(tensors=(tensor(shape=(1 << 40, 1 << 40)),)), "impossible shape"),
        (gguf_bytes(tensors=(tensor(kind=99),)), "unknown type 99"),
        (gguf_bytes(tensors=(tensor(kind=31),)), "no longer reads"),
        (gguf_bytes(tensors=(tensor(shape=(33, 2), kind=8),)), "no multiple of the 32"),
        (gguf_bytes(tensors=(tensor(offset=16),)), "does not stand on 32"),
        (gguf_bytes(tensors=(tensor(offset=64),)), "leaves a gap"),
        (gguf_bytes(tensors=(tensor(), tensor("b", offset=0))), "overlaps"),
        (gguf_bytes(tensors=(tensor(shape=(64,)),)), "is truncated"),
    ],
)
def test_a_lying_header_is_an_error(content: bytes, words: str, tmp_path: Path) -> None:
    """Counts, types, names, shapes and places are checked before they are believed."""
    assert words in refusal(written(tmp_path / "m.gguf", content))


def test_the_same_header_without_lies_is_read(tmp_path: Path) -> None:
    """The files above are refused for their one lie."""
    values = text("k") + ARR + U32 + number(2) + struct.pack("<II", 5, 6)
    path = written(tmp_path / "m.gguf", gguf_bytes(values, 1, (tensor(),)))
    header = read_header(path)
    assert header.metadata == {"k": (5, 6)}
    assert header.types == {"k": "arr[u32]"}
    assert header.tensors == (Tensor("a", (32,), "F32", 0, 128),)
    assert math.prod(header.tensors[0].shape) == header.parameters == 32


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The parts of a split model, in order."""
    first = write_llama_gguf(tmp_path / "model.gguf", split_tensors=8)
    return sorted(first.parent.glob("model-*.gguf"))


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_stands_for_the_model(given: int, parts: list[Path]) -> None:
    """All parts are read in order, whichever is given; the first carries the metadata."""
    files = read_files(parts[given])
    assert [file.path for file in files] == parts
    assert files[0].architecture == "llama"


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    """The error names the file that is not there."""
    parts[1].unlink()
    with pytest.raises(ModelAccessError, match=parts[1].name):
        read_files(parts[0])


def renamed(parts: list[Path]) -> Path:
    return parts[0].rename(parts[0].with_name("other.gguf"))


def swapped(parts: list[Path]) -> Path:
    content = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(content)
    return parts[0]


def of_another_model(parts: list[Path]) -> Path:
    folder = parts[0].parent / "other"
    folder.mkdir()
    other = write_llama_gguf(folder / "model.gguf", split_tensors=9)
    count = len(list(folder.glob("*")))
    assert count == len(parts)
    parts[2].write_bytes(other.with_name(f"model-00003-of-{count:05}.gguf").read_bytes())
    return parts[0]


def wrongly_typed(parts: list[Path]) -> Path:
    content = (
        parts[1]
        .read_bytes()
        .replace(b"split.no" + struct.pack("<IH", 2, 1), b"split.no" + struct.pack("<IH", 3, 1))
    )
    parts[1].write_bytes(content)
    return parts[0]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (renamed, "not named like one"),
        (swapped, "says that it is part 3"),
        (of_another_model, "parts of different models"),
        (wrongly_typed, "'split.no' is stored as i16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    harm: Callable[[list[Path]], Path], words: str, parts: list[Path]
) -> None:
    """Renamed, swapped, mixed and mistyped parts each have an error that says so."""
    with pytest.raises(ModelAccessError) as caught:
        read_files(harm(parts))
    assert words in str(caught.value)
