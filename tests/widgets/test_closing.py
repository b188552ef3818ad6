"""Promises of the end of widgets: nothing of them stays in the library's table."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets
import pytest
from IPython.core import interactiveshell
from ipywidgets.widgets.widget import _instances

from nbproviders.widgets import closing
from nbproviders.widgets.picker import ModelPicker


class Shell:
    """What is used of a shell: names, events, the number of the run, the cell's name."""

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {}
        self.execution_count = 0
        self.events = self.kernel = self
        self.ended: list[Callable[..., object]] = []
        self.cell = ""

    def register(self, event: str, function: Callable[..., object]) -> None:
        assert event == "post_run_cell"
        self.ended.append(function)

    def unregister(self, event: str, function: Callable[..., object]) -> None:
        self.ended.remove(function)

    def get_parent(self, channel: str) -> dict[str, Any]:
        return {"metadata": {"cellId": self.cell} if self.cell else {}}

    def run(self, cell: str, code: str) -> None:
        self.cell, self.execution_count = cell, self.execution_count + 1
        exec(code, self.user_ns)
        for function in list(self.ended):
            function(None)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in which `make` makes a widget."""
    made = Shell()
    monkeypatch.setattr(interactiveshell.InteractiveShell, "_instance", made)
    monkeypatch.setattr(closing, "_made", {})
    widgets_made: list[weakref.ref[Any]] = []

    def make() -> Any:
        box = widgets.VBox()
        closing.close_when_rerun(box)
        widgets_made.append(weakref.ref(box))
        return box

    made.user_ns.update(make=make, widgets=widgets)
    yield made
    for ref in widgets_made:
        one = ref()
        if one is not None:
            one.close()


def is_open(widget: Any) -> bool:
    return widget.comm is not None


def test_a_closed_picker_leaves_nothing() -> None:
    """Layouts and styles are widgets too, and go with it."""
    before = set(_instances)
    one = ModelPicker("echo:echo")
    assert len(_instances) > len(before)
    one._found._looks.wait(60)
    one.close()
    assert set(_instances) <= before


def test_a_cell_run_again_closes_what_it_made(shell: Shell) -> None:
    """Once its name is bound anew, the widget of the former run is closed; Out does not save it."""
    shell.run("a", "one = make()")
    first = shell.user_ns["_1"] = shell.user_ns["one"]
    shell.run("b", "other = make()")
    assert is_open(first)
    shell.run("a", "one = make()")
    assert not is_open(first)
    assert is_open(shell.user_ns["one"])
    assert is_open(shell.user_ns["other"])
    assert shell.ended == []


@pytest.mark.parametrize(
    "kept",
    ["name = one", "many = [one]", "many = {'x': (one,)}", "box = widgets.HBox([one])"],
)
def test_what_a_name_leads_to_stays(shell: Shell, kept: str) -> None:
    """A widget of a former run stays while a name, a collection or another widget holds it."""
    shell.run("a", "one = make()")
    first = shell.user_ns["one"]
    shell.run("b", kept)
    shell.run("a", "one = make()")
    assert is_open(first)
    shell.run("b", "name = many = box = None")
    shell.run("a", "one = make()")
    assert not is_open(first)


def test_widgets_of_one_run_stay_together(shell: Shell) -> None:
    """A cell may make several, with names or without; of a former run those without leave."""
    shell.run("a", "make(); names = [make()]; make()")
    shell.run("a", "make(); one = make()")
    assert [run for run, _ in closing._made["a"]] == [1, 2, 2]
    assert is_open(shell.user_ns["names"][0])
    assert is_open(shell.user_ns["one"])


def test_without_a_name_for_the_cell_nothing_is_closed(shell: Shell) -> None:
    """Front ends that do not tell their cells, and plain Python, get what they had."""
    shell.run("", "one = make()")
    first = shell.user_ns["one"]
    shell.run("", "one = make()")
    assert is_open(first)
    assert closing._made == {}
