"""The weights style of ModelForge's guide to custom providers: its own code, with its imports changed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Optional

import pytest

import nbproviders as nbp
from nbproviders.authoring.weights import WrappedWeights

pytest.importorskip("transformers")

REPOSITORY = Path(__file__).parents[2]
SEEDS = Path(os.environ.get("NBPROVIDERS_TEST_SEEDS") or REPOSITORY.parent / "shared" / "seeds")
FOUND = sorted(SEEDS.glob("modelforge-custom-providers*"))

pytestmark = pytest.mark.skipif(
    not FOUND, reason="NBPROVIDERS_TEST_SEEDS names no folder with the document"
)

# Where the document's imports point here.
IMPORTS = {
    r"from \.\.logging_config import": "from nbproviders.abc import",
    r"from \.\.exceptions import": "from nbproviders.errors import",
    r"from ModelForge\.providers\.provider_factory import": "from nbproviders import",
}
HUB_ID = re.compile(r'"[\w-]+/[\w.-]+"')


def blocks(language: str) -> list[str]:
    """Return the document's code blocks in a language, with their imports pointed here."""
    text = FOUND[0].read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for old, new in IMPORTS.items():
        found = [re.sub(old, new, block) for block in found]
    return found


def block(*words: str, language: str = "python") -> str:
    """Return the one block that holds all these words."""
    [found] = [b for b in blocks(language) if all(word in b for word in words)]
    return found


def run(code: str, **names: Any) -> dict[str, Any]:
    """Execute a block with the names it takes for granted, and return what it defines."""
    namespace: dict[str, Any] = {"__name__": "document", **names}
    exec(compile(code, str(FOUND[0]), "exec"), namespace)
    return namespace


@pytest.fixture
def custom() -> type[Any]:
    """The document's provider, registered in place of its table of providers."""
    provider: type[Any] = run(block("class CustomProvider", "def load_tokenizer"))["CustomProvider"]
    nbp.register_provider("custom", provider)
    return provider


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: what is not here cannot be had, and that is known at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class TheRest:
    """What the document's shorter examples leave out of the four methods."""

    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        return None

    def validate_model_access(self, model_id: str, model_class: str) -> bool:
        return True

    def get_provider_name(self) -> str:
        return type(self).__name__


async def test_the_custom_provider_is_used_like_ours(custom: type[Any]) -> None:
    """Its class registers, is listed, loads once, answers, and is compared with ours."""
    path = str(nbp.demo.path("demo-m"))
    assert "custom" in nbp.list_available()
    assert isinstance(nbp.create_provider("CUSTOM"), WrappedWeights)
    assert isinstance(nbp.create_provider("custom").wrapped, custom)  # type: ignore[attr-defined]
    async with nbp.model(f"custom:{path}") as m, nbp.model(f"custom:{path}") as again:
        assert await m.generate("12+30=") == "42"
        assert m.raw is again.raw
        assert m.info.memory_bytes
    tasks = nbp.demo.tasks()[:4]
    result = await nbp.compare(
        [f"custom:{path}", f"transformers:{path}"],
        tasks,
        scorers=[nbp.exact_match],
        progress=False,
    )
    texts = result.frame.groupby("spec")["text"].apply(list)
    assert texts.iloc[0] == texts.iloc[1]
    assert result.frame["error"].isna().all()


@pytest.mark.parametrize("form", ["class", "instance", "factory"])
def test_each_form_that_registers(custom: type[Any], form: str) -> None:
    """A class, an instance and a factory are the same provider."""
    thing = {"class": custom, "instance": custom(), "factory": lambda: custom()}[form]
    nbp.register_provider("custom", thing)
    with nbp.model(f"custom:{nbp.demo.path('demo-xs')}") as m:
        assert m.spec.startswith("custom:")
        assert m.generate("1+1=").usage.completion_tokens > 0


def test_the_picker_lists_it(custom: type[Any]) -> None:
    """It can be picked like ours."""
    picker = nbp.ModelPicker()
    try:
        assert ("custom", "custom") in picker._provider.options
    finally:
        picker.close()


def test_an_unknown_provider_is_told_as_the_document_says(custom: type[Any]) -> None:
    """The error names it and lists those there are."""
    with pytest.raises(nbp.ConfigurationError, match=r"Unknown provider: custm\. .*custom"):
        nbp.create_provider("custm")


def test_the_documents_test_script(
    custom: type[Any], capsys: pytest.CaptureFixture[str], offline: None
) -> None:
    """With a demo model's path in place of the Hub id, model and tokenizer load.

    Its access check asks the Hub about everything, and the Hub knows no paths: ours would say True.
    """
    path = str(nbp.demo.path("demo-xs"))
    code = block("def test_custom_provider")
    run(HUB_ID.sub(lambda _: json.dumps(path), code))["test_custom_provider"]()
    told = capsys.readouterr().out
    assert "Model loading successful" in told
    assert "Tokenizer loading successful" in told
    assert "Model validation failed: Cannot access model" in told
    assert nbp.create_provider("transformers").validate_model_access(path, "AutoModelForCausalLM")


def test_the_documents_test_script_as_written(
    custom: type[Any], capsys: pytest.CaptureFixture[str], offline: None
) -> None:
    """Without a network each of its three steps fails with the error it promises."""
    run(block("def test_custom_provider"))["test_custom_provider"]()
    told = capsys.readouterr().out
    assert told.count("failed: ") == 3
    assert "successful" not in told
    provider = nbp.create_provider("custom")
    [model_id] = {found.strip('"') for found in HUB_ID.findall(block("def test_custom_provider"))}
    with pytest.raises(nbp.ModelAccessError, match="Cannot access model"):
        provider.validate_model_access(model_id, "AutoModelForCausalLM")  # type: ignore[attr-defined]
    with pytest.raises(nbp.ProviderError, match="CustomProvider failed to load model"):
        provider.load_model(model_id, "AutoModelForCausalLM")  # type: ignore[attr-defined]
    with pytest.raises(nbp.ProviderError, match="Failed to load tokenizer"):
        provider.load_tokenizer(model_id)  # type: ignore[attr-defined]
    with pytest.raises(nbp.ProviderError, match="Failed to setup resource") as caught:
        nbp.load_sync(f"custom:{model_id}")
    assert "Cannot access model" in caught.value.hint


@pytest.mark.parametrize("suffix", [".json", ".toml", ".yaml"])
def test_the_configuration_block(custom: type[Any], suffix: str, tmp_path: Path) -> None:
    """The document's configuration reaches the constructor that takes one dict, from any kind of file."""
    names = {"Optional": Optional, "Dict": dict[str, Any]}  # the block imports neither
    configured = run(block("class CustomProvider", "self.config"), **names)["CustomProvider"]
    whole = type("CustomProvider", (configured, custom), {})
    nbp.register_provider("custom", whole)
    told = json.loads(block("provider_config", language="json"))
    path = tmp_path / f"provider{suffix}"
    path.write_text(_written(told, suffix))
    provider = nbp.load_provider(path).wrapped  # type: ignore[attr-defined]
    assert provider.config == told["provider_config"]
    assert provider.optimization_level == "aggressive"
    assert nbp.create_provider("custom").wrapped.optimization_level == "default"  # type: ignore[attr-defined]
    with pytest.raises(nbp.ConfigurationError, match="takes config as"):
        nbp.create_provider("custom", config=3)


def _written(told: dict[str, Any], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(told)
    if suffix == ".yaml":
        yaml = pytest.importorskip("yaml")
        return str(yaml.safe_dump(told))
    rows = [f"{name} = {json.dumps(value)}" for name, value in told["provider_config"].items()]
    return "\n".join([f'provider = "{told["provider"]}"', "[provider_config]", *rows])


@pytest.fixture
def cloud() -> list[str]:
    """Example 1, completed: the wrapper it returns is not in the document. Gives what was asked."""
    asked: list[str] = []

    class CloudModelWrapper:
        def __init__(self, model_id: str, api_key: str, api_endpoint: str) -> None:
            self.place = f"{api_endpoint}/{model_id}"

        async def generate(self, prompt: str, temperature: float = 1.0) -> str:
            asked.append(f"{self.place} {temperature:g} {prompt}")
            return prompt.upper()

    example = run(block("class CloudAPIProvider"), CloudModelWrapper=CloudModelWrapper)
    nbp.register_provider("cloud", type("Cloud", (example["CloudAPIProvider"], TheRest), {}))
    return asked


def test_a_cloud_wrapper(cloud: list[str]) -> None:
    """An object that calls a service generates like a model, with the parameters it takes."""
    provider = nbp.create_provider("cloud", api_key="k", api_endpoint="https://x.test")
    with provider.model("large") as m:
        assert m.generate("hi", temperature=0.5) == "HI"
        assert m.raw.place == "https://x.test/large"
    assert cloud == ["https://x.test/large 0.5 hi"]
    with pytest.raises(nbp.ConfigurationError, match="needs api_endpoint"):
        nbp.create_provider("cloud", api_key="k")
    with pytest.raises(nbp.ConfigurationError, match="takes api_key as str, not int"):
        nbp.create_provider("cloud", api_key=3, api_endpoint="https://x.test")


# torch's compiler imports a part of torch that warns of itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_an_optimized_local_provider() -> None:
    """Example 2, with its kernels given: the compiled model answers, and what compiling did is told."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    example = run(
        block("class OptimizedLocalProvider"),
        torch=torch,
        AutoModelForCausalLM=AutoModelForCausalLM,
        apply_flash_attention_2=lambda model: model,
    )

    class Completed(example["OptimizedLocalProvider"], TheRest):  # type: ignore[misc]
        def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
            return AutoTokenizer.from_pretrained(model_id, **kwargs)

    nbp.register_provider("fast", Completed)
    with nbp.model(f"fast:{nbp.demo.path('demo-m')}") as m:
        assert m.generate("12+30=") == "42"
        assert m.raw.dtype is torch.bfloat16
        assert "torch.compile" in m.info.notes[0]


async def test_a_gguf_provider() -> None:
    """Example 3 as it stands: its Llama answers as a model, is compared with ours, and is harmless after."""
    pytest.importorskip("llama_cpp")
    example = run(block("class GGUFProvider"))
    nbp.register_provider("gguf", type("GGUF", (example["GGUFProvider"], TheRest), {}))
    file = nbp.demo.gguf_path("demo-m") / "demo-m-F16.gguf"
    async with nbp.model(f"gguf:{file}") as m:
        assert await m.generate("12+30=") == "42"
        assert (await m.next_tokens("12+30=", k=1))["token"].tolist() == ["4"]
        raw: Any = m.raw
        assert raw.n_ctx() == 2048
    result = await nbp.compare(
        [f"gguf:{file}", f"llama-cpp:{file}"], nbp.demo.tasks(4), progress=False
    )
    texts = result.frame.groupby("spec")["text"].apply(list)
    assert texts.iloc[0] == texts.iloc[1]
    nbp.unload_all()
    with pytest.raises(nbp.ClosedError, match="was closed with its model"):
        raw.create_completion("12+30=")
