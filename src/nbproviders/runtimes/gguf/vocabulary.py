"""What is unusual about the tokenizer in a GGUF file.

llama.cpp ends the process over some of it while it loads (a token that occurs twice), over some only when
a text needs it (a byte without its token), so none of this is left to its own checks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from nbproviders.runtimes.gguf.header import Header

_G = "tokenizer.ggml."
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_BYTE_TYPE = 6
_IDS = (
    "bos eos eot eom unknown seperator padding cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep "
    "prefix suffix middle"
).split()
# The type each key is stored in, where it is one that files usually have.
_TYPES = {
    "model": "str",
    "pre": "str",
    "tokens": "arr[str]",
    "token_type": "arr[i32]",
    "scores": "arr[f32]",
    "merges": "arr[str]",
    "add_bos_token": "bool",
    "add_eos_token": "bool",
    "add_space_prefix": "bool",
    "remove_extra_whitespaces": "bool",
    **{f"{name}_token_id": "u32" for name in _IDS},
}
# Pre-tokenizers of llama.cpp 0.5 (llama-vocab.cpp); a newer one is tried, not refused.
_PRE = frozenset(
    "a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx "
    "deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 falcon "
    "falcon-h1 falcon3 gigachat glm4 gpt-2 gpt-4o gpt3-finnish granite-docling grok-2 hunyuan "
    "hunyuan-dense jais kanana2 kimi-k2 lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum "
    "midm-2.0 minerva-7b minimax-m2 mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe "
    "seed-coder smaug-bpe smollm solar-open stablelm2 starcoder superbpe tekken trillion viking".split()
)
# These begin each text with a token of their own accord.
_BEGINNING = frozenset(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken chameleon".split()
)


def vocabulary_oddities(header: Header) -> list[str]:
    """Return what is unusual about the tokenizer of a model's first file."""
    reasons = _types(header)
    tokens = header.metadata.get(f"{_G}tokens")
    if not isinstance(tokens, tuple) or header.types[f"{_G}tokens"] != "arr[str]" or not tokens:
        return [*reasons, "It holds no list of tokens."]
    if reasons:  # what has another type cannot be looked at as if it had not
        return reasons
    kind = header.metadata.get(f"{_G}model")
    if kind == "llama":
        reasons += _sentencepiece(header.metadata, tokens)
    elif kind == "gpt2":
        reasons += _byte_pairs(header.metadata, tokens)
    else:
        reasons.append(f"Its tokenizer {kind!r} is none of those checked (llama, gpt2).")
    return reasons + _lists(header.metadata, tokens) + _ids(header.metadata, len(tokens))


def _types(header: Header) -> list[str]:
    reasons = []
    for key, kind in header.types.items():
        if not key.startswith("tokenizer."):
            continue
        name = key.removeprefix(_G)
        wanted = _TYPES.get(name) if key.startswith(_G) else _other_type(key)
        if wanted is None:
            reasons.append(f"Its key {key!r} is none of those checked.")
        elif kind != wanted:
            reasons.append(f"{key!r} is stored as {kind}, not as {wanted}.")
    return reasons


def _other_type(key: str) -> str | None:
    if key == "tokenizer.chat_templates":
        return "arr[str]"
    chat = key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
    return "str" if chat or key == "tokenizer.huggingface.json" else None


def _lists(metadata: Mapping[str, Any], tokens: tuple[str, ...]) -> list[str]:
    """Return what is unusual about the lists beside the tokens, and about texts that occur twice."""
    reasons = []
    for name in ("token_type", "scores"):
        length = len(metadata.get(f"{_G}{name}", tokens))
        if length != len(tokens):
            reasons.append(f"It has {len(tokens):,} tokens and {length:,} entries in {_G}{name}.")
    if f"{_G}token_type" not in metadata:
        reasons.append("Its tokens have no types.")
    strange = set(metadata.get(f"{_G}token_type", ())) - set(range(1, 7))
    if strange:
        reasons.append(f"A token is of the unknown type {sorted(strange)[0]}.")
    if not all(map(math.isfinite, metadata.get(f"{_G}scores", ()))):
        reasons.append("A token's score is not finite.")
    if len(set(tokens)) < len(tokens):
        reasons.append(f"{len(tokens) - len(set(tokens))} tokens have the text of another.")
    if "" in tokens:
        reasons.append("A token is empty.")
    if any("\0" in token for token in tokens):  # llama.cpp reads up to it: perhaps another's text
        reasons.append("A token has a zero byte.")
    return reasons


def _sentencepiece(metadata: Mapping[str, Any], tokens: tuple[str, ...]) -> list[str]:
    missing = _BYTES.difference(tokens)
    reasons = [f"{len(missing)} of the 256 byte tokens are missing."] if missing else []
    if f"{_G}scores" not in metadata:
        reasons.append("Its tokens have no scores.")
    return reasons + _byte_tokens(metadata, tokens)


def _byte_tokens(metadata: Mapping[str, Any], tokens: tuple[str, ...]) -> list[str]:
    """Return whether a token stands for a byte and does not say for which."""
    types = metadata.get(f"{_G}token_type", ())
    bad = [t for t, kind in zip(tokens, types, strict=False) if kind == _BYTE_TYPE]
    bad = [t for t in bad if not _BYTE.fullmatch(t)]
    return [f"The byte token {bad[0]!r} names no byte."] if bad else []


def _byte_pairs(metadata: Mapping[str, Any], tokens: tuple[str, ...]) -> list[str]:
    reasons = _byte_tokens(metadata, tokens)
    pre = metadata.get(f"{_G}pre")
    if pre not in _PRE:
        reasons.append(f"Its pre-tokenizer {pre!r} is none of those known.")
    merges = metadata.get(f"{_G}merges")
    if merges is None:
        return [*reasons, "It has no merges."]
    bad = [merge for merge in merges if merge.find(" ", 1) < 1 or merge[-1] == " "]
    if bad:
        reasons.append(f"{len(bad)} merges are no pair of texts, such as {bad[0]!r}.")
    return reasons


def _ids(metadata: Mapping[str, Any], count: int) -> list[str]:
    reasons = []
    for name in _IDS:
        value = metadata.get(f"{_G}{name}_token_id", 0)
        # Files write 2**32 - 1 for a token they do not have; llama.cpp then keeps its own.
        if value >= count and value != 0xFFFFFFFF:
            reasons.append(f"{_G}{name}_token_id is {value:,}, and there are {count:,} tokens.")
    begins = metadata.get(f"{_G}add_bos_token", metadata.get(f"{_G}pre") in _BEGINNING)
    ends = metadata.get(f"{_G}add_eos_token", False)
    for name, added in (("bos", begins), ("eos", ends)):
        if added and metadata.get(f"{_G}{name}_token_id", count) >= count:
            reasons.append(f"Texts get a token {name}, and {_G}{name}_token_id names none.")
    return reasons
