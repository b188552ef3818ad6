"""Small models of many kinds with random weights, and what they really take on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VOCABULARY = 2048


def configs(hidden: int, layers: int, context: int) -> dict[str, Callable[[], Any]]:
    """Return makers of configs by name: heads are of `hidden` / 8, the feed-forward is 2.75 times as wide."""
    import transformers as t

    wide = hidden * 11 // 4
    plain: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "max_position_embeddings": context,
        **TOKENS,
    }
    llama = {**plain, "intermediate_size": wide, "num_key_value_heads": 2}
    experts = {**llama, "moe_intermediate_size": hidden, "num_experts_per_tok": 2}
    latent = {
        "q_lora_rank": hidden // 4,
        "kv_lora_rank": hidden // 8,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    }
    named = {"vocab_size": VOCABULARY, **TOKENS}
    return {
        "llama": lambda: t.LlamaConfig(**llama),
        "llama-tied": lambda: t.LlamaConfig(**llama, tie_word_embeddings=True),
        "qwen3": lambda: t.Qwen3Config(**llama, head_dim=64, tie_word_embeddings=True),
        "gemma3": lambda: t.Gemma3TextConfig(**llama, head_dim=64, sliding_window=300),
        "mistral": lambda: t.MistralConfig(**llama, sliding_window=700),
        "phi": lambda: t.PhiConfig(**plain, intermediate_size=wide),
        "neox": lambda: t.GPTNeoXConfig(**plain, intermediate_size=wide),
        "mixtral": lambda: t.MixtralConfig(**llama, num_local_experts=4),
        "qwen3-moe": lambda: t.Qwen3MoeConfig(**experts, num_experts=8),
        "gpt2": lambda: t.GPT2Config(
            **named, n_embd=hidden, n_layer=layers, n_head=8, n_positions=context
        ),
        "falcon": lambda: t.FalconConfig(**plain, new_decoder_architecture=True, num_kv_heads=2),
        "olmo2": lambda: t.Olmo2Config(**llama),
        "bloom": lambda: t.BloomConfig(**named, hidden_size=hidden, n_layer=layers, n_head=8),
        "deepseek3": lambda: t.DeepseekV3Config(
            **{**experts, "num_key_value_heads": 8, "first_k_dense_replace": 1},
            **latent,
            n_routed_experts=8,
            n_group=2,
            topk_group=1,
        ),
        "t5": lambda: t.T5Config(
            vocab_size=VOCABULARY,
            d_model=hidden,
            d_kv=hidden // 8,
            d_ff=wide,
            num_layers=layers,
            num_heads=8,
            n_positions=min(context, 64),  # its answer is as long, and made step by step
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        ),
    }


def write(config: Any, folder: Path, dtype: str = "float32") -> str:
    """Write a model of random weights without a tokenizer; return the class to load it with."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    loader = t.AutoModelForSeq2SeqLM if config.is_encoder_decoder else t.AutoModelForCausalLM
    loader.from_config(config, dtype=dtype).save_pretrained(folder)
    return str(loader.__name__)


def measured(folder: Path, model_class: str, dtype: str, tokens: int) -> tuple[int, int]:
    """Return bytes of a model's tensors, and the most that torch's allocator held beside them.

    In a generation with a prompt of so many tokens; of a seq2seq model, with an answer of so many too.
    """
    import torch
    import transformers as t

    from nbproviders.runtimes import decoding

    model = getattr(t, model_class).from_pretrained(folder, dtype=dtype).eval()
    storages = {x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}
    ids = torch.randint(3, VOCABULARY, (1, tokens))
    config = decoding.plain_config(model, 0, frozenset())
    config.max_new_tokens = config.min_new_tokens = tokens if model.config.is_encoder_decoder else 1
    if tokens > decoding.PREFILL_CHUNK_TOKENS:
        config.prefill_chunk_size = decoding.PREFILL_CHUNK_TOKENS

    def generate(prompt: Any) -> None:
        given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        model.generate(**given, generation_config=config)

    with torch.inference_mode():
        if not model.config.is_encoder_decoder:
            generate(ids[:, :8])  # what is made once is not the prompt's
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as seen:
            generate(ids)
    return sum(storages.values()), _peak(seen)


def _peak(seen: Any) -> int:
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
