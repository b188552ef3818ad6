"""What a checkpoint will take once it is loaded with transformers, before it is: an `Estimate`.

Weights are those of the model's structure, in the dtype they will have, checked against the headers of the
files. Cache and workspace come from a rehearsal without memory. Where something cannot be built or rehearsed
it is guessed, and the estimate says so.
"""

from __future__ import annotations

import builtins
import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nbproviders.errors import ForeignError, InsufficientMemoryError, ProviderError, mapped
from nbproviders.residency.estimate import Estimate
from nbproviders.runtimes import checkpoints, quantization, rehearsal
from nbproviders.runtimes.decoding import PREFILL_CHUNK_TOKENS

# A long context is rarely used whole, and its cache would keep other models out: what a request needs beyond
# this is its own to ask for. One row: a batch shares it as long as its texts are short.
MOST_CONTEXT_TOKENS = 4096
# Of torch, in about 1.5 s. A Llama of 32 layers takes 9,000 of them, of 80 layers 22,000;
# a loop over tokens millions.
MOST_OPERATIONS = 25_000
_LEAST_PERIOD, _LONGEST_PERIOD = 4, 8
_SAMPLED_ROWS = 64
_SHORT_TOKENS = (8, 16)
_GUESSED = "cache and workspace are guessed: "

Turn = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Wanted:
    """A checkpoint, and how it will be loaded.

    Attributes
    ----------
    folder
        With its files.
    revision
        What tells its content from another's under the same name.
    model_class
        The auto class.
    dtype
        None is the checkpoint's own.
    attention
        As transformers calls the implementation; None is its choice.
    trusted
        Whether code that comes with the model may run.
    """

    folder: Path
    revision: str
    model_class: str
    dtype: str | None
    attention: str | None = None
    trusted: bool = False


def wanted(folder: Path, values: Mapping[str, Any], dtype: str | None) -> Wanted:
    """Return what a provider's load options ask for."""
    chosen = values["model_class"] or checkpoints.class_of(checkpoints.read_config(folder))
    return Wanted(
        folder,
        checkpoints.revision_of(folder),
        chosen,
        dtype,
        values.get("attn_implementation"),
        values["trust_remote_code"],
    )


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model on whatever device, as in `Estimate`."""

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    context_tokens: int
    architecture: str
    notes: tuple[str, ...] = ()
    lasting: bool = True  # else it is a guess that may be better another time


def expected(
    wanted: Wanted,
    device: str,
    settings: Mapping[str, Any] | None = None,
    turn: Turn = nullcontext,
) -> Estimate:
    """Return what a model takes on a device.

    Parameters
    ----------
    wanted
        What is loaded, and how.
    device
        Where.
    settings
        Of a quantization, as `quantization.normalised` returns them.
    turn
        Entered while a model's structure is built, which no load of this process may do meanwhile.

    Raises
    ------
    ModelAccessError
        For damaged files.
    """
    found = footprint(wanted, turn)
    if settings is not None:
        found = _quantized(found, wanted, settings, turn)
    host = {} if device == "cpu" else {"host": found.weights_bytes}
    notes = found.notes
    if device.partition(":")[0] not in ("cpu", "virtual"):
        notes += ("the workspace is that of a CPU's kernels; another device may choose others",)
    return Estimate(
        weights={device: found.weights_bytes},
        cache={device: found.cache_bytes},
        workspace={device: found.workspace_bytes},
        optional=host,
        context_tokens=found.context_tokens,
        notes=notes,
        architecture=found.architecture,
    )


_MOST_KNOWN = 256
_found: dict[Wanted, Footprint] = {}


def footprint(wanted: Wanted, turn: Turn = nullcontext) -> Footprint:
    """Return a model's bytes, not quantized here; what was found out once is kept."""
    known = _found.get(wanted)
    if known is None:
        known = _footprint(wanted, turn)
        if known.lasting:
            _found[wanted] = known
        while len(_found) > _MOST_KNOWN:
            _found.pop(next(iter(_found)), None)
    return known


def _footprint(wanted: Wanted, turn: Turn) -> Footprint:
    config = checkpoints.read_config(wanted.folder)
    headers = checkpoints.read_weights(wanted.folder)
    try:
        with mapped("it cannot be built without its weights"):
            return _rehearsed(wanted, config, headers, turn)
    except ProviderError as error:  # what is wrong with it is told by the load
        found = _guessed(wanted, config, headers, error.message)
        return replace(found, lasting=not _passes(error))


def _rehearsed(
    wanted: Wanted, told: Mapping[str, Any], headers: checkpoints.Weights | None, turn: Turn
) -> Footprint:
    from nbproviders.runtimes.transformers import context_tokens

    config, notes = _config(wanted)
    dtype = wanted.dtype or _own_dtype(config, headers)
    tokens = min(context_tokens(config) or MOST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS)
    lasting = True
    with rehearsal.faked():

        def build(chosen: Any) -> Any:
            with turn():
                return rehearsal.build(chosen, wanted.model_class, dtype, wanted.trusted)

        model = build(config)
        try:
            with mapped("it cannot be rehearsed"):
                taken, note = _computed(model, config, tokens, build)
        except ProviderError as error:
            taken, note, lasting = None, _GUESSED + error.message, not _passes(error)
    weights, strange = _weights(
        model, wanted.folder, headers, bool(told.get("quantization_config"))
    )
    taken = taken or _guess(told, weights, dtype, tokens)
    notes += tuple(filter(None, (strange, note)))
    sizes, kind = (weights, taken.cache_bytes, taken.workspace_bytes), type(model).__name__
    return Footprint(*sizes, tokens, kind, notes, lasting)


def _passes(error: ProviderError) -> bool:
    """Whether a failure may be over another time: no memory is left, or no file can be opened."""
    cause = error.__cause__
    kind = getattr(builtins, cause.type_name, None) if isinstance(cause, ForeignError) else None
    short = isinstance(error, InsufficientMemoryError)
    return short or (isinstance(kind, type) and issubclass(kind, OSError))


def _config(wanted: Wanted) -> tuple[Any, tuple[str, ...]]:
    """Return a checkpoint's config as it is to be rehearsed, and what is other than at its load."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        str(wanted.folder), trust_remote_code=wanted.trusted, local_files_only=True
    )
    notes: tuple[str, ...] = ()
    if getattr(config, "quantization_config", None):
        del config.quantization_config
        notes += ("the weights are quantized: counted as they are stored",)
    if wanted.attention in ("sdpa", "eager"):
        config._attn_implementation = wanted.attention
    elif wanted.attention is not None:
        notes += (f"computed as without attn_implementation={wanted.attention}",)
    return config, notes


def _own_dtype(config: Any, headers: checkpoints.Weights | None) -> str:
    """Return the dtype that transformers loads by itself: the config's, else the first tensor's."""
    told = str(config.dtype or "").removeprefix("torch.")
    names = {"F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    stored = list(headers.dtypes.values()) if headers is not None else []
    return told or next((names[one] for one in stored if one in names), "float32")


# Weights


def _weights(
    model: Any, folder: Path, headers: checkpoints.Weights | None, quantized: bool
) -> tuple[int, str]:
    """Return bytes of all tensors, each storage once, and what is strange about the files."""
    if headers is None:
        return rehearsal.weights_bytes(model), ""
    if quantized:
        return headers.bytes_as(None), ""
    return rehearsal.weights_bytes(model) + _untied_bytes(model, folder, headers), _strange(
        model, headers
    )


def _untied_bytes(model: Any, folder: Path, headers: checkpoints.Weights) -> int:
    """Return bytes of tensors that the config ties, and that the files hold twice with other values.

    transformers leaves those apart.
    """
    count = 0
    for target, source in model.all_tied_weights_keys.items():
        if {target, source} <= headers.tensors.keys() and not _equal(folder, target, source):
            count += model.get_parameter_or_buffer(target).nbytes
    return count


def _equal(folder: Path, one: str, other: str) -> bool:
    """Whether two stored tensors have the same values in some rows from first to last."""
    import torch
    from safetensors import safe_open

    rows: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in {one, other} & set(file.keys()):
                part = file.get_slice(name)
                count = part.get_shape()[0]
                step = max(count // _SAMPLED_ROWS, 1)
                rows[name] = torch.cat(
                    [part[i : i + 1] for i in (*range(0, count, step), count - 1)]
                )
    return torch.equal(rows[one], rows[other])


def _strange(model: Any, headers: checkpoints.Weights) -> str:
    """Return what to say of files that hold other weights than the config describes."""
    stored = headers.bytes_as("float32") // 4
    for target, source in model.all_tied_weights_keys.items():
        if {target, source} <= headers.tensors.keys():
            stored -= model.get_parameter_or_buffer(target).numel()
    described = sum(parameter.numel() for parameter in model.parameters())
    if abs(stored - described) <= described // 100:
        return ""
    return f"the files hold {stored:,} numbers, the config describes {described:,}"


# Cache and workspace


def _computed(
    model: Any, config: Any, tokens: int, build: Callable[[Any], Any]
) -> tuple[rehearsal.Taken, str]:
    """Rehearse a model; one that takes too many steps in parts, from which the whole is drawn out."""
    try:
        return rehearsal.rehearse(model, tokens, MOST_OPERATIONS), ""
    except rehearsal.TooLongError:
        if model.config.is_encoder_decoder:
            raise
    layers, period = config.get_text_config().num_hidden_layers, _period(config)
    depths = (period, 2 * period) if 2 * period < layers else (layers,)
    parts = [build(_shallow(config, depth)) for depth in depths]
    try:
        taken = _deep(parts, depths, layers, tokens)
    except rehearsal.TooLongError:  # it loops over tokens
        short = [_deep(parts, depths, layers, length) for length in _SHORT_TOKENS]
        # Without a cache to continue, the whole prompt is computed at once.
        at_once = min(tokens, PREFILL_CHUNK_TOKENS) if rehearsal.takes_cache(model) else tokens
        taken = rehearsal.Taken(
            _line(_SHORT_TOKENS, [one.cache_bytes for one in short], tokens),
            _line(_SHORT_TOKENS, [one.workspace_bytes for one in short], at_once),
        )
        return taken, f"cache and workspace are drawn out from {_SHORT_TOKENS[-1]} tokens"
    return taken, f"cache and workspace are drawn out from {depths[-1]} of {layers} layers"


def _deep(parts: Sequence[Any], depths: Sequence[int], layers: int, tokens: int) -> rehearsal.Taken:
    """Return what so many layers take, by models of fewer."""
    taken = [rehearsal.rehearse(part, tokens, MOST_OPERATIONS // 2) for part in parts]
    return rehearsal.Taken(
        _line(depths, [one.cache_bytes for one in taken], layers),
        _line(depths, [one.workspace_bytes for one in taken], layers),
    )


def _line(places: Sequence[int], values: Sequence[int], place: int) -> int:
    """Return the value at a place, on the line through one or two others."""
    if len(places) == 1:
        return values[0]
    slope = (values[1] - values[0]) / (places[1] - places[0])
    return max(round(values[0] + slope * (place - places[0])), 0)


def _period(config: Any) -> int:
    """Return after how many layers their kinds repeat, at least four: the first may be of another kind."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    for period in range(_LEAST_PERIOD, _LONGEST_PERIOD):
        if all(kind == kinds[place % period] for place, kind in enumerate(kinds)):
            return period
    return _LONGEST_PERIOD


def _shallow(config: Any, layers: int) -> Any:
    """Return the config of a model with the first layers only."""
    made = copy.deepcopy(config)
    inner = made.get_text_config()
    whole = inner.num_hidden_layers
    for name, value in list(vars(inner).items()):
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(inner, name, value[:layers])
    inner.num_hidden_layers = layers
    return made


# Guesses


def _guessed(
    wanted: Wanted, told: Mapping[str, Any], headers: checkpoints.Weights | None, why: str
) -> Footprint:
    """Return what headers and a ``config.json`` say of a model that cannot be built here."""
    own = told.get("quantization_config")
    weights = headers.bytes_as(None if own else wanted.dtype) if headers is not None else 0
    dtype = wanted.dtype or checkpoints.dtype_of(told)
    tokens = _number(told, "max_position_embeddings", "n_positions", "n_ctx")
    tokens = min(tokens or MOST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS)
    taken = _guess(told, weights, dtype, tokens)
    kind = str(next(iter(told.get("architectures") or ()), ""))
    return Footprint(
        weights, taken.cache_bytes, taken.workspace_bytes, tokens, kind, (_GUESSED + why,)
    )


def _guess(told: Mapping[str, Any], weights: int, dtype: str, tokens: int) -> rehearsal.Taken:
    """Return a cache with every token in every layer, and a twentieth of the weights to compute in."""
    heads = _number(told, "num_attention_heads", "n_head", "num_heads")
    hidden = _number(told, "hidden_size", "n_embd", "d_model")
    wide = _number(told, "head_dim") or hidden // max(heads, 1)
    rows = _number(told, "num_hidden_layers", "n_layer", "num_layers") * tokens
    kept = _number(told, "num_key_value_heads") or heads
    item = 4 if dtype == "float32" else 2
    return rehearsal.Taken(2 * rows * kept * wide * item, weights // 20)


def _number(told: Mapping[str, Any], *names: str) -> int:
    inner: Mapping[str, Any] = told.get("text_config") or told
    found = (inner.get(name) for name in names)
    return next((one for one in found if isinstance(one, int) and one > 0), 0)


def _quantized(
    found: Footprint, wanted: Wanted, settings: Mapping[str, Any], turn: Turn
) -> Footprint:
    with turn():
        size = quantization.expected_bytes(
            str(wanted.folder), wanted.model_class, settings, wanted.dtype, wanted.trusted
        )
    if size is None:
        return found
    note = "the workspace is that of the model before it is quantized"
    return replace(found, weights_bytes=size, notes=(*found.notes, note))
