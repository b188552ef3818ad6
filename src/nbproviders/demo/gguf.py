"""Convert a demo model from its transformers folder to the GGUF form that llama.cpp reads.

Knows Llamas with tied embeddings and the family's byte tokenizer, nothing else. The same folder gives
the same bytes every time: nothing of the machine or the day is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbproviders.errors import ConfigurationError, mapped

if TYPE_CHECKING:
    import gguf
    import numpy

QUANTS = ("F16", "Q8_0", "Q4_0")
BLOCK_WEIGHTS = 32  # Q8_0 and Q4_0 share one scale among so many weights of a row

# llama.cpp refuses a vocabulary of this kind without merges. This one (the byte 0xFF, twice) loads and
# never applies: no UTF-8 text has that byte. One that did apply would lose text.
_NEVER_MERGED = ("ÿ ÿ",)


def convert(folder: Path, target: Path, quant: str = "F16") -> None:
    """Write the model of a transformers folder as one GGUF file.

    Parameters
    ----------
    folder
        Holds ``config.json``, ``model.safetensors``, ``tokenizer.json`` and the chat template.
    target
        The file to write; it appears whole or not at all, so that a process that has an older one
        mapped keeps that.
    quant
        One of `QUANTS`. Norms stay float32 in each. In Q4_0 the embeddings, which are the output
        matrix too, stay Q8_0, as llama.cpp's own quantizer does for such rows.

    Raises
    ------
    ConfigurationError
        For another `quant`, a model that is no Llama with tied embeddings, or rows that do not
        divide into blocks.
    ProviderError
        If the folder lacks a file, or one cannot be read or written.
    """
    if quant not in QUANTS:
        raise ConfigurationError(
            f"no such form of a demo model: {quant!r}", hint=f"Use one of {', '.join(QUANTS)}."
        )
    with mapped(f"converting {folder} to {quant}"):
        _write(folder, target, quant)


def _write(folder: Path, target: Path, quant: str) -> None:
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or not config["tie_word_embeddings"]:
        raise ConfigurationError(
            f"{folder} holds no Llama with tied embeddings (model_type {config['model_type']!r})",
            hint="Only models made by nbproviders.demo.recipe are converted here.",
        )
    partial = target.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "llama")
    _add_description(writer, config, folder.name, quant)
    _add_tokenizer(writer, folder, config)
    for name, weights in _tensors(folder, config):
        _add_tensor(writer, name, weights, quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def _add_description(
    writer: gguf.GGUFWriter, config: dict[str, Any], name: str, quant: str
) -> None:
    import gguf

    heads = config["num_attention_heads"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_license("mit")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant}"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """Write bytes without merges, as GPT-2's form: llama.cpp's other one would escape blanks."""
    import gguf

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {added["content"] for added in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    # Where text is cut before merging cannot matter without merges; GPT-2's rule is the one that
    # llama.cpp has code for, rather than a regular expression.
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_NEVER_MERGED)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _tensors(folder: Path, config: dict[str, Any]) -> list[tuple[str, numpy.ndarray[Any, Any]]]:
    """Return GGUF's name and the weights of each tensor, in an order of their own."""
    import gguf
    from safetensors.numpy import load_file

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {
        "q_proj.weight": config["num_attention_heads"],
        "k_proj.weight": config["num_key_value_heads"],
    }
    found = []
    for source, weights in sorted(load_file(folder / "model.safetensors").items()):
        name = names.get_name(source, try_suffixes=(".weight",))
        if name is None:
            raise ConfigurationError(
                f"{folder} holds a tensor that no Llama has: {source!r}",
                hint="Only models made by nbproviders.demo.recipe are converted here.",
            )
        count = heads.get(".".join(source.split(".")[-2:]))
        found.append((name, weights if count is None else _interleaved(weights, count)))
    return found


def _interleaved(weights: numpy.ndarray[Any, Any], heads: int) -> numpy.ndarray[Any, Any]:
    """Return a projection's rows as llama.cpp rotates them: in pairs (0, 1), not in halves."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, weights: numpy.ndarray[Any, Any], quant: str
) -> None:
    import gguf
    import numpy

    if weights.ndim == 1:  # a norm
        writer.add_tensor(name, weights.astype(numpy.float32))
        return
    if quant == "F16":
        writer.add_tensor(name, weights.astype(numpy.float16))
        return
    if weights.shape[-1] % BLOCK_WEIGHTS:
        raise ConfigurationError(
            f"{name} has rows of {weights.shape[-1]} weights, which {quant} cannot hold",
            hint=f"Use F16, or dimensions that are multiples of {BLOCK_WEIGHTS}.",
        )
    kind = gguf.GGMLQuantizationType["Q8_0" if name.startswith("token_embd") else quant]
    packed = gguf.quants.quantize(weights.astype(numpy.float32), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)
