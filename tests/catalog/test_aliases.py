"""Promises of short names."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbproviders as nbp
from nbproviders import demo
from nbproviders.catalog import aliases
from nbproviders.errors import ConfigurationError


def test_any_other_name_goes_on_as_it_stands() -> None:
    """Hub ids, paths and service names are nobody's alias."""
    for name in ("org/model", "/a/path", "llama3:8b", r"C:\m.gguf"):
        assert aliases.resolve(name, "transformers") == name


def test_shipped_names_differ_by_provider() -> None:
    """One short name is another identifier for each provider, and the same for any other."""
    assert aliases.resolve("llama-7b", "transformers") == "huggyllama/llama-7b"
    assert aliases.resolve("llama-7b", "llama-cpp").endswith("GGUF:Q4_K_M")
    assert aliases.resolve("llama-7b", "anything") == "huggyllama/llama-7b"


@pytest.mark.parametrize("name", demo.MODELS)
def test_the_demo_models_are_shipped(name: str) -> None:
    """demo-m and its family are folders of this package, for transformers; others see the name."""
    assert Path(aliases.resolve(name, "transformers"), "config.json").is_file()
    assert aliases.resolve(name, "echo") == name


def test_a_name_of_this_session() -> None:
    """A name can be given for all providers, for single ones, and given anew."""
    before = aliases.version()
    nbp.alias("mine", "org/all", llama_cpp="org/gguf")
    assert aliases.resolve("mine", "llama-cpp") == "org/gguf"
    assert aliases.resolve("mine", "transformers") == "org/all"
    nbp.alias("mine", echo="other")
    assert aliases.resolve("mine", "echo") == "other"
    assert aliases.version() > before


def test_the_users_file(own_settings: Path) -> None:
    """[aliases] of the user's file wins over the shipped ones, and the session over both."""
    own_settings.write_text(
        '[aliases]\nllama-7b = "my/llama"\n[aliases.two]\ntransformers = "a/b"\necho = "c"\n'
    )
    aliases.reload()
    assert aliases.resolve("llama-7b", "llama-cpp") == "my/llama"
    assert aliases.resolve("two", "transformers") == "a/b"
    assert aliases.resolve("two", "echo") == "c"
    assert aliases.resolve("two", "other") == "two"
    nbp.alias("llama-7b", "session/llama")
    assert aliases.resolve("llama-7b", "transformers") == "session/llama"


def test_the_file_is_read_again_on_request(own_settings: Path) -> None:
    """A changed file counts after reload, and models are resolved anew."""
    assert aliases.resolve("late", "echo") == "late"
    own_settings.write_text('[aliases]\nlate = "now"\n')
    before = aliases.version()
    aliases.reload()
    assert aliases.resolve("late", "echo") == "now"
    assert aliases.version() > before


@pytest.mark.parametrize("text", ["[aliases]\nx = 3\n", "[aliases.x]\na = 3\n"])
def test_a_bad_alias_in_the_file(own_settings: Path, text: str) -> None:
    """It is told with its name and where it stands."""
    own_settings.write_text(text)
    aliases.reload()
    with pytest.raises(ConfigurationError, match="alias 'x' in .*config.toml must be"):
        aliases.resolve("anything", "echo")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("", "a"), {}), (("x",), {}), (("x", ""), {}), (("x",), {"echo": ""}), (("x", 3), {})],
)
def test_a_bad_alias_in_code(arguments: tuple[str, ...], named: dict[str, str]) -> None:
    """Without a name or a target nothing is made."""
    with pytest.raises(ConfigurationError, match="needs a name and at least one target"):
        nbp.alias(*arguments, **named)
    assert aliases.resolve("x", "echo") == "x"


def test_an_alias_for_one_provider_leaves_the_others() -> None:
    """Naming a model for one provider does not hide what it means for another."""
    before = aliases.resolve("demo-m", "transformers")
    aliases.alias("demo-m", echo="loud")
    assert aliases.resolve("demo-m", "echo") == "loud"
    assert aliases.resolve("demo-m", "transformers") == before != "demo-m"
