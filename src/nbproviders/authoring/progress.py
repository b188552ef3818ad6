"""A line of progress where there is somebody to see it: in a notebook, or in a terminal.

In a notebook it is plain text that is replaced in its place and emptied at the end: unlike a widget, it
leaves nothing behind that a notebook without a kernel could not show.
"""

from __future__ import annotations

import contextvars
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from nbproviders.core.watch import Watch
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Entry, Loader, State
from nbproviders.residency.memory import size_text
from nbproviders.residency.progress import Progress

SHOW_AFTER_S = 1.0
PUTTING_TO_SLEEP = "Putting to sleep"
_BAR_CHARACTERS = 20
_LINE_CHARACTERS = 79


def bar(share: float) -> str:
    """Return a share between 0 and 1 as a bar of blocks."""
    full = round(max(0.0, min(share, 1.0)) * _BAR_CHARACTERS)
    return "\u2588" * full + "\u2591" * (_BAR_CHARACTERS - full)


def in_notebook() -> bool:
    """Whether a cell shows what is displayed."""
    return "ipykernel" in type(sys.stderr).__module__


class Line:
    """One line, replaced by the next; gone when the block ends. Without a reader it shows nothing.

    A terminal has one at a time: another's would overwrite it.
    """

    _in_terminal: ClassVar[Line | None] = None

    def __init__(self) -> None:
        self._handle: Any = None
        self._written = ""

    def show(self, text: str) -> None:
        """Put `text` in the place of what is there."""
        if text == self._written:
            return
        if in_notebook():
            self._display(text)
        elif sys.stderr.isatty():
            if Line._in_terminal not in (None, self):
                return
            Line._in_terminal = self if text else None
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
        self.show("")


# Set where a front shows the progress of all that it does: a line of each call would only disturb.
_told_elsewhere: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "told_elsewhere", default=False
)


@contextmanager
def told_elsewhere() -> Iterator[None]:
    """Have no model that is waited for in this block show a line of its own."""
    token = _told_elsewhere.set(True)
    try:
        yield
    finally:
        _told_elsewhere.reset(token)


class Waiting(Watch):
    """A line for models that a call waits for, once that has taken a moment; gone when they are there.

    Of several calls that wait for one model, one shows it.

    Parameters
    ----------
    loaders
        How the models are loaded.
    doing
        What is told if none of them is on its way into memory, such as ``"Measuring"``; empty for nothing.
    """

    _shown: ClassVar[dict[object, Waiting]] = {}

    def __init__(self, loaders: Sequence[Loader], doing: str = "") -> None:
        self._loaders, self._doing = loaders, doing
        self._line = Line()
        self._key: object = None
        self._since_s: float | None = None

    def look(self) -> None:
        """Bring the line up to date."""
        found = first_coming(self._loaders)
        if found is None and not self._doing:
            self._since_s = None
            self._clear()
            return
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = now_s
        elapsed_s = now_s - self._since_s
        if elapsed_s < SHOW_AFTER_S:
            return
        shown = found or self._loaders[0]
        if self._key != shown.key:
            self._clear()
            self._key = shown.key
        if Waiting._shown.setdefault(shown.key, self) is self:
            told = self._of_doing(elapsed_s) if found is None else _told(found, elapsed_s)
            self._line.show(told)

    def _of_doing(self, elapsed_s: float) -> str:
        loader = self._loaders[0]
        entry = residencies.default().find(loader.key)
        sleeps = entry is not None and entry.on_the_move and self._doing == PUTTING_TO_SLEEP
        share = _share(entry.shown) if entry is not None and sleeps else ""
        return f"{self._doing} {loader.spec}, {elapsed_s:.0f} s{share}"

    def _clear(self) -> None:
        self._line.show("")
        if Waiting._shown.get(self._key) is self:
            del Waiting._shown[self._key]

    def close(self) -> None:
        """Take the line away."""
        self._clear()


def watch_opening(loaders: Sequence[Loader], doing: str = "") -> Watch | None:
    """Return what shows a line while models are opened; None where a front tells of it."""
    return None if _told_elsewhere.get() else Waiting(loaders, doing)


def watch_call(loader: Loader) -> Watch | None:
    """Return what shows a line while a call waits for its model; None outside a notebook.

    A script writes of its own to its terminal, and may be in the middle of a line.
    """
    return Waiting([loader]) if in_notebook() and not _told_elsewhere.get() else None


def first_coming(loaders: Sequence[Loader]) -> Entry | None:
    """Return the first of these models that is on its way into memory; None if none is."""
    residency = residencies.default()
    for loader in loaders:
        entry = residency.find(loader.key)
        # One that leaves, or makes a break for others, comes back for those who wait for it.
        if entry is not None and (entry.coming or entry.waiters):
            return entry
    return None


def doing(entry: Entry) -> str:
    """Return what is done with a model that is on its way into memory, in a few words."""
    verb = "loading" if entry.model is None else "waking"
    if entry.state is State.WAITING:
        return f"{verb} {entry.spec}: waiting for memory"
    if not entry.coming:
        return f"{verb} {entry.spec}: waiting for its turn"
    phase = entry.shown.phase
    return f"{verb} {entry.spec}" + ("" if phase == verb else f": {phase}")


def _told(entry: Entry, elapsed_s: float) -> str:
    said = doing(entry)
    text = f"{said[0].upper()}{said[1:]}, {elapsed_s:.0f} s"
    comes = entry.coming and entry.state is not State.WAITING
    return text + (_share(entry.shown) if comes else "")


def _share(progress: Progress) -> str:
    if progress.fraction is None:
        return ""
    done, total = map(size_text, (progress.done_bytes, progress.total_bytes))
    return f"  {bar(progress.fraction)}  {done} of {total}"
