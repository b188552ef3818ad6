"""An ordinary file has no oddities; each number that llama.cpp relies on has one when it is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ModelAccessError
from nbproviders.runtimes.gguf.check import oddities
from nbproviders.runtimes.gguf.header import read_files
from tests.gguf_files import ARCHITECTURES, CHATML, spm_tokens, write_llama_gguf

pytest.importorskip("gguf")


def found(tmp_path: Path, **options: Any) -> list[str]:
    return oddities(read_files(write_llama_gguf(tmp_path / "m.gguf", **options)))


@pytest.mark.parametrize("vocab", ["spm", "bpe"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_ordinary_file_has_none(arch: str, vocab: str, tmp_path: Path) -> None:
    """Common architectures, quantized or not, split or not, need no trial."""
    assert found(tmp_path, arch=arch, vocab=vocab, chat_template=CHATML) == []
    assert found(tmp_path, arch=arch, vocab=vocab, dtype="Q4_0", split_tensors=6) == []


def test_a_mixture_of_experts_has_none(tmp_path: Path) -> None:
    """Mixtral's layout is known too."""
    assert found(tmp_path, experts=4) == []


def test_a_published_model_has_none() -> None:
    """The check was not made for files of our own only."""
    folder = os.environ.get("NBPROVIDERS_TEST_MODELS")
    if not folder:
        pytest.skip("NBPROVIDERS_TEST_MODELS names no folder of models")
    path = Path(folder) / "stories260k" / "stories260k.gguf"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    assert oddities(read_files(path)) == []


def test_what_real_files_carry_is_no_oddity(tmp_path: Path) -> None:
    """Names, licences, quantization notes, rope scaling and special tokens are common."""
    extra = {
        "general.name": "A model",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "general.tags": ["text-generation"],
        "quantize.imatrix.file": "x.dat",
        "llama.rope.freq_base": 500000.0,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 8.0,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.seperator_token_id": 0xFFFFFFFF,
        "tokenizer.ggml.add_bos_token": True,
    }
    assert found(tmp_path, metadata=extra) == []


TOKENS = [text for text, _, _ in spm_tokens()]
TYPES = [kind for _, _, kind in spm_tokens()]
SCORES = [score for _, score, _ in spm_tokens()]


def with_item(items: list[Any], index: int, value: Any) -> list[Any]:
    return [*items[:index], value, *items[index + 1 :]]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("llama.block_count", 0, "'llama.block_count' is 0"),
        ("llama.block_count", 600, "'llama.block_count' is 600"),
        ("llama.block_count", 3, "Tensors are missing: blk.2."),
        ("llama.block_count", 1, "Tensors are unknown for llama: blk.1."),
        ("llama.block_count", None, "'llama.block_count' is missing"),
        ("llama.attention.head_count", 0, "head_count' is 0"),
        ("llama.attention.head_count", 8, "16 rotated dimensions of 8"),
        ("llama.attention.head_count_kv", 3, "4 heads do not divide 3 key heads"),
        (
            "llama.attention.head_count_kv",
            4,
            "blk.0.attn_k.weight has shape (64, 32), not (64, 64)",
        ),
        ("llama.attention.head_count_kv", [2, 2], "stored as arr[i32], not as u32"),
        ("llama.rope.dimension_count", 8, "8 rotated dimensions, not all 16"),
        ("llama.attention.value_length", 8, "values of another length"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "is nan"),
        ("llama.attention.layer_norm_rms_epsilon", -1e-5, "epsilon' is -"),
        ("llama.attention.layer_norm_rms_epsilon", None, "is missing"),
        ("llama.rope.freq_base", float("inf"), "is inf"),
        ("llama.rope.scaling.type", "bent", "is 'bent'"),
        ("llama.context_length", 0, "context_length' is 0"),
        ("llama.expert_count", 4, "0 of 4 experts used"),
        ("llama.expert_used_count", 2, "2 of 0 experts used"),
        ("llama.vocab_size", 7, "a vocabulary of 7"),
        ("llama.feed_forward_length", 96, "Shapes do not fit"),
        ("llama.unheard_of", 1, "'llama.unheard_of' is none of those checked"),
        ("general.alignment", 8, "alignment is 8"),
        ("general.name", 5, "'general.name' is stored as u32"),
        ("tokenizer.ggml.model", "bert", "'bert' is none of those checked"),
        ("tokenizer.ggml.unheard_of", 1, "none of those checked"),
        ("tokenizer.ggml.bos_token_id", 99999, "bos_token_id is 99,999"),
        ("tokenizer.ggml.bos_token_id", "1", "stored as str, not as u32"),
        ("tokenizer.ggml.tokens", None, "no list of tokens"),
        ("tokenizer.ggml.tokens", with_item(TOKENS, 300, TOKENS[301]), "1 tokens have the text"),
        ("tokenizer.ggml.tokens", with_item(TOKENS, 13, "oops"), "1 of the 256 byte tokens"),
        ("tokenizer.ggml.tokens", with_item(TOKENS, 300, ""), "A token is empty"),
        ("tokenizer.ggml.tokens", with_item(TOKENS, 300, "a\0"), "a zero byte"),
        ("tokenizer.ggml.tokens", [*TOKENS, "more"], "entries in tokenizer.ggml.scores"),
        ("tokenizer.ggml.token_type", with_item(TYPES, 5, 9), "unknown type 9"),
        ("tokenizer.ggml.token_type", with_item(TYPES, 300, 6), "names no byte"),
        ("tokenizer.ggml.token_type", None, "have no types"),
        ("tokenizer.ggml.scores", with_item(SCORES, 5, float("nan")), "score is not finite"),
        ("tokenizer.ggml.scores", None, "have no scores"),
    ],
)
def test_each_wrong_number_is_named(key: str, value: Any, words: str, tmp_path: Path) -> None:
    """One change to an ordinary file is one reason, in a sentence that names it."""
    reasons = found(tmp_path, metadata={key: value})
    assert any(words in reason for reason in reasons), reasons


def test_other_architectures_are_odd(tmp_path: Path) -> None:
    """Whatever else such a file holds."""
    (reason,) = found(tmp_path, arch="mamba")
    assert reason == "Its architecture 'mamba' is none of those checked."


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.pre", "gpt-9", "pre-tokenizer 'gpt-9'"),
        ("tokenizer.ggml.pre", None, "pre-tokenizer None"),
        ("tokenizer.ggml.merges", None, "no merges"),
        ("tokenizer.ggml.merges", ["ab", "a b"], "1 merges are no pair"),
        ("tokenizer.ggml.add_bos_token", True, "names none"),
    ],
)
def test_byte_pair_vocabularies_are_looked_at(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    """So are merges, pre-tokenizers and a beginning that no token stands for."""
    own = {key: value}
    if key.endswith("add_bos_token"):
        own["tokenizer.ggml.bos_token_id"] = None
    reasons = found(tmp_path, vocab="bpe", metadata=own)
    assert any(words in reason for reason in reasons), reasons


def test_text_that_is_no_utf8_is_odd(tmp_path: Path) -> None:
    """Neither in a name nor in a token; it is read, and told."""
    path = write_llama_gguf(tmp_path / "m.gguf", metadata={"general.name": "A model"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"A model", b"A m\xffdel"))
    assert "The text of 'general.name' is no UTF-8." in oddities(read_files(path))
    path.write_bytes(content.replace("▁little".encode(), b"\xff" * 9))
    assert "The text of 'tokenizer.ggml.tokens' is no UTF-8." in oddities(read_files(path))


def test_bytes_behind_the_tensors_are_odd(tmp_path: Path) -> None:
    """A file that is longer than it tells was put together wrongly."""
    path = write_llama_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes() + bytes(10_000))
    assert any("stand behind the last tensor" in reason for reason in oddities(read_files(path)))


def test_a_norm_in_blocks_is_odd(tmp_path: Path) -> None:
    """Vectors are float32: llama.cpp aborts over others when it computes."""
    from dataclasses import replace

    (header,) = read_files(write_llama_gguf(tmp_path / "m.gguf"))
    tensors = [
        replace(t, type="Q8_0") if t.name == "output_norm.weight" else t for t in header.tensors
    ]
    reasons = oddities([replace(header, tensors=tuple(tensors))])
    assert reasons == ["Types are unusual: output_norm.weight is stored as Q8_0."]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"general.type": "adapter"}, "a LoRA adapter"),
        ({"general.type": "mmproj"}, "the image or audio part"),
        ({"llama.context_length": 1 << 31}, "claims a context of 2,147,483,648"),
    ],
)
def test_what_is_certainly_no_model_is_refused(
    own: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """No trial is needed to know it, and the error says what the file is."""
    with pytest.raises(ModelAccessError, match=words):
        found(tmp_path, metadata=own)


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    """A file without weights says so."""
    from dataclasses import replace

    (header,) = read_files(write_llama_gguf(tmp_path / "m.gguf"))
    with pytest.raises(ModelAccessError, match="holds no weights"):
        oddities([replace(header, tensors=())])
