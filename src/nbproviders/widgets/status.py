"""The line of a widget that says what it is doing, or how that went."""

from __future__ import annotations

import html
from dataclasses import dataclass

from nbproviders.render.tables import NO_FORMULAS, visible

_SIGNS = {"done": "✓", "failed": "✗", "busy": "…", "": "·"}


@dataclass(frozen=True, slots=True)
class Status:
    """What a widget says; `kind` is ``"busy"``, ``"done"``, ``"failed"`` or, for a plain word, empty.

    Examples
    --------
    >>> str(Status("done", "Loaded echo:a."))
    '✓ Loaded echo:a.'
    """

    kind: str = ""
    text: str = ""

    def __str__(self) -> str:
        return f"{_SIGNS[self.kind]} {visible(self.text)}" if self.text else ""

    def html(self) -> str:
        """Return it as a live region, which screen readers tell when it changes."""
        color = f"color:var(--jp-{'error' if self.kind == 'failed' else 'ui-font'}-color1,inherit)"
        words = html.escape(str(self)).replace("\n", "<br>")
        return (
            f'<div class="{NO_FORMULAS}" role="status" aria-live="polite" style="{color};'
            f'line-height:1.5;overflow-wrap:anywhere">{words}</div>'
        )
