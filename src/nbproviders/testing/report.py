"""What became of the clauses: a row for each, as text and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from nbproviders.errors import ProviderError
from nbproviders.render.tables import Column, as_html, as_text, visible

Outcome = Literal["ok", "failed", "skipped"]
_MARKS = {"ok": "✓ ok", "failed": "✗ failed", "skipped": "skipped"}
_COLUMNS = (
    Column("clause", "clause"),
    Column("outcome", "outcome"),
    Column("promise", "promised"),
    Column("came", "what came"),
    Column("todo", "what to do"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one clause.

    Attributes
    ----------
    clause
        Its name.
    promise
        What it promises.
    outcome
        ok, failed or skipped.
    came
        What came instead, or why it was skipped.
    todo
        What to do about it.
    """

    clause: str
    promise: str
    outcome: Outcome
    came: str = ""
    todo: str = ""

    def __str__(self) -> str:
        lines = [f"{self.clause}: {self.promise}", f"What came: {self.came}"]
        return "\n".join([*lines, f"What to do: {self.todo}"] if self.todo else lines)


class Report:
    """The rows of all clauses. In a notebook it shows itself as a table.

    Parameters
    ----------
    of
        What was asked: provider and model.
    rows
        A row for each clause.
    """

    def __init__(self, of: str, rows: Iterable[Row]) -> None:
        self.of, self.rows = of, tuple(rows)

    @property
    def ok(self) -> bool:
        """Whether no clause failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows of clauses that failed."""
        return tuple(row for row in self.rows if row.outcome == "failed")

    def raise_for_failures(self) -> None:
        """Return if no clause failed.

        Raises
        ------
        ProviderError
            Telling each clause that failed, what came, and what to do.
        """
        if not self.ok:
            told = "\n\n".join(map(str, self.failures))
            raise ProviderError(f"{self._caption()}\n\n{told}")

    def _caption(self) -> str:
        counts = Counter(row.outcome for row in self.rows)
        told = ", ".join(f"{counts[name]} {name}" for name in ("ok", "failed", "skipped"))
        return f"{self.of}: {told}"

    def _cells(self) -> list[dict[str, str]]:
        return [
            {**asdict(row), "outcome": _MARKS[row.outcome], "todo": row.todo or " "}
            for row in self.rows
        ]

    def _repr_html_(self) -> str:
        return as_html(self._cells(), _COLUMNS, self._caption())

    def __repr__(self) -> str:
        table = as_text(self._cells(), _COLUMNS[:2])
        told = [str(row) for row in self.rows if row.outcome != "ok"]
        return visible("\n\n".join([f"{self._caption()}\n{table}", *told]))
