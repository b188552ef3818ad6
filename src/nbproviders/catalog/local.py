"""Models that are on this machine: shipped, in the Hugging Face Hub cache, in folders, of other programs.

Looks at names, sizes and the first bytes of files; loads nothing and asks no network. It reads the Hub
cache's published layout itself (``models--org--name/refs`` and ``snapshots``), so it needs no library,
leaves data sets alone, and a damaged entry costs that entry only.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from nbproviders import demo
from nbproviders.catalog import gguf_files, lmstudio, ollama, quants
from nbproviders.catalog.settings import config_path, section, user_path
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import ConfigurationError, ModelAccessError

logger = logging.getLogger(__name__)

_MOST_REPOS = 2_000

_GENERATES = re.compile(r"(CausalLM|ConditionalGeneration|Seq2SeqLM|LMHeadModel)$")
_GGUF = "llama-cpp"  # the provider of GGUF files


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose weights are here.

    Attributes
    ----------
    spec
        The reference that opens it.
    source
        ``demo`` (shipped), ``hub`` (the Hub cache), ``folder`` (one of the user's), ``lm studio`` or
        ``ollama``.
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
    """Return the models on this machine, each once: shipped, Hub cache, user's folders, other programs'.

    What cannot be read, and what writes no text, is left out with a line in the log.

    Raises
    ------
    ConfigurationError
        If the user's settings file is wrong.
    """
    folders = gguf_folders()
    found = [*_shipped(), *_cached(hub_cache())]
    for source, places in (("folder", folders), ("lm studio", lmstudio.folders())):
        for folder in places:
            found += _in_folder(folder, source)
    found += _of_ollama()
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
    return [user_path(name) for name in named]


def hub_cache() -> Path:
    """Return where the Hugging Face libraries keep what they download, there or not.

    By the environment, as https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    tells.
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return user_path(os.path.expandvars(os.environ[name]))
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    return user_path(os.path.expandvars(home)) / "hub"


def _shipped() -> list[LocalModel]:
    found = []
    for name in demo.MODELS:
        folder = demo.path(name)
        size = _weights_bytes(folder)
        if size:
            found.append(LocalModel(f"transformers:{name}", "demo", size, folder))
    for name, quant in product(demo.GGUF, demo.QUANTS):
        path = demo.gguf_path(name) / f"{name}-{quant}.gguf"
        if path.is_file():
            spec = ModelSpec.of(_GGUF, name, {"quant": quant}).text
            found.append(LocalModel(spec, "demo", path.stat().st_size, path))
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
    yield from _cached_ggufs(name, snapshot, at_main=not revision)


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


def _cached_ggufs(name: str, snapshot: Path, *, at_main: bool) -> Iterator[LocalModel]:
    """Give the GGUF models of a cached repository, by its name where that finds them."""
    sizes = dict(_ggufs(snapshot))
    inside = {path: path.relative_to(snapshot).as_posix() for path in sizes}
    for path, size in sizes.items():
        model = _short_name(name, inside[path], list(inside.values())) if at_main else ""
        yield LocalModel(ModelSpec.of(_GGUF, model or str(path)).text, "hub", size, path)


def _short_name(repo: str, file_name: str, names: Sequence[str]) -> str:
    """Return the repository with the shortest addition that means a file of it; empty if none does."""
    for addition in (quants.quant_of(file_name), quants.stem(file_name), file_name):
        short = f"{repo}:{addition}"
        with suppress(ModelAccessError):  # it could be another one
            if (
                quants.split_quant(short) == (repo, addition)
                and quants.choose(names, addition) == file_name
            ):
                return short
    return ""


def _in_folder(folder: Path, source: str) -> Iterator[LocalModel]:
    for path, size in _ggufs(folder):
        yield LocalModel(ModelSpec.of(_GGUF, str(path)).text, source, size, path)


def _of_ollama() -> Iterator[LocalModel]:
    for one in ollama.models():
        if _is_usable(one.path):
            spec = ModelSpec.of(_GGUF, f"{ollama.SCHEME}{one.name}").text
            yield LocalModel(spec, "ollama", one.bytes, one.path)


def _ggufs(folder: Path) -> Iterator[tuple[Path, int]]:
    """Give the GGUF models of a folder and those below it, with bytes; one in several files once."""
    if not gguf_files.is_folder(folder):
        logger.info("there is no folder %s", folder)
        return
    for path in sorted(gguf_files.find(folder)):
        try:
            size = gguf_files.size(path)
        except OSError as error:
            logger.info("left out: %s: %s", path, error)
            continue
        if _is_usable(path):
            yield path, size


def _is_usable(path: Path) -> bool:
    """Whether a file is a GGUF model that writes text; told in the log if not."""
    try:
        writes = gguf_files.writes_text(path)
    except (OSError, ValueError) as error:
        logger.info("left out: %s: %s", path, error)
        return False
    if not writes:
        logger.info("left out: %s: it is for embeddings or images and writes no text", path)
    return writes
