"""A report is one page that needs nothing else, and a file is written whole or not at all."""

from __future__ import annotations

import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.render.report import page, write


class Tags(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_forbids_scripts_and_requests() -> None:
    """A policy in the page lets it run nothing and fetch nothing, and there is nothing to."""
    tags = Tags(page("t", "a", [("h", "<p>b</p>")])).found
    (policy,) = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert not [a for _, a in tags if {"src", "href"} & set(a)]


def test_page_speaks_a_language() -> None:
    """The page names its language and encoding, for readers aloud and browsers."""
    tags = Tags(page("t", "a", [])).found
    assert ("html", {"lang": "en"}) in tags
    assert ("meta", {"charset": "utf-8"}) in tags


def test_headings_are_text() -> None:
    """Title, introduction and headings are escaped; only bodies are HTML."""
    source = page("<b>t</b>\u202e", "<i>a</i>", [("<u>h</u>", "<em>b</em>")])
    tags = {tag for tag, _ in Tags(source).found}
    assert not {"b", "i", "u"} & tags
    assert "em" in tags
    assert "\u202e" not in source


def test_write_makes_folders(tmp_path: Path) -> None:
    """A path in a folder that is not there yet is written, and told back."""
    path = tmp_path / "a" / "b" / "c.html"
    assert write(path, "é\r\n") == path
    assert path.read_bytes() == "é\r\n".encode()
    assert write(str(path), "new") == path
    assert [p.name for p in path.parent.iterdir()] == ["c.html"]
    assert path.read_text() == "new"


def test_written_files_are_like_others(tmp_path: Path) -> None:
    """Its rights are those of any new file, and a link stays a link to the file that is written."""
    other = tmp_path / "other"
    other.write_text("")
    path = write(tmp_path / "real", "1")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    link = tmp_path / "link"
    link.symlink_to(path)
    write(link, "2")
    assert link.is_symlink()
    assert path.read_text() == "2"


def test_half_characters_can_be_written(tmp_path: Path) -> None:
    """A lone surrogate in an answer is spelt out and costs nobody the file."""
    assert write(tmp_path / "x", "a\ud800b").read_text() == "a\\ud800b"


@pytest.mark.parametrize("name", ["folder", "file/x.csv"])
def test_unwritable_is_our_error(tmp_path: Path, name: str) -> None:
    """A folder, or a path through a file, is refused with the path, and leaves nothing behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ConfigurationError, match=name):
        write(tmp_path / name, "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "keep"
