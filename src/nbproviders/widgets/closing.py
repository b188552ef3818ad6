"""The end of widgets: with all that they are made of, and when their cell is run again.

The library keeps every widget, its layout and its style in a table until they are closed. Knows no widget of
ours; what makes one calls `close_when_rerun`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

import ipywidgets as widgets

# For each cell the widgets that its runs made, with the number of the run.
_made: dict[str, list[tuple[int, weakref.ref[Any]]]] = {}


def close_all(parts: Iterable[Any]) -> None:
    """Close widgets, and the layout and style of each, which are widgets too."""
    for part in parts:
        part.close()
        for name in ("layout", "style"):
            own = getattr(part, name, None)
            if isinstance(own, widgets.Widget):
                own.close()


def close_when_rerun(widget: Any) -> None:
    """Have a widget closed once its cell was run again and nothing leads to it but IPython's ``Out``.

    Its view is gone by then. Does nothing where front ends do not say which cell they run.
    """
    module = sys.modules.get("IPython.core.interactiveshell")
    shell: Any = module.InteractiveShell._instance if module is not None else None
    cell = _cell(shell)
    if not cell:
        return
    made = _made.setdefault(cell, [])
    run, made = shell.execution_count, _made.setdefault(cell, [])
    if made and made[-1][0] != run:  # the first of this run
        _at_end(shell, cell)
    made.append((run, weakref.ref(widget)))


def _cell(shell: Any) -> str:
    """Return what the front end calls the running cell; empty if it says nothing."""
    parent = getattr(getattr(shell, "kernel", None), "get_parent", None)
    if parent is None:
        return ""
    return str((parent("shell").get("metadata") or {}).get("cellId") or "")


def _at_end(shell: Any, cell: str) -> None:
    """Look at a cell's earlier widgets when it has ended: its names are bound anew then."""

    def ended(*_: object) -> None:
        shell.events.unregister("post_run_cell", ended)
        made = [(run, ref()) for run, ref in _made[cell]]
        last = made[-1][0]
        kept = []
        for run, widget in made:
            if widget is None or widget.comm is None:
                continue
            if run == last or _named(shell.user_ns, widget):
                kept.append((run, weakref.ref(widget)))
            else:
                widget.close()
        _made[cell] = kept

    shell.events.register("post_run_cell", ended)


def _named(names: dict[str, Any], widget: Any) -> bool:
    """Whether a name of the user's leads to it, by way of collections and other widgets too."""
    return any(
        _leads(value, widget, 3)
        for name, value in list(names.items())
        if not name.startswith("_") and name != "Out"
    )


def _leads(value: Any, widget: Any, steps: int) -> bool:
    if value is widget or not steps:
        return value is widget
    inside: Iterable[Any] = ()
    if isinstance(value, (list, tuple, set)):
        inside = value
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, widgets.Box):
        inside = value.children
    return any(_leads(one, widget, steps - 1) for one in list(inside))
