"""How many bytes a GGUF model needs: its weights, its cache for each token, its recurrent state.

Arithmetic on headers only. The cache follows llama.cpp's own (llama-kv-cache.cpp, llama-kv-cache-iswa.cpp,
llama-memory-recurrent.cpp), whose logged sizes the tests compare it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.gguf.header import TENSOR_TYPES, Header

MAX_LAYERS = 512  # llama.cpp's own bound
CELL_PADDING = 256  # contexts and windows are rounded up to it
_BLOCKS = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}

# Layers in a window come in a pattern: all but each n-th, or, with True, all but the first of n. A model's
# own `attention.sliding_window_pattern` goes before. phi3 declares a window that llama.cpp does not use.
_WINDOW_PATTERNS = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "deepseek4": (0, False),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
_OWN_WINDOWS = {"exaone4": 4096, "gemma2": 4096, "llama4": 8192, "smallthinker": 4096}
_FIXED_WINDOWS = {"llama4", "smallthinker"}  # whatever the file says
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_BOTH = {"falcon-h1"}  # each layer has a cache and a state
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes.

    Attributes
    ----------
    weights_bytes
        Of all tensors, as stored.
    file_bytes
        Of all files: what a memory map of them covers.
    kv_bytes_per_token
        Of a f16 cache at full size, for one token of one sequence.
    state_bytes
        Of the recurrent layers for one sequence, however long it is.
    context_tokens
        What the model was trained for; 0 if it does not tell.
    """

    weights_bytes: int
    file_bytes: int
    kv_bytes_per_token: float
    state_bytes: int
    parameters: int
    context_tokens: int


def footprint(files: Sequence[Header]) -> Footprint:
    """Return what a model takes whose files, all of them, have these headers."""
    first = files[0]
    return Footprint(
        weights_bytes=sum(tensor.bytes for file in files for tensor in file.tensors),
        file_bytes=sum(file.size for file in files),
        kv_bytes_per_token=kv_bytes(first, CELL_PADDING, state=False) / CELL_PADDING,
        state_bytes=state_bytes(first),
        parameters=sum(file.parameters for file in files),
        context_tokens=_number(first, "context_length"),
    )


def kv_bytes(
    header: Header,
    n_ctx: int,
    type_k: str = "f16",
    type_v: str = "f16",
    sequences: int = 1,
    *,
    swa_full: bool = True,
    batch: int = 512,
    state: bool = True,
) -> int:
    """Return bytes of the cache that llama.cpp allocates for a context.

    Parameters
    ----------
    header
        Of a model's first file.
    n_ctx
        Tokens of each sequence: llama.cpp is given this times `sequences`, with ``kv_unified=False``.
        0 means what the model was trained for.
    type_k, type_v
        As llama.cpp calls them: ``"f32"``, ``"f16"``, ``"q8_0"`` …
    swa_full
        Whether layers with a sliding window get a cache as long as the others': llama.cpp's default, and
        what rolling a context back needs. Otherwise one of window and `batch` (``n_ubatch``).
    state
        Whether the state of recurrent layers is counted too.
    """
    row_k, row_v = _row_bytes(type_k), _row_bytes(type_v)
    cells = _padded(n_ctx or _number(header, "context_length"))
    window_cells = cells if swa_full else _padded(min(cells, _window(header) + batch))
    layers = _layers(header)
    # Without flash attention the values of all layers are as wide as those of the widest.
    widest = max((values for _, values, _ in layers), default=0)
    total = 0.0
    for keys, values, windowed in layers:
        width = row_k * keys + (row_v * widest if values else 0)
        total += width * (window_cells if windowed else cells)
    return round(total * sequences) + (state_bytes(header) * sequences if state else 0)


def state_bytes(header: Header) -> int:
    """Return bytes of the recurrent layers' state for one sequence; they are stored as float32."""
    return 4 * _recurrent_layers(header) * (_shift_width(header) + _state_width(header))


def _padded(cells: int) -> int:
    return cells + -cells % CELL_PADDING


def _row_bytes(kind: str) -> float:
    """Return bytes for one element of a cache."""
    block = _BLOCKS.get(kind.upper())
    if block is None:
        raise ConfigurationError(
            f"A cache cannot be of type {kind!r}.", hint="Types are f32, f16, bf16, q8_0, q4_0 …"
        )
    return block[1] / block[0]


def _number(header: Header, key: str, default: int = 0) -> int:
    """Return a count; what is no whole number, or negative, counts as not told."""
    value = header.get(key)
    return value if isinstance(value, int) and value >= 0 else default


def _each(header: Header, key: str, layers: int, default: int) -> list[int]:
    """Return a value of each layer, of a key that holds one for all or one for each."""
    value = header.get(key, default)
    values = value if isinstance(value, tuple) else (value,) * layers
    counts = [v if isinstance(v, int) and v >= 0 else 0 for v in values[:layers]]
    return counts + [0] * (layers - len(counts))


def _layer_count(header: Header) -> int:
    """Return the layers that text goes through; those that only draft further tokens are not loaded."""
    count = _number(header, "block_count")
    return max(min(count, MAX_LAYERS) - _number(header, "nextn_predict_layers"), 0)


def _layers(header: Header) -> list[tuple[int, int, bool]]:
    """Return width of keys, width of values and whether windowed, for each layer with a cache."""
    count = _layer_count(header)
    heads = _each(header, "attention.head_count", count, 0)
    kv_heads = _each(header, "attention.head_count_kv", count, 0)
    if header.get("attention.head_count_kv") is None:
        kv_heads = heads
    windowed = _windowed(header, count)
    length = _number(header, "embedding_length") // heads[0] if count and heads[0] else 0
    key, value = _lengths(header, "", length, length)
    window_key, window_value = _lengths(header, "_swa", key, value)
    # Latent attention caches one compressed row, from which keys and values are made.
    latent = bool(_number(header, "attention.key_length_mla"))
    found = []
    for index in _cached(header, count):
        k, v = (window_key, window_value) if windowed[index] else (key, value)
        if kv_heads[index]:
            found.append(
                (k * kv_heads[index], 0 if latent else v * kv_heads[index], windowed[index])
            )
    return found


def _lengths(header: Header, suffix: str, key: int, value: int) -> tuple[int, int]:
    return (
        _number(header, f"attention.key_length{suffix}", key),
        _number(header, f"attention.value_length{suffix}", value),
    )


def _cached(header: Header, count: int) -> list[int]:
    """Return the layers that have a cache of their own."""
    arch = header.architecture
    if arch in _RECURRENT:
        return []
    if arch == "gemma3n":
        count = min(count, 20)  # the later ones use the caches of these
    if arch == "gemma4":
        count = max(count - _number(header, "attention.shared_kv_layers"), 0)
    if arch in ("nemotron_h", "nemotron_h_moe"):
        wide = _each(header, "feed_forward_length", count, 0)
        return [index for index in range(count) if not wide[index]]
    recurrent = _interval_layers(header, count)
    return [index for index in range(count) if index not in recurrent]


def _interval_layers(header: Header, count: int) -> set[int]:
    """Return the recurrent layers of architectures where each n-th one has attention."""
    default = _INTERVALS.get(header.architecture)
    if default is None:
        return set()
    told = header.get("attention.recurrent_layers")
    if isinstance(told, tuple):
        return {index for index, recurrent in enumerate(told[:count]) if recurrent}
    interval = _number(header, "full_attention_interval", default) or default
    return {index for index in range(count) if (index + 1) % interval}


def _recurrent_layers(header: Header) -> int:
    """Return how many layers keep a state."""
    count, arch = _layer_count(header), header.architecture
    if arch in _RECURRENT or arch in _BOTH:
        return count
    if arch in _INTERVALS:
        return len(_interval_layers(header, count))
    if not isinstance(header.get("attention.head_count_kv"), tuple):
        return 0
    kv_heads = _each(header, "attention.head_count_kv", count, 0)
    wide = (
        _each(header, "feed_forward_length", count, 0)
        if arch.startswith("nemotron_h")
        else kv_heads
    )
    return sum(1 for heads, width in zip(kv_heads, wide, strict=True) if not heads and not width)


def _shift_width(header: Header) -> int:
    hidden = _number(header, "embedding_length")
    if _number(header, "wkv.head_size"):
        return _number(header, "token_shift_count", 2) * hidden
    if cache := _number(header, "shortconv.l_cache"):
        return hidden * (cache - 1)
    groups = 2 * _number(header, "ssm.group_count") * _number(header, "ssm.state_size")
    kernel = _number(header, "ssm.conv_kernel")
    if delta := _number(header, "kda.head_dim"):
        heads = _each(header, "attention.head_count", 1, 0)[0]
        return 3 * (kernel - 1 if kernel else 3) * heads * delta
    return max(kernel - 1, 0) * (_number(header, "ssm.inner_size") + groups)


def _state_width(header: Header) -> int:
    if size := _number(header, "wkv.head_size"):
        return _number(header, "embedding_length") * size
    if delta := _number(header, "kda.head_dim"):
        return delta * delta * _each(header, "attention.head_count", 1, 0)[0]
    return _number(header, "ssm.state_size") * _number(header, "ssm.inner_size")


def _window(header: Header) -> int:
    arch = header.architecture
    own = _OWN_WINDOWS.get(arch, 0)
    return own if arch in _FIXED_WINDOWS else _number(header, "attention.sliding_window", own)


def _windowed(header: Header, count: int) -> Sequence[bool]:
    """Return of each layer whether it sees a window only."""
    arch = header.architecture
    told = header.get("attention.sliding_window_pattern")
    pattern, first = _WINDOW_PATTERNS.get(arch, (None, False))
    none = [False] * count
    if header.get("attention.sliding_window") == 0 or not _window(header):
        return none
    if arch == "exaone4" and count != 64:
        return none
    if isinstance(told, tuple):
        flags = [bool(flag) for flag in told[:count]]
        return flags + [False] * (count - len(flags))
    if pattern is None:
        return none
    period = told if isinstance(told, int) and not isinstance(told, bool) else pattern
    if period <= 0:
        return [True] * count
    if first:
        return [index % period != 0 for index in range(count)]
    return [index % period < period - 1 for index in range(count)]
