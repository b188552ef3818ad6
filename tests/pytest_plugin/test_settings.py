"""Promises of what a run is told: which place wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.pytest_plugin.settings import VARIABLES, Settings, chosen, parts
from tests.services.keys import FAKE

pytest_plugins = ["pytester"]

INI = """
[pytest]
nbp_models =
    echo:from-ini
    echo:second?stop=["x","y"]
    echo:a,b
nbp_config = conf/providers.toml
nbp_api_url = http://ini/v1
nbp_keep = true
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's environment says is nobody's business here."""
    for name in ("MODELS", "CONFIG", "API_URL", "KEEP"):
        monkeypatch.delenv(VARIABLES + name, raising=False)


def test_nothing_told(pytester: pytest.Pytester) -> None:
    """Without any of it, nothing is chosen."""
    found = chosen(pytester.parseconfig())
    assert found == Settings()
    assert not found.given


def test_ini(pytester: pytest.Pytester) -> None:
    """The ini file is the last place, with one a line whatever its commas; a path is relative to the file."""
    pytester.makeini(INI)
    found = chosen(pytester.parseconfig())
    assert found == Settings(
        models=("echo:from-ini", 'echo:second?stop=["x","y"]', "echo:a,b"),
        config=pytester.path / "conf" / "providers.toml",
        api_urls={"openai": "http://ini/v1"},
        keep=True,
    )
    assert found.given


def test_environment_before_ini(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment replaces the ini file; an empty value chooses nothing."""
    pytester.makeini(INI)
    monkeypatch.setenv(VARIABLES + "MODELS", "echo:a, echo:b")
    monkeypatch.setenv(VARIABLES + "CONFIG", "")
    monkeypatch.setenv(VARIABLES + "API_URL", "vllm=https://env/v1?x=y")
    monkeypatch.setenv(VARIABLES + "KEEP", "no")
    assert chosen(pytester.parseconfig()) == Settings(
        models=("echo:a", "echo:b"), api_urls={"vllm": "https://env/v1?x=y"}
    )


def test_command_line_before_all(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line wins; options that may be repeated add up."""
    pytester.makeini(INI)
    for name, value in {"MODELS": "echo:e", "CONFIG": "e", "API_URL": "e", "KEEP": "0"}.items():
        monkeypatch.setenv(VARIABLES + name, value)
    config = pytester.parseconfig(
        "--nbp-models=echo:a,echo:b",
        "--nbp-models=echo:c",
        "--nbp-config=cli.json",
        "--nbp-api-url=http://cli/v1?key=value",
        "--nbp-api-url=Ollama=http://cli",
        "--nbp-keep",
    )
    assert chosen(config) == Settings(
        models=("echo:a", "echo:b", "echo:c"),
        config=Path(config.invocation_params.dir) / "cli.json",
        api_urls={"openai": "http://cli/v1?key=value", "ollama": "http://cli"},
        keep=True,
    )


@pytest.mark.parametrize(
    "reference",
    [
        'echo:a?stop=[["x","y"],["z"]]',
        't:x?device_map={"a":{"b":1},"c":2}',
        'echo:a?stop=["]",",","\\"]"]',
        'echo:a?text="x,[y"',
        "echo:a]b",
        'echo:5"',
    ],
)
def test_commas_within_a_reference(reference: str) -> None:
    """Only commas between references part them, however deep the brackets and quotes of an option are."""
    assert parts(f"echo:b,{reference} , echo:c,") == ["echo:b", reference, "echo:c"]


def test_an_address_is_told_without_its_query(pytester: pytest.Pytester) -> None:
    """A key may stand in the query of what is no address."""
    config = pytester.parseconfig(f"--nbp-api-url=localhost:8000/v1?key={FAKE}")
    with pytest.raises(ConfigurationError, match="'localhost:8000/v1' is no address") as caught:
        chosen(config)
    assert FAKE not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("API_URL", "ollama=localhost", "no address"), ("KEEP", "perhaps", "neither yes nor no")],
)
def test_refused(
    name: str,
    value: str,
    words: str,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What cannot be meant is an error that shows it and says what to write."""
    monkeypatch.setenv(VARIABLES + name, value)
    with pytest.raises(ConfigurationError, match=words) as caught:
        chosen(pytester.parseconfig())
    assert value in str(caught.value)
