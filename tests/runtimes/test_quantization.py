"""Quantization: what may be asked, what it takes, and what is refused before weights are read."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.errors import ConfigurationError
from nbproviders.runtimes import quantization
from tests.tiny import write_llama

pytest.importorskip("torch")
pytest.importorskip("transformers")

FOUR, EIGHT = {"load_in_4bit": True}, {"load_in_8bit": True}


@pytest.mark.parametrize("word", ["nf4", "fp4", "int8"])
def test_a_word_stands_for_a_configuration(word: str) -> None:
    """The word and the configuration it stands for are the same settings, and name it again."""
    settings = quantization.normalised(word, None)
    assert settings is not None
    assert quantization.normalised(None, quantization.SHORT[word]) == settings
    assert quantization.word_of(settings) == word


def test_settings_that_only_repeat_the_defaults_are_no_others() -> None:
    """What is written out and what is left to the defaults is the same model."""
    written = {**FOUR, "load_in_8bit": False, "bnb_4bit_quant_type": "fp4", "llm_int8_threshold": 6}
    assert quantization.normalised(None, written) == FOUR
    assert quantization.normalised(None, None) is None


@pytest.mark.parametrize(
    ("short", "config", "words"),
    [
        ("nf5", None, "'nf5' is not one of nf4, fp4, int8"),
        ("nf4", EIGHT, "both given"),
        (None, {**FOUR, **EIGHT}, "4 and 8 bits at once"),
        (None, {}, "neither 4 nor 8"),
        (None, {"load_in_4bit": False}, "neither 4 nor 8"),
        (None, {"load_in_4bits": True}, "no setting 'load_in_4bits'"),
        (None, {"load_in_4bit": 1}, "load_in_4bit=1 must be bool, not int"),
        (None, {**FOUR, "bnb_4bit_quant_type": "nf5"}, "'nf5' is not one of nf4, fp4"),
        (None, {**FOUR, "bnb_4bit_compute_dtype": "int3"}, "'int3' is not one of float32"),
        (None, {**FOUR, "bnb_4bit_compute_dtype": 16}, "must be str, not int"),
        (None, {**FOUR, "llm_int8_threshold": 4.0}, "llm_int8_threshold has no effect on 4 bits"),
        (None, {**EIGHT, "bnb_4bit_quant_type": "nf4"}, "has no effect on 8 bits"),
        (None, {**EIGHT, "quant_method": "gptq"}, "another method than bitsandbytes"),
    ],
)
def test_what_cannot_be_asked(short: str | None, config: Any, words: str) -> None:
    """Each conflict, unknown name and wrong value is told with itself."""
    with pytest.raises(ConfigurationError) as caught:
        quantization.normalised(short, config)
    assert words in str(caught.value)


def test_a_ready_object_is_judged_as_its_settings() -> None:
    """A BitsAndBytesConfig is checked like a mapping; another library's is left to transformers."""
    from transformers import BitsAndBytesConfig

    assert quantization.expected_settings(BitsAndBytesConfig(load_in_8bit=True))["load_in_8bit"]
    with pytest.raises(ConfigurationError, match="'nf5' is not one of"):
        quantization.expected_settings(
            BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf5")
        )
    assert quantization.expected_settings(object()) is None


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bitsandbytes is not installed, that is said, with what to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigurationError, match="nf4 needs the package bitsandbytes") as caught:
        quantization.require(quantization.SHORT["nf4"], "cpu")
    assert "nbproviders[bitsandbytes]" in caught.value.hint


def test_a_device_without_support() -> None:
    """A device that bitsandbytes does not compute on is refused with those it does."""
    pytest.importorskip("bitsandbytes")
    quantization.require(EIGHT, "cpu")
    with pytest.raises(ConfigurationError, match="int8 cannot be on the device 'vulkan:0'") as seen:
        quantization.require(EIGHT, "vulkan:0")
    assert "cpu, cuda" in str(seen.value)


def test_quantized_twice() -> None:
    """A checkpoint that is quantized already is refused by its method."""
    with pytest.raises(ConfigurationError, match="quantized already, by gptq"):
        quantization.require_plain({"quantization_config": {"quant_method": "gptq"}}, "org/m")
    quantization.require_plain({"quantization_config": None}, "org/m")


def loaded(folder: Path, word: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    settings = quantization.normalised(word, None)
    assert settings is not None
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        device_map={"": "cpu"},
        quantization_config=quantization.transformers_config(settings, dtype),
    ).eval()
    quantization.settle(model)
    with torch.inference_mode():
        model(input_ids=torch.ones((1, 3), dtype=torch.long))
    quantization.own_scales(model)
    return model


@pytest.mark.parametrize("word", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_before_are_bytes_after(word: str, dtype: str, tmp_path: Path) -> None:
    """What is expected of a checkpoint's config is what the loaded model holds, scales and all."""
    pytest.importorskip("bitsandbytes")
    from nbproviders.runtimes.transformers import tensor_bytes

    folder = write_llama(tmp_path, hidden=128)
    settings = quantization.normalised(word, None)
    assert settings is not None
    expected = quantization.expected_bytes(
        str(folder), "AutoModelForCausalLM", settings, dtype, trusted=False
    )
    found = tensor_bytes(loaded(folder, word, dtype))["cpu"]
    assert expected == pytest.approx(found, rel=0.03)
    full = quantization.expected_bytes(
        str(folder), "AutoModelForCausalLM", {"load_in_8bit": True}, "float32", trusted=False
    )
    assert full is not None
    assert expected <= full


def test_a_shape_that_fills_no_block_computes(tmp_path: Path) -> None:
    """Rows that are no multiple of 64 compute in 4 bits on any CPU, close to what they were."""
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=176,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    plain = LlamaForCausalLM(config).eval()
    plain.save_pretrained(tmp_path)
    quantized = loaded(tmp_path, "nf4", "float32")
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        one, other = plain(input_ids=ids).logits, quantized(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min() > 0.9


def test_scales_are_freed_with_the_weights(tmp_path: Path) -> None:
    """After freeing, a quantized module that lives on holds nothing."""
    pytest.importorskip("bitsandbytes")
    from nbproviders.runtimes.transformers import free_tensors

    for word in ("nf4", "int8"):
        model = loaded(write_llama(tmp_path / word, hidden=128), word, "float32")
        layer = model.model.layers[0].mlp.up_proj
        scales = layer.scales
        assert scales.untyped_storage().size() > 0
        free_tensors(model)
        assert sum(t.untyped_storage().size() for t in (*model.parameters(), scales)) == 0


def test_what_cannot_be_built_has_no_expected_bytes(tmp_path: Path) -> None:
    """A folder without a usable config is left to the load to explain."""
    (tmp_path / "config.json").write_text("{}")
    assert (
        quantization.expected_bytes(str(tmp_path), "AutoModelForCausalLM", FOUR, None, False)
        is None
    )


def test_the_log_is_not_filled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An 8-bit model does not log a line for every product; other warnings still come through."""
    pytest.importorskip("bitsandbytes")
    quantization.require(EIGHT, "cpu")
    name = "bitsandbytes.autograd._functions"
    with caplog.at_level(logging.WARNING, name):
        loaded(write_llama(tmp_path), "int8", "float32")
        logging.getLogger(name).warning("something else")
    assert [record.message for record in caplog.records if record.name == name] == [
        "something else"
    ]


def test_a_quantised_model_promises_no_equal_texts() -> None:
    """Rounded layers add up differently in a batch: the completion says so, unless it ran alone."""
    pytest.importorskip("bitsandbytes")
    with nbp.model("transformers:demo-m?quantization=int8") as m:
        assert not m.generate("12+30=").batch_invariant
    with nbp.model("transformers:demo-m?quantization=int8&invariant=true") as m:
        assert m.generate("12+30=").batch_invariant
