"""Probabilities of tokens by a transformers model: what may come next, and how likely a text is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from nbproviders.core.tokens import Token

if TYPE_CHECKING:
    import torch

_CHUNK_TOKENS = 512
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # how a SentencePiece vocabulary writes one


def next_tokens(
    model: Any, tokenizer: Any, ids: Sequence[int], k: int, check: Callable[[], None]
) -> tuple[Token, ...]:
    """Return the `k` most likely tokens after a prompt, most likely first.

    Parameters
    ----------
    model, tokenizer
        Causal, or seq2seq: then the prompt is the encoder's.
    ids
        Tokens of the prompt.
    k
        How many; never more than the vocabulary has.
    check
        Called between chunks; raises if nobody waits any more.
    """
    logits = last_logits(model, ids, (), check)[-1]
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(k, logprobs.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Token(token_text(tokenizer, i), i, logprob) for i, logprob in pairs)


def score(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    continuation: Sequence[int],
    check: Callable[[], None],
) -> tuple[Token, ...]:
    """Return the tokens of a continuation, each with its probability after all before it."""
    import torch

    logits = last_logits(model, ids, continuation, check)
    logprobs = logits.float().log_softmax(-1)
    wanted = torch.tensor(list(continuation), device=logprobs.device).unsqueeze(-1)
    found = logprobs.gather(-1, wanted).squeeze(-1).tolist()
    return tuple(
        Token(token_text(tokenizer, i), i, logprob)
        for i, logprob in zip(continuation, found, strict=True)
    )


def last_logits(
    model: Any, ids: Sequence[int], continuation: Sequence[int], check: Callable[[], None]
) -> torch.Tensor:
    """Return the logits that foretell each token of a continuation; without one, the next token's.

    Returns
    -------
    torch.Tensor
        ``(max(1, continuation tokens), vocabulary)``.
    """
    import torch

    device = model.device
    with torch.inference_mode():
        check()
        if model.config.is_encoder_decoder:
            start = model.generation_config.decoder_start_token_id or 0
            written = torch.tensor([[start, *continuation[:-1]]], device=device)
            read = torch.tensor([list(ids)], device=device)
            logits: torch.Tensor = model(input_ids=read, decoder_input_ids=written).logits[0]
            return logits
        return _causal_logits(model, [*ids, *continuation[:-1]], len(continuation) or 1, check)


def _causal_logits(
    model: Any, ids: list[int], keep: int, check: Callable[[], None]
) -> torch.Tensor:
    """Return the last `keep` positions' logits, computed in chunks so that a Stop is soon obeyed."""
    import torch

    several, keeps = len(ids) > _CHUNK_TOKENS, _keeps_logits(model)
    past, parts, first = None, [], len(ids) - keep
    for begin in range(0, len(ids), _CHUNK_TOKENS):
        chunk = ids[begin : begin + _CHUNK_TOKENS]
        given: dict[str, Any] = {"input_ids": torch.tensor([chunk], device=model.device)}
        wanted = max(begin + len(chunk) - max(first, begin), 0)
        if keeps:
            given["logits_to_keep"] = max(wanted, 1)
        if several:
            given |= {"past_key_values": past, "use_cache": True}
        out = model(**given)
        past = getattr(out, "past_key_values", None)
        if wanted:
            parts.append(out.logits[0, -wanted:])
        check()
    return torch.cat(parts)


def _keeps_logits(model: Any) -> bool:
    """Whether a model can leave out the logits nobody asked for: vocabulary times tokens of floats."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def token_text(tokenizer: Any, token: int) -> str:
    """Return what a token writes in the middle of a text; a piece of a character as ``<0xE2>``."""
    # After itself, not alone: many tokenizers drop the blank before the first token of a text.
    alone = str(tokenizer.decode([token]))
    text = str(tokenizer.decode([token, token]))[len(alone) :]
    if "\ufffd" not in text:
        return text
    written = str(tokenizer.convert_ids_to_tokens(token))
    known = _bytes_of_characters()
    if _BYTE.fullmatch(written) or not all(char in known for char in written):
        return written
    return "".join(f"<0x{known[char]:02X}>" for char in written)


@cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (openai/gpt-2, encoder.py, bytes_to_unicode), reversed."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return {chr(byte if byte in printable else next(spare)): byte for byte in range(256)}
