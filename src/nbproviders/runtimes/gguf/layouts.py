"""Which tensors the common architectures have, and of which shapes, as llama.cpp asks for them.

One line of names for each architecture, from the `load_arch_tensors` of llama.cpp's `src/models/`. A star
stands for ``blk.<i>.``, a question mark for a tensor that may be missing. Dimensions, rows first:
E embedding, V vocabulary, F feed-forward, G one expert's feed-forward, X experts, C context, H one head,
Q all heads, K all key heads, A queries, keys and values together, R half of the rotated dimensions,
W gate and up together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from nbproviders.runtimes.gguf.header import Tensor

_TOP = "token_embd.weight:E,V output_norm.weight:E output.weight?:E,V "
_TOP_BIASED = "token_embd.weight:E,V output_norm.weight:E output_norm.bias:E "
_SPLIT = "*attn_q.weight:E,Q *attn_k.weight:E,K *attn_v.weight:E,K "
_SPLIT_BIASED = _SPLIT + "*attn_q.bias?:Q *attn_k.bias?:K *attn_v.bias?:K "
_FUSED = "*attn_qkv.weight:E,A "
_OUT = "*attn_norm.weight:E *attn_output.weight:Q,E "
_OUT_BIASED = _OUT + "*attn_norm.bias:E *attn_output.bias:E "
_HEAD_NORMS = "*attn_q_norm.weight:H *attn_k_norm.weight:H "
_POST_NORMS = "*post_attention_norm.weight:E *post_ffw_norm.weight:E "
_GATED = "*ffn_norm.weight:E *ffn_gate.weight:E,F *ffn_up.weight:E,F *ffn_down.weight:F,E "
_EXPERTS = (
    "*ffn_norm.weight:E *ffn_gate_inp.weight:E,X *ffn_gate_exps.weight:E,G,X "
    "*ffn_up_exps.weight:E,G,X *ffn_down_exps.weight:G,E,X "
)
_PLAIN = "*ffn_up.weight:E,F *ffn_down.weight:F,E "
_PLAIN_BIASED = _PLAIN + "*ffn_up.bias:F *ffn_down.bias:E "
_NORM_BIASED = "*ffn_norm.weight:E *ffn_norm.bias:E "
_LLAMA = _TOP + "rope_freqs.weight?:R " + _SPLIT_BIASED + _OUT + "*attn_output.bias?:E "

_LAYOUTS = {
    "llama": _LLAMA + _GATED,
    "llama, experts": _LLAMA + _EXPERTS,
    "qwen2": _TOP + _SPLIT_BIASED + _OUT + _GATED,
    "qwen3": _TOP + _SPLIT + _OUT + _HEAD_NORMS + _GATED,
    "qwen3moe, experts": _TOP + _SPLIT + _OUT + _HEAD_NORMS + _EXPERTS,
    "smollm3": _TOP + _SPLIT + _OUT + _GATED,
    "gemma": "token_embd.weight:E,V output_norm.weight:E " + _SPLIT + _OUT + _GATED,
    "gemma2": "token_embd.weight:E,V output_norm.weight:E " + _SPLIT + _OUT + _POST_NORMS + _GATED,
    "gemma3": _TOP + _SPLIT + _OUT + _HEAD_NORMS + _POST_NORMS + _GATED,
    "phi2": _TOP_BIASED
    + "output.weight:E,V output.bias:V "
    + _FUSED
    + "*attn_qkv.bias:A "
    + _OUT_BIASED
    + _PLAIN_BIASED,
    "phi3": _TOP
    + "rope_factors_long.weight?:R rope_factors_short.weight?:R "
    + _FUSED
    + _OUT
    + "*ffn_norm.weight:E *ffn_up.weight:E,W *ffn_down.weight:F,E ",
    "gpt2": _TOP_BIASED
    + "position_embd.weight:E,C output.weight?:E,V "
    + _FUSED
    + "*attn_qkv.bias:A "
    + _OUT_BIASED
    + _NORM_BIASED
    + _PLAIN_BIASED,
    "gptneox": _TOP_BIASED
    + "output.weight:E,V "
    + _FUSED
    + "*attn_qkv.bias:A "
    + _OUT_BIASED
    + _NORM_BIASED
    + _PLAIN_BIASED,
    "falcon": _TOP_BIASED
    + "output.weight?:E,V "
    + _FUSED
    + "*attn_norm.weight:E *attn_norm.bias:E *attn_output.weight:Q,E "
    + "*attn_norm_2.weight?:E *attn_norm_2.bias?:E "
    + _PLAIN,
    "starcoder2": _TOP_BIASED
    + "output.weight?:E,V "
    + _SPLIT_BIASED
    + _OUT_BIASED
    + _NORM_BIASED
    + _PLAIN_BIASED,
}
ARCHITECTURES = frozenset(name.partition(",")[0] for name in _LAYOUTS)
# Where queries are as wide as the embedding, whatever the length of a head.
SQUARE = frozenset({"qwen2", "phi2", "phi3", "gpt2", "gptneox", "falcon", "starcoder2"})
# What a matrix may be stored as; vectors are float32.
_MATRIX_TYPES = frozenset(
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S "
    "IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4".split()
)
_SHOWN = 3


@cache
def _layout(name: str) -> tuple[tuple[str, bool, bool, tuple[str, ...]], ...]:
    """Return name, whether one for each block, whether it may be missing, and dimensions."""
    found = []
    for word in _LAYOUTS[name].split():
        tensor, _, dimensions = word.partition(":")
        bare = tensor.strip("*?")
        found.append((bare, tensor[0] == "*", tensor[-1] == "?", tuple(dimensions.split(","))))
    return tuple(found)


def has_layout(arch: str, experts: bool) -> bool:
    """Whether the tensors of an architecture are known, with or without experts."""
    return (f"{arch}, experts" if experts else arch) in _LAYOUTS


def tensor_oddities(
    arch: str, experts: bool, blocks: int, sizes: Mapping[str, int], tensors: Sequence[Tensor]
) -> list[str]:
    """Return where a model's tensors differ from its architecture's.

    Parameters
    ----------
    sizes
        By the letters above.
    """
    wanted = _wanted(f"{arch}, experts" if experts else arch, blocks, sizes)
    found = {tensor.name: tensor for tensor in tensors}
    missing = [n for n, (_, optional) in wanted.items() if not optional and n not in found]
    strange = [name for name in found if name not in wanted]
    shapes = [
        f"{name} has shape {tensor.shape}, not {wanted[name][0]}"
        for name, tensor in found.items()
        if name in wanted and tensor.shape != wanted[name][0]
    ]
    types = [f"{t.name} is stored as {t.type}" for t in tensors if not _type_is_usual(t)]
    reasons = [f"Tensors are missing: {_some(missing)}."] if missing else []
    reasons += [f"Tensors are unknown for {arch}: {_some(strange)}."] if strange else []
    reasons += [f"Shapes do not fit: {_some(shapes)}."] if shapes else []
    reasons += [f"Types are unusual: {_some(types)}."] if types else []
    return reasons


def _wanted(
    name: str, blocks: int, sizes: Mapping[str, int]
) -> dict[str, tuple[tuple[int, ...], bool]]:
    wanted: dict[str, tuple[tuple[int, ...], bool]] = {}
    for tensor, repeated, optional, letters in _layout(name):
        shape = tuple(sizes[letter] for letter in letters)
        names = [f"blk.{i}.{tensor}" for i in range(blocks)] if repeated else [tensor]
        wanted |= dict.fromkeys(names, (shape, optional))
    return wanted


def _type_is_usual(tensor: Tensor) -> bool:
    return tensor.type == "F32" or (len(tensor.shape) > 1 and tensor.type in _MATRIX_TYPES)


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
