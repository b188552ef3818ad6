"""What trials of GGUF files found, kept in one small file of the user's cache.

``NBPROVIDERS_CACHE`` names another folder. A file that cannot be read or written is as good as none: the
trial is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbproviders.runtimes.gguf.header import Header

CACHE_VARIABLE = "NBPROVIDERS_CACHE"
_NAME = "gguf-trials.json"
_MOST = 500
_TRIAL = 1  # raised when a trial tries something else, so that old verdicts no longer count

log = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a file could be loaded; if not, while doing what it failed, how, and llama.cpp's words."""

    good: bool
    stage: str
    how: str
    words: str


def cache_path() -> Path:
    """Return the folder of what can be made again."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("nbproviders")


def key_of(files: Sequence[Header], version: str) -> str:
    """Return what tells these files, as they are now, and this llama.cpp from all others."""
    told: list[Any] = [_TRIAL, version]
    for file in files:
        path = file.path.resolve()
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError:  # gone since it was read; loading it will say so
            changed_ns = 0
        told.append([str(path), file.size, changed_ns, file.digest])
    return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogateescape")).hexdigest()


def recall(key: str) -> Verdict | None:
    """Return what a trial found, or None if none is known."""
    entry = _read().get(key)
    try:
        return Verdict(**entry) if isinstance(entry, dict) else None
    except TypeError:  # written by another version
        return None


def remember(key: str, verdict: Verdict) -> None:
    """Keep a verdict; the oldest go when there are many."""
    folder = cache_path()
    with _lock:
        entries = {**_read(), key: asdict(verdict)}
        entries = dict(list(entries.items())[-_MOST:])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=folder, prefix=_NAME, delete=False
            ) as file:
                json.dump(entries, file)
            os.replace(file.name, folder / _NAME)  # noqa: PTH105
        except OSError as error:
            log.info("What a trial of a GGUF file found is not kept in %s: %s", folder, error)


def _read() -> dict[str, Any]:
    path = cache_path() / _NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.info("The trials of GGUF files in %s cannot be read: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}
