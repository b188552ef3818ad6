"""A model in the residents panel: its row, what its buttons do, and why one cannot be pressed now."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets as widgets
from ipywidgets.widgets.widget_string import HTMLStyle

from nbproviders.errors import InvalidRequestError
from nbproviders.render import memory as shown
from nbproviders.render.tables import NO_FORMULAS, visible
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import State
from nbproviders.residency.memory import size_text
from nbproviders.residency.residents import Resident
from nbproviders.widgets.models import MUTED, freed, quoted
from nbproviders.widgets.tasks import Home, Job, State as JobState

_MOVING = {
    State.COLD: "loading",
    State.LOADING: "loading",
    State.WAITING: "waiting for memory",
    State.WAKING: "waking",
    State.DRAINING: "leaving",
    State.FAILED: "failed",
}
DOING = {
    "sleep": "Putting {} to sleep; running calls are waited for",
    "wake": "Waking {}",
    "pin": "Pinning {}",
    "unpin": "Unpinning {}",
    "unload": "Unloading {}; running calls are waited for",
}


@dataclass(frozen=True, slots=True)
class Action:
    """What a button does: its name is that of the function of `nbproviders`.

    Attributes
    ----------
    tooltip
        What it is for.
    reason
        Why it cannot be done now; empty if it can.
    """

    name: str
    tooltip: str
    reason: str = ""


def actions(one: Resident) -> tuple[Action, Action, Action]:
    """Return what the three buttons of a model do: sleep or wake, pin or unpin, unload."""
    name = visible(one.spec)
    moving = f"{name} is {_MOVING[one.state]}." if one.state in _MOVING else ""
    leaving = moving if one.state in (State.DRAINING, State.FAILED) else ""
    if one.state in (State.WARM, State.WAKING):
        first = Action("wake", f"Bring {name} back to its device", moving)
    else:
        reason = moving
        if one.pinned:
            reason = reason or f"{name} is pinned: unpin it first."
        elif not one.sleeps:
            reason = reason or f"{name} cannot sleep: unload it, it loads again at its next use."
        first = Action("sleep", f"Free the device of {name}; running calls are waited for", reason)
    if one.pinned:
        second = Action("unpin", f"Let {name} leave again when its memory is wanted", leaving)
    else:
        second = Action("pin", f"Keep {name} in memory, whatever else is wanted", leaving)
    third = Action("unload", f"Free all memory of {name}; running calls are waited for", leaving)
    return first, second, third


async def act(name: str, one: Resident) -> str:
    """Do what a button says, on the engine, and return what to say of it.

    Raises
    ------
    ProviderError
        If the model has left meanwhile, or it cannot be done.
    """
    residency = residencies.default()
    entry = next((e for e in residency.entries() if e.key.digest == one.key), None)
    if entry is None:
        raise InvalidRequestError(
            f"{one.spec} is no longer in memory.",
            hint=f"nbp.load({quoted(one.spec)}) loads it again.",
        )
    if name == "sleep":
        return f"{one.spec} is asleep: {size_text(await residency.sleep(entry))} came back."
    if name == "wake":
        async with residency.using(entry.loader):
            return f"{one.spec} is ready."
    if name == "pin":
        await residency.pin(entry.loader)
        return f"{one.spec} stays in memory until it is unpinned."
    if name == "unpin":
        residency.unpin(entry)
        return f"{one.spec} may leave when its memory is wanted."
    return freed(one.spec, await residency.unload(lambda other: other is entry))


def code(name: str, one: Resident) -> str:
    """Return the line that does the same."""
    return f"nbp.{name}({quoted(one.spec)})"


def row_html(one: Resident) -> str:
    """Return a model's row: its name, and below it how it is."""
    idle = shown.idle_text(one) if one.idle_s >= 60 else ""
    facts = [
        shown.memory_text(one),
        f"open {shown.open_text(one)}" if one.handles else "not open",
        f"{one.running} running" if one.running else "",
        f"idle {idle}" if idle else "",
        "pinned" if one.pinned else "",
    ]
    rest = html.escape(shown.glued(visible(" · ".join(filter(None, facts)))))
    return (
        f'<div class="{NO_FORMULAS}" style="line-height:1.4;overflow-wrap:anywhere">'
        f'<div dir="auto">{html.escape(visible(one.spec))}</div>'
        f'<div><b>{shown.glued(shown.state_text(one))}</b> <span style="{MUTED}">· {rest}</span>'
        "</div></div>"
    )


class Look:
    """Layouts and styles that all rows share: each of their own would be one more message."""

    def __init__(self) -> None:
        self.box = widgets.Layout(
            width="auto", align_items="center", border_top="1px solid var(--jp-border-color2,#8886)"
        )
        self.text = widgets.Layout(flex="1 1 0", min_width="120px", margin="2px 8px 2px 2px")
        self.button = widgets.Layout(flex="0 0 auto", width="76px")
        self.text_style, self.button_style = HTMLStyle(), widgets.ButtonStyle()
        self.parts = [self.box, self.text, self.button, self.text_style, self.button_style]


class Row:
    """One model with its buttons; it is shown anew, never made anew, when its numbers change.

    Parameters
    ----------
    look
        Shared by all rows.
    home
        Where it may be changed.
    begin
        Called with the name of an action and the model, before it is done.
    ended
        Called with how it ended, done, failed or nothing when it was stopped, and what to say of it.
    """

    def __init__(
        self,
        look: Look,
        home: Home,
        begin: Callable[[str, Resident], object],
        ended: Callable[[str, str], object],
    ) -> None:
        self._home, self._begin, self._ended = home, begin, ended
        self._job: Job[str] = Job(self._changed, home=home)
        self._running = -1
        self._text = widgets.HTML(layout=look.text, style=look.text_style)
        self._buttons = [
            widgets.Button(layout=look.button, style=look.button_style) for _ in range(3)
        ]
        for place, button in enumerate(self._buttons):
            button.on_click(lambda _, place=place: home.call(self._click, place))
        self.box = widgets.HBox([self._text, *self._buttons], layout=look.box)

    @property
    def busy(self) -> bool:
        """Whether something is being done with the model."""
        return self._job.busy

    def show(self, one: Resident) -> None:
        """Show the model as it is."""
        self._one, self._actions = one, actions(one)
        self._text.value = row_html(one)
        for place, (button, action) in enumerate(zip(self._buttons, self._actions, strict=True)):
            stops = self.busy and place == self._running
            with button.hold_sync():
                button.description = "Stop" if stops else action.name.capitalize()
                button.tooltip = "Stop waiting for it" if stops else action.reason or action.tooltip
                # Not while busy: a disabled button loses the keyboard's focus. Clicks are ignored then.
                button.disabled = bool(action.reason) and not self.busy

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until nothing is done with it; False after `timeout_s`. Never on the thread of a loop."""
        return self._job.wait(timeout_s)

    def close(self) -> None:
        """Take it off the page."""
        self._job.stop()
        for part in (self._text, *self._buttons, self.box):
            part.close()

    def _click(self, place: int) -> None:
        if self.busy:
            if place == self._running:
                self._job.stop()
                self._ended("", "No longer waiting; what was begun ends behind.")
            return
        action, one = self._actions[place], self._one
        if action.reason:
            return
        self._running = place
        self._begin(action.name, one)
        self._job.start(lambda _: act(action.name, one), lambda said: self._ended("done", said))

    def _changed(self) -> None:
        if self._job.state is JobState.FAILED:
            self._ended("failed", self._job.error)
        else:
            self.show(self._one)
