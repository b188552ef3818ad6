"""GGUF files in folders: real ones, those of several parts, links in circles and what only looks like one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nbproviders.catalog import gguf_files


def head(architecture: str, key: str = "general.architecture", kind: int = 8) -> bytes:
    """Return the first bytes of a file that says first what it is."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 20)
    entry = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
    return start + entry + struct.pack("<Q", len(architecture)) + architecture.encode()


def found(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in gguf_files.find(folder))


def test_find(tmp_path: Path) -> None:
    """First files in the folder and below it are given; hidden folders, parts and projectors are not."""
    for name in (
        "a.gguf",
        "org/B.GGUF",
        "org/model/c-00001-of-00002.gguf",
        "org/model/c-00002-of-00002.gguf",
        "org/model/mmproj-c.gguf",
        "org/model/readme.md",
        ".hidden/d.gguf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path) == ["a.gguf", "org/B.GGUF", "org/model/c-00001-of-00002.gguf"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    """A folder that is linked to is gone through; a link upwards does not go round."""
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "a.gguf").touch()
    (tmp_path / "disk" / "b.gguf").touch()
    models = tmp_path / "models"
    models.mkdir()
    (models / "linked").symlink_to(tmp_path / "disk")
    (models / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(models)
    (models / "self").symlink_to("self")
    assert found(models) == ["again/b.gguf", "again/model/a.gguf"]


def test_size_of_parts(tmp_path: Path) -> None:
    """A model in parts weighs what they weigh together; one that lacks a part is an error."""
    for number, length in ((1, 3), (2, 5), (3, 7)):
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(bytes(length))
    first = tmp_path / "m-00001-of-00003.gguf"
    assert gguf_files.size(first) == 15
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError):
        gguf_files.size(first)


@pytest.mark.parametrize(
    ("content", "writes"),
    [
        (head("llama"), True),
        (head("nomic-bert"), False),
        (head("clip"), False),
        (head("nomic-bert", kind=4), True),
        (head("bert", key="general.name"), True),
        (head("bert")[:40], True),
        (head("bert")[:-1], True),
        (b"GGUF", True),
        (b"GGUF" + b"\xff" * 300, True),
    ],
)
def test_what_writes_text(tmp_path: Path, content: bytes, writes: bool) -> None:
    """What says first that it embeds or sees writes no text; what says nothing is given a chance."""
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert gguf_files.writes_text(path) is writes


def test_a_file_of_the_format_itself(tmp_path: Path) -> None:
    """A file that the format's own library writes is read as what it says."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    for name in ("bert", "llama"):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", name)
        writer.add_name("x")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    assert not gguf_files.writes_text(tmp_path / "bert.gguf")
    assert gguf_files.writes_text(tmp_path / "llama.gguf")


def test_no_gguf_file(tmp_path: Path) -> None:
    """Another file by that name is an error."""
    for content in (b"", b"<html>", b"ggml"):
        (tmp_path / "a.gguf").write_bytes(content)
        with pytest.raises(ValueError, match="no GGUF file"):
            gguf_files.writes_text(tmp_path / "a.gguf")
