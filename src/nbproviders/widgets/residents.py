"""`ResidentsPanel`: what is in memory, live, with buttons to sleep, wake, pin and unload.

What is shown follows the residency from plain functions; the panel only hands texts to widgets.
"""

from __future__ import annotations

import asyncio
import html
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import traitlets

from nbproviders.errors import ProviderError
from nbproviders.render import memory as shown
from nbproviders.residency import residency as residencies
from nbproviders.residency.residents import DeviceUse, Resident
from nbproviders.widgets.closing import close_when_rerun
from nbproviders.widgets.models import CODE, MUTED
from nbproviders.widgets.rows import DOING, Look, Row, code
from nbproviders.widgets.status import Status
from nbproviders.widgets.tasks import Home, Job, State as JobState, Tell, clicks_note, told

POLL_S = 0.25
# What changes of a device without us is shown from this share of it on: its free memory is never still.
NOTICED = 0.01
_WIDE = "720px"

# What is seen


@dataclass(frozen=True, slots=True)
class Seen:
    """The residency at one moment."""

    residents: tuple[Resident, ...] = ()
    devices: tuple[DeviceUse, ...] = ()
    error: str = ""


def look() -> Seen:
    """Return what is in memory now; why the devices cannot be read, such as a budget that is none."""
    residency = residencies.default()
    residents = tuple(residency.residents())
    try:
        return Seen(residents, tuple(residency.devices()))
    except ProviderError as error:
        return Seen(residents, error=told(error))


def looks_like(one: Seen, other: Seen) -> bool:
    """Whether a person would see no difference."""
    return (
        one.error == other.error
        and len(one.devices) == len(other.devices)
        and all(map(_device_looks_like, one.devices, other.devices))
        and [*map(_still, one.residents)] == [*map(_still, other.residents)]
    )


def _device_looks_like(one: DeviceUse, other: DeviceUse) -> bool:
    ours = [(d.device, d.total, d.in_use, d.idle, d.peers, d.limit is None) for d in (one, other)]
    drift = max(abs(one.free - other.free), abs((one.limit or 0) - (other.limit or 0)))
    return ours[0] == ours[1] and drift < NOTICED * max(one.total, 1)


def _still(one: Resident) -> Resident:
    """Return a model without what changes all the time and is not shown."""
    percent = None if one.progress is None else math.floor(100 * one.progress)
    return replace(one, idle_s=one.idle_s // 60, uses=0, load_s=0.0, progress=percent)


async def watch(on_page: Callable[[], Seen | None], tell: Tell) -> None:
    """Tell what is in memory whenever it looks different. On the engine.

    Parameters
    ----------
    on_page
        Returns what is shown now; None: nobody wants to know any more.
    tell
        Gets what is to be shown.
    """
    before = last = None
    while (seen := on_page()) is not None:
        if seen is not before:  # what was told and is not shown yet is not told twice
            before = last = seen
        del seen  # or this would keep what a panel shows while it waits
        now = look()
        if last is None or not looks_like(last, now):
            last = now
            tell(now)
        await asyncio.sleep(POLL_S)


# What is shown


class ResidentsPanel(widgets.VBox):  # type: ignore[misc]  # ipywidgets is not typed
    """What is in memory, live: a bar for each device, and a row for each model with its buttons.

    It looks four times a second at most, for as long as it is on a page, and sends only what changed.

    Attributes
    ----------
    error
        Why the last action failed or the devices cannot be read; empty if all is well.
    code
        The line that does what the last click did.
    """

    error = traitlets.Unicode()
    code = traitlets.Unicode("nbp.residents()")

    def __init__(self, **kwargs: Any) -> None:
        self._home = Home()
        self._rows: dict[str, Row] = {}
        self._said = Status()
        self._seen = Seen()
        # Weak: a panel that is forgotten must not live on in what looks for it.
        self._watch: Job[None] = Job(_weakly(self._watched), _weakly(self._show_last), self._home)
        self._build()
        # A number, for the page to count views in it: nobody looks, nobody has to send.
        super().__init__(children=self._children(), _view_count=0, **kwargs)
        self.observe(lambda _: self._home.call(self._watch_if_seen), "_view_count")
        self._show(look())
        close_when_rerun(self)

    def close(self) -> None:
        """Stop looking, and take it off the page."""
        if hasattr(self, "_parts"):  # not if it could not even be made
            self._watch.stop()
            for row in self._rows.values():
                row.close()
            for part in (*self._parts, self.layout):
                part.close()
        super().close()

    # The parts

    def _build(self) -> None:
        self._bars, self._status, self._note = (_html() for _ in range(3))
        self._models = widgets.VBox(layout=widgets.Layout(width="auto", max_width=_WIDE))
        self._code = widgets.Textarea(
            description="Code",
            tooltip="The code that does what was clicked last",
            rows=1,
            style={"description_width": "48px"},
            layout=widgets.Layout(width="auto", max_width=_WIDE),
        )
        self._code.observe(lambda _: self._home.call(self._show_code), "value")
        self._look = Look()

    def _children(self) -> list[Any]:
        note = clicks_note()
        self._note.value = f'<span style="{MUTED}">{html.escape(note)}</span>'
        always = [self._bars, self._models, self._status, self._code]
        own = [*always, self._note]
        styles = [part.style for part in own if part is not self._models]
        self._parts = [*own, *(part.layout for part in own), *styles, *self._look.parts]
        self._show_code()
        return own if note else always

    # The watch

    def _watch_if_seen(self) -> None:
        if not self._view_count:
            self._watch.stop()
            return
        here = weakref.ref(self)

        def on_page() -> Seen | None:
            panel = here()
            return None if panel is None or panel.comm is None else panel._seen

        self._watch.start(lambda tell: watch(on_page, tell))

    def _watched(self) -> None:
        if self._watch.state is JobState.FAILED:
            self._fail(self._watch.error)

    def _show_last(self, told: Sequence[Seen]) -> None:
        self._show(told[-1])

    # What is shown

    def _show(self, seen: Seen) -> None:
        before, self._seen = self._seen, seen
        if seen.error != before.error:
            if seen.error:
                self._fail(seen.error)
            elif self.error == before.error:
                self.error = ""
                self._say("", "The devices can be read again.")
        nothing = "" if seen.residents else f'<div style="{MUTED}">Nothing is in memory.</div>'
        self._bars.value = shown.devices_html(seen.devices) + nothing
        self._show_rows({one.key: one for one in seen.residents})

    def _show_rows(self, there: dict[str, Resident]) -> None:
        for key, row in [*self._rows.items()]:
            if key not in there and not row.busy:
                del self._rows[key]
                row.close()
        for key, one in there.items():
            if key not in self._rows:
                self._rows[key] = Row(self._look, self._home, self._begin, self._ended)
            self._rows[key].show(one)
        boxes = tuple(row.box for row in self._rows.values())
        if self._models.children != boxes:
            self._models.children = boxes

    def _begin(self, name: str, one: Resident) -> None:
        self.error = ""
        self.code = code(name, one)
        self._show_code()
        self._say("busy", DOING[name].format(one.spec))

    def _ended(self, kind: str, text: str) -> None:
        self._show(look())  # first: who reads that it is over may click at once
        if kind == "failed":
            self._fail(text)
        else:
            self._say(kind, text)

    def _fail(self, error: str) -> None:
        self.error = error
        self._say("failed", error)

    def _say(self, kind: str, text: str) -> None:
        self._said = Status(kind, text)
        self._status.value = self._said.html()

    def _show_code(self) -> None:
        """Show the code; what is typed over it is put back, for the field is there to copy from."""
        self._code.value = self.code

    # Without a kernel or a front end

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Return the widget's view, and its state as HTML and text for where no widget can be shown."""
        bundle = dict(super()._repr_mimebundle_(**kwargs) or {})
        held = shown.Residents(self._seen.residents, self._seen.devices)
        said = str(self._said)
        lines = ["ResidentsPanel", repr(held), said, self.code]
        bundle["text/plain"] = "\n".join(filter(None, lines))
        line = html.escape(self.code)
        bundle["text/html"] = (
            f"{held._repr_html_()}<p>{html.escape(said)}</p>"
            f'<pre style="{CODE};white-space:pre-wrap">{line}</pre>'
        )
        return bundle


def _html() -> Any:
    return widgets.HTML(layout=widgets.Layout(width="auto", max_width=_WIDE))


def _weakly(method: Callable[..., object]) -> Callable[..., None]:
    """Return what calls a method for as long as its object lives."""
    found = weakref.WeakMethod(method)

    def call(*arguments: object) -> None:
        alive = found()
        if alive is not None:
            alive(*arguments)

    return call
