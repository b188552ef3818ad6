"""GGUF files in folders: which there are, how large they are, and whether they write text.

Reads names, sizes and the first bytes; what a file is made of is for whoever loads it.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from nbproviders.catalog.quants import is_model

logger = logging.getLogger(__name__)

# A ceiling, so that a mistaken folder (a whole disk) costs seconds, not minutes.
_MOST_FILES = 50_000

_PARTS = re.compile(r"(?i)-00001-of-(\d{5})\.gguf$")
# Architectures of llama.cpp that embed texts, or look at or make something else.
_WRITE_NO_TEXT = frozenset(
    "bert modern-bert neo-bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 eurobert "
    "gemma-embedding llama-embed t5encoder clip wavtokenizer-dec".split()
)
# Magic, version, number of tensors, number of entries; then the first entry's key.
_HEAD = struct.Struct("<4sIQQQ")
_ARCHITECTURE = b"general.architecture"
_STRING = 8


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, as far as one may look."""
    try:
        return path.is_dir()
    except OSError as error:  # a folder above it is closed
        _tell(error)
        return False


def find(folder: Path) -> Iterator[Path]:
    """Give the models' first files in a folder and below it; links are followed, each place once.

    Hidden folders are passed by, and what cannot be read is told in the log.
    """
    entries = 0
    places: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_tell):
        try:
            status = Path(place).stat()
        except OSError as error:
            _tell(error)
            continue
        if (status.st_dev, status.st_ino) in places:
            folders.clear()
            continue
        places.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        entries += 1 + len(names)
        if entries > _MOST_FILES:
            logger.info("%s holds more than %d files: the rest is left out", folder, _MOST_FILES)
            return
        yield from (Path(place, name) for name in sorted(names) if is_model(name))


def size(first: Path) -> int:
    """Return bytes of a model in one file or several, given its first.

    Raises
    ------
    OSError
        If one of them is not there.
    """
    found = _PARTS.search(first.name)
    if found is None:
        return first.stat().st_size
    count = int(found[1])
    # As the first is written: llama.cpp looks for the others by that name.
    start = first.name[: found.start()]
    end = first.name[found.end() - len(".gguf") :]
    parts = (f"{start}-{i:05d}-of-{count:05d}{end}" for i in range(1, count + 1))
    return sum(first.with_name(part).stat().st_size for part in parts)


def writes_text(path: Path) -> bool:
    """Whether a GGUF file is a model that writes text, as far as its first bytes tell.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no GGUF file, whatever its name says.
    """
    with path.open("rb") as file:
        head = file.read(256)
    if head[:4] != b"GGUF":
        raise ValueError("no GGUF file, whatever its name says")
    return _architecture(head) not in _WRITE_NO_TEXT


def _architecture(head: bytes) -> str:
    """Return what a file says it is; empty if it does not say so first, as all known tools do."""
    if len(head) < _HEAD.size:
        return ""
    length = _HEAD.unpack_from(head)[-1]
    key_end = _HEAD.size + len(_ARCHITECTURE)
    if length != len(_ARCHITECTURE) or head[_HEAD.size : key_end] != _ARCHITECTURE:
        return ""
    value = head[key_end:]
    if len(value) < 12 or struct.unpack_from("<I", value)[0] != _STRING:
        return ""
    return value[12 : 12 + struct.unpack_from("<Q", value, 4)[0]].decode("ascii", "replace")


def _tell(error: OSError) -> None:
    logger.info("left out: %s: %s", error.filename, error.strerror)
