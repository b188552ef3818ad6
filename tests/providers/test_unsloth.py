"""The provider ``unsloth`` where it cannot run: listed with the reason, options checked, loads refused."""

from __future__ import annotations

import importlib.util

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.providers import unsloth
from nbproviders.providers.transformers import TransformersProvider
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


@pytest.mark.parametrize(("quantization", "brought"), [(None, ["org/name"]), ("nf4", [])])
def test_what_it_may_have_quantised_itself_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, quantization: str | None, brought: list[str]
) -> None:
    """Of many models Unsloth takes files that are quantised already; where it cannot run, none come."""
    provider, asked = UnslothProvider(), list[str]()
    key = provider.resolve("org/name", quantization=quantization)
    monkeypatch.setattr(
        TransformersProvider, "download", lambda self, key, progress: asked.append(key.model)
    )
    with pytest.raises(nbp.ConfigurationError, match="unsloth cannot run here"):
        provider.download(key, Progress())
    assert asked == []
    monkeypatch.setattr(unsloth, "require_unsloth", lambda: None)
    provider.download(key, Progress())
    assert asked == brought


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
