"""Promises of the providers that a run of pytest gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.errors import ConfigurationError, ProviderError
from nbproviders.pytest_plugin.providers import Providers
from nbproviders.pytest_plugin.settings import Settings
from tests.services.keys import FAKE
from tests.services.openai import OpenAIServer

pytest_plugins = ["pytester"]


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


# Providers that are fixtures

FIXTURES = """
import os

import pytest

from nbproviders.abc import ModelHandle, ModelProvider


def log(word):
    with open(os.environ["LOG"], "a") as file:
        print(word, file=file)


class Upper:
    def generate(self, prompt):
        return prompt.upper()


class UpperProvider(ModelProvider):
    async def setup(self, resource_spec, **config):
        return ModelHandle(resource_spec, Upper(), self)

    async def teardown(self, resource_id):
        log("freed")


@pytest.fixture
def plain():
    log("opened")
    yield UpperProvider()
    log("closed")


@pytest.fixture
async def later():
    log("opened")
    yield UpperProvider()
    log("closed")


@pytest.fixture
def skipping():
    pytest.skip("no key here")


@pytest.fixture
def short(tmp_path):
    return UpperProvider()


@pytest.fixture(scope="session")
def shorter(short):
    return short


@pytest.fixture(scope="session")
def long(tmp_path_factory):
    log("opened")
    yield UpperProvider()
    log("closed")


@pytest.fixture(scope="session")
def lacking(nowhere):
    return UpperProvider()


@pytest.fixture(scope="session")
def failing(request):
    raise LookupError("by itself")
"""
NAMES = ("plain", "later", "skipping", "short", "shorter", "long", "lacking", "failing")


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose providers are fixtures is there; what they do is written to this file."""
    info = pytester.mkdir("upper-1.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: upper\nVersion: 1\n")
    points = "".join(f"{name} = upper_fixtures:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[{registry.GROUPS[0]}]\n{points}")
    (pytester.path / "upper_fixtures.py").write_text(FIXTURES)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    log = pytester.path / "log"
    monkeypatch.setenv("LOG", str(log))
    return log


ALONE = """
import pytest

NAMES = ("plain", "later")

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("again", (1, 2))
def test_generate(name, again, model_providers):
    assert name in model_providers
    with model_providers[name].model("x") as m:
        assert m.generate("a") == "A"

@pytest.mark.parametrize("model_client", [f"{name}:x" for name in NAMES], indirect=True)
def test_client(model_client):
    assert model_client.generate("a") == "A"

def test_skipping(model_providers):
    model_providers["skipping"]
    assert False

def test_same(model_providers):
    assert model_providers["plain"] is model_providers["PLAIN"]
"""


@pytest.mark.parametrize("keep", [(), ("--nbp-keep",)])
def test_fixtures_that_take_none(
    keep: tuple[str, ...], installed: Path, pytester: pytest.Pytester
) -> None:
    """Of any scope, sync or async, unknown to pytest: opened once, closed with the run; a skip skips."""
    pytester.makepyfile(ALONE)
    ran = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio", "-rs", *keep)
    ran.assert_outcomes(passed=7, skipped=1)
    assert "no key here" in ran.stdout.str()
    lines = installed.read_text().split()
    assert lines.count("opened") == 2
    if not keep:
        assert lines.count("closed") == 2
        assert lines[-1] == "closed"


def test_a_fixture_that_was_torn_down(installed: Path, pytester: pytest.Pytester) -> None:
    """A test that tears everything down costs the tests after it nothing: it is opened anew."""
    pytester.makepyfile(
        """
        import asyncio

        def test_tears_down(model_providers):
            asyncio.run(model_providers["plain"].teardown_all())

        def test_after(model_providers):
            with model_providers["plain"].model("x") as m:
                assert m.generate("a") == "A"
        """
    )
    pytester.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=2)
    assert installed.read_text().split() == ["opened", "closed", "opened", "freed", "closed"]


TAKING = """
import pytest

@pytest.mark.parametrize("name", ["long", "short", "shorter", "lacking", "failing"])
def test_generate(name, model_providers):
    assert name in model_providers
    with model_providers[name].model("x") as m:
        assert m.generate("a") == "A"
"""


def test_fixtures_that_take_others(installed: Path, pytester: pytest.Pytester) -> None:
    """They are pytest's to make: session-scoped ones of a plugin work, and others say what they lack."""
    pytester.makepyfile(TAKING)
    ran = pytester.runpytest_subprocess("-p", "upper_fixtures", "-p", "no:asyncio", "--tb=short")
    ran.assert_outcomes(passed=1, failed=4)
    told = ran.stdout.str()
    for name in ("short", "shorter"):
        assert f"The provider '{name}' is the fixture '{name}', which cannot be used for " in told
    assert "ScopeMismatch: You tried to access the function scoped fixture" in told
    assert "A provider's fixture must be session-scoped" in told
    assert "'lacking', which takes 'nowhere', and pytest knows no such fixture." in told
    assert "LookupError: by itself" in told
    assert sorted(installed.read_text().split()) == ["closed", "freed", "opened"]


def test_fixtures_of_a_module_that_is_no_plugin(installed: Path, pytester: pytest.Pytester) -> None:
    """A fixture that takes others and that pytest was not told of says how to tell it."""
    pytester.makepyfile(TAKING)
    ran = pytester.runpytest_subprocess("-p", "no:asyncio", "--tb=short", "-k", "long or failing")
    ran.assert_outcomes(failed=2, deselected=3)
    told = ran.stdout.str()
    assert "'long', which takes others, and pytest does not know it." in told
    assert "entry point of the group pytest11" in told


def test_a_fixture_takes_no_configuration(installed: Path, pytester: pytest.Pytester) -> None:
    """A configuration for a provider that is a fixture is refused, not left unread."""
    pytester.makepyfile("def test_it(model_providers): model_providers['plain']")
    (pytester.path / "all.toml").write_text(
        'provider = "plain"\nprovider_config = { colour = "red" }\n'
    )
    ran = pytester.runpytest_subprocess("--nbp-config=all.toml", "-p", "no:asyncio", "--tb=short")
    ran.assert_outcomes(failed=1)
    assert "'plain' is a pytest fixture and takes no configuration: colour." in ran.stdout.str()


def test_a_plugin_that_leaves_at_import(installed: Path, pytester: pytest.Pytester) -> None:
    """Neither the header nor the mapping suffers from a package that skips when it is imported."""
    (pytester.path / "upper_fixtures.py").write_text("import pytest\npytest.importorskip('gone')\n")
    pytester.makepyfile(
        """
        import nbproviders as nbp
        import pytest

        def test_it(model_providers):
            assert "echo" in model_providers and "plain" not in model_providers
            with pytest.raises(nbp.ConfigurationError, match="Skipped: could not import 'gone'"):
                model_providers["plain"]
        """
    )
    ran = pytester.runpytest_subprocess("-p", "no:asyncio")
    ran.assert_outcomes(passed=1)
    assert "echo" in next(line for line in ran.outlines if line.startswith("nbproviders "))
