"""Where LM Studio keeps models: its homes, its pointer and its settings, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nbproviders.catalog import lmstudio


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def test_no_lm_studio(home: Path) -> None:
    """Where it never ran there is no folder."""
    assert lmstudio.folders() == []


def test_both_homes(home: Path) -> None:
    """The folder of today and that of earlier versions are found."""
    folders = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert lmstudio.folders() == folders


def test_a_link_between_them_is_one(home: Path) -> None:
    """A folder that was moved and linked is not gone through twice."""
    (home / ".lmstudio" / "models").mkdir(parents=True)
    (home / ".cache").mkdir()
    (home / ".cache" / "lm-studio").symlink_to(home / ".lmstudio")
    assert lmstudio.folders() == [home / ".lmstudio" / "models"]


def test_the_chosen_folder(home: Path) -> None:
    """The folder that its settings name is found, with ~ and beside the usual one."""
    (home / ".lmstudio" / "models").mkdir(parents=True)
    (home / "large").mkdir()
    settings = home / ".lmstudio" / "settings.json"
    settings.write_text(json.dumps({"downloadsFolder": "~/large"}), encoding="utf-8-sig")
    assert lmstudio.folders() == [home / "large", home / ".lmstudio" / "models"]


def test_the_pointer(home: Path) -> None:
    """A home that was put elsewhere is found by the file that points there."""
    (home / "elsewhere" / "models").mkdir(parents=True)
    (home / ".lmstudio-home-pointer").write_text(f"{home / 'elsewhere'}\n")
    assert lmstudio.folders() == [home / "elsewhere" / "models"]


@pytest.mark.parametrize(
    "text",
    [
        "{torn",
        "[]",
        "{}",
        '{"downloadsFolder": 3}',
        '{"downloadsFolder": " "}',
        '{"downloadsFolder": "/not/there"}',
        '{"downloadsFolder": "a\\u0000b"}',
        '{"downloadsFolder": "~nobody-of-that-name/x"}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_odd_settings(home: Path, text: str) -> None:
    """Settings that cannot be read, or name nothing, leave the usual folder."""
    (home / ".lmstudio" / "models").mkdir(parents=True)
    settings = home / ".lmstudio" / "settings.json"
    settings.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert lmstudio.folders() == [home / ".lmstudio" / "models"]


def test_a_folder_in_place_of_a_file(home: Path) -> None:
    """Folders where files should be do no harm."""
    (home / ".lmstudio" / "models").mkdir(parents=True)
    (home / ".lmstudio" / "settings.json").mkdir()
    (home / ".lmstudio-home-pointer").mkdir()
    assert lmstudio.folders() == [home / ".lmstudio" / "models"]
