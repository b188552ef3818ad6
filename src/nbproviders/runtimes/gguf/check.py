"""What is unusual about a GGUF file that reads well: reasons to let a child process load it first.

A whitelist. llama.cpp asserts relations between a file's numbers, and a failed assertion ends the process,
so a file is ordinary only if each number that it reads was looked at here. Anything else is no error: it is
tried (see `trial`). Weights are not looked at; damage there loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbproviders.errors import ModelAccessError
from nbproviders.runtimes.gguf.header import AGAIN, Header
from nbproviders.runtimes.gguf.layouts import ARCHITECTURES, SQUARE, has_layout, tensor_oddities
from nbproviders.runtimes.gguf.vocabulary import vocabulary_oddities

MAX_LAYERS = 512
MAX_EXPERTS = 1024
_LARGEST = 1 << 24  # of a context, a vocabulary, a width: far above what there is
# llama-cpp-python reserves room for a whole context whenever it tokenizes: gigabytes from here on.
_IMPOSSIBLE_CONTEXT = 1 << 26
_KINDS = {
    "adapter": "a LoRA adapter",
    "mmproj": "the image or audio part of a model",
    "vocab": "a vocabulary without weights",
    "imatrix": "an importance matrix for quantizing",
}


def oddities(files: Sequence[Header]) -> list[str]:
    """Return in sentences why a model is unusual; empty for an ordinary one.

    Parameters
    ----------
    files
        All its parts, as `read_files` returns them.

    Raises
    ------
    ModelAccessError
        If it is certainly no language model: an adapter, a projector, or without any weights.
    """
    first = files[0]
    _require_model(files)
    reasons = _general(files)
    if first.architecture not in ARCHITECTURES:
        return [*reasons, f"Its architecture {first.architecture!r} is none of those checked."]
    wrong = _hyperparameters(first)
    reasons += wrong + vocabulary_oddities(first)
    if not wrong:
        tensors = [tensor for file in files for tensor in file.tensors]
        sizes, experts = _sizes(first), bool(first.get("expert_count", 0))
        count = first.get("block_count")
        reasons += tensor_oddities(first.architecture, experts, count, sizes, tensors)
    return reasons


def _require_model(files: Sequence[Header]) -> None:
    first = files[0]
    path = str(first.path)
    what = first.metadata.get("general.type", "model")
    kind = _KINDS.get(what) if isinstance(what, str) else None
    if kind is None and first.architecture == "clip":
        kind = _KINDS["mmproj"]
    if kind is not None:
        raise ModelAccessError(
            f"{path!r} is {kind}, not a language model.",
            hint="Give the model's own file, which lies beside it or in the repository it was made for.",
        )
    if first.types.get("general.architecture", "str") != "str" or not first.architecture:
        raise ModelAccessError(f"{path!r} does not name its architecture.", hint=AGAIN)
    if not any(file.tensors for file in files):
        raise ModelAccessError(
            f"{path!r} holds no weights.",
            hint="It may be a vocabulary alone. Give the model's file.",
        )
    context = first.get("context_length", 0)
    if isinstance(context, int) and context > _IMPOSSIBLE_CONTEXT:
        raise ModelAccessError(f"{path!r} claims a context of {context:,} tokens.", hint=AGAIN)


def _general(files: Sequence[Header]) -> list[str]:
    first = files[0]
    reasons = []
    for key, wanted in (("general.name", "str"), ("general.file_type", "u32")):
        if first.types.get(key, wanted) != wanted:
            reasons.append(f"{key!r} is stored as {first.types[key]}, not as {wanted}.")
    alignment = first.metadata.get("general.alignment", 32)
    if not 32 <= alignment <= 4096:
        reasons.append(f"Its alignment is {alignment:,}.")
    for file in files:
        # Only what may hold other bytes is encoded; lone surrogates stand for those (see `cursor`).
        broken = [key for key, value in file.metadata.items() if not _is_unicode(value)]
        if broken:
            reasons.append(f"The text of {broken[0]!r} is no UTF-8.")
        last = file.tensors[-1] if file.tensors else None
        end = file.data_offset + (last.offset + last.bytes if last else 0)
        if file.size - end > 4096:
            reasons.append(f"{file.size - end:,} bytes stand behind the last tensor.")
    extra = [key for key in first.metadata if key.startswith("general.tensor_extra.")]
    return reasons + [f"Its key {key!r} is none of those checked." for key in extra]


def _is_unicode(value: object) -> bool:
    texts = value if isinstance(value, tuple) and value and isinstance(value[0], str) else (value,)
    if not isinstance(texts[0], str):
        return True
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


Test = Callable[[Any], bool]


def _count(least: int = 1, most: int = _LARGEST) -> tuple[str, Test]:
    return "u32", lambda value: least <= value <= most


def _real(least: float, most: float) -> tuple[str, Test]:
    return "f32", lambda value: math.isfinite(value) and least <= value <= most


_FLAG: tuple[str, Test] = ("bool", lambda value: True)
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# The type and range of each key under the architecture's name; any other key is unusual.
_KEYS: Mapping[str, tuple[str, Test]] = {
    "vocab_size": _count(),
    "context_length": _count(),
    "embedding_length": _count(),
    "block_count": _count(1, MAX_LAYERS),
    "feed_forward_length": _count(),
    "use_parallel_residual": _FLAG,
    "attention.head_count": _count(1, 4096),
    "attention.head_count_kv": _count(1, 4096),
    "attention.key_length": _count(2, 4096),
    "attention.value_length": _count(2, 4096),
    "attention.layer_norm_epsilon": _real(1e-12, 1e-2),
    "attention.layer_norm_rms_epsilon": _real(1e-12, 1e-2),
    "attention.sliding_window": _count(),
    "attn_logit_softcapping": _real(1e-3, 1e4),
    "final_logit_softcapping": _real(1e-3, 1e4),
    "rope.dimension_count": _count(2, 4096),
    "rope.freq_base": _real(1.0, 1e12),
    "rope.freq_base_swa": _real(1.0, 1e12),
    "rope.scale_linear": _real(1e-3, 1e4),
    "rope.scaling.type": ("str", lambda value: value in _ROPE_SCALINGS),
    "rope.scaling.factor": _real(1e-3, 1e4),
    "rope.scaling.attn_factor": _real(1e-3, 1e4),
    "rope.scaling.original_context_length": _count(),
    "rope.scaling.finetuned": _FLAG,
    "expert_count": _count(0, MAX_EXPERTS),
    "expert_used_count": _count(0, MAX_EXPERTS),
    "expert_feed_forward_length": _count(),
}
_NEEDED = ["context_length", "embedding_length", "block_count", "feed_forward_length"]
_NEEDED += ["attention.head_count"]
# The others assert that all of a head is rotated, some only when they compute.
_PARTLY_ROTATED = frozenset({"phi2", "phi3", "gptneox"})
_LAYER_NORM = frozenset({"phi2", "gpt2", "gptneox", "falcon", "starcoder2"})


def _hyperparameters(header: Header) -> list[str]:
    """Return what is unusual about the architecture's own numbers."""
    arch, reasons = header.architecture, []
    norm = "layer_norm_epsilon" if arch in _LAYER_NORM else "layer_norm_rms_epsilon"
    for key in [*_NEEDED, f"attention.{norm}"]:
        if header.get(key) is None:
            reasons.append(f"{f'{arch}.{key}'!r} is missing.")
    for name, value in header.metadata.items():
        if not name.startswith(f"{arch}."):
            continue
        kind, test = _KEYS.get(name.removeprefix(f"{arch}."), (None, None))
        if kind is None or test is None:
            reasons.append(f"Its key {name!r} is none of those checked.")
        elif header.types[name] != kind:
            reasons.append(f"{name!r} is stored as {header.types[name]}, not as {kind}.")
        elif not test(value):
            reasons.append(f"{name!r} is {value!r}.")
    return reasons or _relations(header)


def _relations(header: Header) -> list[str]:
    """Return which numbers, each possible by itself, do not fit each other."""
    arch, get = header.architecture, header.get
    width, heads = get("embedding_length"), get("attention.head_count")
    kv_heads = get("attention.head_count_kv", heads)
    length = get("attention.key_length", width // heads)
    rotated = get("rope.dimension_count", length)
    experts, used = get("expert_count", 0), get("expert_used_count", 0)
    tokens = header.metadata.get("tokenizer.ggml.tokens", ())
    known = has_layout(arch, bool(experts))
    fits = {
        f"{heads} heads do not divide {kv_heads} key heads": heads % kv_heads == 0,
        f"{heads} heads do not divide {width}": "attention.key_length" in _own(header)
        or width % heads == 0,
        f"keys of {length} and values of another length": get(
            "attention.value_length", width // heads
        )
        == length,
        f"{heads} heads of {length} for a width of {width}": arch not in SQUARE
        or heads * length == width,
        f"{rotated} rotated dimensions of {length}": rotated % 2 == 0 and rotated <= length,
        f"{rotated} rotated dimensions, not all {length}": arch in _PARTLY_ROTATED
        or rotated == length,
        f"{used} of {experts} experts used": used <= experts and (used > 0) == (experts > 0),
        f"{arch} with {experts} experts": known,
        f"a vocabulary of {get('vocab_size')} with {len(tokens)} tokens": get(
            "vocab_size", len(tokens)
        )
        == len(tokens),
    }
    return [f"Its numbers do not fit: {what}." for what, fit in fits.items() if not fit]


def _own(header: Header) -> frozenset[str]:
    start = f"{header.architecture}."
    return frozenset(key.removeprefix(start) for key in header.metadata if key.startswith(start))


def _sizes(header: Header) -> dict[str, int]:
    """Return the dimensions that `layouts` names by letters."""
    get = header.get
    width, heads, feed = (
        get(key) for key in ("embedding_length", "attention.head_count", "feed_forward_length")
    )
    length = get("attention.key_length", width // heads)
    keys = get("attention.head_count_kv", heads) * length
    queries = heads * length
    return {
        "E": width,
        "V": len(header.metadata.get("tokenizer.ggml.tokens", ())),
        "F": feed,
        "G": get("expert_feed_forward_length", feed),
        "X": get("expert_count", 0),
        "C": get("context_length"),
        "H": length,
        "Q": queries,
        "K": keys,
        "A": queries + 2 * keys,
        "R": get("rope.dimension_count", length) // 2,
        "W": 2 * feed,
    }
