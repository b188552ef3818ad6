"""Models that are on this machine: shipped, in the Hugging Face Hub cache, in the user's GGUF folders.

Looks at names, sizes and the first bytes of files; loads nothing and asks no network. It reads the Hub
cache's published layout itself (``models--org--name/refs`` and ``snapshots``), so it needs no library,
leaves data sets alone, and a damaged entry costs that entry only.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nbproviders import demo
from nbproviders.catalog.settings import config_path, section
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Ceilings, so that a mistaken folder (a whole disk) costs seconds, not minutes.
_MOST_REPOS = 2_000
_MOST_FILES = 50_000

_GENERATES = re.compile(r"(CausalLM|ConditionalGeneration|Seq2SeqLM|LMHeadModel)$")
_LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_SHARDS = re.compile(r"-00001-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose weights are here.

    Attributes
    ----------
    spec
        The reference that opens it.
    source
        ``demo`` (shipped), ``hub`` (the Hub cache) or ``folder`` (one of the user's).
    bytes
        Its weights on disk.
    path
        Its folder, or its first GGUF file.
    """

    spec: str
    source: str
    bytes: int
    path: Path


def find_models() -> list[LocalModel]:
    """Return the models on this machine: shipped ones, then the Hub cache's, then the user's folders'.

    What cannot be read is left out, with a line in the log.

    Raises
    ------
    ConfigurationError
        If the user's settings file is wrong.
    """
    folders = gguf_folders()
    found = [*_shipped(), *_cached(hub_cache())]
    for folder in folders:
        found += _ggufs(folder, "folder")
    unique: dict[Path, LocalModel] = {}
    for one in found:
        unique.setdefault(one.path.resolve(), one)
    return list(unique.values())


def gguf_folders() -> list[Path]:
    """Return the folders that the user's settings name: ``gguf`` in the table ``[folders]``.

    Raises
    ------
    ConfigurationError
        If it is no list of strings.
    """
    named = section("folders").get("gguf", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigurationError(
            f"In the settings file {config_path()}, gguf in [folders] must be a list of folders.",
            hint='Write gguf = ["~/models"].',
        )
    return [Path(name).expanduser() for name in named]


def hub_cache() -> Path:
    """Return where the Hugging Face libraries keep what they download, there or not.

    By the environment, as https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    tells.
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.path.expandvars(os.environ[name])).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _shipped() -> list[LocalModel]:
    found = []
    for name in demo.MODELS:
        folder = demo.path(name)
        size = _weights_bytes(folder)
        if size:
            found.append(LocalModel(f"transformers:{name}", "demo", size, folder))
    return found


def _cached(cache: Path) -> Iterator[LocalModel]:
    """Give the models of a Hub cache, by name."""
    try:
        repos = sorted(islice(cache.glob("models--*"), _MOST_REPOS))
    except OSError as error:
        logger.info("the Hub cache %s cannot be read: %s", cache, error)
        return
    for repo in repos:
        try:
            yield from _repo_models(repo)
        # Half written, unreadable, or JSON of another form than is looked for.
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.info("left out of the Hub cache: %s: %s", repo.name, error)


def _repo_models(repo: Path) -> Iterator[LocalModel]:
    name = repo.name.removeprefix("models--").replace("--", "/")
    snapshot, revision = _snapshot(repo)
    options = {"revision": revision} if revision else {}
    size = _weights_bytes(snapshot)
    if size and _generates(snapshot):
        spec = ModelSpec.of("transformers", name, options).text
        yield LocalModel(spec, "hub", size, snapshot)
    yield from _ggufs(snapshot, "hub")


def _snapshot(repo: Path) -> tuple[Path, str]:
    """Return the folder of the version that opens by itself; else the newest, with its commit."""
    main = repo / "refs" / "main"
    if main.is_file():
        snapshot = repo / "snapshots" / main.read_text(encoding="utf-8").strip()
        if snapshot.is_dir() and snapshot.parent.name == "snapshots":
            return snapshot, ""
    kept = [path for path in (repo / "snapshots").iterdir() if path.is_dir()]
    if not kept:
        raise ValueError("no version of it is kept")
    newest = max(kept, key=lambda path: (path.stat().st_mtime, path.name))
    return newest, newest.name


def _weights_bytes(folder: Path) -> int:
    """Return bytes of a folder's safetensors; 0 if there are none.

    Raises
    ------
    ValueError
        If a part is missing: the download was not finished.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
        missing = sorted(name for name in set(parts) if not (folder / name).is_file())
        if missing:
            raise ValueError(f"{len(missing)} of its weights files are missing: {missing[0]} …")
    files = [path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")]
    return sum(path.stat().st_size for path in files)


def _generates(folder: Path) -> bool:
    """Whether a folder's ``config.json`` is that of a model that writes text."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    return not kinds or any(_GENERATES.search(str(kind)) for kind in kinds)


def _ggufs(folder: Path, source: str) -> Iterator[LocalModel]:
    """Give the GGUF models of a folder and those below it; one in several files is given once."""
    if not folder.is_dir():
        logger.info("there is no folder %s", folder)
        return
    for path in sorted(_gguf_files(folder)):
        try:
            with path.open("rb") as file:
                magic = file.read(4)
            size = sum(part.stat().st_size for part in _parts(path))
        except OSError as error:
            logger.info("left out: %s: %s", path, error)
            continue
        if magic != b"GGUF":
            logger.info("left out: %s: no GGUF file, whatever its name says", path)
            continue
        yield LocalModel(ModelSpec.of("llama-cpp", str(path)).text, source, size, path)


def _gguf_files(folder: Path) -> Iterator[Path]:
    """Give the files that are a model's first: no later parts, no image projectors."""
    seen = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(names)
        if seen > _MOST_FILES:
            logger.info("%s holds more than %d files: the rest is left out", folder, _MOST_FILES)
            return
        for name in names:
            low = name.lower()
            if low.endswith(".gguf") and "mmproj" not in low and not _LATER_SHARD.search(low):
                yield Path(place, name)


def _parts(first: Path) -> list[Path]:
    found = _SHARDS.search(first.name)
    if found is None:
        return [first]
    count = int(found[1])
    stem = first.name[: found.start()]
    return [first.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
