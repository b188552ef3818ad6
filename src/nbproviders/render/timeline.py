"""A chart of which model was in memory when, drawn from what was recorded.

It knows events, and no residency: a record that begins in the middle is drawn as far as it tells.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nbproviders.render import charts
from nbproviders.render.charts import FAINT, INK, Picture
from nbproviders.residency.events import Event, Kind
from nbproviders.residency.memory import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Phase = Literal["loading", "ready", "asleep"]
MOST_MODELS = 24
_HEIGHTS: Mapping[Phase, float] = {"loading": 0.56, "ready": 0.56, "asleep": 0.24}
_MARKS: Mapping[Kind, str] = {"evicted": "x", "failed": "X"}
_FAILED = "#D55E00"
_HOUR_S, _DAY_S = 3600, 86400
_STEPS_S = (
    *(
        0.001,
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
    ),
    *(_HOUR_S, 2 * _HOUR_S, 3 * _HOUR_S, 6 * _HOUR_S, 12 * _HOUR_S, _DAY_S, 2 * _DAY_S, 7 * _DAY_S),
)
_MOST_STEPS = 4  # more times would not stand side by side
_NARROW = 1 / 150  # of the chart's width
_BINS = 600
_LEAST_S = 0.002


@dataclass(frozen=True, slots=True)
class Band:
    """One stretch of a model's time, in seconds since the epoch."""

    phase: Phase
    start_s: float
    end_s: float


@dataclass(slots=True)
class Lane:
    """What is known of one model.

    Attributes
    ----------
    bands
        Its stretches, in order.
    marks
        When it was evicted or failed.
    levels
        What it was charged from when on, on all devices together.
    counts
        How often what happened.
    now
        Where it is at the end; empty if it is not in memory.
    failed
        Whether it is not in memory because its load failed.
    """

    bands: list[Band] = field(default_factory=list)
    marks: list[tuple[Kind, float]] = field(default_factory=list)
    levels: list[tuple[float, int]] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    now: Phase | Literal[""] = ""
    since_s: float = 0.0
    failed: bool = False

    def become(self, phase: Phase | Literal[""], time_s: float) -> None:
        """End the stretch that is open and begin another; the same one goes on."""
        if phase == self.now:
            return
        if self.now and time_s > self.since_s:
            self.bands.append(Band(self.now, self.since_s, time_s))
        self.now, self.since_s = phase, time_s

    def charge(self, time_s: float, count: int) -> None:
        """Note what it is charged from now on."""
        self.levels.append((time_s, max(count, 0)))

    @property
    def charged(self) -> int:
        """What it is charged now."""
        return self.levels[-1][1] if self.levels else 0


def lanes(events: Sequence[Event], until_s: float) -> dict[str, Lane]:
    """Return what is known of each model, in the order in which they came."""
    found: dict[str, Lane] = {}
    for one in events:
        lane = found.setdefault(one.spec, Lane())
        _take(lane, one, events[0].time_s)
    for lane in found.values():
        if lane.now and until_s > lane.since_s:
            lane.bands.append(Band(lane.now, lane.since_s, until_s))
    return found


def _take(lane: Lane, event: Event, begin_s: float) -> None:
    now_s, kind = event.time_s, event.kind
    first = not lane.counts
    lane.counts[kind] += 1
    if first and kind in ("reused", "leased", "released", "pinned", "unpinned", "slept"):
        _was(lane, "ready", begin_s, event)  # what brought it in is no longer recorded
    elif first and kind == "woken":
        _was(lane, "asleep", begin_s, event)
    if kind == "created":
        lane.become("loading", max(now_s - _took_s(event), lane.since_s))
        lane.become("ready", now_s)
        lane.charge(now_s, event.bytes)
    elif kind == "woken":
        lane.become("ready", now_s)
        lane.charge(now_s, lane.charged + event.bytes)
    elif kind == "slept":
        lane.become("asleep", now_s)
        lane.charge(now_s, lane.charged - event.bytes)
    elif kind == "waiting" and not lane.now:
        lane.become("loading", now_s)
    elif kind in ("evicted", "freed") or (kind == "failed" and lane.now == "loading"):
        lane.become("", now_s)
        lane.charge(now_s, 0)
    if not lane.now and kind in ("failed", "evicted", "freed"):
        lane.failed = kind == "failed"  # one that was refused once may have come and gone since
    if kind in _MARKS:
        lane.marks.append((kind, now_s))


def _was(lane: Lane, phase: Phase, begin_s: float, event: Event) -> None:
    lane.now, lane.since_s = phase, begin_s
    lane.charge(begin_s, event.bytes if phase == "ready" else 0)


def _took_s(event: Event) -> float:
    """Return how long a load took; its event tells it in words."""
    number = event.detail.partition(" s")[0]
    try:
        seconds = float(number)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0


def picture(events: Sequence[Event], until_s: float) -> Picture:
    """Return the chart of all models up to a time, in seconds since the epoch."""
    ax = charts.axes(min(len({one.spec for one in events}), MOST_MODELS) + 1.6)
    found = lanes(events, until_s)
    timeline(ax, found, until_s)
    drawn = charts.picture(ax, _alt(found))
    _legend(drawn.figure)
    return drawn


def timeline(ax: Axes, found: Mapping[str, Lane], until_s: float) -> Axes:
    """Draw one lane a model, and below them the memory of all together.

    Parameters
    ----------
    ax
        Empty ones.
    found
        Of `lanes`.
    until_s
        Where the chart ends.
    """
    shades = charts.colours(found)
    shown = _latest(found)
    begin_s = _begin_s(found, until_s)
    span_s = max(until_s - begin_s, _LEAST_S)
    for place, (model, lane) in enumerate(shown.items()):
        _draw(ax, place, lane, shades[model], span_s)
        _beside(ax, place, lane.now or _gone(lane))
    peak = _draw_memory(ax, len(shown), found, begin_s, span_s)
    _beside(ax, len(shown), f"peak {size_text(peak)}")
    names = [*(charts.one_line(model) for model in shown), "memory, all devices"]
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(shown) + 0.5, -0.5)
    _time_axis(ax, begin_s, span_s)
    title = "Models in memory"
    if len(shown) < len(found):
        title += f": the last {len(shown)} of {len(found)}"
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    return ax


def _latest(found: Mapping[str, Lane]) -> dict[str, Lane]:
    """Return the lanes in which something happened last, in the order in which they came."""

    def last_s(model: str) -> float:
        lane = found[model]
        ends = [lane.bands[-1].end_s] if lane.bands else []
        return max([*ends, *(time_s for _, time_s in lane.marks)], default=-math.inf)

    told = [model for model in found if found[model].bands or found[model].marks]
    kept = set(sorted(told, key=last_s)[-MOST_MODELS:])
    return {model: lane for model, lane in found.items() if model in kept}


def _gone(lane: Lane) -> str:
    return "failed" if lane.failed else "gone"


def _draw(ax: Axes, place: int, lane: Lane, colour: str, span_s: float) -> None:
    for phase, height in _HEIGHTS.items():
        for narrow in (
            True,
            False,
        ):  # in a narrow one nobody sees a pattern, which takes long to draw
            spans = [
                (band.start_s, band.end_s - band.start_s)
                for band in lane.bands
                if band.phase == phase and (band.end_s - band.start_s < _NARROW * span_s) is narrow
            ]
            if spans:
                look = _look(phase, colour) | ({"hatch": None} if narrow else {})
                ax.broken_barh(spans, (place - height / 2, height), **look)
    for kind, marker in _MARKS.items():
        times = _apart(
            [time_s for found, time_s in lane.marks if found == kind], 3 * _NARROW * span_s
        )
        if times:
            ax.plot(times, [place] * len(times), **_mark(marker, kind))


def _apart(times: Sequence[float], gap_s: float) -> list[float]:
    """Return those of ascending times that can be told apart."""
    kept: list[float] = []
    for time_s in times:
        if not kept or time_s - kept[-1] >= gap_s:
            kept.append(time_s)
    return kept


def _look(phase: Phase, colour: str) -> dict[str, Any]:
    # Told apart by height and pattern too, not by colour alone.
    face = {"loading": "none", "ready": colour, "asleep": colour + "55"}[phase]
    hatch = "//////" if phase == "loading" else None
    return {"facecolor": face, "edgecolor": colour, "linewidth": 0.8, "hatch": hatch}


def _mark(marker: str, kind: Kind) -> dict[str, Any]:
    colour = _FAILED if kind == "failed" else INK
    edge = {"markeredgecolor": INK, "markeredgewidth": 0.8 if kind == "failed" else 1.6}
    size = 9 if kind == "failed" else 7
    return {
        "linestyle": "",
        "marker": marker,
        "color": colour,
        "markersize": size,
        "zorder": 4,
    } | edge


def _draw_memory(
    ax: Axes, place: int, found: Mapping[str, Lane], begin_s: float, span_s: float
) -> int:
    """Draw what all models were charged, as a step line; return the most it ever was."""
    levels = _levels(found, begin_s, span_s)
    peak = max(levels)
    if peak:
        times = [begin_s + i * span_s / _BINS for i in range(_BINS + 1)]
        floor = place + 0.4
        tops = [floor - 0.8 * level / peak for level in levels]
        tops.append(tops[-1])
        style: dict[str, Any] = {"color": FAINT, "alpha": 0.45, "linewidth": 0}
        ax.fill_between(times, tops, floor, step="post", **style)
        ax.step(times, tops, where="post", color=INK, linewidth=1)
    return peak


def _levels(found: Mapping[str, Lane], begin_s: float, span_s: float) -> list[int]:
    """Return the most that was charged in each of many short times, on all devices together."""
    changes: list[tuple[float, int]] = []
    for lane in found.values():
        before = 0
        for time_s, count in lane.levels:
            changes.append((time_s, count - before))
            before = count
    levels: list[int] = []
    level = done = 0
    changes.sort()
    for i in range(1, _BINS + 1):
        end_s, most = begin_s + i * span_s / _BINS, level
        while done < len(changes) and (changes[done][0] < end_s or i == _BINS):
            level += changes[done][1]
            most = max(most, level)
            done += 1
        levels.append(most)
    return levels


def _begin_s(found: Mapping[str, Lane], until_s: float) -> float:
    starts = [band.start_s for lane in found.values() for band in lane.bands]
    starts += [time_s for lane in found.values() for _, time_s in lane.marks]
    return min(starts, default=until_s)


def _time_axis(ax: Axes, begin_s: float, span_s: float) -> None:
    step_s = next((s for s in _STEPS_S if span_s / s <= _MOST_STEPS), _STEPS_S[-1])
    # Steps are counted from local midnight, so that hours stand at full hours.
    midnight_s = time.mktime((*time.localtime(begin_s)[:3], 0, 0, 0, 0, 0, -1))
    first = math.ceil((begin_s - midnight_s) / step_s)
    last = math.floor((begin_s + span_s - midnight_s) / step_s)
    ticks = [midnight_s + i * step_s for i in range(first, last + 1)][: 4 * _MOST_STEPS]
    ax.set_xticks(ticks, [_clock(tick, step_s) for tick in ticks])
    ax.set_xlim(begin_s - 0.01 * span_s, begin_s + 1.01 * span_s)


def _clock(time_s: float, step_s: float) -> str:
    if step_s < 1:
        places = math.ceil(-math.log10(step_s) - 1e-9)
        rounded = round(time_s, places)
        clock = time.strftime("%H:%M:%S", time.localtime(math.floor(rounded)))
        return clock + f"{rounded % 1:.{places}f}".removeprefix("0")
    form = "%H:%M:%S" if step_s < 60 else "%H:%M" if step_s < _DAY_S // 2 else "%d %b %H:%M"
    return time.strftime(form, time.localtime(round(time_s)))


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            *(Patch(label=phase, **_look(phase, FAINT)) for phase in _HEIGHTS),
            *(Line2D([], [], label=kind, **_mark(sign, kind)) for kind, sign in _MARKS.items()),
        ],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _beside(ax: Axes, place: int, text: str) -> None:
    where = ax.get_yaxis_transform()
    ax.text(1.02, place, text, transform=where, va="center", ha="left", fontsize=9.5, color=INK)


def _alt(found: Mapping[str, Lane]) -> str:
    shown = _latest(found)
    told = [f"{charts.one_line(model)} {_story(lane)}" for model, lane in shown.items()]
    return f"Timeline of models in memory: {'; '.join(told) or 'none'}."


def _story(lane: Lane) -> str:
    words: Mapping[Kind, str] = {
        "created": "loaded",
        "slept": "put to sleep",
        "woken": "woken",
        "evicted": "evicted",
        "freed": "freed",
        "failed": "failed",
    }
    told = [
        f"{word} {lane.counts[kind]}\u00d7" for kind, word in words.items() if lane.counts[kind]
    ]
    return f"{', '.join([*told, f'at the end {lane.now or _gone(lane)}'])}"
