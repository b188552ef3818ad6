"""What is in memory and what happened, as people see it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from nbproviders.render.memory import MOST_EVENTS, Events, Residents, memory_text, state_text
from nbproviders.residency.entry import State
from nbproviders.residency.events import Event
from nbproviders.residency.residents import DeviceUse, Resident

GIB = 2**30
HOSTILE = "echo:<img src=x onerror=alert(1)>$x$\u202e"


def resident(**changes: object) -> Resident:
    values = {
        "spec": "llama-cpp:a",
        "state": State.HOT,
        "bytes": {"cpu": 2**20},
        "handles": 1,
        "running": 0,
        "idle_s": 0.0,
        "uses": 1,
        "load_s": 0.5,
        "progress": None,
        "key": "k",
    }
    return Resident(**{**values, **changes})  # type: ignore[arg-type]


def device(**changes: object) -> DeviceUse:
    values = {
        "device": "cuda:0",
        "limit": 20 * GIB,
        "total": 80 * GIB,
        "in_use": 8 * GIB,
        "idle": 4 * GIB,
        "peers": 20 * GIB,
        "strangers": 8 * GIB,
        "free": 8 * GIB,
        "kept": 32 * GIB,
    }
    return DeviceUse(**{**values, **changes})  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Every start tag with its attributes; and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\u00a0", " ")


def widths(page: str) -> list[float]:
    """Return the widths of a bar's pieces, in percent."""
    return [float(found) for found in re.findall(r"width:([0-9.]+)%;background", page)]


def test_what_a_load_told_is_under_the_table() -> None:
    """A step that was left out is read where the model is shown, escaped."""
    shown = Residents([resident(notes=("flash attention: <none> here",)), resident(spec="echo:b")])
    assert shown.notes == ["llama-cpp:a: flash attention: <none> here"]
    assert repr(shown).splitlines()[-1] == "llama-cpp:a: flash attention: <none> here"
    assert "<li>llama-cpp:a: flash attention: &lt;none&gt; here</li>" in shown._repr_html_()
    assert "<ul>" not in Residents([resident()])._repr_html_()
    assert len(repr(Residents([resident()])).splitlines()) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ready"),
        ({"running": 2}, "running"),
        ({"state": State.WARM}, "asleep"),
        ({"state": State.WAKING, "progress": 0.409}, "waking 40 %"),
        ({"state": State.WAITING, "progress": 0.0}, "waiting"),
        ({"state": State.COLD}, "loading"),
        ({"state": State.LOADING, "progress": 0.4}, "loading 40 %"),
        ({"state": State.DRAINING}, "leaving"),
        ({"state": State.FAILED}, "failed"),
    ],
)
def test_states_are_words(changes: dict[str, object], words: str) -> None:
    """Whatever the state is, a person needs no explanation of its name."""
    assert state_text(resident(**changes)) == words


def test_every_state_has_a_word() -> None:
    """No state is told by a name of our own."""
    ours = {"cold", "hot", "warm", "draining"}
    assert not ours & {state_text(resident(state=state)) for state in State}


def test_a_row_tells_all_of_a_model() -> None:
    """Memory on each device, cells that hold it open, calls, idle time and the pin are there, in both."""
    one = resident(
        bytes={"cuda:0": 3 * GIB, "host": GIB},
        handles=2,
        opened_in=("In [5]", "In [7]"),
        idle_s=200.0,
        pinned=True,
    )
    shown = Residents([one, resident(spec="echo:b", running=3, idle_s=0.0)])
    for form in (repr(shown), Tags(shown._repr_html_()).text):
        assert "3.0 GiB on cuda:0, 1.0 GiB main memory (copy)" in form
        assert "2 in In [5], In [7]" in form
        assert "3 min" in form
        assert "0.50 s" in form
        assert "ready, pinned" in form
        assert "running, 3 calls" in form
        assert "0 s" not in form.replace("0.50 s", "")  # one that runs is not idle for 0 s


def test_a_number_keeps_its_unit() -> None:
    """In a narrow column no line breaks between a number and its unit, or in a cell's name."""
    one = resident(opened_in=("In [5]",), idle_s=200.0, state=State.WARM)
    page = Residents([one])._repr_html_()
    for words in ("1.0\u00a0MiB", "In\u00a0[5]", "3\u00a0min", "0.50\u00a0s"):
        assert words in page
    assert "\u00a0" not in repr(Residents([one]))


def test_a_bar_is_as_long_as_its_parts() -> None:
    """Each part has its share of the device's whole length, in the order of the words below it."""
    page = Residents([], [device()])._repr_html_()
    assert widths(page) == [10.0, 5.0, 25.0, 10.0, 40.0]  # what is free is the ground
    words = "models in use 8.0 GiB", "idle models 4.0 GiB", "other kernels 20.0 GiB"
    text = Tags(page).text
    words = *words, "other programs 8.0 GiB", "not for models 32.0 GiB", "free 8.0 GiB"
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert "80.0 GiB, of which models may take 20.0 GiB" in text


def test_a_bar_is_told_to_those_who_cannot_see_it() -> None:
    """A bar is an image with words of its own; no colour tells anything that no word tells."""
    [bar] = [
        found for _, found in Tags(Residents([], [device()])._repr_html_()).tags if "role" in found
    ]
    assert bar["role"] == "img"
    for part in ("cuda:0", "models in use 8.0 GiB", "other kernels 20.0 GiB", "free 8.0 GiB"):
        assert part in (bar["aria-label"] or "")


def test_the_text_form_has_bars_too() -> None:
    """A terminal gets a bar of signs, as long as any other, and the same words."""
    lines = repr(Residents([], [device(), device(in_use=2**20, idle=0)])).splitlines()
    bars = [line[line.index("[") + 1 : line.index("]")] for line in lines[:2]]
    assert bars[0] == "███▓▓▒▒▒▒▒▒▒▒░░░-------------···"
    assert bars[1].startswith("█▒")  # the smallest part is seen
    assert {len(bar) for bar in bars} == {32}
    assert "idle models 4.0 GiB" in lines[0]
    assert "idle" not in lines[1]


@pytest.mark.parametrize(
    "use",
    [
        device(total=0, limit=None, in_use=0, idle=0, peers=0, strangers=0, free=0),
        device(total=0, limit=None, free=0),
        device(total=GIB, limit=GIB),  # more is charged than there is
        device(device="host", total=GIB, strangers=0),
        device(device="host", total=GIB, limit=0, free=0),
    ],
)
def test_any_device_can_be_shown(use: DeviceUse) -> None:
    """One of unknown size, an empty or an overfull one has a bar that is not longer than its frame."""
    page = Residents([], [use])._repr_html_()
    assert sum(widths(page)) <= 100.05
    assert ("size not known" in page) == (use.total == 0)
    assert ("main memory for copies of weights" in page) == (use.device == "host")
    assert len(repr(Residents([], [use])).splitlines()) == 2


def test_nothing_is_said_in_words() -> None:
    """An empty list says so; what the devices have is shown all the same."""
    assert repr(Residents()) == "Nothing is in memory."
    assert Residents()._repr_html_() == "<p>Nothing is in memory.</p>"
    page = Tags(Residents([], [device()])._repr_html_()).text
    assert "Nothing is in memory." in page
    assert "80.0 GiB" in page
    assert repr(Events()) == "Nothing has happened yet."
    assert Events()._repr_html_() == "<p>Nothing has happened yet.</p>"


def test_names_cannot_write_the_page() -> None:
    """Markup, formulas and hidden characters in names, devices, notes and details are shown, not obeyed."""
    one = resident(spec=HOSTILE, notes=(HOSTILE,), opened_in=(HOSTILE,), bytes={HOSTILE: 1})
    pages = [
        Residents([one], [device(device=HOSTILE)])._repr_html_(),
        Events([event("created", HOSTILE, detail=HOSTILE)])._repr_html_(),
    ]
    for page in pages:
        tags = Tags(page)
        images = [found for tag, found in tags.tags if tag == "img"]
        assert all("onerror" not in found for found in images)
        assert "script" not in {tag for tag, _ in tags.tags}
        assert "\u202e" not in page
        assert "tex2jax_ignore" in page
        assert "<img src=x" in tags.text


# Events


def event(kind: str, spec: str = "echo:a", time_s: float = 0.0, **more: object) -> Event:
    return Event(time_s, kind, spec, **more)  # type: ignore[arg-type]


def rows(shown: Events) -> list[str]:
    """Return the rows of the text form, without the heads and what was left out."""
    return [line for line in repr(shown).splitlines() if not line.startswith("(")][1:]


def test_events_are_a_table_and_a_picture() -> None:
    """A notebook gets the chart with words for it, then the table; a terminal the table."""
    shown = Events(
        [
            event("created", bytes=GIB, detail="0.500 s", moved_bytes=2**20),
            event("evicted", time_s=60.0, bytes=GIB),
        ],
        told_s=100.0,
    )
    page = shown._repr_html_()
    [(_, image)] = [found for found in Tags(page).tags if found[0] == "img"]
    assert "echo:a loaded 1\u00d7, evicted 1\u00d7" in (image["alt"] or "")
    assert page.index("<img") < page.index("<table")
    for form in (Tags(page).text, repr(shown)):
        for word in ("created", "evicted", "1.0 GiB", "1.0 MiB", "0.500 s"):
            assert word in form


def test_opening_and_closing_does_not_drown_the_rest() -> None:
    """It stands, counted, with what happened to the model before, however the models take turns."""
    many = [
        event(kind, spec, time_s=3.0 + i)
        for i in range(1000)
        for spec in ("echo:a", "echo:b")
        for kind in ("reused", "leased", "released")
    ]
    came = [event("created"), event("created", "echo:b", time_s=1.0)]
    shown = Events([*came, *many, event("freed", time_s=2000.0), event("leased", time_s=2001.0)])
    told = rows(shown)
    assert len(told) == 3
    assert told[0].split()[1:] == [
        *"created, opened 1,000\u00d7 echo:a".split(),
        "\u2013",
    ]
    assert "echo:b" in told[1]
    assert told[2].split()[1:4] == ["freed,", "opened", "echo:a"]
    assert time_of(told[0]) == time_of(rows(Events([event("created")]))[0])  # when it came
    assert len(shown) == 6004


def test_a_record_of_nothing_but_openings() -> None:
    """Where the load is no longer recorded, one row tells from when to when a model was opened."""
    some = [event("reused"), event("leased"), event("leased", time_s=60.0)]
    [row] = rows(Events(some))
    assert "opened 2\u00d7" in row
    assert len(time_of(row).split("\u2013")) == 2
    assert "opened" in rows(Events(some[:1]))[0]
    assert "closed" in rows(Events([event("released")]))[0]


def time_of(row: str) -> str:
    return row.split()[0]


def test_memory_means_one_thing_in_every_row() -> None:
    """What came has a plus, what left a minus; where nothing did, nothing stands."""
    kinds = ("created", "slept", "woken", "pinned", "evicted", "created", "freed", "leased")
    page = Events([event(kind, bytes=GIB) for kind in kinds])._repr_html_()
    assert "memory came or left" in page
    assert re.findall(r"([+\u2212])1\.0\u00a0GiB", page) == list("+\u2212+\u2212+\u2212")
    [row] = rows(Events([event("pinned", bytes=GIB)]))
    assert "GiB" not in row


def test_a_failure_begins_with_its_cause() -> None:
    """The row names the model: the note need not do it again."""
    why = "Failed to setup resource 'echo:a': no such file"
    for spec, note in (("echo:a", "no such file"), ("echo:b", why)):
        [row] = rows(Events([event("failed", spec, detail=why)]))
        assert row.endswith(f"  {note}")


def test_a_name_is_not_broken() -> None:
    """In a narrow column a reference breaks before its options and after a folder, and nowhere else."""
    spec = "gpu:org/demo-m-instruct?device=virtual:0&dtype=bfloat16"
    for page in (
        Residents([resident(spec=spec)])._repr_html_(),
        Events([event("created", spec)])._repr_html_(),
    ):
        parts = re.findall(r'<span style="white-space:nowrap">([^<]*)</span>', page)
        assert parts == ["gpu:org/", "demo-m-instruct", "?device=virtual:0", "&amp;dtype=bfloat16"]
        assert "</span><wbr><span" in page
        assert spec in Tags(page).text


def test_a_few_bytes_have_no_figure() -> None:
    """What a sleeper keeps beside its weights is told as next to nothing, in rows and bars."""
    for held, words in (
        ({"cpu": 48}, "next to nothing"),
        ({}, "nothing"),
        ({"cpu": 0}, "nothing"),
        ({"cuda:0": GIB, "host": 64}, "1.0 GiB on cuda:0"),
        ({"cpu": 1024}, "1.0 KiB on cpu"),
    ):
        assert memory_text(resident(bytes=held)) == words
    assert "idle" not in repr(Residents([], [device(idle=64)]))


def test_of_many_events_the_last_are_shown() -> None:
    """The table ends with the newest, and says how many came before."""
    count = MOST_EVENTS + 3
    shown = Events([event("created", f"echo:m{i}", time_s=float(i)) for i in range(count)])
    assert len(rows(shown)) == MOST_EVENTS
    assert rows(shown)[-1].split()[2] == f"echo:m{count - 1}"
    assert repr(shown).startswith("(3 earlier rows are not shown; the list itself has all 53.)")
    assert "3 earlier rows are not shown" in shown._repr_html_()
    assert "not shown" not in repr(Events(shown[:MOST_EVENTS]))
