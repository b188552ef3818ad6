"""How large a model's context may become, and what it all takes, told from headers before loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.gguf.header import TENSOR_TYPES, Header
from nbproviders.runtimes.gguf.memory import footprint, kv_bytes, state_bytes
from nbproviders.runtimes.llamacpp.context import CELL_STEP
from nbproviders.runtimes.llamacpp.scheduler import Limits

DEFAULT_CTX = 4096
_LEAST_CACHE_BYTES = 64 * 2**20
_MANY = 16  # measured on two cores, 35 k to 20 M parameters: more at once gain nothing
_FIXED_BYTES = 2**18  # what is in no buffer of llama.cpp's own
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
    workspace_bytes
        Of what an evaluation holds between its steps.
    layers
        How many there are.
    parameters
        How many weights.
    """

    limits: Limits
    weights_bytes: int
    cache_bytes: int
    alone_bytes: int
    workspace_bytes: int
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
    flash_attn: bool | None = None,
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
    flash_attn
        Whether flash attention is used; None is as `Settings` has it.

    Raises
    ------
    ConfigurationError
        For a value that cannot be.
    """
    size = footprint(files)
    trained = size.context_tokens or DEFAULT_CTX
    tokens = min(trained, DEFAULT_CTX) if n_ctx is None else n_ctx
    _require_sense(n_ctx=tokens, n_batch=n_batch, parallel=parallel, type_k=type_k, type_v=type_v)
    if tokens > trained and any(tensor.name == _PLACES for tensor in files[0].tensors):
        raise ConfigurationError(
            f"n_ctx={tokens} is more than the {trained} tokens this model knows places for.",
            hint=f"Choose n_ctx={trained} or less.",
        )
    header = files[0]
    _require_whole_blocks(header, type_k=type_k, type_v=type_v)
    step = kv_bytes(header, CELL_STEP, type_k, type_v, state=False)
    alone = kv_bytes(header, tokens, type_k, type_v, state=False)
    most = max(alone, _LEAST_CACHE_BYTES, size.weights_bytes // 4)
    cells = max(most // step if step else _MANY, 1) * CELL_STEP
    wanted = min(parallel or _MANY, n_batch)  # a token of each: with less llama.cpp aborts
    rounded = -(-tokens // CELL_STEP) * CELL_STEP
    if parallel is not None:  # asked for by number: each has the whole context
        cells = max(cells, parallel * rounded)
    cells = min(cells, wanted * rounded)
    limits = Limits(max(cells, rounded), wanted, tokens, min(n_batch, 2048))
    state = state_bytes(header)
    cache = step * (limits.cells // CELL_STEP) + state * wanted
    layers = int(header.get("block_count", 0) or 0)
    flash = type_k != "f32" or type_v != "f32" if flash_attn is None else flash_attn
    rows = min(limits.n_batch, rounded)
    space = _workspace_bytes(files, rows, rounded, flash=flash) + _FIXED_BYTES
    parts = (size.weights_bytes, cache, alone + state, space)
    return Plan(limits, *parts, layers, size.parameters)


def _require_sense(
    *, n_ctx: int, n_batch: int, parallel: int | None, type_k: str, type_v: str
) -> None:
    for name, value in (("n_ctx", n_ctx), ("n_batch", n_batch), ("parallel", parallel or 1)):
        if value < 1:
            raise ConfigurationError(f"{name}={value} must be at least 1.")
    if parallel is not None and parallel > n_batch:
        raise ConfigurationError(
            f"parallel={parallel} is more than n_batch={n_batch}: an evaluation takes a token of each.",
            hint="Choose a larger n_batch or a smaller parallel.",
        )
    for name, kind in (("type_k", type_k), ("type_v", type_v)):
        if kind not in CACHE_TYPES:
            raise ConfigurationError(f"{name}={kind!r} is not one of {', '.join(CACHE_TYPES)}.")


def _require_whole_blocks(header: Header, **types: str) -> None:
    """Check that heads can be stored in the blocks of a quantised cache."""
    blocks = {name.lower(): block for name, block, _ in TENSOR_TYPES.values()}
    heads = _most(header, "attention.head_count")
    usual = _most(header, "embedding_length") // heads if heads else 0
    for name, kind in types.items():
        length = "attention.key_length" if name == "type_k" else "attention.value_length"
        width = _most(header, length) or usual
        if width and width % blocks[kind]:
            raise ConfigurationError(
                f"{name}={kind!r} is stored in blocks of {blocks[kind]}; a head of this model has "
                f"{width} numbers, which is no multiple of that.",
                hint=f"Choose {name}=f16, bf16 or f32.",
            )


def _workspace_bytes(files: Sequence[Header], rows: int, cells: int, *, flash: bool) -> int:
    """Return about what llama.cpp's compute buffer takes on a CPU.

    It is as large as the largest of three steps: attention (all pairs of rows and cells for each head, unless
    it is flash attention), the layer's other half, the logits. The factors are fitted to what llama.cpp logs
    for eleven small models of eight architectures; with flash attention they are off by 15 % at most.

    Parameters
    ----------
    rows
        Tokens of one evaluation.
    cells
        Tokens of one sequence.
    """
    header = files[0]
    hidden = _most(header, "embedding_length")
    wide, used = _most(header, "feed_forward_length"), _most(header, "expert_used_count")
    heads, inner = _most(header, "attention.head_count"), _most(header, "ssm.inner_size")
    shapes = {tensor.name: tensor.shape for file in files for tensor in file.tensors}
    logits = max(shapes.get("token_embd.weight", (0,))) + hidden
    if used:
        wide = _most(header, "expert_feed_forward_length") or wide
    layer = 2 * hidden + max(used, 1) * (3 * wide + (hidden if used else 0)) + cells // 2
    attention = 0 if flash or not heads else heads * cells + cells + 6 * hidden
    return 4 * rows * max(layer, attention, logits, hidden + 6 * inner)


def _most(header: Header, key: str) -> int:
    """Return a count, of those that each layer has for itself the largest; 0 if there is none."""
    value = header.get(key, 0)
    found = max(value, default=0) if isinstance(value, tuple) else value
    return found if isinstance(found, int) else 0
