"""A line of progress where there is somebody to see it: in a notebook, or in a terminal.

In a notebook it is plain text that is replaced in its place and emptied at the end: unlike a widget, it
leaves nothing behind that a notebook without a kernel could not show.
"""

from __future__ import annotations

import sys
from typing import Any

_BAR_CHARACTERS = 20
_LINE_CHARACTERS = 79


def bar(share: float) -> str:
    """Return a share between 0 and 1 as a bar of blocks."""
    full = round(max(0.0, min(share, 1.0)) * _BAR_CHARACTERS)
    return "\u2588" * full + "\u2591" * (_BAR_CHARACTERS - full)


class Line:
    """One line, replaced by the next; gone when the block ends. Without a reader it shows nothing."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._written = ""

    def show(self, text: str) -> None:
        """Put `text` in the place of what is there."""
        if text == self._written:
            return
        if "ipykernel" in type(sys.stderr).__module__:
            self._display(text)
        elif sys.stderr.isatty():
            # Padded, not erased by a control sequence, which not every terminal knows.
            padded = text[:_LINE_CHARACTERS].ljust(_LINE_CHARACTERS)
            sys.stderr.write(f"\r{padded}" + ("" if text else "\r"))
            sys.stderr.flush()
        self._written = text

    def _display(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(shown, raw=True)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._written:
            self.show("")
