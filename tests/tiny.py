"""Models of random weights, written for tests: any size, any end."""

from __future__ import annotations

from pathlib import Path


def write_llama(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    context: int = 256,
    ends: bool = True,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """Write a Llama of random weights with the demo family's tokenizer and return its folder.

    Without `ends` no token ends its text, so it goes on until its context is full.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from nbproviders.demo.recipe import END, PAD, START, build_tokenizer

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=262,
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        num_key_value_heads=max(hidden // 64, 1),
        max_position_embeddings=context,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END if ends else None,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = context
    if not ends:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def llama_bytes(hidden: int, layers: int) -> int:
    """Return float32 bytes of the weights that `write_llama` writes."""
    attention, feed_forward = 4 * hidden**2, 9 * hidden**2
    return 4 * (layers * (attention + feed_forward + 2 * hidden) + 262 * hidden + hidden)
