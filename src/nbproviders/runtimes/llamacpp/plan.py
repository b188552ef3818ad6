"""How large a model's context may become, and what it all takes, told from headers before loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.gguf.header import Header
from nbproviders.runtimes.gguf.memory import footprint, kv_bytes, state_bytes
from nbproviders.runtimes.llamacpp.context import CELL_STEP
from nbproviders.runtimes.llamacpp.scheduler import Limits

DEFAULT_CTX = 4096
_LEAST_CACHE_BYTES = 64 * 2**20
_MANY = 16
_PLACES = "position_embd.weight"  # learned places: past the last, native code ends the process

# Types of cached keys and values that llama.cpp computes with, by its numbers for them (ggml.h).
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q4_0": 2,
    "q4_1": 3,
    "iq4_nl": 20,
    "q5_0": 6,
    "q5_1": 7,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model will take.

    Attributes
    ----------
    limits
        How large its context may become.
    weights_bytes, cache_bytes, alone_bytes
        Of all layers; of the cache at its largest, and for one sequence of the whole context.
    layers
        How many there are.
    parameters
        How many weights.
    """

    limits: Limits
    weights_bytes: int
    cache_bytes: int
    alone_bytes: int
    layers: int
    parameters: int


def plan(
    files: Sequence[Header],
    *,
    n_ctx: int | None = None,
    n_batch: int = 512,
    parallel: int | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
) -> Plan:
    """Return what a model takes with these options.

    The cache may hold one sequence of `n_ctx` tokens, and more than that if it stays small beside the
    weights: then many short requests compute together.

    Parameters
    ----------
    n_ctx
        Most tokens of one request; None takes what the model was trained for, at most 4096.
    n_batch
        Most tokens of one evaluation.
    parallel
        Most requests at once; None chooses by size.
    type_k, type_v
        Of `CACHE_TYPES`.

    Raises
    ------
    ConfigurationError
        For a value that cannot be.
    """
    size = footprint(files)
    trained = size.context_tokens or DEFAULT_CTX
    tokens = min(trained, DEFAULT_CTX) if n_ctx is None else n_ctx
    for name, value in (("n_ctx", tokens), ("n_batch", n_batch), ("parallel", parallel or 1)):
        if value < 1:
            raise ConfigurationError(f"{name}={value} must be at least 1.")
    if tokens > trained and any(tensor.name == _PLACES for tensor in files[0].tensors):
        raise ConfigurationError(
            f"n_ctx={tokens} is more than the {trained} tokens this model knows places for.",
            hint=f"Choose n_ctx={trained} or less.",
        )
    for name, kind in (("type_k", type_k), ("type_v", type_v)):
        if kind not in CACHE_TYPES:
            raise ConfigurationError(f"{name}={kind!r} is not one of {', '.join(CACHE_TYPES)}.")
    header = files[0]
    step = kv_bytes(header, CELL_STEP, type_k, type_v, state=False)
    alone = kv_bytes(header, tokens, type_k, type_v, state=False)
    most = max(alone, _LEAST_CACHE_BYTES, size.weights_bytes // 4)
    cells = max(most // step if step else _MANY, 1) * CELL_STEP
    wanted = parallel or _parallel(size.parameters)
    rounded = -(-tokens // CELL_STEP) * CELL_STEP
    if parallel is not None:  # asked for by number: each has the whole context
        cells = max(cells, parallel * rounded)
    cells = min(cells, wanted * rounded)
    limits = Limits(max(cells, rounded), wanted, tokens, min(n_batch, 2048))
    state = state_bytes(header)
    cache = step * (limits.cells // CELL_STEP) + state * wanted
    layers = int(header.get("block_count", 0) or 0)
    return Plan(limits, size.weights_bytes, cache, alone + state, layers, size.parameters)


def _parallel(parameters: int) -> int:
    """Choose how many compute together. Measured on CPUs: beyond 16 nothing is gained, from 35 k to 20 M."""
    return _MANY if parameters < 3e9 else 8
