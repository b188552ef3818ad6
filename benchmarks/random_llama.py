"""A model for benchmarks that is larger than the demo models: its weights are random."""

from __future__ import annotations

from pathlib import Path

import nbproviders as nbp


def write(folder: Path, *, ends: bool = True) -> Path:
    """Write a 20 M-parameter Llama with the demo tokenizer; if it does not `ends`, its texts have no end."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=262,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2 if ends else None,
    )
    model = LlamaForCausalLM(config)
    print(f"random Llama: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(nbp.demo.path("demo-m"))
    if not ends:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder
