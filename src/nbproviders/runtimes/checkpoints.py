"""What a checkpoint is before it is loaded: its files, its weights' bytes, and what is wrong with it.

Reads headers and names only. Hub ids are looked up in the local cache; nothing here downloads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
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


def require_weights(folder: Path, model: str) -> None:
    """Check that a local folder holds a model that can be loaded.

    Raises
    ------
    ModelAccessError
        If it is missing, no folder, has no ``config.json``, no weights, or only pickled ones.
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
    if not (folder / "config.json").exists():
        raise ModelAccessError(
            f"The folder {model!r} has no config.json, so it is no transformers model.",
            hint="Give the folder that save_pretrained wrote.",
        )
    if any(folder.glob("*.safetensors")):
        return
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise ModelAccessError(
            f"The folder {model!r} holds pickled weights only; loading them can run any code.",
            hint="Convert them to safetensors, or allow them by name with ?allow_pickle=true.",
        )
    raise ModelAccessError(
        f"The folder {model!r} holds no weights (no .safetensors file).",
        hint="Was the download complete? Download it again.",
    )


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
