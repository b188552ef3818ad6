"""Promises of the user's one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbproviders.catalog.settings import CONFIG_VARIABLE, config_path, section
from nbproviders.errors import ConfigurationError


def test_no_file_is_no_settings(own_settings: Path) -> None:
    """Nobody needs a file, and none is written."""
    assert config_path() == own_settings
    assert section("aliases") == {}
    assert not own_settings.exists()


def test_a_table_is_read(own_settings: Path) -> None:
    """Each table for itself; one that is not there is empty."""
    own_settings.write_text('[aliases]\na = "b"\n', encoding="utf-8")
    assert section("aliases") == {"a": "b"}
    assert section("other") == {}


def test_the_file_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word to the contrary it is config.toml of the user's configuration folder."""
    monkeypatch.delenv(CONFIG_VARIABLE)
    assert config_path().parts[-2:] == ("nbproviders", "config.toml")


def test_a_home_in_the_path_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the user's home."""
    monkeypatch.setenv(CONFIG_VARIABLE, "~/x.toml")
    assert config_path() == Path.home() / "x.toml"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[aliases", "is not valid TOML"),
        (b"aliases = 3", "'aliases' must be a table"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(own_settings: Path, content: bytes, said: str) -> None:
    """It is told with its path and what is wrong with it."""
    own_settings.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        section("aliases")
    assert str(own_settings) in str(caught.value)


def test_a_folder_instead_of_a_file(own_settings: Path) -> None:
    """A folder of that name is told too."""
    own_settings.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        section("aliases")
