"""What a checkpoint is before it is loaded: its files, its weights' bytes, and what is wrong with it.

Reads headers and names only. Hub ids are looked up in the local cache; nothing here downloads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from nbproviders.errors import ModelAccessError

_ITEM_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
CAUSAL_CLASS, SEQ2SEQ_CLASS = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Weights:
    """The safetensors of a folder, by their headers.

    Attributes
    ----------
    tensors
        Bytes of each tensor as stored, by name.
    dtypes
        Dtype name of each tensor, as in the header (``F16``).
    """

    tensors: Mapping[str, int]
    dtypes: Mapping[str, str]

    def bytes_as(self, dtype: str | None) -> int:
        """Return bytes of all tensors once loaded in a dtype; None keeps each as stored."""
        total = 0
        for name, size in self.tensors.items():
            stored = _ITEM_BYTES.get(self.dtypes[name], 1)
            floating = self.dtypes[name].startswith(("F", "BF"))
            item = _ITEM_BYTES[dtype] if dtype and floating else stored
            total += size // stored * item
        return total


def is_local(model: str) -> bool:
    """Whether a name means a folder or file here, there or not: a Hub id never looks like one."""
    return (
        model.startswith((".", "/", "~"))
        or "\\" in model
        or model.count("/") > 1
        or Path(model).exists()
    )


def folder_of(model: str, revision: str | None = None) -> Path | None:
    """Return the folder with a model's files: a local path, or its snapshot in the Hub cache."""
    if is_local(model):
        return Path(model).expanduser()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # no Hub id either; loading says so
        return None
    return Path(found).parent if isinstance(found, str) else None


def require_weights(folder: Path, model: str, *, allow_pickle: bool = False) -> None:
    """Check that a local folder holds a model that can be loaded.

    Raises
    ------
    ModelAccessError
        If it is missing, no folder, has no ``config.json``, no weights, or only pickled ones; if parts
        are missing, or a header is damaged.
    """
    if not folder.exists():
        raise ModelAccessError(
            f"There is no folder {str(folder)!r}.",
            hint="Check the path, or give a Hub id such as 'org/name'.",
        )
    if folder.is_file():
        raise ModelAccessError(
            f"{model!r} is a file; transformers loads a folder with config.json and safetensors.",
            hint="Give the folder. A .gguf file is for the provider llama-cpp.",
        )
    require_files([path.name for path in folder.iterdir()], model, allow_pickle=allow_pickle)
    lost = _missing_parts(folder)
    if lost:
        raise ModelAccessError(
            f"In the folder {model!r} {len(lost)} weights files are missing: {', '.join(lost[:3])}"
            f"{' …' if len(lost) > 3 else ''}.",
            hint="Was the download complete? Download it again.",
        )
    read_weights(folder)


def require_files(names: Sequence[str], model: str, *, allow_pickle: bool = False) -> None:
    """Check by their names that the files of a folder or repository are a model's.

    Raises
    ------
    ModelAccessError
        If there is no ``config.json``, and no weights but pickled ones, GGUF or an adapter's.
    """
    weights = [name for name in names if name.endswith(".safetensors")]
    whole = [name for name in weights if not name.startswith("adapter_")]
    pickled = [name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES)]
    has_config = "config.json" in names
    if has_config and (whole or (pickled and allow_pickle)):
        return
    if not whole and any(name.endswith(".gguf") for name in names):
        raise ModelAccessError(
            f"{model!r} holds its weights as GGUF files, which transformers does not load.",
            hint="Load it with the provider llama-cpp.",
        )
    if weights and not whole:
        raise ModelAccessError(
            f"{model!r} is an adapter: it holds what was trained on top of another model.",
            hint="Load the model it belongs to, or merge the two and save that.",
        )
    if not has_config:
        raise ModelAccessError(
            f"{model!r} has no config.json, so it is no transformers model.",
            hint="Give the folder that save_pretrained wrote.",
        )
    if pickled:
        raise ModelAccessError(
            f"{model!r} holds pickled weights only; loading them can run any code.",
            hint="Convert them to safetensors, or allow them by name with ?allow_pickle=true.",
        )
    raise ModelAccessError(
        f"{model!r} holds no weights (no .safetensors file).",
        hint="Was the download complete? Download it again.",
    )


def is_whole(folder: Path, *, allow_pickle: bool = False) -> bool:
    """Whether a snapshot has its config and all its weights; a download may have stopped before."""
    try:
        require_weights(folder, folder.name, allow_pickle=allow_pickle)
    except ModelAccessError:
        return False
    return True


def _missing_parts(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    return [name for name in parts_of(index) if not (folder / name).is_file()]


def parts_of(index: Path) -> list[str]:
    """Return the names of the files that an index of weights tells of.

    Raises
    ------
    ModelAccessError
        If it is damaged.
    """
    told = _read_json(index).get("weight_map", {})
    parts = set(told.values()) if isinstance(told, dict) else {None}
    if not all(isinstance(part, str) for part in parts):
        raise ModelAccessError(
            f"The file {index.name!r} of {str(index.parent)!r} is damaged: its weight_map names no files.",
            hint="Download it again, or restore it.",
        )
    return sorted(map(str, parts))


def read_config(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` says; nothing if there is none.

    Raises
    ------
    ModelAccessError
        If it is damaged.
    """
    path = folder / "config.json"
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ModelAccessError(
            f"The file {path.name!r} of {str(path.parent)!r} is damaged: it is no JSON object.",
            hint="Download it again, or restore it.",
        )
    return found


def require_class(config: Mapping[str, Any], model_class: str, model: str) -> None:
    """Check that what a ``config.json`` describes can be loaded as a class and write text.

    What transformers does not know, or what brings its own code, is left to the load.

    Raises
    ------
    ModelAccessError
        For a seq2seq model asked as causal or the reverse, an encoder, a classifier.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if not model_class or not kinds or config.get("auto_map"):
        return
    fits = [name for name, classes in _loadable().items() if classes & set(kinds)]
    if model_class in fits or (not fits and config.get("model_type") not in MODEL_MAPPING_NAMES):
        return
    raise ModelAccessError(
        f"{model!r} is a {', '.join(kinds)}, which {model_class} cannot load to write text.",
        hint=f"Load it with ?model_class={fits[0]}."
        if fits
        else "It is no model for generation, such as an encoder or a classifier: choose another.",
    )


def class_of(config: Mapping[str, Any]) -> str:
    """Return the auto class that fits what a ``config.json`` describes."""
    if config.get("is_encoder_decoder"):
        return SEQ2SEQ_CLASS
    kinds = {str(kind) for kind in config.get("architectures") or ()}
    loadable = _loadable() if kinds else {}
    fits = [name for name, classes in loadable.items() if classes & kinds]
    return SEQ2SEQ_CLASS if fits == [SEQ2SEQ_CLASS] else CAUSAL_CLASS


def dtype_of(config: Mapping[str, Any]) -> str:
    """Return the dtype a ``config.json`` says its weights have; float32 if it does not say."""
    told = config.get("dtype") or config.get("torch_dtype")
    return told if isinstance(told, str) and told in _ITEM_BYTES else "float32"


@cache
def _loadable() -> dict[str, set[str]]:
    """Return the architectures that each auto class loads."""
    from transformers.models.auto import modeling_auto as auto

    tables = {
        CAUSAL_CLASS: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        SEQ2SEQ_CLASS: auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    found: dict[str, set[str]] = {}
    for name, table in tables.items():
        found[name] = set()
        for kinds in table.values():
            found[name] |= {kinds} if isinstance(kinds, str) else set(kinds)
    return found


def read_weights(folder: Path) -> Weights | None:
    """Return what the safetensors headers of a folder say; None where there are none.

    The header is JSON behind its length as 8 little-endian bytes (safetensors format description).

    Raises
    ------
    ModelAccessError
        For a truncated or damaged file.
    """
    sizes: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            sizes[name], dtypes[name] = end - begin, entry["dtype"]
    return Weights(sizes, dtypes) if sizes else None


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, 100_000_000):
                raise ValueError("its header length is wrong")
            header: dict[str, Any] = json.loads(file.read(length))
        end = max(
            (e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0
        )
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes where its header tells of {8 + length + end}")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelAccessError(
            f"The weights file {path.name!r} is damaged: {error}.",
            hint="Download it again, or restore it.",
        ) from None
    return header


def revision_of(folder: Path) -> str:
    """Return what tells this version of a model from another.

    The commit, for a snapshot in the Hub cache; else a digest of names, sizes and times of its files.
    """
    if folder.parent.name == "snapshots":
        return folder.name
    names = sorted(p for p in folder.glob("*") if p.suffix in {".json", ".safetensors", ".bin"})
    stats = [(p.name, s.st_size, s.st_mtime_ns) for p in names for s in (p.stat(),)]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def watched(folder: Path) -> tuple[Path, ...]:
    """Return the file whose change means that the folder now holds another model.

    One, not all: it is looked at each time a model is opened, which takes microseconds.
    """
    return tuple(sorted(folder.glob("*.safetensors"))[:1]) or (folder / "config.json",)
