"""Tables from rows: escaped HTML that needs no script, and plain text that fits a terminal."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_ROWS = 200
SHORT_CHARACTERS = 160
_CELL = "padding:3px 12px 3px 0;border:0;vertical-align:top"
_HEAD = "border-bottom:1px solid var(--jp-border-color1,#bbb);font-weight:600;"
# Characters that reorder or hide what stands beside them (Unicode bidirectional algorithm, UAX 9).
_HIDDEN = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF}


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
    """

    key: str
    title: str
    form: str | None = None
    low: str | None = None
    high: str | None = None


def visible(text: str) -> str:
    """Return text with control and direction characters replaced by a visible stand-in."""
    return "".join(
        "\ufffd"
        if ord(c) in _HIDDEN or (unicodedata.category(c) == "Cc" and c not in "\n\t")
        else c
        for c in text
    )


def prompt_text(prompt: Any) -> str:
    """Return a prompt as one text; turns of a chat each on a line."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def cell_text(row: Mapping[str, Any], column: Column) -> str:
    """Return what a cell shows; a dash where there is nothing."""
    value = row.get(column.key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\u2013"
    if column.form is None:
        return visible(prompt_text(value) if isinstance(value, (list, tuple)) else str(value))
    shown = format(value, column.form)
    low, high = row.get(column.low or ""), row.get(column.high or "")
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return shown
    percent = column.form.endswith("%")
    bounds = f"{low * 100:.0f}\u2013{high * 100:.0f}%" if percent else f"{low:.2g}\u2013{high:.2g}"
    return f"{shown} [{bounds}]"


def as_html(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], caption: str = "") -> str:
    """Return a table as HTML with inline styles and no script; long text can be unfolded."""
    heads = "".join(
        f'<th scope="col" style="{_HEAD}{_CELL};text-align:{_align(c)}">{html.escape(c.title)}</th>'
        for c in columns
    )
    lines = [
        "<tr>" + "".join(_html_cell(row, column) for column in columns) + "</tr>"
        for row in rows[:MAX_ROWS]
    ]
    more = len(rows) - MAX_ROWS
    if more > 0:
        note = f"{more} more rows are not shown; .frame has them all."
        lines.append(f'<tr><td colspan="{len(columns)}" style="{_CELL}">{note}</td></tr>')
    title = f'<caption style="text-align:left;padding:0 0 4px">{html.escape(caption)}</caption>'
    return (
        '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums;margin:4px 0">'
        f"{title if caption else ''}<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _align(column: Column) -> str:
    return "left" if column.form is None else "right"


def _html_cell(row: Mapping[str, Any], column: Column) -> str:
    text = cell_text(row, column)
    style = f"{_CELL};text-align:{_align(column)};"
    style += "white-space:nowrap" if column.form else "white-space:pre-wrap;overflow-wrap:anywhere"
    if len(text) <= SHORT_CHARACTERS:
        return f'<td style="{style}">{html.escape(text)}</td>'
    short = html.escape(text[:SHORT_CHARACTERS])
    return (
        f'<td style="{style}"><details><summary>{short}\u2026</summary>{html.escape(text)}'
        "</details></td>"
    )


def as_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int = 100) -> str:
    """Return a table as aligned plain text; text columns are shortened until it fits `width`."""
    cells = [[c.title for c in columns]]
    cells += [
        [cell_text(row, c).replace("\n", " ").replace("\t", " ") for c in columns]
        for row in rows[:MAX_ROWS]
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    texts = [i for i, column in enumerate(columns) if column.form is None]
    while sum(widths) + 2 * (len(widths) - 1) > width and texts:
        widest = max(texts, key=lambda i: widths[i])
        if widths[widest] <= 8:
            break
        widths[widest] -= 1
    lines = [
        "  ".join(
            _fitted(cell, widths[i], right=columns[i].form is not None)
            for i, cell in enumerate(line)
        ).rstrip()
        for line in cells
    ]
    if len(rows) > MAX_ROWS:
        lines.append(f"({len(rows) - MAX_ROWS} more rows)")
    return "\n".join(lines)


def _fitted(text: str, width: int, *, right: bool) -> str:
    short = text if len(text) <= width else text[: width - 1] + "\u2026"
    return short.rjust(width) if right else short.ljust(width)
