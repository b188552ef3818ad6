"""What is in memory and what happened, as lists that a notebook shows.

Residents: a bar for each device, its parts told in words as well, and a table. Events: a chart of who was
in memory when, and a table. All of it is escaped HTML without script, and plain text beside it.
"""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from nbproviders.render import timeline
from nbproviders.render.charts import Picture
from nbproviders.render.tables import NO_FORMULAS, Column, as_html, as_text, visible
from nbproviders.residency.entry import State
from nbproviders.residency.events import Event, Kind
from nbproviders.residency.memory import HOST, size_text
from nbproviders.residency.residents import NEXT_TO_NOTHING, DeviceUse, Resident

MOST_EVENTS = 50
_WIDTH = 160  # columns of the text form
_SIGNS = 32  # of a bar in the text form
_MUTED = "opacity:.75"
# Okabe and Ito's colours, as in charts; on light and dark grounds alike. What is free is the ground itself.
_PARTS = (
    ("in_use", "models in use", "#0072B2", "█"),
    ("idle", "idle models", "#56B4E9", "▓"),
    ("peers", "other kernels", "#E69F00", "▒"),
    ("strangers", "other programs", "#8C8C8C", "░"),
    ("kept", "not for models", "#8884", "-"),
    ("free", "free", "transparent", "·"),
)
_FRAME = "border:1px solid #8888"
_LOOSE = re.compile(r"(?<=\d) (?=[A-Za-z%])|(?<=\bIn) (?=\[)|(?<=B on) |(?<=opened) (?=\d)")
_FACTS = frozenset({"state", "memory", "open", "idle", "load", "event"})
# The list has each opening and closing, the table how often a model was opened.
_OPENINGS = frozenset({"reused", "leased", "released"})
_CHANGES: Mapping[Kind, str] = {
    "created": "+",
    "woken": "+",
    "slept": "\u2212",
    "evicted": "\u2212",
    "freed": "\u2212",
}

_RESIDENTS = [
    Column("model", "model", name=True),
    Column("state", "state"),
    Column("memory", "memory"),
    Column("open", "open"),
    Column("idle", "idle"),
    Column("load", "load"),
]
_EVENTS = [
    Column("time", "time"),
    Column("event", "event"),
    Column("model", "model", name=True),
    Column("memory", "memory came or left"),
    Column("note", "note"),
]


class Residents(list[Resident]):
    """Models in memory, asleep, loading or leaving, and how the memory of each device is shared out.

    Attributes
    ----------
    devices
        The devices, as far as they are told.
    """

    def __init__(
        self, residents: Iterable[Resident] = (), devices: Iterable[DeviceUse] = ()
    ) -> None:
        super().__init__(residents)
        self.devices = tuple(devices)

    @property
    def notes(self) -> list[str]:
        """What a person should know of how they were loaded, such as a step that was left out and why."""
        return [f"{one.spec}: {note}" for one in self for note in one.notes]

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "model": one.spec,
                "state": _whole_state(one),
                "memory": memory_text(one),
                "open": open_text(one),
                "idle": idle_text(one) or None,
                "load": f"{one.load_s:.2f} s" if one.load_s else None,
            }
            for one in self
        ]

    def _repr_html_(self) -> str:
        table = as_html(_glued_rows(self._rows()), _RESIDENTS) if self else f"<p>{_NOTHING}</p>"
        notes = "".join(f"<li>{html.escape(visible(note))}</li>" for note in self.notes)
        return f"{devices_html(self.devices)}{table}{f'<ul>{notes}</ul>' if notes else ''}"

    def __repr__(self) -> str:
        table = as_text(self._rows(), _RESIDENTS, _WIDTH) if self else _NOTHING
        return "\n".join(
            [*map(_device_line, self.devices), table, *(visible(note) for note in self.notes)]
        )


class Events(list[Event]):
    """What happened to models, oldest first.

    Attributes
    ----------
    told_s
        When they were asked for, in seconds since the epoch; the chart ends there.
    """

    def __init__(self, events: Iterable[Event] = (), told_s: float | None = None) -> None:
        super().__init__(events)
        self.told_s = time.time() if told_s is None else told_s

    def chart(self) -> Picture:
        """Return who was in memory when, as a picture."""
        return timeline.picture(self, self.told_s)

    def _rows(self) -> tuple[list[dict[str, object]], str]:
        """Return the last rows, and how many came before them."""
        groups = _gathered(self)
        left_out = max(len(groups) - MOST_EVENTS, 0)
        more = f"{left_out:,} earlier {'row is' if left_out == 1 else 'rows are'} not shown; "
        rows = [_event_row(group) for group in groups[left_out:]]
        return rows, f"{more}the list itself has all {len(self):,}." if left_out else ""

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{_NO_EVENTS}</p>"
        rows, more = self._rows()
        note = f'<p style="{_MUTED};margin:2px 12px">{more}</p>' if more else ""
        return f"<div>{self.chart().as_html()}</div>{note}{as_html(_glued_rows(rows), _EVENTS)}"

    def __repr__(self) -> str:
        if not self:
            return _NO_EVENTS
        rows, more = self._rows()
        return "\n".join([*([f"({more})"] if more else []), as_text(rows, _EVENTS, _WIDTH)])


_NOTHING = "Nothing is in memory."
_NO_EVENTS = "Nothing has happened yet."


def glued(text: str) -> str:
    """Return text that breaks no line between a number and its unit, nor in the name of a cell."""
    return _LOOSE.sub("\u00a0", text)


def _glued_rows(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {
            key: glued(one) if isinstance(one, str) and key in _FACTS else one
            for key, one in row.items()
        }
        for row in rows
    ]


# One model in words


def state_text(one: Resident) -> str:
    """Return where a model is, in a word that needs no explanation, with its progress."""
    if one.state is State.HOT:
        return "running" if one.running else "ready"
    words = {
        State.WARM: "asleep",
        State.COLD: "loading",
        State.DRAINING: "leaving",
    }
    word = words.get(one.state, str(one.state))
    if one.progress is None or one.state is State.WAITING:
        return word
    return f"{word} {math.floor(100 * one.progress)} %"


def _whole_state(one: Resident) -> str:
    calls = f"{one.running:,} calls" if one.running > 1 else ""
    return ", ".join(filter(None, [state_text(one), calls, "pinned" if one.pinned else ""]))


def memory_text(one: Resident) -> str:
    """Return what a model is charged on each device; a few bytes are not worth a figure."""
    held = [
        f"{size_text(count)} {'main memory (copy)' if device == HOST else f'on {device}'}"
        for device, count in one.bytes.items()
        if count >= NEXT_TO_NOTHING
    ]
    return ", ".join(held) or ("next to nothing" if any(one.bytes.values()) else "nothing")


def open_text(one: Resident) -> str:
    """Return how many handles are open, and in which cells."""
    cells = f" in {', '.join(one.opened_in)}" if one.opened_in else ""
    return f"{one.handles}{cells}"


def idle_text(one: Resident) -> str:
    """Return how long nobody has used a model; empty while it is used, comes or goes."""
    resting = one.state in (State.HOT, State.WARM) and not one.running
    return span_text(one.idle_s) if resting else ""


def span_text(seconds: float) -> str:
    """Return a span of time as people say it.

    Examples
    --------
    >>> span_text(4.2), span_text(200), span_text(9000), span_text(400_000)
    ('4 s', '3 min', '2 h 30 min', '4 d 15 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


# Devices


def devices_html(devices: Sequence[DeviceUse]) -> str:
    """Return a bar for each device, with its parts in words below it."""
    return "".join(map(_device_html, devices))


def _device_html(use: DeviceUse) -> str:
    parts = _parts(use)
    whole = max(use.total, sum(count for _, count, _ in parts), 1)
    pieces = "".join(
        f'<span style="display:inline-block;height:14px;min-width:2px;'
        f'width:{100 * count / whole:.2f}%;background-color:{colour}"></span>'
        for _, count, colour in parts
        if colour != "transparent"
    )
    words = "".join(
        f'<span style="display:inline-block;margin:0 14px 0 0;white-space:nowrap">'
        f'<span style="display:inline-block;width:10px;height:10px;margin:0 5px 0 0;'
        f"vertical-align:-1px;{_FRAME};"
        f'background-color:{colour}"></span>{name} {size_text(count)}</span> '
        for name, count, colour in parts
    )
    name, size = html.escape(visible(_device_name(use))), html.escape(_size(use))
    label = html.escape(f"{visible(_device_name(use))}, {_size(use)}: {_words(use)}")
    return (
        f'<div class="{NO_FORMULAS}" style="max-width:720px;margin:4px 0 10px;line-height:1.5;'
        f'font-variant-numeric:tabular-nums"><div><b>{name}</b> '
        f'<span style="{_MUTED}">{size}</span></div>'
        f'<div role="img" aria-label="{label}" title="{label}" style="height:14px;{_FRAME};'
        'border-radius:3px;overflow:hidden;white-space:nowrap;font-size:0;line-height:0">'
        f"{pieces}</div><div>{words}</div></div>"
    )


def _device_line(use: DeviceUse) -> str:
    parts = {name: count for name, count, _ in _parts(use)}
    whole = max(use.total, sum(parts.values()), 1)
    bar = "".join(
        sign * (max(round(_SIGNS * parts[name] / whole), 1) if name in parts else 0)
        for _, name, _, sign in _PARTS
    )
    name = visible(_device_name(use))
    return f"{name} [{bar[:_SIGNS]:·<{_SIGNS}}] {_size(use)}: {_words(use)}"


def _parts(use: DeviceUse) -> list[tuple[str, int, str]]:
    """Return name, bytes and colour of each part that is worth a figure."""
    found = [(name, int(getattr(use, key)), colour) for key, name, colour, _ in _PARTS]
    return [part for part in found if part[1] >= NEXT_TO_NOTHING]


def _words(use: DeviceUse) -> str:
    return ", ".join(f"{name} {size_text(count)}" for name, count, _ in _parts(use)) or "empty"


def _device_name(use: DeviceUse) -> str:
    return "main memory for copies of weights" if use.device == HOST else use.device


def _size(use: DeviceUse) -> str:
    if not use.total and use.limit is None:
        return "size not known"
    if use.limit is None or use.limit >= use.total:
        return size_text(use.total)
    return f"{size_text(use.total)}, of which models may take {size_text(use.limit)}"


# Events


def _gathered(events: Sequence[Event]) -> list[list[Event]]:
    """Return events in groups: opening and closing is one with what happened to the model before."""
    groups: list[list[Event]] = []
    last: dict[str, list[Event]] = {}
    for one in events:
        if one.kind not in _OPENINGS or one.spec not in last:
            groups.append([])
            last[one.spec] = groups[-1]
        last[one.spec].append(one)
    return groups


def _event_row(group: Sequence[Event]) -> dict[str, object]:
    first, last = group[0], group[-1]
    # A model that came at nine and was opened until noon came at nine.
    told = (first, last) if first.kind in _OPENINGS else (first,)
    times = [time.strftime("%H:%M:%S", time.localtime(one.time_s)) for one in told]
    sign = _CHANGES.get(first.kind, "")
    moved = f"{size_text(first.moved_bytes)} moved" if first.moved_bytes else ""
    return {
        "time": "\u2013".join(dict.fromkeys(times)),
        "event": _event_text(group),
        "model": first.spec,
        "memory": f"{sign}{size_text(first.bytes)}" if sign and first.bytes else None,
        "note": ", ".join(filter(None, [_cause(first), moved])),
    }


def _cause(event: Event) -> str:
    """Return what is told of an event, without the name that stands beside it."""
    return event.detail.removeprefix(f"Failed to setup resource '{event.spec}': ")


def _event_text(group: Sequence[Event]) -> str:
    opened = sum(one.kind == "leased" for one in group)
    words = [] if group[0].kind in _OPENINGS else [str(group[0].kind)]
    if opened:
        words.append("opened" if opened == 1 else f"opened {opened:,}\u00d7")
    return ", ".join(words) or ("closed" if group[-1].kind == "released" else "opened")
