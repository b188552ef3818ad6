"""Where LM Studio keeps its models (https://lmstudio.ai/docs/app/advanced/import-model).

It keeps them by publisher and model in ``models`` of its home, or in another folder that its settings
name. Its home is ``~/.lmstudio``, earlier ``~/.cache/lm-studio``, or what a pointer file names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from nbproviders.catalog.gguf_files import is_folder
from nbproviders.catalog.settings import user_path

logger = logging.getLogger(__name__)

_POINTER = "~/.lmstudio-home-pointer"
_HOMES = ("~/.lmstudio", "~/.cache/lm-studio")
_MOST_BYTES = 1 << 20


def folders() -> list[Path]:
    """Return the folders with models that are there."""
    found: dict[Path, Path] = {}
    for home in _homes():
        for folder in (_chosen(home), home / "models"):
            if folder is not None and is_folder(folder):
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _homes() -> Iterator[Path]:
    pointed = _text(user_path(_POINTER)).strip()
    if pointed:
        yield Path(pointed)
    yield from map(user_path, _HOMES)


def _chosen(home: Path) -> Path | None:
    """Return the folder that its settings name; None if they name none."""
    text = _text(home / "settings.json")
    if not text:
        return None
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        logger.info("LM Studio's settings in %s are not read: %s", home, error)
        return None
    folder = settings.get("downloadsFolder") if isinstance(settings, dict) else None
    return user_path(folder) if isinstance(folder, str) and folder.strip() else None


def _text(path: Path) -> str:
    """Return what a small file says; empty if it is not there or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        logger.info("not read: %s: %s", path, error)
        return ""
