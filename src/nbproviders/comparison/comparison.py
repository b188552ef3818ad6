"""`Comparison`: what every model said to every prompt, as rows, a summary, charts and files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbproviders.comparison import cells, costs, statistics
from nbproviders.comparison.cells import METRICS, ORDER, number
from nbproviders.comparison.schedule import Movement
from nbproviders.errors import ConfigurationError
from nbproviders.render import charts, report, tables
from nbproviders.render.tables import Column

if TYPE_CHECKING:
    import pandas as pd

_MOST_FAILURES = 8  # models whose first failure is told under the table
_MOST_GROUPS = 12  # of a column such as task, for a table of its own in the report
_MOST_ANSWERS = 2000  # in the report


class Comparison:
    """The result of `nbproviders.compare`; as a cell's value it shows a table and a chart.

    Parameters
    ----------
    rows
        One for each answer: model by prompt by repeat.
    score_names
        Scorers, in order.
    params
        What all models were asked with.
    elapsed_s
        Seconds the whole took.
    notes
        What else its reader should know, a line each.
    stopped
        Whether it was ended before all answers were there.
    movement
        What was moved into memory for it; None if nothing was.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        score_names: Sequence[str],
        params: Mapping[str, Any],
        elapsed_s: float,
        notes: Sequence[str] = (),
        stopped: bool = False,
        movement: Movement | None = None,
    ) -> None:
        self._rows: list[dict[str, Any]] = [{**dict.fromkeys(ORDER), **row} for row in rows]
        self.score_names = list(score_names)
        self.params = dict(params)
        self.elapsed_s = elapsed_s
        self.notes = list(notes)
        self.stopped = stopped
        self.movement = movement

    # Data

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All answers, one a row: what was asked, what came back, times in seconds, scores.

        Columns are spec, provider, model, prompt_id, prompt, expected, repeat, text, finish, error,
        queue_s, ttft_s, total_s, prompt_tokens, cached_tokens (those not computed again),
        completion_tokens, tokens_per_s, cost_usd, cost_kind (free, known, estimated or unpriced), ignored
        (parameters that the model did not take), a ``score_<name>`` for each scorer, and then what else
        came with the prompts, such as ``task``.
        """
        return cells.as_frame(self._rows, self.score_names)

    @property
    def models(self) -> list[str]:
        """References of the models, in the order they were given."""
        return list(dict.fromkeys(row["spec"] for row in self._rows))

    @property
    def cost_usd(self) -> float | None:
        """What the answers cost in US dollars, as far as it is known or estimated; None if none of it is."""
        return costs.total_usd(self._rows)

    @property
    def failures(self) -> pd.DataFrame:
        """The answers that failed."""
        return self.frame[self.frame["error"].notna()]

    def summary(self, by: str | None = None) -> pd.DataFrame:
        """Return one row for each model: answers, errors, mean scores with 95 % bounds, median times.

        Parameters
        ----------
        by
            A column to split by as well, such as ``task``.

        Raises
        ------
        ConfigurationError
            If there is no such column.
        """
        if by is None or by == "spec":
            return statistics.summarise(self.frame, self.score_names)
        if by not in self.frame:
            raise ConfigurationError(
                f"There is no column {by!r} to split by.",
                hint=f"Columns: {', '.join(self.frame.columns)}.",
            )
        groups = self.frame[by].map(lambda v: tables.readable(v) if cells.is_container(v) else v)
        return statistics.summarise(self.frame.assign(**{by: groups}), self.score_names, by)

    # Charts

    def chart(self, metric: str | None = None) -> charts.Picture:
        """Return a chart of the models.

        Parameters
        ----------
        metric
            A scorer, with or without ``score_``, or one of ttft_s, total_s, queue_s, tokens_per_s,
            completion_tokens, prompt_tokens, cached_tokens and cost_usd.
            Default: the first scorer, else tokens_per_s.

        Raises
        ------
        ConfigurationError
            For another metric.
        """
        chosen = metric or (f"score_{self.score_names[0]}" if self.score_names else "tokens_per_s")
        if chosen in METRICS:
            return self._spread_chart(chosen)
        for name in (chosen, chosen.removeprefix("score_")):
            if name in self.score_names:
                return self._score_chart(name)
        raise ConfigurationError(
            f"There is no metric {metric!r}.",
            hint=f"Metrics: {', '.join([*self.score_names, *METRICS])}.",
        )

    def _spread_chart(self, name: str) -> charts.Picture:
        values = {
            model: self.frame.loc[self.frame["spec"] == model, name].dropna().tolist()
            for model in self.models
        }
        ax = charts.axes(len(values))
        charts.spread(ax, values, charts.colours(values), METRICS[name])
        medians = ", ".join(f"{m} {_median(v)}" for m, v in values.items())
        return charts.picture(ax, f"{METRICS[name]}, median by model: {medians}")

    def _score_chart(self, name: str) -> charts.Picture:
        shades = charts.colours(self.models)
        rate = statistics.is_rate(self.frame[f"score_{name}"])
        found = [
            charts.Bar(
                row["spec"],
                number(row[name]),
                number(row[f"{name}_low"]),
                number(row[f"{name}_high"]),
                shades[row["spec"]],
            )
            for row in _records(self.summary())
        ]
        title = f"{name} ({'share right' if rate else 'mean'}, 95 % interval)"
        form = ".0%" if rate else ".3g"
        ax = charts.axes(len(found))
        charts.bars(ax, found, title, form, rate=rate)
        told = ", ".join(
            f"{bar.label} {'no value' if bar.value is None else format(bar.value, form)}"
            for bar in found
        )
        return charts.picture(ax, f"{title} by model: {told}")

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
            Column("n", "asked", "d"),
            *([Column("errors", "failed", "d")] if self._failed else []),
            *scores,
            Column("median_ttft_s", "first token, s", ".3f"),
            Column("median_total_s", "answer, s", ".3f"),
            Column("median_tokens_per_s", "tokens/s", ",.0f"),
            *self._cost_columns(),
        ]

    def _cost_columns(self) -> list[Column]:
        if not costs.told(self._rows):
            return []
        amounts = self.frame.groupby("spec")["cost_usd"].sum()
        return [Column("cost_usd", "cost, $", costs.form(amounts))]

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

    @property
    def _groupings(self) -> list[str]:
        """Columns that came with the prompts and sort them into a few groups."""
        extra = [str(name) for name in self.frame][len(ORDER) + len(self.score_names) :]
        counts = {name: self.frame[name].map(tables.readable).nunique() for name in extra}
        return [name for name, count in counts.items() if 2 <= count <= _MOST_GROUPS]

    def _effort(self) -> str:
        """What was done, in one line."""
        count = f"{len(self._rows):,} answer{'' if len(self._rows) == 1 else 's'}"
        failed = f", {self._failed:,} failed" if self._failed else ""
        read, written = (int(self.frame[name].sum()) for name in statistics.TOKENS)
        asked = ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in self.params.items()
        )
        return (
            f"{count}{failed}, {read:,} tokens read and {written:,} written in {self.elapsed_s:.1f} s"
            f"{f'; {asked}' if asked else ''}."
        )

    def _notes(self) -> list[str]:
        if not self._rows:
            return [
                "Stopped before the first answer was there." if self.stopped else "No answers.",
                *self.notes,
            ]
        notes = [self._effort(), costs.line(self._rows), statistics.verdict(self.frame)]
        if self.stopped:
            notes.append("Stopped before the end: these are the answers that were there.")
        notes += self._failures()
        if self.movement is not None and self.movement.moved_bytes:
            notes.append(str(self.movement))
        return [note for note in [*notes, *costs.left_out(self._rows), *self.notes] if note]

    def _failures(self) -> list[str]:
        """Return the first failure of each model, and how many more it has; not the same one twice."""
        failed: dict[str, list[str]] = {}
        for row in self._rows:
            if row["error"] is not None:
                failed.setdefault(row["spec"], []).append(row["error"])
        told = []
        for spec, errors in list(failed.items())[:_MOST_FAILURES]:
            more = f" (and {len(errors) - 1:,} more)" if len(errors) > 1 else ""
            told.append(f"Failed: {spec}: {errors[0]}{more}")
        if len(failed) > _MOST_FAILURES:
            told.append(f"{len(failed) - _MOST_FAILURES} models more failed; see .failures.")
        return told

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
        caption = "Models, how often asked, scores with 95 % intervals, and median times"
        table = tables.as_html(_records(self.summary()), self._columns(), caption)
        notes = "".join(f"<div>{html.escape(tables.visible(note))}</div>" for note in self._notes())
        return f'{table}<div class="{tables.NO_FORMULAS}" style="padding:0 12px">{notes}</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        chart = f'<div style="margin-top:8px">{self.chart().as_html()}</div>' if self._rows else ""
        shown = f"<div>{self._summary_html()}{chart}</div>"
        return {"text/html": shown, "text/plain": self.as_text()}

    # Files

    def to_csv(self, path: str | Path, *, spreadsheet: bool = False) -> Path:
        """Write all answers as CSV (UTF-8) and return the path.

        Text stands in it exactly as the model wrote it, and turns of a chat as JSON. pandas takes an
        answer of ``NA`` for none and ``042`` for a number, unless it is read back with
        ``read_csv(path, keep_default_na=False, na_values=[""], dtype={"expected": str, "text": str})``.
        An empty answer then is missing like one that failed; ``error`` tells them apart.

        Parameters
        ----------
        path
            The file.
        spreadsheet
            Write it for Excel and its like instead, which would run an answer such as ``=HYPERLINK(…)``
            as a formula: text that looks like one gets a ``'`` before it, and the file a byte order mark.

        Raises
        ------
        ConfigurationError
            If it cannot be written.
        """
        text = cells.as_csv(self.frame, spreadsheet=spreadsheet)
        return report.write(path, text, "utf-8-sig" if spreadsheet else "utf-8")

    def to_html(self, path: str | Path, title: str = "Comparison") -> Path:
        """Write one self-contained HTML page and return its path: summary, charts and every answer.

        Raises
        ------
        ConfigurationError
            If it cannot be written.
        """
        sections = [("Summary", self._summary_html())]
        name = self.score_names[0] if self.score_names else "tokens per second"
        for by in self._groupings:
            sections.append((f"{name} by {by}", tables.as_html(*self._split(by))))
        if self._rows:
            metrics = [*(f"score_{one}" for one in self.score_names), "total_s", "tokens_per_s"]
            drawn = "".join(f"<figure>{self.chart(metric).svg()}</figure>" for metric in metrics)
            sections += [("Charts", drawn), ("Answers", self._answers_html())]
        return report.write(path, report.page(title, ", ".join(self.models), sections))

    def _answers_html(self) -> str:
        columns = [
            Column("prompt", "prompt"),
            Column("spec", "model"),
            Column("text", "answer"),
            Column("expected", "expected"),
            *(Column(f"score_{name}", name, ".3g") for name in self.score_names),
            *([Column("error", "error")] if self._failed else []),
        ]
        # What the models said to one prompt stands together.
        place: dict[str, int] = {}
        for row in self._rows:
            place.setdefault(repr(row["prompt_id"]), len(place))
        rows = sorted(self._rows, key=lambda row: place[repr(row["prompt_id"])])
        return tables.as_html(rows, columns, limit=_MOST_ANSWERS)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _median(values: Sequence[float]) -> str:
    import numpy as np

    return charts.three_figures(float(np.median(values))) if values else "no value"
