"""What a checkpoint tells of itself before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ModelAccessError
from nbproviders.runtimes import checkpoints
from tests.tiny import llama_bytes, write_llama

pytest.importorskip("torch")


def test_header_bytes_are_the_weights_bytes(tmp_path: Path) -> None:
    """Bytes by header equal parameters times item size, tied embeddings once."""
    weights = checkpoints.read_weights(write_llama(tmp_path, hidden=64, layers=3))
    assert weights is not None
    assert weights.bytes_as("float32") == llama_bytes(64, 3)
    assert weights.bytes_as("bfloat16") == llama_bytes(64, 3) // 2
    assert weights.bytes_as(None) == llama_bytes(64, 3)


@pytest.mark.parametrize("name", ["./x", "/x/y", "~/x", "a/b/c", r"C:\models\x"])
def test_paths_are_not_hub_ids(name: str) -> None:
    """What looks like a path is one, there or not."""
    assert checkpoints.is_local(name)


@pytest.mark.parametrize("name", ["gpt2", "org/name", "org/name.v1-2"])
def test_hub_ids_are_not_paths(name: str) -> None:
    """A Hub id is none."""
    assert not checkpoints.is_local(name)


def test_the_revision_of_a_snapshot_is_its_commit(tmp_path: Path) -> None:
    """In the Hub cache the folder's name is the commit."""
    folder = tmp_path / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    assert checkpoints.revision_of(folder) == "abc123"


def test_a_missing_part_is_told(tmp_path: Path) -> None:
    """An index that names files which are not there is a download that stopped."""
    write_llama(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelAccessError, match=r"1 weights files are missing: model-00002"):
        checkpoints.require_weights(tmp_path, "m")
    assert not checkpoints.is_whole(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert checkpoints.is_whole(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config(tmp_path: Path, text: str) -> None:
    """A config.json that is no JSON object is named."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelAccessError, match="'config.json' .* damaged"):
        checkpoints.read_config(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["config.json"], "no weights"),
        (["config.json", "pytorch_model.bin"], "pickled weights only"),
        (["m.Q4_0.gguf"], "llama-cpp"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["model.safetensors"], "no config.json"),
    ],
)
def test_files_that_are_no_model(names: list[str], words: str) -> None:
    """By the names of its files a folder or repository is refused with the reason."""
    with pytest.raises(ModelAccessError) as caught:
        checkpoints.require_files(names, "m")
    assert words in str(caught.value)


CAUSAL, SEQ2SEQ = checkpoints.CAUSAL_CLASS, checkpoints.SEQ2SEQ_CLASS


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, CAUSAL),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, CAUSAL),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, SEQ2SEQ),
        ({"architectures": ["MarianMTModel"], "model_type": "marian"}, SEQ2SEQ),
        ({"is_encoder_decoder": True}, SEQ2SEQ),
        ({}, CAUSAL),
    ],
)
def test_the_class_that_fits(config: dict[str, Any], fits: str) -> None:
    """A config's class is found, and allowed; the other one is refused if the config says what it is."""
    other = SEQ2SEQ if fits == CAUSAL else CAUSAL
    assert checkpoints.class_of(config) == fits
    checkpoints.require_class(config, fits, "m")
    if "architectures" in config:
        with pytest.raises(ModelAccessError, match=rf"{other} cannot load.*\n.*model_class={fits}"):
            checkpoints.require_class(config, other, "m")


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForSequenceClassification", "BertModel"])
def test_what_does_not_write(kind: str) -> None:
    """Encoders and classifiers are no models for generation, though a class would load them."""
    config = {"architectures": [kind], "model_type": "bert"}
    with pytest.raises(ModelAccessError, match="no model for generation"):
        checkpoints.require_class(config, CAUSAL, "m")


def test_what_is_not_known_is_left_to_the_load() -> None:
    """An architecture of tomorrow, or one that brings its code, is not judged by its name."""
    tomorrow = {"architectures": ["TomorrowLM"], "model_type": "tomorrow"}
    checkpoints.require_class(tomorrow, CAUSAL, "m")
    own = {"architectures": ["BertModel"], "model_type": "bert", "auto_map": {CAUSAL: "m.Own"}}
    checkpoints.require_class(own, CAUSAL, "m")


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({}, "float32"),
        ({"dtype": "strange"}, "float32"),
    ],
)
def test_the_dtype_of_a_checkpoint(config: dict[str, Any], dtype: str) -> None:
    """It is read by its new name and its old one."""
    assert checkpoints.dtype_of(config) == dtype
