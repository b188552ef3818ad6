"""Models that Ollama keeps on this machine: its manifests, and the GGUF blobs that they name.

Reads the folders that Ollama publishes (https://docs.ollama.com/faq) and asks no server. Each model has
a manifest at ``manifests-v2`` or, of older versions, ``manifests``, under host, namespace, name and tag;
one of the layers that it lists is the weights, ``blobs/sha256-…``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nbproviders.catalog.settings import user_path
from nbproviders.errors import ModelAccessError

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "OLLAMA_MODELS"
SCHEME = "ollama://"
# Where the Linux installer's service, a user of its own, keeps them.
_SERVICE_FOLDER = Path("/usr/share/ollama/.ollama/models")

_HOSTS = ("registry.ollama.ai", "ollama.com")  # two names of one registry
_NAMESPACE, _TAG = "library", "latest"
_TREES = ("manifests-v2", "manifests")  # of a model that is in both the first counts
_WEIGHTS = "application/vnd.ollama.image.model"
_ADAPTER = "application/vnd.ollama.image.adapter"
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")

_MOST_MANIFESTS = 5_000
_MOST_BYTES = 8 << 20  # of a manifest; those of many thousand layers stay below
_MOST_LISTED = 30


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model of Ollama's that is a GGUF file.

    Attributes
    ----------
    name
        As Ollama takes it, without what is the default: ``llama3.2``, ``llama3.2:3b``,
        ``hf.co/org/name:Q4_K_M``.
    bytes
        Its weights on disk.
    path
        The blob.
    """

    name: str
    bytes: int
    path: Path


def folders() -> list[Path]:
    """Return where Ollama may keep models, there or not: its setting or default, then its service's."""
    # As Ollama reads it: blanks and quotes around the path are no part of it.
    chosen = os.environ.get(FOLDER_VARIABLE, "").strip().strip("\"'")
    first = Path(chosen) if chosen else user_path("~/.ollama/models")
    return list(dict.fromkeys([first, _SERVICE_FOLDER]))


def models() -> list[OllamaModel]:
    """Return Ollama's models, each file once: one under several tags goes by its shortest name.

    What cannot be read or opened by llama.cpp is left out, with a line in the log.
    """
    found: dict[Path, OllamaModel] = {}
    for name, (store, manifest) in sorted(_manifests().items(), key=_by_length):
        try:
            path = _weights(store, manifest)
            found.setdefault(path.resolve(), OllamaModel(name, path.stat().st_size, path))
        except (OSError, ValueError) as error:
            logger.info("left out of Ollama's models: %s: %s", name, error)
    return sorted(found.values(), key=lambda one: one.name)


def blob(name: str) -> Path:
    """Return the GGUF file of a model of Ollama's.

    Parameters
    ----------
    name
        ``[host/][namespace/]model[:tag]``, what stands after ``ollama://``; case does not matter.

    Raises
    ------
    ModelAccessError
        If there is no such model here, or it cannot be opened as a GGUF file.
    """
    known = _manifests()
    *place, last = name.split("/")
    model, _, tag = last.partition(":")
    wanted = _short(place, model, tag)
    same = [one for one in known if one.lower() == wanted.lower()]
    if not same:
        raise ModelAccessError(
            f"Ollama has no model {name!r} here; {_what_there_is(known)}", hint=_what_to_do(name)
        )
    try:
        return _weights(*known[wanted if wanted in known else same[0]])
    except (OSError, ValueError) as error:
        raise ModelAccessError(
            f"Ollama's model {name!r} cannot be used: {error}",
            hint=f"Fetch it again with `ollama pull {name}`, or choose another one.",
        ) from None


def _by_length(item: tuple[str, object]) -> tuple[int, str]:
    return len(item[0]), item[0]


def _what_there_is(known: Mapping[str, object]) -> str:
    if known:
        rest = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
        return f"there is {', '.join(sorted(known)[:_MOST_LISTED])}{rest}."
    return f"nothing was found in {' or '.join(map(str, folders()))}."


def _what_to_do(name: str) -> str:
    closed = [str(folder) for folder in folders() if _is_closed(folder)]
    if closed:
        return f"{closed[0]} may not be read by you: copy the model, or join the group that may."
    return f"Fetch it with `ollama pull {name}`, or set {FOLDER_VARIABLE} to Ollama's folder."


def _is_closed(folder: Path) -> bool:
    try:
        return folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    except OSError:  # a folder above it is closed
        return True


def _manifests() -> dict[str, tuple[Path, Path]]:
    """Return store and manifest of each name; the first folder and tree that has it counts."""
    found: dict[str, tuple[Path, Path]] = {}
    for store in folders():
        for tree in _TREES:
            root = store / tree
            for path in _entries(root):
                *place, model, tag = path.relative_to(root).parts
                found.setdefault(_short(place, model, tag), (store, path))
    return found


def _entries(root: Path) -> Iterator[Path]:
    try:
        paths = sorted(islice(root.glob("*/*/*/*"), _MOST_MANIFESTS))
    except OSError as error:
        logger.info("Ollama's models in %s cannot be read: %s", root, error)
        return
    for path in paths:
        try:
            if path.is_file() and not path.name.startswith("."):
                yield path
        except OSError as error:
            logger.info("left out of Ollama's models: %s: %s", path, error)


def _short(place: list[str], model: str, tag: str) -> str:
    """Return a name without the parts that are the defaults."""
    if len(place) == 2 and place[0].lower() in _HOSTS:
        place = place[1:]
    if len(place) == 1 and place[0].lower() == _NAMESPACE:
        place = []
    whole = "/".join([*place, model])
    return whole if tag.lower() in ("", _TAG) else f"{whole}:{tag}"


def _weights(store: Path, manifest: Path) -> Path:
    """Return the blob that holds a model's weights.

    Raises
    ------
    OSError, ValueError
        If it cannot be told or is not there, or is not all that makes the model.
    """
    layers = _layers(store, _read(manifest))
    if any(layer.get("mediaType") == _ADAPTER for layer in layers):
        raise ValueError("it is made of a model and an adapter, which are not put together here")
    weights = [layer for layer in layers if layer.get("mediaType") == _WEIGHTS]
    if len(weights) != 1:
        raise ValueError(f"its manifest lists {len(weights)} GGUF files, not one")
    path = _blob_path(store, weights[0].get("digest"))
    size, told = path.stat().st_size, weights[0].get("size")
    if isinstance(told, int) and size != told:
        raise ValueError(f"{path} holds {size} bytes, not {told}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
    return path


def _layers(store: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a manifest's layers; of a list of manifests, those of the first that has GGUF weights."""
    for candidate in _candidates(store, manifest):
        layers = candidate.get("layers")
        known = [one for one in layers if isinstance(one, dict)] if isinstance(layers, list) else []
        if any(one.get("mediaType") == _WEIGHTS for one in known):
            return known
    raise ValueError("its manifest lists no GGUF file")


def _candidates(store: Path, manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    children = manifest.get("manifests")
    if not isinstance(children, list):
        yield manifest
        return
    entries = [one for one in children if isinstance(one, dict)]
    # The same model may be there once more in a form for Ollama's own engine alone.
    for entry in sorted(entries, key=lambda one: one.get("runner") != "llamacpp"):
        if "layers" in entry:
            yield entry
        elif str(entry.get("format", "gguf")).lower() == "gguf":
            try:
                yield _read(_blob_path(store, entry.get("digest")))
            except (OSError, ValueError) as error:
                logger.info("left out of one of Ollama's manifests: %s", error)


def _read(manifest: Path) -> dict[str, Any]:
    with manifest.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"its manifest is larger than {_MOST_BYTES} bytes")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("its manifest is nested too deep") from None
    return found if isinstance(found, dict) else {}


def _blob_path(store: Path, digest: object) -> Path:
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise ValueError(f"its manifest names no blob but {digest!r:.80}")
    return store / "blobs" / f"sha256-{found[1].lower()}"
