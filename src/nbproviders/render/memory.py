"""What is in memory and what happened, as lists that a notebook shows as tables."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

from nbproviders.residency.events import Event
from nbproviders.residency.memory import size_text
from nbproviders.residency.residents import Resident

_STYLE = "text-align:left;padding:2px 10px 2px 0;font-variant-numeric:tabular-nums"


class Residents(list[Resident]):
    """Models in memory, loading or leaving; under the table what their loading told."""

    _heads = ("model", "state", "memory", "open", "running", "idle", "loaded in")

    @property
    def notes(self) -> list[str]:
        """What a person should know of how they were loaded, such as a step that was left out and why."""
        return [f"{one.spec}: {note}" for one in self for note in one.notes]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                one.spec,
                str(one.state) if one.progress is None else f"{one.state} {one.progress:.0%}",
                ", ".join(f"{size_text(n)} on {device}" for device, n in one.bytes.items())
                or "0 B",
                str(one.handles),
                str(one.running),
                f"{one.idle_s:.0f} s",
                f"{one.load_s:.2f} s",
            )
            for one in self
        ]

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = _table(self._heads, self._rows(), "Nothing is in memory.")
        return f"{table}<ul>{notes}</ul>" if notes else table

    def __repr__(self) -> str:
        table = _lines(self._heads, self._rows(), "Nothing is in memory.")
        return "\n".join([table, *self.notes])


class Events(list[Event]):
    """What happened to models, oldest first."""

    _heads = ("time", "event", "model", "memory", "")

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                time.strftime("%H:%M:%S", time.localtime(one.time_s)),
                one.kind,
                one.spec,
                size_text(one.bytes) if one.bytes else "",
                one.detail,
            )
            for one in self
        ]

    def _repr_html_(self) -> str:
        return _table(self._heads, self._rows(), "Nothing has happened yet.")

    def __repr__(self) -> str:
        return _lines(self._heads, self._rows(), "Nothing has happened yet.")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> str:
    if not rows:
        return f"<p>{empty}</p>"
    head = "".join(f'<th scope="col" style="{_STYLE}">{html.escape(h)}</th>' for h in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_STYLE}">{html.escape(c)}</td>' for c in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> str:
    if not rows:
        return empty
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    )
