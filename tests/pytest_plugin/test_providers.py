"""Promises of the providers that a run of pytest gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.errors import ConfigurationError, ProviderError
from nbproviders.pytest_plugin.providers import Providers
from nbproviders.pytest_plugin.settings import Settings
from tests.services.keys import FAKE
from tests.services.openai import OpenAIServer


def providers(**told: Any) -> Providers:
    def fixture(name: str) -> Any:
        raise LookupError(name)

    return Providers(Settings(**told), fixture)


JSON_LIST = [
    {"provider": "Echo", "provider_config": {}},
    {"provider": "openai", "provider_config": {"base_url": "http://localhost:1/v1"}},
]
TOML = """
[models]
small = "openai:gpt-4"

[[providers]]
provider = "openai"
provider_config = { base_url = "http://localhost:1/v1" }
"""
YAML = """
provider: openai
provider_config:
  base_url: http://localhost:1/v1
"""
FILES = {"all.json": json.dumps(JSON_LIST), "all.toml": TOML, "one.yaml": YAML}


@pytest.mark.parametrize("name", FILES)
def test_file_of_configurations(name: str, tmp_path: Path) -> None:
    """A file in each format configures its providers; the others are as they are."""
    path = tmp_path / name
    path.write_text(FILES[name])
    found = providers(config=path)
    assert found["openai"].config.base_url == "http://localhost:1/v1"  # type: ignore[attr-defined]
    assert found["openai"] is found["OpenAI"]
    assert found["echo"] is nbp.create_provider("echo")


def test_names_of_models(tmp_path: Path) -> None:
    """A name from the file stands for its reference; anything else is a reference, or refused."""
    path = tmp_path / "all.toml"
    path.write_text(TOML)
    found = providers(config=path)
    assert found.context("small").spec == "openai:gpt-4"
    assert found.context("echo/org/name", seed=2).spec == "echo:org/name?seed=2"
    assert found.context("echo:a/b").spec == "echo:a/b"
    with pytest.raises(ConfigurationError, match="No provider is named"):
        found.context("large")
    with pytest.raises(ConfigurationError, match="a str, not int"):
        found.context(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ('{"providers": [{"provider_config": {"api_key": "KEY"}}]}', "something else"),
        ('{"provider": "echo", "provider_config": "KEY"}', "something else"),
        ('{"models": {"a": 1}}', "something else"),
        ("[3]", "something else"),
    ],
)
def test_file_of_something_else(text: str, words: str, tmp_path: Path) -> None:
    """A file that cannot be used is an error that names it, and shows no value of it."""
    path = tmp_path / "all.json"
    path.write_text(text.replace("KEY", FAKE))
    with pytest.raises(ConfigurationError, match=words) as caught:
        providers(config=path)
    path.unlink()  # a key in a file is a leak to whoever looks for one
    assert str(path) in str(caught.value)
    assert FAKE not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is an error that names it."""
    with pytest.raises(ConfigurationError, match=r"all\.json cannot be read"):
        providers(config=tmp_path / "all.json")


def test_api_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--nbp-api-url sends a provider's requests there, with the key of its configuration."""
    with OpenAIServer(key=FAKE) as server:
        path = tmp_path / "all.json"
        path.write_text(json.dumps({"provider": "openai", "provider_config": {"api_key": FAKE}}))
        found = providers(config=path, api_urls={"openai": server.base_url})
        path.unlink()
        with found.client("openai:gpt-4o-mini", sync=True) as m:
            assert m.generate("hello")
        assert server.requests


def test_keep() -> None:
    """With --nbp-keep servers are started to stay; without, they end with the run."""
    assert not providers()["llama-server"].options["keep"].default  # type: ignore[index]
    assert providers(keep=True)["llama-server"].options["keep"].default  # type: ignore[index]
    assert providers(keep=True)["echo"] is providers()["echo"]


def test_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that cannot be used is not in the mapping, and looking it up says why."""
    monkeypatch.setattr("nbproviders.registry.cuda_count", lambda: 0)
    found = providers()
    assert "unsloth" not in found
    assert found.get("unsloth") is None
    with pytest.raises(KeyError) as caught:
        found["unsloth"]
    assert isinstance(caught.value, ConfigurationError)
    assert str(caught.value).startswith("The provider 'unsloth' is not available: ")


async def test_handle_gives_back_its_own_lease() -> None:
    """A handle of setup gives back its own lease, once, and nobody else's."""
    found = providers()
    first, second = await found.setup("echo:a"), await found.setup("echo:a")
    await first.teardown()
    await first.teardown()
    assert not first.is_active
    assert second.is_active
    assert await second.model.generate("hi") == "hi"
    await second.teardown()
    assert (second.resource_id, second.manager) == ("echo:a", found["echo"])
    assert [one.handles for one in nbp.residents()] == [0]


async def test_failed_setup() -> None:
    """A setup that fails says of what, in the words of all setups."""
    with pytest.raises(ConfigurationError, match="Failed to setup resource 'echo:a[?]x=1'"):
        await providers().setup("echo:a?x=1")


class Unwilling(nbp.ModelProvider):
    async def setup(self, resource_spec: str, **config: Any) -> nbp.ModelHandle:
        return nbp.ModelHandle(resource_spec, resource_spec, self)

    async def teardown(self, resource_id: str) -> None:
        raise OSError(f"{resource_id} stays")


async def test_close_tells_all() -> None:
    """Closing goes on past a provider that fails, and tells it."""
    nbp.register_provider("unwilling", Unwilling)
    nbp.register_provider("second", Unwilling)
    found = providers()
    await found["unwilling"].setup("a")
    await found["second"].setup("b")
    with pytest.raises(ProviderError) as caught:
        found.close()
    assert "a: OSError: a stays" in str(caught.value)
    assert "b: OSError: b stays" in str(caught.value)
