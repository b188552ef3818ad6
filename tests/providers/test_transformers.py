"""The provider ``transformers``: from a name to a model in memory, or an error that says what to do."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.errors import ForeignError
from nbproviders.providers.transformers import TransformersProvider
from nbproviders.residency.estimate import Estimate
from tests.tiny import write_llama

torch = pytest.importorskip("torch")

PUBLISHED = os.environ.get("NBPROVIDERS_TEST_MODELS", "")


@pytest.fixture(autouse=True)
def _nothing_left() -> object:
    yield
    nbp.unload_all(force=True)
    assert nbp.residents() == []


@pytest.mark.skipif(not PUBLISHED, reason="NBPROVIDERS_TEST_MODELS names no folder of models")
def test_a_published_model_writes_its_published_story() -> None:
    """stories260K, greedy from the beginning token alone, writes what its author published."""
    folder = Path(PUBLISHED) / "stories260k"
    lines = (folder / "SOURCE.md").read_text().splitlines()
    story = "\n".join(line[2:] for line in lines if line.startswith("> "))
    assert len(story) > 400
    with nbp.model(f"transformers:{folder / 'hf'}") as model:
        text = model.generate("", max_tokens=300)
        streamed = "".join(model.stream("", max_tokens=300))
    assert text.startswith(story)
    assert streamed == text
    assert text.usage.prompt_tokens == 1


def test_the_second_opening_loads_nothing() -> None:
    """A second opening of the same reference hands out the same weights."""
    provider = nbp.create_provider("transformers")
    with provider.model("demo-xs") as first:
        raw = first.raw
    with provider.model("demo-xs") as second:
        assert second.raw is raw


def test_providers_built_alike_share_weights_and_options_part_them() -> None:
    """Two providers built alike share a model; another dtype is another model; a batch size is not."""
    one, other = TransformersProvider(), TransformersProvider(dtype="float32")
    assert one.resolve("demo-xs") != one.resolve("demo-xs?dtype=bfloat16")
    assert one.resolve("demo-xs?dtype=float32") == other.resolve("demo-xs")
    assert one.resolve("demo-xs?parallel=3") == one.resolve("demo-xs")
    assert one.resolve("demo-xs?chat=false") == one.resolve("demo-xs")


def test_setup_wins_over_the_constructor() -> None:
    """An option given with the model replaces the constructor's."""
    provider = TransformersProvider(dtype="bfloat16")
    assert provider.resolve("demo-xs", dtype="float32") == TransformersProvider().resolve(
        "demo-xs?dtype=float32"
    )


def test_a_checkpoint_that_changed_on_disk_is_another_model(tmp_path: Path) -> None:
    """Retrained weights under the same path are loaded anew, not taken from memory."""
    provider = nbp.create_provider("transformers")
    write_llama(tmp_path, seed=1)
    before = provider.resolve(str(tmp_path))
    write_llama(tmp_path, seed=2)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert provider.resolve(str(tmp_path)) != before


def test_the_charge_follows_the_dtype_that_is_loaded(tmp_path: Path) -> None:
    """A float16 checkpoint is charged as the float32 it becomes on a CPU, and as bfloat16 if asked."""
    write_llama(tmp_path, dtype="float16")
    provider = nbp.create_provider("transformers")
    full, half = (
        Estimate.of(provider.estimate(provider.resolve(f"{tmp_path}?device=cpu{more}")))
        for more in ("", "&dtype=bfloat16")
    )
    # Beside the weights nothing need be exactly half.
    assert full.weights["cpu"] == pytest.approx(2 * half.weights["cpu"], rel=0.001)
    assert full.cache["cpu"] == 2 * half.cache["cpu"] > 0
    with nbp.model(f"transformers:{tmp_path}?device=cpu"):
        charged = nbp.residents()[0].bytes["cpu"]
    assert full["cpu"] == pytest.approx(charged, rel=0.01)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there(device: str) -> None:
    """An absent device is refused with the value and the devices there are."""
    with pytest.raises(nbp.ConfigurationError, match=device) as caught:
        nbp.load_sync(f"transformers:demo-xs?device={device}")
    assert "Devices here: cpu" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("transformers:demo-xs?dtpe=float32", "Did you mean 'dtype'"),
        ("transformers:demo-xs?dtype=int3", "float32, float16, bfloat16"),
        ("transformers:demo-xs?parallel=0", "at least 1"),
        ("transformers:demo-xs?trust_remote_code=1", "must be bool"),
        ("transformers:demo-xs?model_class=Banana", "AutoModelForCausalLM"),
    ],
)
def test_a_wrong_option_is_refused(reference: str, words: str) -> None:
    """A misspelt option or a wrong value is refused before anything is loaded."""
    with pytest.raises(
        nbp.ConfigurationError, match=r"option|dtype|parallel|model_class"
    ) as caught:
        nbp.load_sync(reference)
    assert words in str(caught.value)


def _folder(path: Path, kind: str) -> Path:
    if kind == "missing":
        return path / "nowhere"
    write_llama(path)
    if kind == "no weights":
        (path / "model.safetensors").unlink()
    elif kind == "pickle only":
        (path / "model.safetensors").rename(path / "pytorch_model.bin")
    elif kind == "no config":
        (path / "config.json").unlink()
    elif kind == "truncated":
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "garbage":
        (path / "model.safetensors").write_bytes(b"\xff" * 4096)
    elif kind == "a file":
        return path / "model.safetensors"
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no folder"),
        ("no weights", "no weights"),
        ("pickle only", "allow_pickle=true"),
        ("no config", "config.json"),
        ("truncated", "damaged"),
        ("garbage", "damaged"),
        ("a file", "Give the folder"),
    ],
)
def test_a_folder_that_cannot_be_loaded(kind: str, words: str, tmp_path: Path) -> None:
    """Each way a folder can be wrong gets its own reason and advice, and nothing stays cached."""
    folder = _folder(tmp_path, kind)
    with pytest.raises(nbp.ModelAccessError) as caught:
        nbp.load_sync(f"transformers:{folder}")
    assert str(caught.value).startswith("Failed to setup resource 'transformers:")
    assert words in str(caught.value)
    assert nbp.residents() == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("MPS backend out of memory (MPS allocated: 9.57 GiB, max allowed: 27.20 GiB)"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
    ],
)
def test_a_load_that_runs_out_of_memory_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the library tells it, it is our error for it: room is made then, and it is tried again."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(TransformersProvider, "load_model", fail)
    with pytest.raises(nbp.InsufficientMemoryError) as caught:
        nbp.load_sync("transformers:demo-xs")
    assert type(error).__name__ in str(caught.value)


def test_an_unknown_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub id that is neither cached nor reachable is told at once, with models that are here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(nbp.ModelAccessError, match="not in the local cache") as caught:
        nbp.load_sync("transformers:some-org/not-a-model")
    assert "demo-xs" in str(caught.value)


def test_a_name_that_is_nothing() -> None:
    """A name that is no folder and no Hub id says what a Hub id looks like."""
    with pytest.raises(nbp.ModelAccessError, match="org/name"):
        nbp.load_sync("transformers:not a model!")


def test_a_failed_load_keeps_no_foreign_frames(tmp_path: Path) -> None:
    """What the library raised is told by a stand-in without frames."""
    write_llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(nbp.ProviderError, match="Failed to setup") as caught:
        nbp.load_sync(f"transformers:{tmp_path}")
    cause = caught.value.__cause__
    assert isinstance(cause, ForeignError)
    assert cause.__traceback__ is None
    assert nbp.residents() == []


def test_validate_model_access(tmp_path: Path) -> None:
    """The access check is true for a folder with weights and raises the reason otherwise."""
    provider = TransformersProvider()
    assert provider.validate_model_access(str(nbp.demo.path("demo-xs")))
    assert provider.get_provider_name() == "transformers"
    with pytest.raises(nbp.ModelAccessError, match="no folder"):
        provider.validate_model_access(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dtpe": "float32"}, "Did you mean 'dtype'"),
        ({"dtype": 32}, "must be str, not int"),
        ({"dtype": "int3"}, "float32, float16, bfloat16"),
        ({"parallel": 0}, "at least 1"),
        ({"parallel": True}, "must be int, not bool"),
        ({"quantization": "nf5"}, "nf4, fp4, int8"),
        ({"quantization_config": {"load_in_4bits": True}}, "load_in_4bits"),
        ({"trust_remote_code": "yes"}, "must be bool"),
    ],
)
def test_the_constructor_checks_as_setup_does(config: dict[str, Any], words: str) -> None:
    """A misspelt, badly typed or impossible default is refused when the provider is made."""
    with pytest.raises(nbp.ConfigurationError) as caught:
        nbp.create_provider("transformers", **config)
    assert words in str(caught.value)


def test_what_is_given_with_the_model_wins_even_if_it_is_the_usual() -> None:
    """Setup says auto, the constructor bfloat16: auto it is."""
    provider = TransformersProvider(dtype="bfloat16")
    assert provider.resolve("demo-xs", dtype="auto") == TransformersProvider().resolve("demo-xs")
    assert provider.resolve("demo-xs") != provider.resolve("demo-xs", dtype="auto")


async def test_models_that_load_at_once_spoil_nothing() -> None:
    """transformers changes its own classes while it loads: after two at once they are as before."""
    from transformers import PreTrainedModel

    before = PreTrainedModel.tie_weights
    names = ("demo-xs", "demo-s", "demo-m")
    for _ in range(4):
        clients = await asyncio.gather(*(nbp.load(f"transformers:{name}") for name in names))
        texts = [await client.generate("12+30=") for client in clients]
        for client in clients:
            client.close()
        nbp.unload_all()
        assert texts[2] == "42"
        assert PreTrainedModel.tie_weights is before


async def test_teardown_all_frees_what_was_loaded() -> None:
    """After teardown_all nothing of the provider is in memory."""
    provider = TransformersProvider()
    await provider.setup("demo-xs")
    assert nbp.residents()
    await provider.teardown_all()
    assert nbp.residents() == []


def test_a_subclass_keeps_its_models_apart() -> None:
    """A subclass may load otherwise: it shares neither keys nor weights, but short names."""

    class Mine(TransformersProvider): ...

    mine, theirs = Mine(), TransformersProvider()
    assert mine.resolve("demo-xs").model == theirs.resolve("demo-xs").model
    assert mine.resolve("demo-xs") != theirs.resolve("demo-xs")
    assert mine.validate_model_access("demo-xs")


# Quantization


@pytest.mark.parametrize("word", ["nf4", "fp4", "int8"])
def test_a_quantized_model_answers_and_is_charged_as_such(word: str) -> None:
    """In 4 or 8 bits demo-m still adds, takes a part of the bytes, and is estimated as it is charged."""
    pytest.importorskip("bitsandbytes")
    provider = nbp.create_provider("transformers")
    key = provider.resolve(f"demo-m?device=cpu&quantization={word}")
    expected = Estimate.of(provider.estimate(key))
    with nbp.model(f"transformers:demo-m?device=cpu&quantization={word}") as model:
        assert model.generate("12+30=") == "42"
        charged, held = nbp.residents()[0].bytes["cpu"], model.info.memory_bytes["cpu"]
        scales = model.raw.model.layers[0].mlp.up_proj.scales
    assert expected["cpu"] == pytest.approx(charged, rel=0.05)
    assert expected.weights["cpu"] == pytest.approx(held, rel=0.05)
    with nbp.model("transformers:demo-m?device=cpu") as whole:
        assert 3 * held < whole.info.memory_bytes["cpu"]
    nbp.unload_all()
    assert scales.untyped_storage().size() == 0


def test_the_word_and_its_configuration_share_weights() -> None:
    """quantization=nf4, and what it stands for, is one model; another kind is another."""
    provider = TransformersProvider()
    written = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }
    word = provider.resolve("demo-xs?quantization=nf4")
    assert word == provider.resolve("demo-xs", quantization_config=written)
    assert word != provider.resolve("demo-xs?quantization=fp4")
    assert word != provider.resolve("demo-xs")


def test_a_ready_configuration_through_load_model() -> None:
    """A BitsAndBytesConfig loads as it is, and a word's settings as a mapping; a conflict is refused."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    provider, path = TransformersProvider(), str(nbp.demo.path("demo-xs"))
    ready = BitsAndBytesConfig(load_in_8bit=True)
    for given in (ready, {"load_in_8bit": True}):
        model = provider.load_model(path, quantization_config=given, device_map="cpu")
        assert model.is_loaded_in_8bit
    with pytest.raises(nbp.ConfigurationError, match="4 and 8 bits at once"):
        provider.load_model(
            path, quantization_config={"load_in_8bit": True, "load_in_4bit": True}, device_map="cpu"
        )


def test_quantization_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without bitsandbytes the load is refused before weights are read, and before room is made."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    write_llama(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(nbp.ConfigurationError, match="needs the package bitsandbytes"):
        nbp.load_sync(f"transformers:{tmp_path}?device=cpu&quantization=nf4")
    with pytest.raises(nbp.ConfigurationError, match="needs the package bitsandbytes"):
        TransformersProvider().load_model(
            str(tmp_path), quantization_config={"load_in_4bit": True}, device_map="cpu"
        )


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path: Path) -> None:
    """A checkpoint saved in 8 bits loads as it is; asked for 4 bits it is refused by its method."""
    pytest.importorskip("bitsandbytes")
    provider = TransformersProvider()
    source = str(nbp.demo.path("demo-m"))
    model = provider.load_model(
        source, quantization_config={"load_in_8bit": True}, device_map="cpu"
    )
    model.save_pretrained(tmp_path)
    provider.load_tokenizer(source).save_pretrained(tmp_path)
    with nbp.model(f"transformers:{tmp_path}?device=cpu") as again:
        assert again.generate("12+30=") == "42"
    with pytest.raises(nbp.ConfigurationError, match="quantized already, by bitsandbytes"):
        nbp.load_sync(f"transformers:{tmp_path}?device=cpu&quantization=nf4")


def test_a_class_that_does_not_fit_is_told_by_the_load(tmp_path: Path) -> None:
    """A causal model asked as seq2seq is refused before its weights are read, with what to write."""
    folder = write_llama(tmp_path)
    with pytest.raises(nbp.ModelAccessError, match="model_class=AutoModelForCausalLM"):
        nbp.load_sync(f"transformers:{folder}?model_class=AutoModelForSeq2SeqLM")
    with pytest.raises(nbp.ModelAccessError, match="AutoModelForSeq2SeqLM cannot load"):
        TransformersProvider().validate_model_access(str(folder), "AutoModelForSeq2SeqLM")


async def test_the_load_reports_bytes() -> None:
    """Progress reaches the bytes of the checkpoint."""
    from nbproviders.residency.progress import Progress
    from nbproviders.runtimes.threads import Worker

    provider = TransformersProvider()
    key, progress, worker = provider.resolve("demo-s"), Progress(), Worker("test")
    model = await worker.run(provider.load, key, progress)
    assert progress.fraction == 1
    assert progress.total_bytes > 100_000
    await model.aclose()


async def test_a_cancelled_load_stops_and_leaves_nothing(tmp_path: Path) -> None:
    """A load that nobody wants stops at its next tensor."""
    from nbproviders.residency.progress import Progress
    from nbproviders.runtimes.threads import Worker

    provider = TransformersProvider()
    progress, worker = Progress(), Worker("test")
    provider.resolve("demo-s")
    progress.cancel()
    with pytest.raises(nbp.ClosedError, match="cancelled"):
        await worker.run(provider.load, provider.resolve("demo-s"), progress)
    await worker.close()


def test_seq2seq_models_load_and_generate(tmp_path: Path) -> None:
    """An encoder-decoder model is found by its config and generates."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from nbproviders.demo.recipe import build_tokenizer

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=262,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "chat_template.jinja", ignore_errors=True)
    with nbp.model(f"transformers:{tmp_path}") as model:
        alone = [model.generate(p, max_tokens=7) for p in ("ab", "a longer one")]
        together = model.generate_many(["ab", "a longer one"], max_tokens=7)
        assert [str(t) for t in together] == [str(t) for t in alone]
        assert alone[0].usage.completion_tokens <= 7
        assert not alone[0].chat
        with pytest.raises(nbp.InvalidRequestError, match="no chat template"):
            model.chat([{"role": "user", "content": "x"}])
