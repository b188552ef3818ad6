"""The cells of a comparison as a table: their columns and order, as a DataFrame and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ORDER = (
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
    "cached_tokens",
    "completion_tokens",
    "tokens_per_s",
    "cost_usd",
    "cost_kind",
    "ignored",
)
METRICS = {
    "ttft_s": "time to first token (s)",
    "total_s": "time per answer (s)",
    "queue_s": "time waiting (s)",
    "tokens_per_s": "tokens per second",
    "completion_tokens": "tokens written",
    "prompt_tokens": "tokens read",
    "cached_tokens": "tokens read before",
    "cost_usd": "cost (US dollars)",
}
# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_frame(rows: Sequence[Mapping[str, Any]], score_names: Sequence[str]) -> pd.DataFrame:
    """Return rows as a DataFrame: our columns, the scores, and what else came with the prompts."""
    import pandas as pd

    scores = [f"score_{name}" for name in score_names]
    known = [*ORDER, *scores]
    extra = dict.fromkeys(k for row in rows for k in row if k not in known)
    frame = pd.DataFrame(rows, columns=[*known, *extra])
    for name in (*METRICS, *scores):
        frame[name] = pd.to_numeric(frame[name].map(number))
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        frame[name] = frame[name].astype("Int64")
    return frame


def as_csv(frame: pd.DataFrame, *, spreadsheet: bool) -> str:
    """Return a DataFrame of cells as CSV; for a spreadsheet, with nothing that it would run."""
    from pandas.api.types import is_numeric_dtype

    frame = frame.copy()
    for name in frame.columns:
        if not is_numeric_dtype(frame[name]):
            told = frame[name].map(_plain)
            frame[name] = told.map(_defused) if spreadsheet else told
    # All text in quotes: csv leaves out those round a lone carriage return, which then ends the row.
    return frame.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def number(value: Any) -> float | None:
    """Return a score or time as a float; None and NaN as None."""
    return None if value is None or value != value else float(value)


def is_container(value: object) -> bool:
    """Whether a value holds others."""
    return isinstance(value, (list, tuple, dict, set))


def _plain(value: Any) -> Any:
    """Return what CSV can hold: containers as JSON."""
    if not is_container(value):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _defused(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
