"""Whether a model would fit, as a sentence and a small table."""

from __future__ import annotations

import html

from nbproviders.render.tables import Column, as_html, as_text, visible
from nbproviders.residency.fit import Fit
from nbproviders.residency.memory import size_text
from nbproviders.residency.residents import place

_SAID = {
    "here": "{spec} is in memory.",
    "fits": "{spec} fits.",
    "after": "{spec} fits once {moves}.",
    "wait": "{spec} fits when running models have ended.",
    "no": "{spec} does not fit: {short}. {todo}",
    "unknown": "Nobody can tell what {spec} takes before it is loaded.",
}
_DONE = {"sleep": "sleeps", "free": "has left"}
_COLUMNS = [
    Column("device", "device"),
    Column("weights", "weights"),
    Column("cache", "cache"),
    Column("workspace", "workspace"),
    Column("total", "total"),
    Column("taken", "models here"),
    Column("limit", "limit"),
]


class FitReport:
    """What `will_it_fit` found. True if the model can be loaded now, others leaving if need be.

    Attributes
    ----------
    fit
        The figures.

    Parameters
    ----------
    fit
        The same.
    said
        The verdict in other words than its own.
    """

    def __init__(self, fit: Fit, said: str = "") -> None:
        self.fit = fit
        self._said = visible(said)

    def __bool__(self) -> bool:
        return bool(self.fit)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self._said:
            return self._said
        moves = " and ".join(f"{visible(spec)} {_DONE[kind]}" for spec, kind in self.fit.moves)
        short = ", ".join(
            f"{size_text(count)} too much on {place(device)}"
            for device, count in (self.fit.short or {}).items()
        )
        spec = visible(self.fit.spec)
        return _SAID[self.fit.verdict].format(
            spec=spec, moves=moves, short=short, todo=self._todo()
        )

    def _todo(self) -> str:
        estimate, limits = self.fit.estimate, self.fit.limits
        if any(estimate.get(d, 0) > limits.get(d, 0) for d in self.fit.short or {}):
            return "Choose a smaller model or dtype, or allow more: nbp.set_memory."
        return "What is there stays: unpin something (nbp.unpin), or allow more: nbp.set_memory."

    @property
    def notes(self) -> list[str]:
        """What the figures count with, and what of them is guessed."""
        estimate, notes = self.fit.estimate, []
        counted = any(note.startswith("the cache") for note in estimate.notes)
        if estimate.context_tokens and not counted:
            notes.append(f"The cache is for one text of {estimate.context_tokens:,} tokens.")
        if copy := self.fit.copy_bytes:
            notes.append(f"A copy of {size_text(copy)} in main memory lets it wake fast.")
        elif estimate.optional and self.fit:
            notes.append("Main memory has no room for a copy: it wakes from its files.")
        return [visible(note) for note in (*notes, *estimate.notes)]

    def _rows(self) -> list[dict[str, object]]:
        fit, estimate = self.fit, self.fit.estimate
        return [
            {
                "device": place(device),
                "weights": size_text(estimate.weights.get(device, 0)),
                "cache": size_text(estimate.cache.get(device, 0)),
                "workspace": size_text(estimate.workspace.get(device, 0)),
                "total": size_text(total),
                "taken": size_text(fit.taken.get(device, 0)),
                "limit": size_text(fit.limits[device]) if device in fit.limits else "none",
            }
            for device, total in estimate.items()
        ]

    def __repr__(self) -> str:
        table = as_text(self._rows(), _COLUMNS) if self.fit.estimate else ""
        return "\n".join(filter(None, [self.sentence, table, *self.notes]))

    def _repr_html_(self) -> str:
        table = as_html(self._rows(), _COLUMNS) if self.fit.estimate else ""
        notes = "".join(f'<div style="opacity:.75">{html.escape(n)}</div>' for n in self.notes)
        return f"<p><b>{html.escape(self.sentence)}</b></p>{table}{notes}"
