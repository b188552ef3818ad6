"""Tables from rows: escaped HTML that needs no script, and plain text that fits a terminal.

Whatever stands in a cell is taken for hostile: escaped, stripped of what could hide or reorder text, folded
when long. Styles are inline, so that JupyterLab, nbconvert and GitHub show the same.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The class of an element in which JupyterLab does not set what stands between dollars as a formula.
NO_FORMULAS = "tex2jax_ignore mathjax_ignore"
MAX_ROWS = 200
SHORT_CHARACTERS = 160
SHORT_LINES = 4
MOST_CHARACTERS = 5000
_NARROWEST = 8  # columns of a terminal that a shortened text keeps
_LINE = "1px solid var(--jp-border-color2,#8886)"
_CELL = f"padding:4px 12px;border:0;border-bottom:{_LINE};vertical-align:top;max-width:40em"
_TABLE = "border-collapse:collapse;border:0;font-variant-numeric:tabular-nums;line-height:1.4;margin:4px 0"
_TEXT = "white-space:pre-wrap;min-width:4em"
_LONG_WORD = re.compile(r"\S{30}")
_NAME_ENDS = re.compile(r"(?<=/)|(?=[?&])")
_MUTED = "opacity:.75"
# C0 and C1 controls but tab and newline; soft hyphen; marks, overrides and isolates of direction (UAX 9);
# zero-width space and other invisible formatting; line separators; surrogates; tags.
# Joiners stay: scripts and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True, slots=True)
class Column:
    """How one column is shown.

    Attributes
    ----------
    key
        Its name in the rows.
    title
        Its heading, with the unit.
    form
        A format specification for numbers, such as ``.0%``; None shows text.
    low, high
        Keys of the bounds of a number, shown behind it.
    name
        Whether it holds references of models, which a line may break between their parts only.
    """

    key: str
    title: str
    form: str | None = None
    low: str | None = None
    high: str | None = None
    name: bool = False


def visible(text: str) -> str:
    r"""Return text in which nothing is hidden: unseen characters are spelt out.

    Examples
    --------
    >>> visible("a\u202eb\x1b[31m")
    'a⟨U+202E⟩b⟨U+001B⟩[31m'
    """
    text = text.replace("\r\n", "\n")
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def readable(value: Any) -> str:
    """Return a value as text for people: each turn of a chat on a line, other containers as JSON."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence) and value and all(map(_is_turn, value)):
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= set(value)


def is_missing(value: object) -> bool:
    """Whether it is None, NaN or pandas' NA."""
    return value is None or type(value).__name__ == "NAType" or value != value


def cell_text(row: Mapping[str, Any], column: Column) -> str:
    """Return what a cell shows; a dash where there is nothing."""
    value = row.get(column.key)
    if is_missing(value):
        return "\u2013"
    if column.form is None:
        return visible(readable(value))
    shown = format(value, column.form)
    low: Any
    high: Any
    low, high = row.get(column.low or ""), row.get(column.high or "")
    if is_missing(low) or is_missing(high):
        return shown
    percent = column.form.endswith("%")
    bounds = f"{low * 100:.0f}\u2013{high * 100:.0f}%" if percent else f"{low:.2g}\u2013{high:.2g}"
    return f"{shown} [{bounds}]"


def as_html(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    caption: str = "",
    limit: int = MAX_ROWS,
) -> str:
    """Return a table as HTML with inline styles and no script; long text can be unfolded.

    The first column names its row.
    """
    heads = "".join(
        f'<th scope="col" style="{_CELL};text-align:{_align(c)};font-weight:600">'
        f"{html.escape(visible(c.title))}</th>"
        for c in columns
    )
    lines = [
        f"<tr>{''.join(_html_cell(row, c, heads=not i) for i, c in enumerate(columns))}</tr>"
        for row in rows[:limit]
    ]
    more = len(rows) - limit
    if more > 0:
        note = f"{more:,} more {_rows(more)} not shown; .frame has them all."
        style = f"{_CELL};text-align:left;{_MUTED}"
        lines.append(f'<tr><td colspan="{len(columns)}" style="{style}">{note}</td></tr>')
    style = "caption-side:top;text-align:left;padding:2px 12px 4px;color:inherit;font-weight:600"
    title = f'<caption style="{style}">{html.escape(visible(caption))}</caption>'
    return (
        f'<div class="{NO_FORMULAS}" style="overflow-x:auto;max-width:100%">'
        f'<table style="{_TABLE}">'
        f"{title if caption else ''}<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
        "</table></div>"
    )


def _align(column: Column) -> str:
    return "left" if column.form is None else "right"


def _rows(n: int) -> str:
    return "row is" if n == 1 else "rows are"


def _html_cell(row: Mapping[str, Any], column: Column, *, heads: bool) -> str:
    style = f"{_CELL};text-align:{_align(column)};"
    # dir=auto: a right-to-left answer reads right, and cannot pull its neighbours along.
    direction = "" if column.form else ' dir="auto"'
    style += "white-space:nowrap" if column.form else _TEXT
    text = cell_text(row, column)
    if _LONG_WORD.search(text):  # only then: else a narrow table would break names in two
        style += ";overflow-wrap:anywhere"
    inner = _parted(text) if column.name else _folded(text)
    if heads:
        return f'<th scope="row"{direction} style="{style};font-weight:normal">{inner}</th>'
    return f'<td{direction} style="{style}">{inner}</td>'


def _parted(name: str) -> str:
    """Return an escaped reference, each of its parts on one line; one that is too long for that breaks."""
    if len(name) > SHORT_CHARACTERS:
        return _folded(name)
    parts = [html.escape(part) for part in _NAME_ENDS.split(name)]
    whole = '<span style="white-space:nowrap">{}</span>'
    return "<wbr>".join(p if _LONG_WORD.search(p) else whole.format(p) for p in parts)


def _folded(text: str) -> str:
    """Return escaped text; when long, its beginning, which opens to the whole."""
    if len(text) <= SHORT_CHARACTERS and text.count("\n") < SHORT_LINES:
        return html.escape(text)
    short = "\n".join(text[:SHORT_CHARACTERS].split("\n")[:SHORT_LINES]).rstrip()
    whole, more = html.escape(text[:MOST_CHARACTERS]), len(text) - MOST_CHARACTERS
    if more > 0:
        whole += f'<span style="{_MUTED}">\u2026 {more:,} more characters</span>'
    return (
        f'<details><summary style="cursor:pointer">{html.escape(short)}\u2026'
        f'<span style="{_MUTED}"> ({len(text):,} characters)</span></summary>'
        f'<div style="margin-top:4px;padding-top:4px;border-top:{_LINE}">{whole}</div></details>'
    )


def as_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int = 100) -> str:
    """Return a table as aligned plain text that fits `width`.

    Text columns are shortened first; if that is not enough, the last columns are left out and named below.
    """
    cells = [[_flat(c.title, width) for c in columns]]
    cells += [[_flat(cell_text(row, c), width) for c in columns] for row in rows[:MAX_ROWS]]
    kept, widths = _room(cells, columns, width)
    lines = [
        "  ".join(
            _fitted(cell, widths[i], columns[i].form is not None)
            for i, cell in enumerate(line[:kept])
        ).rstrip()
        for line in cells
    ]
    if kept < len(columns):
        left_out = ", ".join(column.title for column in columns[kept:])
        lines.append(_cut(f"(no room for {_flat(left_out, width)})", width))
    if len(rows) > MAX_ROWS:
        more = len(rows) - MAX_ROWS
        lines.append(f"({more} more {_rows(more)} not shown)")
    return "\n".join(lines)


def _room(
    cells: Sequence[Sequence[str]], columns: Sequence[Column], width: int
) -> tuple[int, list[int]]:
    """Return how many columns there is room for, and how wide each may be."""
    wanted = [max(_width(line[i]) for line in cells) for i in range(len(columns))]
    least = [w if c.form else min(w, _NARROWEST) for w, c in zip(wanted, columns, strict=True)]
    kept = len(columns)
    while kept > 1 and sum(least[:kept]) + 2 * (kept - 1) > width:
        kept -= 1
    widths, room = wanted[:kept], width - 2 * (kept - 1)
    while sum(widths) > room:
        spare, widest = max((w - least[i], i) for i, w in enumerate(widths))
        if spare <= 0:
            break
        widths[widest] -= 1
    return kept, widths


def _flat(text: str, width: int) -> str:
    """Return text on one line; what no terminal of this width could show is cut, to measure less."""
    return visible(text[: width * 2]).replace("\n", " ").replace("\t", " ")[: width * 2]


def _width(text: str) -> int:
    """Return the columns a text takes in a terminal: two for wide characters, none for marks."""
    return sum(
        2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
        if not unicodedata.combining(char) and char not in "\u200c\u200d\ufe0e\ufe0f"
    )


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[:-1]
    return f"{text.rstrip()}\u2026"


def _fitted(text: str, width: int, right: bool) -> str:
    short = _cut(text, width)
    fill = " " * (width - _width(short))
    return fill + short if right else short + fill
