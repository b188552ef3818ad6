"""`Comparison`: what every model said to every prompt, as rows, a summary, charts and files."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbproviders.comparison import statistics
from nbproviders.errors import ConfigurationError
from nbproviders.render import charts, report, tables
from nbproviders.render.tables import Column

if TYPE_CHECKING:
    import pandas as pd

_ORDER = (
    "spec",
    "provider",
    "model",
    "prompt_id",
    "prompt",
    "expected",
    "repeat",
    "text",
    "finish",
    "error",
    "queue_s",
    "ttft_s",
    "total_s",
    "prompt_tokens",
    "completion_tokens",
    "tokens_per_s",
)
_METRICS = {
    "ttft_s": "time to first token (s)",
    "total_s": "time per answer (s)",
    "queue_s": "time waiting (s)",
    "tokens_per_s": "tokens per second",
    "completion_tokens": "tokens written",
    "prompt_tokens": "tokens read",
}


class Comparison:
    """The result of `nbproviders.compare`; as a cell's value it shows a table and a chart.

    Parameters
    ----------
    rows
        One for each cell: model by prompt by repeat.
    score_names
        Scorers, in order.
    params
        What all models were asked with.
    elapsed_s
        Seconds the whole took.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        score_names: Sequence[str],
        params: Mapping[str, Any],
        elapsed_s: float,
    ) -> None:
        self._rows = [dict(row) for row in rows]
        self.score_names = list(score_names)
        self.params = dict(params)
        self.elapsed_s = elapsed_s

    # Data

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All cells, one a row: what was asked, what came back, times in seconds, scores.

        Columns are spec, provider, model, prompt_id, prompt, expected, repeat, text, finish, error,
        queue_s, ttft_s, total_s, prompt_tokens, completion_tokens, tokens_per_s, a ``score_<name>`` for
        each scorer, and then what else came with the prompts, such as ``task``.
        """
        import pandas as pd

        scores = [f"score_{name}" for name in self.score_names]
        known = [*_ORDER, *scores]
        extra = dict.fromkeys(k for row in self._rows for k in row if k not in known)
        frame = pd.DataFrame(self._rows, columns=[*known, *extra])
        for name in (*_METRICS, *scores):
            frame[name] = pd.to_numeric(frame[name].map(_number))
        for name in ("prompt_tokens", "completion_tokens"):
            frame[name] = frame[name].astype("Int64")
        return frame

    @property
    def models(self) -> list[str]:
        """References of the models, in the order they were given."""
        return list(dict.fromkeys(row["spec"] for row in self._rows))

    @property
    def failures(self) -> pd.DataFrame:
        """The cells that failed."""
        return self.frame[self.frame["error"].notna()]

    def summary(self, by: str | None = None) -> pd.DataFrame:
        """Return one row for each model: cells, errors, mean scores with 95 % bounds, median times.

        Parameters
        ----------
        by
            A column to split by as well, such as ``task``.

        Raises
        ------
        ConfigurationError
            If there is no such column.
        """
        if by is not None and by not in self.frame:
            raise ConfigurationError(
                f"There is no column {by!r} to split by.",
                hint=f"Columns: {', '.join(self.frame.columns)}.",
            )
        return statistics.summarise(self.frame, self.score_names, by)

    # Charts

    def chart(self, metric: str | None = None) -> charts.Picture:
        """Return a chart of the models.

        Parameters
        ----------
        metric
            A scorer, or one of ttft_s, total_s, queue_s, tokens_per_s, completion_tokens and
            prompt_tokens. Default: the first scorer, else tokens_per_s.

        Raises
        ------
        ConfigurationError
            For another metric.
        """
        chosen = metric or (self.score_names[0] if self.score_names else "tokens_per_s")
        name = chosen.removeprefix("score_")
        shades = charts.colours(self.models)
        ax = charts.axes(len(self.models))
        if name in self.score_names:
            return self._score_chart(ax, name, shades)
        if name not in _METRICS:
            raise ConfigurationError(
                f"There is no metric {metric!r}.",
                hint=f"Metrics: {', '.join([*self.score_names, *_METRICS])}.",
            )
        values = {
            model: list(self.frame.loc[self.frame["spec"] == model, name].dropna())
            for model in self.models
        }
        charts.spread(ax, values, shades, _METRICS[name])
        medians = ", ".join(f"{m} {_median(v)}" for m, v in values.items())
        return charts.Picture(_figure(ax), f"{_METRICS[name]}, median by model: {medians}")

    def _score_chart(self, ax: Any, name: str, shades: Mapping[str, str]) -> charts.Picture:
        rate = statistics.is_rate(self.frame[f"score_{name}"])
        found = [
            charts.Bar(
                row["spec"],
                _number(row[name]),
                _number(row[f"{name}_low"]),
                _number(row[f"{name}_high"]),
                shades[row["spec"]],
            )
            for row in _records(self.summary())
        ]
        title = (
            f"{name} ({'share right, ' if rate else ''}mean{' and 95 % interval' if rate else ''})"
        )
        form = ".0%" if rate else ".3g"
        charts.bars(ax, found, title, form, rate=rate)
        told = ", ".join(
            f"{bar.label} {'no value' if bar.value is None else format(bar.value, form)}"
            for bar in found
        )
        return charts.Picture(_figure(ax), f"{title} by model: {told}")

    # What people see

    def _form(self, name: str) -> str:
        return ".0%" if statistics.is_rate(self.frame[f"score_{name}"]) else ".3g"

    def _columns(self) -> list[Column]:
        scores = [
            Column(name, name, self._form(name), f"{name}_low", f"{name}_high")
            for name in self.score_names
        ]
        return [
            Column("spec", "model"),
            Column("n", "cells", "d"),
            *([Column("errors", "failed", "d")] if self._failed else []),
            *scores,
            Column("median_ttft_s", "first token, s", ".3f"),
            Column("median_total_s", "answer, s", ".3f"),
            Column("median_tokens_per_s", "tokens/s", ",.0f"),
        ]

    def _split(self, by: str) -> tuple[list[dict[str, Any]], list[Column]]:
        """Return the first score (else tokens a second) by a column, a column for each model."""
        name = self.score_names[0] if self.score_names else "median_tokens_per_s"
        form = self._form(name) if self.score_names else ",.0f"
        lines: dict[Any, dict[str, Any]] = {}
        for row in _records(self.summary(by)):
            line = lines.setdefault(row[by], {by: row[by]})
            for end in ("", "_low", "_high"):
                line[row["spec"] + end] = row.get(name + end)
        shown = [Column(m, m, form, f"{m}_low", f"{m}_high") for m in self.models]
        return list(lines.values()), [Column(by, by), *shown]

    @property
    def _failed(self) -> int:
        return sum(row["error"] is not None for row in self._rows)

    def _cost(self) -> str:
        """What it cost, in one line."""
        tokens = sum(row["completion_tokens"] or 0 for row in self._rows)
        failed = f", {self._failed} failed" if self._failed else ""
        asked = ", ".join(
            f"{k}={v:g}" for k, v in self.params.items() if isinstance(v, (int, float))
        )
        return (
            f"{len(self._rows)} cells{failed}, {tokens:,} tokens written in {self.elapsed_s:.1f} s; "
            f"{asked}."
        )

    def _notes(self) -> list[str]:
        notes = [self._cost(), statistics.verdict(self.frame)]
        if self._failed:
            first = next(row["error"] for row in self._rows if row["error"] is not None)
            notes.append(f"First failure: {first}")
        return [note for note in notes if note]

    def as_text(self, by: str | None = None, width: int = 100) -> str:
        """Return the summary as plain text that fits `width` characters.

        Split by a column such as ``task``, it is the first score, with a column for each model.
        """
        if by is not None:
            return tables.as_text(*self._split(by), width)
        table = tables.as_text(_records(self.summary()), self._columns(), width)
        return "\n".join([table, *map(tables.visible, self._notes())])

    def __repr__(self) -> str:
        return self.as_text()

    def _summary_html(self) -> str:
        table = tables.as_html(_records(self.summary()), self._columns())
        notes = "".join(f"<div>{html.escape(tables.visible(note))}</div>" for note in self._notes())
        return f"{table}{notes}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shown = (
            f"<div>{self._summary_html()}"
            f'<div style="margin-top:8px">{self.chart().as_html()}</div></div>'
        )
        return {"text/html": shown, "text/plain": self.as_text()}

    # Files

    def to_csv(self, path: str | Path) -> Path:
        """Write all cells as CSV (UTF-8) and return the path.

        Text stands in it exactly as the model wrote it. A spreadsheet may take text that begins with
        ``=`` for a formula: import it as text.

        Raises
        ------
        ConfigurationError
            If it cannot be written.
        """
        frame = self.frame.assign(prompt=self.frame["prompt"].map(tables.prompt_text))
        return _write(Path(path), frame.to_csv(index=False))

    def to_html(self, path: str | Path, title: str = "Comparison") -> Path:
        """Write one self-contained HTML page and return its path: summary, charts and every cell.

        Raises
        ------
        ConfigurationError
            If it cannot be written.
        """
        sections = [("Summary", self._summary_html())]
        if "task" in self.frame:
            name = self.score_names[0] if self.score_names else "tokens per second"
            sections.append((f"{name} by task", tables.as_html(*self._split("task"))))
        metrics = [*self.score_names, "total_s", "tokens_per_s"]
        pictures = "".join(f"<p>{self.chart(metric).as_html()}</p>" for metric in metrics)
        sections += [("Charts", pictures), ("Answers", self._answers_html())]
        return _write(Path(path), report.page(title, self._cost(), sections))

    def _answers_html(self) -> str:
        columns = [
            Column("prompt", "prompt"),
            Column("spec", "model"),
            Column("text", "answer"),
            Column("expected", "expected"),
            *(Column(f"score_{name}", name, ".3g") for name in self.score_names),
            *([Column("error", "error")] if self._failed else []),
        ]
        rows = sorted(_records(self.frame), key=lambda row: str(row["prompt_id"]).zfill(9))
        return tables.as_html(rows, columns)


def _number(value: Any) -> float | None:
    """Return a score or time as a float; None and NaN as None."""
    return None if value is None or value != value else float(value)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _median(values: Sequence[float]) -> str:
    import numpy as np

    return f"{float(np.median(values)):.3g}" if values else "no value"


def _figure(ax: Any) -> Any:
    return ax.get_figure()


def _write(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    place = path.expanduser()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        # mkstemp makes files for the owner alone; this one is like any other the user writes.
        umask = os.umask(0)
        os.umask(umask)
        Path(draft).chmod(0o666 & ~umask)
        Path(draft).replace(place)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written: {error.strerror or error}", hint="Choose another path."
        ) from None
    return place
