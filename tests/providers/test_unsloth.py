"""The provider ``unsloth`` where it cannot run: listed with the reason, options checked, loads refused."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.providers import unsloth
from nbproviders.providers.unsloth import UnslothProvider
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import devices

pytest.importorskip("transformers")
ABSENT = importlib.util.find_spec("unsloth") is None


@pytest.mark.skipif(not ABSENT, reason="unsloth is installed")
def test_it_is_listed_with_its_reasons() -> None:
    """The listing names the package, and the GPU if there is none; create_provider says the same."""
    info = nbp.list_available()["unsloth"]
    assert not info.available
    assert 'unsloth not installed: pip install "nbproviders[unsloth]"' in info.reason
    assert ("needs a CUDA GPU" in info.reason) == (not devices.cuda_count())
    with pytest.raises(nbp.ConfigurationError, match="'unsloth' is not available: unsloth not"):
        nbp.create_provider("unsloth")


def test_the_package_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package but no GPU, the GPU is the reason."""
    monkeypatch.setitem(registry._NEEDS, "unsloth", (("json",), "unsloth"))
    monkeypatch.setattr(registry, "cuda_count", lambda: 0)
    assert nbp.list_available()["unsloth"].reason == "it needs a CUDA GPU, and there is none here"
    monkeypatch.setattr(registry, "cuda_count", lambda: 1)
    assert nbp.list_available()["unsloth"].available


def test_a_load_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered by hand it still refuses to load, before anything is imported, with what to do."""
    monkeypatch.setattr(devices, "cuda_count", lambda: 0)
    provider = UnslothProvider()
    with pytest.raises(nbp.ConfigurationError, match="there is no CUDA GPU") as caught:
        provider.get_client("demo-xs")
    assert "nbproviders[unsloth]" in caught.value.hint
    with pytest.raises(nbp.ConfigurationError, match="unsloth cannot run here"):
        provider.load_model("demo-xs")


class FastLanguageModel:
    """Loads as Unsloth's does, without its kernels, and tells what it was asked for."""

    asked: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def from_pretrained(cls, **named: Any) -> tuple[Any, None]:
        from transformers import AutoModelForCausalLM

        cls.asked.append(named)
        return AutoModelForCausalLM.from_pretrained(named["model_name"]), None

    @staticmethod
    def for_inference(model: Any) -> None: ...


@pytest.mark.skipif(not ABSENT, reason="unsloth is installed")
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_model_is_loaded_by_it(monkeypatch: pytest.MonkeyPatch, quantization: str | None) -> None:
    """With its options and an estimate; Unsloth is asked for the name, whatever files it takes for that."""
    module: Any = ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(unsloth, "require_unsloth", lambda: None)
    provider = UnslothProvider(device="cpu")
    try:
        client = provider.get_client("demo-xs", quantization=quantization)
        assert client.generate("12+30=", max_tokens=2)
    finally:
        nbp.unload_all()
    [asked] = FastLanguageModel.asked
    FastLanguageModel.asked.clear()
    assert asked["load_in_4bit"] is (quantization == "nf4")
    assert asked["max_seq_length"] == 2048


def test_it_downloads_for_itself() -> None:
    """Of many models Unsloth takes files of its own: those of the name would come for nothing."""
    progress = Progress()
    UnslothProvider().fetch_files(UnslothProvider().resolve("org/name"), progress)
    assert progress.phase == "starting"


def test_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only causal models are Unsloth's."""
    monkeypatch.setattr(unsloth, "require_unsloth", lambda: None)
    with pytest.raises(nbp.ConfigurationError, match="AutoModelForCausalLM only"):
        UnslothProvider().load_model("demo-xs", "AutoModelForSeq2SeqLM")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attn_implementation": "sdpa"}, "no option 'attn_implementation'"),
        ({"quantization": "fp4"}, "nf4 or int8"),
        ({"max_seq_length": 0}, "at least 1"),
        ({"max_seq_length": "long"}, "must be int"),
    ],
)
def test_its_options(options: dict[str, object], words: str) -> None:
    """They are transformers' and its own, checked by the constructor and with each model."""
    with pytest.raises(nbp.ConfigurationError) as caught:
        UnslothProvider(**options)
    assert words in str(caught.value)
    with pytest.raises(nbp.ConfigurationError) as caught:
        UnslothProvider().resolve("demo-xs", **options)
    assert words in str(caught.value)
    assert UnslothProvider(max_seq_length=512).resolve("demo-xs").values["max_seq_length"] == 512
