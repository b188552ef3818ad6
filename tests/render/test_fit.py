"""Whether a model fits, as people read it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nbproviders.render.fit import FitReport
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.fit import Fit
from nbproviders.residency.memory import HOST

GIB = 2**30
HOSTILE = "echo:<img src=x onerror=alert(1)>\u202e"


def report(verdict: str = "fits", **changes: Any) -> FitReport:
    estimate = Estimate({"cuda:0": 8 * GIB}, {"cuda:0": 2 * GIB}, {"cuda:0": GIB // 2})
    values: dict[str, Any] = {
        "spec": "transformers:demo-m",
        "verdict": verdict,
        "estimate": estimate,
        "limits": {"cuda:0": 20 * GIB},
        "taken": {"cuda:0": 3 * GIB},
    }
    return FitReport(Fit(**{**values, **changes}))


@pytest.mark.parametrize(
    ("verdict", "sentence", "yes"),
    [
        ("here", "transformers:demo-m is in memory.", True),
        ("fits", "transformers:demo-m fits.", True),
        ("wait", "transformers:demo-m fits when running models have ended.", False),
        (
            "unknown",
            "Nobody can tell what transformers:demo-m takes before it is loaded.",
            False,
        ),
    ],
)
def test_the_verdict_in_a_sentence(verdict: str, sentence: str, yes: bool) -> None:
    """Told first, in text and in HTML; true only if it could be loaded now."""
    found = report(verdict)
    assert found.sentence == sentence
    assert repr(found).startswith(sentence)
    assert f"<b>{sentence}</b>" in found._repr_html_()
    assert bool(found) is yes


def test_who_would_make_room_is_named() -> None:
    """Each with what it would do."""
    found = report("after", moves=(("lab:a", "sleep"), ("lab:b", "free")))
    assert found.sentence == "transformers:demo-m fits once lab:a sleeps and lab:b has left."
    assert found


def test_how_much_is_missing_is_told() -> None:
    """By device, with units."""
    found = report("no", short={"cuda:0": GIB, HOST: 2**20})
    assert (
        "transformers:demo-m does not fit: 1.0 GiB too much on cuda:0, 1.0 MiB too much on main memory. "
        in found.sentence
    )
    assert not found


@pytest.mark.parametrize(("limit", "todo"), [(20, "unpin something"), (10, "a smaller model")])
def test_what_to_do_is_told(limit: int, todo: str) -> None:
    """Others may leave by hand, if that would be enough; else nothing but less of it, or more memory."""
    found = report("no", short={"cuda:0": GIB}, limits={"cuda:0": limit * GIB})
    assert todo in found.sentence
    assert "nbp.set_memory" in found.sentence


def test_the_figures_are_a_table() -> None:
    """What it needs and for what, what models take there now, and the limit; none is said in words."""
    limited, free = report(), report(limits={})
    row = ["cuda:0", "8.0 GiB", "2.0 GiB", "512.0 MiB", "10.5 GiB", "3.0 GiB"]
    for found, limit in ((limited, "20.0 GiB"), (free, "none")):
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", found._repr_html_())
        assert cells[-7:] == [*row, limit]
        assert all(cell in repr(found) for cell in [*row, limit])


def test_a_verdict_in_other_words() -> None:
    """Who knows more than the figures says it, and is escaped like any."""
    found = FitReport(report("unknown").fit, f"Not here: {HOSTILE}")
    assert found.sentence.startswith("Not here: echo:<img")
    assert "\u202e" not in repr(found)
    assert "<b>Not here: echo:&lt;img" in found._repr_html_()


def test_no_figures_no_table() -> None:
    """Of a model that has no estimate there is the sentence alone."""
    found = report("unknown", estimate=Estimate(), limits={}, taken={})
    assert repr(found) == found.sentence
    assert "<table" not in found._repr_html_()


def test_what_is_guessed_is_told() -> None:
    """The context that is counted with, the copy it would like, and what the estimate says of itself."""
    estimate = Estimate(
        {"cuda:0": GIB}, optional={HOST: GIB}, context_tokens=8192, notes=("A guess.",)
    )
    found = report(estimate=estimate, copy_bytes=GIB)
    assert found.notes == [
        "The cache is for one text of 8,192 tokens.",
        "A copy of 1.0 GiB in main memory lets it wake fast.",
        "A guess.",
    ]
    for note in found.notes:
        assert note in repr(found)
        assert note in found._repr_html_()
    assert report().notes == []
    without = "Main memory has no room for a copy: it wakes from its files."
    assert report(estimate=estimate).notes[1] == without
    assert without not in report("no", estimate=estimate).notes


def test_a_hostile_name_stays_text() -> None:
    """Whatever a model or a note is called, no tag and no control character of it gets into the page."""
    estimate = Estimate({HOSTILE: GIB}, notes=(HOSTILE,))
    found = report("after", spec=HOSTILE, moves=((HOSTILE, "free"),), estimate=estimate)
    page = found._repr_html_()
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\u202e" not in repr(found)
    assert "&lt;img" in page
