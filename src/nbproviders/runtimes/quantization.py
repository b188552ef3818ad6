"""4-bit and 8-bit weights through bitsandbytes: what was asked, whether it can be, what it takes.

A choice that conflicts, cannot be or has no effect is refused before any weights are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from nbproviders.errors import ConfigurationError, ProviderError, foreign, mapped

_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SHORT: Mapping[str, Mapping[str, Any]] = {
    "nf4": _NF4,
    "fp4": {**_NF4, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
"""One word for each kind of number, as bitsandbytes calls it: 4 bits come in two kinds."""

# Each setting of transformers' BitsAndBytesConfig: its type, its default, and what it may be.
_FLOATS = ("float32", "float16", "bfloat16")
_SETTINGS: Mapping[str, tuple[type, Any, tuple[str, ...]]] = {
    "load_in_4bit": (bool, False, ()),
    "load_in_8bit": (bool, False, ()),
    "bnb_4bit_quant_type": (str, "fp4", ("nf4", "fp4")),
    "bnb_4bit_compute_dtype": (str, None, _FLOATS),
    "bnb_4bit_use_double_quant": (bool, False, ()),
    "bnb_4bit_quant_storage": (str, "uint8", ("uint8", *_FLOATS)),
    "llm_int8_threshold": (float, 6.0, ()),
    "llm_int8_skip_modules": (list, None, ()),
    "llm_int8_enable_fp32_cpu_offload": (bool, False, ()),
    "llm_int8_has_fp16_weight": (bool, False, ()),
}
_OF_INT8 = ("llm_int8_threshold", "llm_int8_has_fp16_weight")
_BLOCK = 64  # weights that share one scale, bitsandbytes' default
_SCALES = 256  # scales that share one scale, with double quantization
_PACKED_ROWS = 32
# What bitsandbytes logs for every single product of matrices, and of a kernel from the Hub at its import.
_CHATTER = {
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def normalised(short: str | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the settings that differ from the defaults; None for no quantization.

    Parameters
    ----------
    short
        One of `SHORT`.
    config
        As ``BitsAndBytesConfig`` takes it.

    Raises
    ------
    ConfigurationError
        For an unknown word, setting or value, and for settings that exclude each other.
    """
    if short is None and config is None:
        return None
    if short is not None and config is not None:
        raise ConfigurationError(
            f"quantization={short!r} and quantization_config={dict(config)!r} are both given.",
            hint="Give one of them: the word stands for a whole configuration.",
        )
    if short is not None and short not in SHORT:
        raise ConfigurationError(
            f"quantization={short!r} is not one of {', '.join(SHORT)}.",
            hint="Other settings go into quantization_config, as BitsAndBytesConfig takes them.",
        )
    given = dict(SHORT[short] if short is not None else config or {})
    if given.pop("quant_method", "bitsandbytes") != "bitsandbytes":
        raise ConfigurationError(
            f"quantization_config={dict(config or {})!r} asks for another method than bitsandbytes.",
            hint="Load a checkpoint that was quantized by that method; it needs no option.",
        )
    # As BitsAndBytesConfig.to_dict writes it, each flag comes twice.
    chosen = {name: value for name, value in given.items() if not name.startswith("_load_in_")}
    for name, value in chosen.items():
        _check_setting(name, value)
    told = {name: value for name, value in chosen.items() if value != _SETTINGS[name][1]}
    _check_together(told)
    return told


def _check_setting(name: str, value: Any) -> None:
    if name not in _SETTINGS:
        raise ConfigurationError(
            f"quantization_config has no setting {name!r}.",
            hint=f"Its settings: {', '.join(_SETTINGS)}.",
        )
    kind, default, choices = _SETTINGS[name]
    if value is None and default is None:
        return
    number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, kind) and not number:
        raise ConfigurationError(
            f"quantization_config: {name}={value!r} must be {kind.__name__}, not "
            f"{type(value).__name__}.",
            hint=f"One of {', '.join(choices)}." if choices else None,
        )
    if choices and value not in choices:
        raise ConfigurationError(
            f"quantization_config: {name}={value!r} is not one of {', '.join(choices)}."
        )


def _check_together(told: Mapping[str, Any]) -> None:
    four, eight = told.get("load_in_4bit", False), told.get("load_in_8bit", False)
    if four == eight:
        raise ConfigurationError(
            "quantization_config asks for 4 and 8 bits at once."
            if four
            else f"quantization_config={dict(told)!r} asks for neither 4 nor 8 bits.",
            hint='Say {"load_in_4bit": true} or {"load_in_8bit": true}, or quantization=nf4, fp4 or '
            "int8.",
        )
    # float32 is what BitsAndBytesConfig itself writes for 8 bits.
    idle = [
        name
        for name, value in told.items()
        if (name.startswith("bnb_4bit_") and value != "float32" if eight else name in _OF_INT8)
    ]
    if idle:
        raise ConfigurationError(
            f"quantization_config: {', '.join(idle)} has no effect on {8 if eight else 4} bits.",
            hint=f"Leave it out, or load in {4 if eight else 8} bits.",
        )


def require(settings: Mapping[str, Any], device: str) -> None:
    """Check that these settings can be followed on a device.

    Raises
    ------
    ConfigurationError
        If bitsandbytes is missing, broken or too old, or does not compute there.
    """
    word = word_of(settings)
    for name in _CHATTER:
        logging.getLogger(name).addFilter(_quiet)
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise ConfigurationError(
            f"quantization {word} needs the package bitsandbytes, which "
            f"{'is not installed' if missing else f'cannot be imported: {foreign(error)}'}.",
            hint='Install it: pip install "nbproviders[bitsandbytes]", or load without quantization.',
        ) from foreign(error)
    from transformers.utils.import_utils import (
        BITSANDBYTES_MIN_VERSION,
        is_bitsandbytes_available,
    )

    if not is_bitsandbytes_available():
        raise ConfigurationError(
            f"quantization {word} needs bitsandbytes {BITSANDBYTES_MIN_VERSION} or newer, not "
            f"{bitsandbytes.__version__}.",
            hint="Update it: pip install -U bitsandbytes.",
        )
    known = set(bitsandbytes.supported_torch_devices)
    if device.partition(":")[0] not in known:
        raise ConfigurationError(
            f"quantization {word} cannot be on the device {device!r}: bitsandbytes "
            f"{bitsandbytes.__version__} computes on {', '.join(sorted(known))}.",
            hint="Choose one of these with ?device=…, or load without quantization.",
        )


def require_plain(config: Mapping[str, Any], model: str) -> None:
    """Check that a checkpoint's ``config.json`` is not that of quantized weights.

    Raises
    ------
    ConfigurationError
        If they are: to quantize them again is not possible.
    """
    found = config.get("quantization_config")
    if not found:
        return
    method = found.get("quant_method", "an unknown method") if isinstance(found, Mapping) else found
    raise ConfigurationError(
        f"{model!r} is quantized already, by {method}, and cannot be quantized again.",
        hint="Leave the quantization out: it loads as it is. Or take the model it was made from.",
    )


def word_of(settings: Mapping[str, Any]) -> str:
    """Return ``nf4``, ``fp4`` or ``int8``."""
    if settings.get("load_in_8bit"):
        return "int8"
    return str(settings.get("bnb_4bit_quant_type", "fp4"))


def transformers_config(settings: Mapping[str, Any], dtype: str | None) -> Any:
    """Return the ``BitsAndBytesConfig``; 4-bit weights are computed with in the model's dtype.

    Parameters
    ----------
    settings
        As `normalised` returned them.
    dtype
        The dtype that is loaded; None leaves the choice to bitsandbytes, which takes the input's.
    """
    from transformers import BitsAndBytesConfig

    given = dict(settings)
    if given.get("load_in_4bit") and dtype is not None:
        given.setdefault("bnb_4bit_compute_dtype", dtype)
    if isinstance(given.get("llm_int8_threshold"), int):
        given["llm_int8_threshold"] = float(given["llm_int8_threshold"])
    return BitsAndBytesConfig(**given)


def _quiet(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_CHATTER.get(record.name, "\0"))


# Bytes, before and after


def expected_bytes(
    model: str, model_class: str, settings: Mapping[str, Any], dtype: str | None, trusted: bool
) -> int | None:
    """Return bytes of a model once quantized: embeddings and head stay in `dtype`.

    The model is built without weights; None if it cannot be.
    """
    try:
        with mapped(model):
            return sum(_part_bytes(*_bare(model, model_class, trusted), settings, dtype))
    except ProviderError:  # what is wrong with it is told by the load
        return None


def _bare(model: str, model_class: str, trusted: bool) -> tuple[Any, Any]:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        model, trust_remote_code=trusted, local_files_only=True
    )
    with torch.device("meta"):
        built = getattr(transformers, model_class).from_config(config, trust_remote_code=trusted)
    return built, config


def _part_bytes(
    built: Any, config: Any, settings: Mapping[str, Any], dtype: str | None
) -> list[int]:
    import torch

    item = (getattr(torch, dtype) if dtype else config.dtype or torch.float32).itemsize
    kept = settings.get("llm_int8_skip_modules")
    names = _outer(built) if kept is None else set(kept)
    found, seen = [], set()
    for path, module in built.named_modules():
        linear = isinstance(module, torch.nn.Linear) and not _among(path, names)
        for name, tensor in module.named_parameters(recurse=False):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if linear and name == "weight":
                rows, columns = tensor.shape
                found.append(_weight_bytes(rows, columns, settings))
            else:
                found.append(tensor.numel() * item)
        found += [t.numel() * t.element_size() for t in module.buffers(recurse=False)]
    return found


def _outer(built: Any) -> set[str]:
    """Return the modules that transformers leaves alone: the head, and the last one."""
    head = built.get_output_embeddings()
    last = [name for name, _ in built.named_parameters()][-1].rpartition(".")[0]
    return {name for name, module in built.named_modules() if module is head} | {last}


def _among(path: str, names: set[str]) -> bool:
    return any(path == name or f".{name}." in f".{path}." for name in names)


def _weight_bytes(rows: int, columns: int, settings: Mapping[str, Any]) -> int:
    count = rows * columns
    if settings.get("load_in_8bit"):
        return count + 4 * rows
    scales = -(-count // _BLOCK)
    if not settings.get("bnb_4bit_use_double_quant"):
        return count // 2 + 4 * scales
    return count // 2 + scales + 4 * -(-scales // _SCALES)


def settle(model: Any) -> None:
    """Have every layer of a loaded model compute here; call it before the first forward.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights for a faster kernel, and fails for
    shapes that do not fill its blocks; such layers take its plain way.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            state = module.weight.quant_state
            rows, columns = state.shape
            if rows % _PACKED_ROWS or columns % state.blocksize:
                module.support_avx512bf16_for_cpu = False


def own_scales(model: Any) -> None:
    """Make the scales buffers of their modules, so that they are counted and freed like weights.

    Call it after the first forward, which may replace them.
    """
    for module in model.modules():
        four = getattr(getattr(module, "weight", None), "quant_state", None)
        eight = getattr(module, "state", None)
        found = {
            "scales": getattr(four, "absmax", getattr(eight, "SCB", None)),
            "scales_of_scales": getattr(getattr(four, "state2", None), "absmax", None),
        }
        for name, tensor in found.items():
            if tensor is not None:
                module.register_buffer(name, tensor, persistent=False)


def is_quantized(model: Any) -> bool:
    """Whether a loaded model computes with 4 or 8 bits of bitsandbytes."""
    return bool(
        getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    )


def expected_settings(config: object) -> dict[str, Any] | None:
    """Return the settings of what `load_model` was given: a mapping, or a ``BitsAndBytesConfig``.

    None for another library's configuration, which transformers judges.
    """
    if isinstance(config, Mapping):
        return normalised(None, config)
    method = str(getattr(config, "quant_method", "")).rpartition(".")[2].lower()
    to_dict = getattr(config, "to_dict", None)
    if method not in ("bitsandbytes", "bits_and_bytes") or to_dict is None:
        return None
    told = to_dict()
    told["quant_method"] = "bitsandbytes"
    return normalised(None, told)
