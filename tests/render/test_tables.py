"""Tables keep hostile text harmless, and say what they leave out."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from nbproviders.render.tables import Column, as_html, as_text, readable, visible

TEXT = [Column("model", "model"), Column("text", "answer")]
HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" \'',
    "</td></tr></table><img src=x onerror=alert(1)>",
    "]]><svg/onload=alert(1)>",
    "<details open ontoggle=alert(1)>" * 30,
    "&lt;b&gt; &amp;",
]


# JupyterLab sets what stands between dollars as a formula, but not inside of these.
NO_FORMULAS = "tex2jax_ignore mathjax_ignore"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its cells."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("where", ["cell", "row head", "head", "caption"])
def test_hostile_text_is_only_text(text: str, where: str) -> None:
    """Wherever it stands, it adds no element and no attribute of its own."""
    row = {"model": text if where == "row head" else "m", "text": text if where == "cell" else "t"}
    columns = [Column("model", "model"), Column("text", text if where == "head" else "answer")]
    page = Page(as_html([row], columns, text if where == "caption" else "what"))
    ours = set("div table caption thead tbody tr th td details summary span".split())
    assert {tag for tag, _ in page.elements} <= ours
    known = {"class", "style", "scope", "dir", "colspan"}
    assert [a["class"] for a in page.named("div") if "class" in a] == [NO_FORMULAS]
    assert {name for _, attributes in page.elements for name in attributes} <= known
    assert text in "".join(page.cells) or where == "caption"


@pytest.mark.parametrize(
    "char",
    [
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x1b",
        "\x85",
        "\u2028",
        "\ud800",
        "\U000e0041",
    ],
)
def test_unseen_characters_are_spelt_out(char: str) -> None:
    """What would hide, reorder or break text shows as its code point, in both forms."""
    rows = [{"model": "m", "text": f"a{char}b"}]
    for shown in (as_html(rows, TEXT), as_text(rows, TEXT)):
        assert char not in shown
        assert f"a⟨U+{ord(char):04X}⟩b" in shown
        shown.encode()


@pytest.mark.parametrize("text", ["naïve Größe", "שלום", "नमस्ते", "👩‍🚀", "می‌خواهم", "a\tb"])
def test_writing_is_left_alone(text: str) -> None:
    """Letters of any script, emoji made of several, and tabs stay as they are."""
    assert visible(text) == text


def test_right_to_left_text_keeps_to_its_cell() -> None:
    """Cells of text find their own direction."""
    page = Page(as_html([{"model": "m", "text": "שלום 123"}], TEXT))
    assert [cell.get("dir") for cell in page.named("td")] == ["auto"]


def test_long_text_is_folded() -> None:
    """A long answer shows its beginning and opens to the whole; a short one stands as it is."""
    long = "word " * 100
    page = Page(as_html([{"model": "m", "text": long}, {"model": "n", "text": "short"}], TEXT))
    assert len(page.named("details")) == 1
    assert page.cells[3].endswith(long)
    assert len(page.cells[3]) < len(long) + 220


def test_endless_text_is_cut() -> None:
    """No answer can blow up a notebook: what is left out is counted."""
    shown = as_html([{"model": "m", "text": "x" * 1_000_000}], TEXT)
    assert len(shown) < 10_000
    assert "995,000 more characters" in shown


def test_many_lines_are_folded() -> None:
    """A text of many short lines does not fill the screen."""
    page = Page(as_html([{"model": "m", "text": "a\n" * 40}], TEXT))
    assert len(page.named("details")) == 1


def test_rows_beyond_the_limit_are_counted() -> None:
    """A table shows so many rows and says how many there are beside them."""
    rows = [{"model": str(i), "text": "t"} for i in range(210)]
    assert len(Page(as_html(rows, TEXT, limit=5)).named("tr")) == 1 + 5 + 1
    assert "205 more rows are not shown" in as_html(rows, TEXT, limit=5)
    assert "10 more rows are not shown" in as_text(rows, TEXT)
    assert "1 more row is not shown" in as_html(rows, TEXT, limit=209)


def test_a_screen_reader_finds_its_way() -> None:
    """The table has a caption, and each row and column its head."""
    page = Page(as_html([{"model": "m", "text": "t"}] * 2, TEXT, "what"))
    assert len(page.named("caption")) == 1
    assert [head["scope"] for head in page.named("th")] == ["col", "col", "row", "row"]


def test_numbers_stand_to_the_right() -> None:
    """Numbers are flush right, text is flush left, and bounds follow their number."""
    columns = [Column("m", "m"), Column("x", "x", ".0%", "lo", "hi")]
    rows = [{"m": "a", "x": 0.5, "lo": 0.25, "hi": 0.75}, {"m": "b", "x": None, "lo": None}]
    page = Page(as_html(rows, columns))
    assert page.cells == ["m", "x", "a", "50% [25\u201375%]", "b", "\u2013"]
    assert all("text-align:right" in str(cell["style"]) for cell in page.named("td"))
    assert all("text-align:left" in str(h["style"]) for h in page.named("th")[2:])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}),
            "user: hi\nassistant: yo",
        ),
        (["a", {"b": None}], '["a", {"b": null}]'),
        ([], "[]"),
        (3, "3"),
    ],
)
def test_values_are_readable(value: Any, text: str) -> None:
    """Turns of a chat are lines; other containers are JSON."""
    assert readable(value) == text


def columns_of(line: str) -> int:
    return sum(2 if char in "漢字日本語" else 1 for char in line)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_text_fits_the_terminal(width: int) -> None:
    """No line is wider than asked for: text is shortened, numbers are whole."""
    columns = [*TEXT, Column("n", "cells", ",d")]
    rows = [{"model": "provider:" + "m" * 80, "text": "long " * 50, "n": 1234567}]
    lines = as_text(rows, columns, width).splitlines()
    assert max(map(columns_of, lines)) <= width
    assert lines[1].endswith("1,234,567")
    assert "…" in lines[1]


def test_columns_without_room_are_named() -> None:
    """Where even shortened text leaves no room, the last columns go, and the last line says which."""
    columns = [Column("m", "m"), *(Column(f"x{i}", f"number {i}", ".3f") for i in range(9))]
    lines = as_text([{"m": "model", **{f"x{i}": 1.0 for i in range(9)}}], columns, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "no room for" in lines[-1]
    assert "number 8" in lines[-1]


def test_wide_letters_keep_the_columns() -> None:
    """Chinese letters take two columns of a terminal, and what follows still stands in line."""
    rows = [{"model": "漢字", "text": "x"}, {"model": "abcd", "text": "y"}]
    _, first, second = as_text(rows, TEXT).splitlines()
    assert columns_of(first[: first.index("x")]) == second.index("y")


def test_an_answer_stays_on_its_line() -> None:
    """Line breaks in an answer do not break the rows of a terminal."""
    assert len(as_text([{"model": "m", "text": "a\nb\r\nc"}], TEXT).splitlines()) == 2


def test_no_rows_are_no_trouble() -> None:
    """An empty table still has its heads."""
    assert as_text([], TEXT) == "model  answer"
    assert Page(as_html([], TEXT)).cells == ["model", "answer"]
