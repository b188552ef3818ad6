"""The chart of who was in memory when tells what was recorded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from nbproviders.render import charts, timeline
from nbproviders.render.timeline import Band, lanes
from nbproviders.residency.events import Event

A, B = "echo:a", "echo:b"


def event(kind: str, spec: str, time_s: float, count: int = 0, detail: str = "") -> Event:
    return Event(time_s, kind, spec, count, detail)  # type: ignore[arg-type]


LIFE = (
    event("created", A, 110.0, 8, "10.000 s"),
    event("leased", A, 110.0),
    event("slept", A, 120.0, 6, "to make room"),
    event("woken", A, 130.0, 6, "0.5 s from host copy"),
    event("evicted", A, 140.0, 8),
    event("created", A, 160.0, 8, "5.000 s"),
    event("freed", A, 170.0, 8),
)


def test_a_life_is_its_bands() -> None:
    """Loading, ready, asleep and gone follow each other without a gap or an overlap."""
    lane = lanes(LIFE, 200.0)[A]
    assert lane.bands == [
        Band("loading", 100.0, 110.0),
        Band("ready", 110.0, 120.0),
        Band("asleep", 120.0, 130.0),
        Band("ready", 130.0, 140.0),
        Band("loading", 155.0, 160.0),
        Band("ready", 160.0, 170.0),
    ]
    assert lane.marks == [("evicted", 140.0)]
    assert lane.now == ""
    assert [count for _, count in lane.levels] == [8, 2, 8, 0, 8, 0]


def test_what_is_there_is_drawn_to_the_end() -> None:
    """A model that is in memory or asleep now reaches to the chart's right end."""
    found = lanes([*LIFE[:3], event("created", B, 150.0, 1, "1.0 s")], 200.0)
    assert found[A].bands[-1] == Band("asleep", 120.0, 200.0)
    assert (found[A].now, found[B].now) == ("asleep", "ready")


@pytest.mark.parametrize(
    ("first", "phase"),
    [("leased", "ready"), ("released", "ready"), ("slept", "ready"), ("woken", "asleep")],
)
def test_a_record_that_begins_in_the_middle(first: str, phase: str) -> None:
    """Where the load is no longer recorded, the model was there from the record's first moment."""
    found = lanes([event("created", B, 50.0, 1), event(first, A, 60.0, 5)], 100.0)
    assert found[A].bands[0].phase == phase
    assert found[A].bands[0].start_s == 50.0


def test_waiting_counts_as_loading() -> None:
    """A model that waits for memory is on its way; one that fails then is not."""
    wait = event("waiting", A, 10.0)
    loaded = lanes([wait, event("created", A, 30.0, 1, "25.0 s")], 40.0)[A]
    assert loaded.bands[0] == Band("loading", 10.0, 30.0)
    failed = lanes([wait, event("failed", A, 30.0)], 40.0)[A]
    assert failed.bands == [Band("loading", 10.0, 30.0)]
    assert failed.marks == [("failed", 30.0)]
    assert failed.now == ""


def test_a_wake_that_fails_leaves_a_sleeper() -> None:
    """A failure while a model is in memory is marked, and takes nothing away."""
    lane = lanes([*LIFE[:3], event("failed", A, 125.0)], 130.0)[A]
    assert lane.bands[-1] == Band("asleep", 120.0, 130.0)


@pytest.mark.parametrize("detail", ["", "soon", "nan s", "inf s", "-3 s", "1e999 s"])
def test_a_load_of_unknown_length_has_none(detail: str) -> None:
    """A detail that tells no seconds is taken for none."""
    lane = lanes([event("created", A, 10.0, 1, detail)], 20.0)[A]
    assert lane.bands == [Band("ready", 10.0, 20.0)]


def faces(picture: charts.Picture) -> set[str]:
    """Return the colours of all filled shapes."""
    (ax,) = picture.figure.axes
    shapes = [one for one in ax.collections if isinstance(one, PolyCollection)]
    return {to_hex(face).upper() for one in shapes for face in one.get_facecolor()}


def test_models_keep_their_colours() -> None:
    """The first model has the first colour of every chart, the second the second."""
    found = timeline.picture([event("leased", A, 1.0), event("leased", B, 1.0)], 2.0)
    shades = charts.colours([A, B])
    assert set(shades.values()) <= faces(found)


def test_states_are_told_apart_without_colour() -> None:
    """Loading has a pattern, and a sleeper is thinner than one that is ready."""
    (ax,) = timeline.picture(LIFE, 200.0).figure.axes
    bands = {}
    for shape in ax.collections:
        if isinstance(shape, PolyCollection) and to_hex(shape.get_edgecolor()[0]) == "#0072b2":
            heights = shape.get_paths()[0].vertices[:, 1]
            bands[round(float(heights.max() - heights.min()), 2)] = shape.get_hatch()
    assert bands[0.24] is None
    assert set(bands) == {0.24, 0.56}
    hatches = [one.get_hatch() for one in ax.collections if isinstance(one, PolyCollection)]
    assert "//////" in hatches


def words(picture: charts.Picture) -> list[str]:
    (ax,) = picture.figure.axes
    beside = [text.get_text() for text in (*ax.texts, *ax.get_yticklabels())]
    return [*beside, ax.get_title(loc="left")]


def test_the_chart_is_told_in_words() -> None:
    """Beside each lane stands where the model is now; the alternative text tells its life."""
    drawn = timeline.picture([*LIFE[:3], event("failed", B, 121.0)], 200.0)
    assert {"asleep", "failed", "peak 8 B", A, B, "memory, all devices"} <= set(words(drawn))
    assert drawn.alt == (
        "Timeline of models in memory: echo:a loaded 1\u00d7, put to sleep 1\u00d7, at the end asleep; "
        "echo:b failed 1\u00d7, at the end failed."
    )


def test_a_model_that_came_after_a_refusal_is_gone_not_failed() -> None:
    """Beside a lane stands how it ended; what failed before is a mark in the chart."""
    refused = event("failed", A, 5.0)
    for later, word in (
        ([], "failed"),
        ([event("released", A, 6.0)], "failed"),
        ([event("created", A, 10.0, 1), event("freed", A, 20.0, 1)], "gone"),
        ([event("created", A, 10.0, 1), event("evicted", A, 20.0), refused], "failed"),
    ):
        assert word in words(timeline.picture([refused, *later], 30.0))


def test_the_memory_of_all_is_added_up() -> None:
    """The peak is that of both together, not of one after the other."""
    both = [event("created", A, 10.0, 3 * 2**30), event("created", B, 20.0, 2**30)]
    assert "peak 4.0 GiB" in words(timeline.picture([*both, event("freed", A, 30.0)], 40.0))
    after = [both[0], event("freed", A, 15.0), both[1]]
    assert "peak 3.0 GiB" in words(timeline.picture(after, 40.0))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event("freed", A, 5.0)],
        [event("created", A, 5.0, 0)],
        [event("created", "echo:$x_1$ \u5df4\u9ece\n\u202e" + "n" * 300, 5.0, 1, "9.0 s")],
        [event("created", A, 5.0, 1), event("freed", A, 5.0, 1)],
        [event("leased", A, 5.0), event("slept", A, 400 * 86400.0, 1)],
    ],
)
def test_anything_recorded_can_be_drawn(events: Sequence[Event]) -> None:
    """Nothing, a moment, a year and any name make a picture without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = timeline.picture(events, 6.0 if not events else events[-1].time_s + 1)
        assert drawn.png().startswith(b"\x89PNG")
        assert "\u202e" not in drawn.alt


def test_of_many_models_the_last_are_drawn() -> None:
    """A chart stays readable: the models in which something happened last, and how many there were."""
    many = [event("created", f"echo:m{i}", 10.0 * i, 1) for i in range(40)]
    gone = [event("freed", f"echo:m{i}", 1000.0, 1) for i in range(20)]
    shown = words(timeline.picture([*many, *gone], 2000.0))
    assert "Models in memory: the last 24 of 40" in shown
    assert "echo:m39" in shown
    assert "echo:m0" not in shown


def test_the_chart_ends_when_it_was_asked_for() -> None:
    """A model that is there reaches to the right end, also a moment after it came."""
    for span_s in (0.01, 3.0, 5000.0):
        drawn = timeline.picture([event("leased", A, 1_700_000_000.0)], 1_700_000_000.0 + span_s)
        (ax,) = drawn.figure.axes
        low, high = ax.get_xlim()
        [band] = [one for one in ax.collections if to_hex(one.get_facecolor()[0]) == "#0072b2"]
        ends = band.get_paths()[0].vertices[:, 0]
        assert ends.min() - low < 0.02 * (high - low)
        assert high - ends.max() < 0.02 * (high - low)


def test_times_are_the_clocks() -> None:
    """The axis has a few times of day, in order, within the chart."""
    for span_s in (0.0, 0.003, 0.02, 0.3, 4.0, 90.0, 3000.0, 40_000.0, 900_000.0):
        drawn = timeline.picture([event("leased", A, 1_700_000_000.0)], 1_700_000_000.0 + span_s)
        (ax,) = drawn.figure.axes
        low, high = ax.get_xlim()
        ticks = list(ax.get_xticks())
        assert 1 <= len(ticks) <= 5
        assert ticks == sorted(ticks)
        assert all(low <= tick <= high for tick in ticks)
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert len(set(labels)) == len(labels)
