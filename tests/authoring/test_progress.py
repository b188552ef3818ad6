"""Promises of the line of progress: shown while a model is waited for, by one caller, and then gone."""

from __future__ import annotations

import asyncio
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring import progress as lines
from nbproviders.authoring.progress import Line, Waiting
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey
from nbproviders.residency.progress import Progress
from nbproviders.residency.sleeping import Transfer
from tests.scripted import BOUND_S, Gate, ScriptedProvider, SleepyModel, happened, joined

looked = Waiting.look


class Shown:
    """What the lines showed, as (line, text); a line that is empty already says nothing."""

    def __init__(self) -> None:
        self.all: list[tuple[int, str]] = []
        self.there: dict[int, str] = {}
        self.something = threading.Event()
        self._looks: Counter[int] = Counter()
        self._looked = threading.Condition()

    def show(self, line: Line, text: str) -> None:
        if text != self.there.get(id(line), ""):
            self.all.append((id(line), text))
            self.there[id(line)] = text
        if text:
            self.something.set()

    def look(self, waiting: Waiting) -> None:
        looked(waiting)
        with self._looked:
            self._looks[id(waiting)] += 1
            self._looked.notify_all()

    def looked(self, count: int, times: int) -> None:
        """Wait until so many calls have each looked so many times more."""
        with self._looked:
            before = Counter(self._looks)
            assert self._looked.wait_for(
                lambda: sum(n >= before[i] + times for i, n in self._looks.items()) >= count,
                BOUND_S,
            )

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.all]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Lines as in a notebook, at once."""
    noted = Shown()
    monkeypatch.setattr(Line, "show", lambda line, text: noted.show(line, text))
    monkeypatch.setattr(Waiting, "look", lambda waiting: noted.look(waiting))
    monkeypatch.setattr(lines, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(lines, "in_notebook", lambda: True)
    return noted


class Sleeper(ScriptedProvider):
    """Its model wakes when a gate lets it."""

    gate = Gate()

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        assert self.gate is not None
        self.models.append(SleepyModel({"cpu": 1000}, self.gate))
        return self.models[-1]


@pytest.fixture
def asleep() -> Iterator[nbp.SyncClient]:
    """A handle whose model sleeps until its gate is opened."""
    Sleeper.gate = Gate()
    nbp.register_provider("sleeper", Sleeper)
    with nbp.load_sync("sleeper:a") as m:
        nbp.sleep("sleeper:a")
        yield m
    Sleeper.gate.open()
    nbp.unload_all(force=True)
    nbp.unregister_provider("sleeper")


def let_it_wake() -> None:
    assert Sleeper.gate is not None
    Sleeper.gate.open()


def held_until_shown(work: Callable[[], Any], shown: Shown) -> None:
    """Do blocking work that goes on once a line is there."""
    with joined(threading.Thread(target=work)):
        found = shown.something.wait(BOUND_S)
        let_it_wake()
    assert found, "no line appeared"
    assert shown.texts[0].startswith("Waking sleeper:a, 0 s")
    assert shown.texts[-1] == ""
    assert len(shown.there) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.generate("x"),
        lambda m: m.generate_many(["x", "y"]),
        lambda m: m.chat("x"),
        lambda m: list(m.stream("x")),
    ],
)
def test_a_call_that_wakes_its_model_shows_a_line(
    call: Callable[[Any], Any], asleep: nbp.SyncClient, shown: Shown
) -> None:
    """The model of an open handle has left: the call says that it comes back, and then no more."""
    held_until_shown(lambda: call(asleep), shown)


@pytest.mark.parametrize(
    "opening",
    [
        lambda: nbp.wake("sleeper:a"),
        lambda: nbp.pin("sleeper:a"),
        lambda: nbp.load_sync("sleeper:a").close(),
        lambda: [m.close() for m in nbp.models("sleeper:a", "echo:b").open_sync()],
    ],
)
def test_what_blocks_until_a_model_is_there_shows_a_line(
    opening: Callable[[], Any], asleep: nbp.SyncClient, shown: Shown
) -> None:
    """nbp.wake, nbp.pin and all that opens one in plain code."""
    held_until_shown(opening, shown)


async def test_of_several_calls_one_shows_it(asleep: nbp.SyncClient, shown: Shown) -> None:
    """Those who wait for the same model fill no cell with the same line."""
    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(nbp.load("sleeper:a"))
        for _ in range(3):
            tasks.create_task(asyncio.to_thread(asleep.generate, "x"))
        await happened(shown.something)
        await asyncio.to_thread(shown.looked, 4, times=2)
        let_it_wake()
    opening.result().close()
    assert len({line for line, text in shown.all if text}) == 1
    assert set(shown.there.values()) == {""}


async def test_where_progress_is_told_elsewhere_no_line_is_shown(
    asleep: nbp.SyncClient, shown: Shown
) -> None:
    """A front that shows its own, as a comparison does, is not disturbed by calls inside it."""
    loader = nbp.model("sleeper:a").loader
    with lines.told_elsewhere():
        assert lines.watch_call(loader) is lines.watch_opening([loader]) is None
        assert await asyncio.to_thread(lines.watch_call, loader) is None
    assert lines.watch_call(loader) is not None
    assert lines.watch_opening([loader]) is not None


def test_calls_show_nothing_in_a_script(
    asleep: nbp.SyncClient, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own output goes to the terminal, perhaps in the middle of a line; opening a model is told."""
    monkeypatch.setattr(lines, "in_notebook", lambda: False)
    loader = nbp.model("sleeper:a").loader
    assert lines.watch_call(loader) is None
    held_until_shown(lambda: nbp.wake("sleeper:a"), shown)


def test_a_model_that_is_there_shows_nothing(asleep: nbp.SyncClient, shown: Shown) -> None:
    """However long it computes; and a line that was shown while it woke is taken away before."""
    gate = Sleeper.models[-1]._gate = Gate()
    with joined(threading.Thread(target=lambda: asleep.generate("x"))):
        found = shown.something.wait(BOUND_S)
        let_it_wake()
        assert gate.reached.wait(BOUND_S)
        shown.looked(1, times=3)
        last = shown.texts[-1]
        gate.open()
    assert found
    assert last == ""


def test_what_is_only_measured_shows_a_line(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """nbp.will_it_fit loads nothing, but may have libraries to import."""
    hold = threading.Event()

    class Large(ScriptedProvider):
        def estimate(self, key: ResourceKey) -> dict[str, int]:
            assert hold.wait(BOUND_S)
            return {"cpu": 1000}

    nbp.register_provider("large", Large)
    try:
        with joined(threading.Thread(target=nbp.will_it_fit, args=("large:a",))):
            found = shown.something.wait(BOUND_S)
            hold.set()
    finally:
        nbp.unregister_provider("large")
    assert found
    assert shown.texts == ["Measuring large:a, 0 s", ""]


def test_a_sleep_that_takes_long_shows_how_far_it_is(shown: Shown) -> None:
    """A large model is compared with its files before it sleeps for the first time."""
    hold = threading.Event()

    class Comparing(SleepyModel):
        async def sleep(self, progress: Progress) -> Transfer:
            progress.report(2**20, 4 * 2**20, "comparing")
            assert await asyncio.to_thread(hold.wait, BOUND_S)
            return await super().sleep(progress)

    class Provider(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            return Comparing({"cpu": 1000})

    nbp.register_provider("comparing", Provider)
    try:
        nbp.load_sync("comparing:a").close()
        with joined(threading.Thread(target=nbp.sleep, args=("comparing:a",))):
            found = shown.something.wait(BOUND_S)
            shown.looked(1, times=2)
            hold.set()
    finally:
        nbp.unload_all(force=True)
        nbp.unregister_provider("comparing")
    assert found
    assert shown.texts[-2].startswith("Putting to sleep comparing:a, 0 s  █████░")
    assert shown.texts[-2].endswith("1.0 MiB of 4.0 MiB")
    assert shown.texts[-1] == ""


def test_a_model_that_waits_for_memory_says_so(shown: Shown) -> None:
    """While running models hold it, the line says that it is memory that is waited for."""
    gate = Gate()

    class Wide(ScriptedProvider):
        def estimate(self, key: ResourceKey) -> dict[str, int]:
            return {"cpu": 1000}

    Wide.gate = gate
    nbp.register_provider("wide", Wide)
    nbp.set_memory("cpu=1500B")
    try:
        with (
            nbp.load_sync("wide:a") as m,
            joined(threading.Thread(target=lambda: m.generate("x"))),
        ):
            assert gate.reached.wait(BOUND_S)
            with joined(threading.Thread(target=lambda: nbp.load_sync("wide:b").close())):
                found = shown.something.wait(BOUND_S)
                gate.open()
        assert found
        assert shown.texts[0] == "Loading wide:b: waiting for memory, 0 s"
        assert shown.texts[-1] == ""
    finally:
        nbp.unload_all(force=True)
        nbp.set_memory()
        nbp.unregister_provider("wide")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one waits until it is free, instead of writing over it."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Line() as one, Line() as other:
        one.show("one")
        other.show("other")
        assert "other" not in terminal.getvalue()
        one.show("")
        other.show("other")
        assert terminal.getvalue().endswith(f"\r{'other':79}")
    assert not terminal.getvalue().rstrip("\r").rpartition("\r")[2].strip()
