"""GGUF files of random weights, written for tests: several architectures, both kinds of tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter

ARCHITECTURES = (
    "llama qwen2 qwen3 gemma gemma2 gemma3 phi2 phi3 gpt2 gptneox falcon starcoder2 smollm3".split()
)
WINDOW = 64
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_WORDS = "the of and to in is it he she they on at was little girl dog day red ball play".split()


def write_llama_gguf(
    path: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: str = "spm",
    dtype: str = "F32",
    seed: int = 0,
    context: int = 128,
    chat_template: str | None = None,
    arch: str = "llama",
    experts: int = 0,
    metadata: Mapping[str, Any] | None = None,
    split_tensors: int = 0,
) -> Path:
    """Write a model of random weights that llama.cpp loads and generates with; return its path.

    Parameters
    ----------
    path
        The file to write; a split model writes ``<stem>-0000i-of-0000n.gguf`` beside it.
    vocab
        ``"spm"`` (sentencepiece pieces and 256 byte tokens) or ``"bpe"`` (GPT-2's byte alphabet).
    dtype
        Of matrices whose rows are multiples of 32: ``"F32"``, ``"F16"``, ``"Q8_0"`` or ``"Q4_0"``.
    arch
        One of `ARCHITECTURES`, or ``"mamba"``.
    experts
        Makes the feed-forward part a mixture of so many, two of them used (llama only).
    metadata
        Set over what would be written; a value of None leaves the key out.
    split_tensors
        Tensors in each part of a split model; 0 writes one file.
    """
    import gguf
    import numpy as np

    tokens = spm_tokens() if vocab == "spm" else bpe_tokens()
    if arch in ("gpt2", "gptneox"):
        kv_heads = heads
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_tensors)
    given: dict[str, Any] = _hyperparameters(arch, layers, hidden, heads, kv_heads, context)
    if experts:
        given |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    given |= _tokenizer(vocab, tokens)
    given |= {"tokenizer.chat_template": chat_template} if chat_template is not None else {}
    given |= metadata or {}
    for key, value in given.items():
        if value is not None:
            _add(writer, key, value)
    generator = np.random.default_rng(seed)
    shapes = _shapes(arch, layers, hidden, heads, kv_heads, context, len(tokens), experts)
    for name, shape in shapes:
        weights = _weights(name, shape, generator)
        if len(shape) > 1 and shape[-1] % 32 == 0 and not name.endswith("ssm_a"):
            kind = gguf.GGMLQuantizationType[dtype]
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not split_tensors else next(iter(sorted(path.parent.glob(f"{path.stem}-*"))))


def spm_tokens() -> list[tuple[str, float, int]]:
    """Return text, score and type of each token of a small sentencepiece vocabulary."""
    tokens = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    tokens += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz,.!?'"]
    for word in _WORDS:
        pieces += [f"▁{word}"[:length] for length in range(2, len(word) + 2)]
    tokens += [(piece, -float(rank), 1) for rank, piece in enumerate(dict.fromkeys(pieces))]
    return tokens


def bpe_tokens() -> list[tuple[str, float, int]]:
    """Return the same of a byte-level vocabulary; the scores are not written."""
    pieces = [*_byte_alphabet(), *(a + b for a, b in _merges())]
    tokens = [(piece, 0.0, 1) for piece in dict.fromkeys(pieces)]
    return [*tokens, ("<|endoftext|>", 0.0, 3)]


def _byte_alphabet() -> list[str]:
    """Return the character that stands for each byte in GPT-2's vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in shown)
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def _merges() -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        for length in range(1, len(word) + 1):
            found[f"Ġ{word}"[:length], word[length - 1]] = None
    return list(found)


def _tokenizer(vocab: str, tokens: Sequence[tuple[str, float, int]]) -> dict[str, Any]:
    common: dict[str, Any] = {
        "tokenizer.ggml.tokens": [text for text, _, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, _, kind in tokens],
    }
    if vocab == "spm":
        return common | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [score for _, score, _ in tokens],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    return common | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in _merges()],
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def _hyperparameters(
    arch: str, layers: int, hidden: int, heads: int, kv_heads: int, context: int
) -> dict[str, Any]:
    own: dict[str, Any] = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": hidden * 2,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
    }
    if arch == "mamba":
        own |= {"attention.head_count": 0, "attention.head_count_kv": None}
        own |= {"ssm.conv_kernel": 4, "ssm.inner_size": hidden * 2}
        own |= {"ssm.state_size": 16, "ssm.time_step_rank": 8, "feed_forward_length": 0}
    if arch in ("gpt2", "gptneox", "falcon", "phi2", "starcoder2"):
        own["attention.layer_norm_epsilon"] = 1e-5
    else:
        own["attention.layer_norm_rms_epsilon"] = 1e-5
    if arch in ("llama", "phi2", "phi3", "gptneox", "smollm3"):
        own["rope.dimension_count"] = hidden // heads
    if arch == "gptneox":
        own["use_parallel_residual"] = True
    if arch.startswith("gemma"):  # heads wider than their share of the hidden state
        own |= {"attention.key_length": 32, "attention.value_length": 32}
    if arch in ("gemma2", "gemma3", "phi3"):
        own["attention.sliding_window"] = WINDOW
    return {f"{arch}.{key}": value for key, value in own.items()}


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _shapes(
    arch: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    context: int,
    rows: int,
    experts: int,
) -> Shapes:
    """Yield name and shape (numpy order, rows first) of all tensors."""
    head = 32 if arch.startswith("gemma") else hidden // heads
    biased = arch in ("gpt2", "gptneox", "phi2", "starcoder2", "falcon")
    yield "token_embd.weight", (rows, hidden)
    if arch == "gpt2":
        yield "position_embd.weight", (context, hidden)
    yield from _norm("output_norm", hidden, biased)
    if not arch.startswith("gemma") and arch != "mamba":
        yield "output.weight", (rows, hidden)
    if arch == "phi2":
        yield "output.bias", (rows,)
    for index in range(layers):
        block = f"blk.{index}"
        yield from _norm(f"{block}.attn_norm", hidden, biased)
        if arch == "mamba":
            yield from _mamba(block, hidden)
            continue
        yield from _attention(arch, block, hidden, heads * head, kv_heads * head, head)
        yield from _feed_forward(arch, block, hidden, experts)


def _norm(name: str, size: int, biased: bool) -> Shapes:
    yield f"{name}.weight", (size,)
    if biased:
        yield f"{name}.bias", (size,)


def _attention(arch: str, block: str, hidden: int, queries: int, keys: int, head: int) -> Shapes:
    fused = arch in ("gpt2", "gptneox", "falcon", "phi3", "phi2")
    biased = arch in ("gpt2", "gptneox", "phi2", "starcoder2", "qwen2")
    parts = {"qkv": queries + 2 * keys} if fused else {"q": queries, "k": keys, "v": keys}
    for part, size in parts.items():
        yield f"{block}.attn_{part}.weight", (size, hidden)
        if biased:
            yield f"{block}.attn_{part}.bias", (size,)
    yield f"{block}.attn_output.weight", (hidden, queries)
    if biased and arch != "qwen2":
        yield f"{block}.attn_output.bias", (hidden,)
    if arch in ("qwen3", "gemma3"):
        yield f"{block}.attn_q_norm.weight", (head,)
        yield f"{block}.attn_k_norm.weight", (head,)
    if arch in ("gemma2", "gemma3"):
        yield f"{block}.post_attention_norm.weight", (hidden,)
        yield f"{block}.post_ffw_norm.weight", (hidden,)


def _feed_forward(arch: str, block: str, hidden: int, experts: int) -> Shapes:
    wide = hidden * 2
    biased = arch in ("gpt2", "gptneox", "phi2", "starcoder2")
    if arch not in ("falcon", "phi2"):
        yield from _norm(f"{block}.ffn_norm", hidden, biased)
    if experts:
        yield f"{block}.ffn_gate_inp.weight", (experts, hidden)
        yield f"{block}.ffn_gate_exps.weight", (experts, wide, hidden)
        yield f"{block}.ffn_up_exps.weight", (experts, wide, hidden)
        yield f"{block}.ffn_down_exps.weight", (experts, hidden, wide)
        return
    if not biased and arch not in ("falcon", "phi3"):
        yield f"{block}.ffn_gate.weight", (wide, hidden)
    ups = {"ffn_up": (wide * 2 if arch == "phi3" else wide, hidden), "ffn_down": (hidden, wide)}
    for name, shape in ups.items():
        yield f"{block}.{name}.weight", shape
        if biased:
            yield f"{block}.{name}.bias", shape[:1]


def _mamba(block: str, hidden: int) -> Shapes:
    inner, state, rank = hidden * 2, 16, 8
    yield f"{block}.ssm_in.weight", (inner * 2, hidden)
    yield f"{block}.ssm_conv1d.weight", (inner, 4)
    yield f"{block}.ssm_conv1d.bias", (inner,)
    yield f"{block}.ssm_x.weight", (rank + 2 * state, inner)
    yield f"{block}.ssm_dt.weight", (inner, rank)
    yield f"{block}.ssm_dt.bias", (inner,)
    yield f"{block}.ssm_a", (inner, state)
    yield f"{block}.ssm_d", (inner,)
    yield f"{block}.ssm_out.weight", (hidden, inner)


def _weights(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    import numpy as np

    if "norm" in name and name.endswith("weight"):
        return np.ones(shape, np.float32)
    spread = 0.5 if name.startswith("token_embd") else shape[-1] ** -0.5
    weights = generator.standard_normal(shape).astype(np.float32) * np.float32(spread)
    return -np.abs(weights) if name.endswith("ssm_a") else weights


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
