"""Promises of estimates of transformers models, held against what they really take."""

from __future__ import annotations

import json
import os
import resource
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import transformers

import nbproviders as nbp
from nbproviders.errors import ModelAccessError
from nbproviders.residency.estimate import Estimate
from nbproviders.runtimes import checkpoints, estimating, rehearsal
from tests import architectures
from tests.tiny import write_llama

HIDDEN, LAYERS, CONTEXT = 128, 2, 1100
MAKERS = architectures.configs(HIDDEN, LAYERS, CONTEXT)
CAUSAL = checkpoints.CAUSAL_CLASS


def wanted(folder: Path, model_class: str = CAUSAL, dtype: str | None = "float32") -> Any:
    return estimating.Wanted(folder, checkpoints.revision_of(folder), model_class, dtype)


def weights(folder: Path, dtype: str, model_class: str = CAUSAL) -> int:
    """Return bytes of a loaded model's tensors."""
    model = getattr(transformers, model_class).from_pretrained(folder, dtype=dtype)
    tensors = (*model.parameters(), *model.buffers())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def llama(**changes: Any) -> Any:
    config = MAKERS["llama"]()
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def edit(folder: Path, **changes: Any) -> None:
    """Write other values into a ``config.json``; None takes one out."""
    path = folder / "config.json"
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


# Against what is measured


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in MAKERS]
    + [(name, "bfloat16") for name in ("llama", "gemma3", "qwen3-moe", "deepseek3")],
)
def test_it_is_what_is_measured(tmp_path: Path, name: str, dtype: str) -> None:
    """Weights to the byte; with what a text of the whole context takes, by torch's allocator, in 5 %."""
    model_class = architectures.write(MAKERS[name](), tmp_path, dtype)
    told = estimating.expected(wanted(tmp_path, model_class, dtype), "cpu")
    held, peak = architectures.measured(tmp_path, model_class, dtype, told.context_tokens or 0)
    assert told.notes == ()
    assert told.weights["cpu"] == held
    assert told["cpu"] == pytest.approx(held + peak, rel=0.05)
    assert told.reserve["cpu"] == pytest.approx(peak, rel=0.05)
    assert told.cache["cpu"] < peak


@pytest.mark.parametrize("name", MAKERS)
def test_weights_in_bfloat16(tmp_path: Path, name: str) -> None:
    """To the byte, though the files are in float32; buffers stay as the model makes them."""
    model_class = architectures.write(MAKERS[name](), tmp_path)
    told = estimating.expected(wanted(tmp_path, model_class, "bfloat16"), "cpu")
    assert told.weights["cpu"] == weights(tmp_path, "bfloat16", model_class)


def test_a_short_context(tmp_path: Path) -> None:
    """One that is computed at once takes no second chunk."""
    architectures.write(llama(max_position_embeddings=200), tmp_path)
    told = estimating.expected(wanted(tmp_path), "cpu")
    assert told.context_tokens == 200
    held, peak = architectures.measured(tmp_path, CAUSAL, "float32", 200)
    assert told["cpu"] == pytest.approx(held + peak, rel=0.01)


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_a_window_that_slid_for_long(tmp_path: Path, name: str) -> None:
    """Layers with a window keep what is in it, and the chunk that it slid over last; no more."""
    architectures.write(architectures.configs(64, 2, 2600)[name](), tmp_path)
    told = estimating.expected(wanted(tmp_path), "cpu")
    _, peak = architectures.measured(tmp_path, CAUSAL, "float32", 2600)
    assert told.reserve["cpu"] == pytest.approx(peak, rel=0.02)


def test_a_long_context_is_counted_in_part(tmp_path: Path) -> None:
    """A model that can take 100,000 tokens is charged for 4,096 of them."""
    architectures.write(llama(max_position_embeddings=100_000), tmp_path)
    told = estimating.expected(wanted(tmp_path), "cpu")
    assert told.context_tokens == 4096
    assert told.cache["cpu"] == 2 * LAYERS * 2 * (HIDDEN // 8) * 4096 * 4


# Weights


def test_weights_are_those_of_the_dtype_that_is_loaded(tmp_path: Path) -> None:
    """By name, or the checkpoint's own; a part may stay in float32 as transformers has it."""
    architectures.write(MAKERS["t5"](), tmp_path, "float16")
    seq2seq = checkpoints.SEQ2SEQ_CLASS
    for dtype in ("float32", "bfloat16", "float16"):
        told = estimating.expected(wanted(tmp_path, seq2seq, dtype), "cpu")
        assert told.weights["cpu"] == weights(tmp_path, dtype, seq2seq)
    own = estimating.expected(wanted(tmp_path, seq2seq, None), "cpu")
    assert own.weights["cpu"] == weights(tmp_path, "auto", seq2seq)


def test_the_dtype_of_a_config_goes_before_that_of_the_files(tmp_path: Path) -> None:
    """That is the dtype transformers loads them in."""
    architectures.write(llama(), tmp_path)
    edit(tmp_path, dtype="bfloat16")
    own = estimating.expected(wanted(tmp_path, dtype=None), "cpu")
    assert own.weights["cpu"] == weights(tmp_path, "auto") < 0.6 * weights(tmp_path, "float32")


def test_a_checkpoint_that_does_not_tell_its_dtype(tmp_path: Path) -> None:
    """It has that of its first tensor."""
    architectures.write(llama(), tmp_path, "bfloat16")
    edit(tmp_path, dtype=None)
    own = estimating.expected(wanted(tmp_path, dtype=None), "cpu")
    assert own.weights["cpu"] == weights(tmp_path, "auto") < 0.6 * weights(tmp_path, "float32")


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_tensor_that_is_stored_twice(tmp_path: Path, same: bool) -> None:
    """It counts once if both are the same; if not, transformers keeps both, and it counts twice."""
    from safetensors.torch import load_file, save_file

    architectures.write(llama(tie_word_embeddings=True), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    twice = tensors["model.embed_tokens.weight"].clone()
    twice[-1] += 0 if same else 1
    save_file({**tensors, "lm_head.weight": twice}, path, {"format": "pt"})
    told = estimating.expected(wanted(tmp_path), "cpu")
    assert told.weights["cpu"] == weights(tmp_path, "float32")
    assert told.notes == ()


def test_quantized_weights_count_as_they_are_stored(tmp_path: Path) -> None:
    """What a config describes unquantized is not what the files hold; the estimate says so."""
    architectures.write(llama(), tmp_path)
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    path.write_text(
        json.dumps({**told, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    found = estimating.expected(wanted(tmp_path, dtype="bfloat16"), "cpu")
    headers = checkpoints.read_weights(tmp_path)
    assert headers is not None
    assert found.weights["cpu"] == headers.bytes_as(None)
    assert found.cache["cpu"] > 0
    assert "quantized" in found.notes[0]


def test_files_that_do_not_fit_the_config(tmp_path: Path) -> None:
    """The estimate is of what the config describes, as the load's; it tells of the difference."""
    architectures.write(llama(), tmp_path)
    edit(tmp_path, num_hidden_layers=1, layer_types=None)
    found = estimating.expected(wanted(tmp_path), "cpu")
    assert found.weights["cpu"] == weights(tmp_path, "float32")
    assert "the files hold" in found.notes[0]


# What cannot be rehearsed


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    """What cannot be built without it is told by headers and names, and the estimate says that it guesses."""
    architectures.write(llama(), tmp_path)
    edit(tmp_path, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    found = estimating.expected(wanted(tmp_path), "cpu")
    assert not (tmp_path / "ran").exists()
    headers = checkpoints.read_weights(tmp_path)
    assert headers is not None
    assert found.weights["cpu"] == headers.bytes_as("float32")
    assert found.cache["cpu"] == 2 * LAYERS * 2 * (HIDDEN // 8) * CONTEXT * 4
    assert found.notes[0].startswith("cache and workspace are guessed: ")


def test_a_deep_model_is_drawn_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes too many steps to rehearse is told from fewer layers, as well and with a note."""
    makers = architectures.configs(64, 20, CONTEXT)
    architectures.write(makers["mistral"](), tmp_path)
    whole = estimating.expected(wanted(tmp_path), "cpu")
    monkeypatch.setattr(estimating, "MOST_OPERATIONS", 8500)
    monkeypatch.setattr(estimating, "_found", {})
    drawn = estimating.expected(wanted(tmp_path), "cpu")
    assert drawn.weights == whole.weights
    assert drawn["cpu"] == pytest.approx(whole["cpu"], rel=0.01)
    assert (whole.notes, len(drawn.notes)) == ((), 1)
    assert "8 of 20 layers" in drawn.notes[0]


def test_a_model_that_loops_over_tokens_is_drawn_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states and workspace are told from few tokens, within 5 % of what is measured."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": architectures.VOCABULARY}
    architectures.write(transformers.MambaConfig(**sizes, **architectures.TOKENS), tmp_path)
    monkeypatch.setattr(estimating, "MOST_CONTEXT_TOKENS", 128)
    monkeypatch.setattr(estimating, "MOST_OPERATIONS", 5000)
    told = estimating.expected(wanted(tmp_path), "cpu")
    held, peak = architectures.measured(tmp_path, CAUSAL, "float32", 128)
    assert "16 tokens" in told.notes[0]
    assert told.weights["cpu"] == held
    assert told["cpu"] == pytest.approx(held + peak, rel=0.05)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Its name and what is wrong with it are told before anything makes room."""
    write_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelAccessError, match=r"model\.safetensors"):
        estimating.expected(wanted(tmp_path), "cpu")


# What it costs


def test_eight_billion_parameters_take_no_memory(tmp_path: Path) -> None:
    """They are told exactly, without their files, in less memory than a thousandth of theirs."""
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    )
    config.save_pretrained(tmp_path / "small")
    estimating.expected(wanted(tmp_path / "small", dtype="float16"), "cpu")  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = estimating.expected(wanted(tmp_path / "small", dtype="bfloat16"), "cuda:0")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000
    assert told.weights["cuda:0"] == 2 * 8_030_261_248 + 64 * 4 * 2
    assert told.cache["cuda:0"] == 2 * 32 * 8 * 128 * 4096 * 2
    assert told.optional == {"host": told.weights["cuda:0"]}
    assert "a CPU's kernels" in told.notes[0]


def test_what_was_found_out_is_kept_while_the_files_stay(tmp_path: Path) -> None:
    """A second question is not computed again; a checkpoint that changed is."""
    turns = []

    @contextmanager
    def turn() -> Any:
        turns.append(1)
        yield

    write_llama(tmp_path, context=64)
    first = estimating.expected(wanted(tmp_path), "cpu", turn=turn)
    assert dict(estimating.expected(wanted(tmp_path), "cpu", turn=turn)) == dict(first)
    assert len(turns) == 1
    write_llama(tmp_path, context=64, hidden=128)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert estimating.expected(wanted(tmp_path), "cpu", turn=turn)["cpu"] > first["cpu"]
    assert len(turns) == 2


def test_others_compute_meanwhile(tmp_path: Path) -> None:
    """Fake tensors, operations that are watched and the default dtype stay with the thread that estimates."""
    architectures.write(MAKERS["mixtral"](), tmp_path)
    seen: list[Any] = []
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            made = torch.ones(8) @ torch.ones(8)
            seen.append((type(made), float(made), made.device.type))

    other = threading.Thread(target=compute)
    other.start()
    try:
        estimating.expected(wanted(tmp_path), "cpu")
    finally:
        ended.set()
        other.join()
    assert set(seen) == {(torch.Tensor, 8.0, "cpu")}
    assert torch.get_default_dtype() is torch.float32


# By the provider


def test_a_provider_tells_it_before_the_load(tmp_path: Path) -> None:
    """What ``estimate`` says of the weights is what the loaded model says of itself."""
    write_llama(tmp_path, dtype="float16")
    provider = nbp.create_provider("transformers")
    told = Estimate.of(provider.estimate(provider.resolve(f"{tmp_path}?device=cpu")))
    with nbp.model(f"transformers:{tmp_path}?device=cpu") as model:
        assert dict(told.weights) == dict(model.info.memory_bytes)
    assert told.reserve["cpu"] > 0
    assert told.optional == {}


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        ("build", OSError(24, "Too many open files")),
        ("build", MemoryError()),
        ("rehearse", FileNotFoundError("libgomp.so.1")),
        ("_continued", MemoryError()),
    ],
)
def test_a_guess_for_a_passing_reason_is_not_kept(
    step: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be found out for want of memory or open files is asked again; no guess stays."""

    def fail(*_: Any, **__: Any) -> Any:
        raise failure

    write_llama(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, step, fail)
        [note] = estimating.expected(wanted(tmp_path), "cpu").notes
    assert "guessed" in note
    assert estimating.expected(wanted(tmp_path), "cpu").notes == ()


def test_a_guess_for_a_lasting_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot be built is not tried again at each question."""
    tries = []

    def fail(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise ValueError("no such architecture")

    write_llama(tmp_path)
    monkeypatch.setattr(rehearsal, "build", fail)
    for _ in range(2):
        [note] = estimating.expected(wanted(tmp_path), "cpu").notes
        assert "no such architecture" in note
    assert len(tries) == 1
