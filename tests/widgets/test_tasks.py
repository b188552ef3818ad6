"""Jobs of widgets: where they run, what they show, how they stop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nbproviders.core import engine
from nbproviders.errors import ConfigurationError
from nbproviders.widgets.tasks import RATE_HZ, Home, Job, State, Tell, clicks_note, told
from tests.timing import at_best

BOUND_S = 10.0


class View:
    """Notes what a job tells, and on which thread."""

    def __init__(self, home: Home | None = None) -> None:
        self.states: list[str] = []
        self.values: list[Any] = []
        self.shown = 0
        self.threads: set[int] = set()
        self.seen, self.news = threading.Event(), asyncio.Event()
        self.job: Job[Any] = Job(self.changed, self.show, home)

    def changed(self) -> None:
        self.threads.add(threading.get_ident())
        self.states.append(str(self.job.state))
        self.news.set()

    def show(self, values: list[Any]) -> None:
        self.threads.add(threading.get_ident())
        self.shown += 1
        self.values += values
        self.news.set()
        self.seen.set()


async def until(view: View, true: Callable[[], bool]) -> None:
    """Let the loop run until something holds of a view."""
    async with asyncio.timeout(BOUND_S):
        while not true():
            view.news.clear()
            await view.news.wait()


async def never(tell: Tell) -> None:
    tell("begun")
    await asyncio.Event().wait()


async def three(tell: Tell) -> int:
    for number in range(3):
        tell(number)
    return 3


def test_a_job_runs_without_any_loop() -> None:
    """In plain Python a job runs on the engine, and all it tells is shown, in order."""
    view = View()
    results: list[Any] = []
    view.job.start(three, results.append)
    assert view.job.wait(BOUND_S)
    assert (view.values, results, view.states) == ([0, 1, 2], [3], ["running", "idle"])


async def test_a_view_is_changed_on_its_own_loop() -> None:
    """Made in a running loop, a job changes its view on that loop's thread alone."""
    view = View()
    results: list[Any] = []
    view.job.start(three, results.append)
    await until(view, lambda: bool(results))
    await until(view, lambda: view.job.state is State.IDLE)
    assert view.values == [0, 1, 2]
    assert view.threads == {threading.get_ident()}


async def test_callbacks_on_another_thread_and_loop_are_brought_home() -> None:
    """A click that arrives on a subshell's loop starts and stops the job at home."""
    view = View()

    async def click(action: Callable[[], None]) -> None:
        action()

    def subshell(action: Callable[[], None]) -> None:
        asyncio.run(click(action))

    await asyncio.to_thread(subshell, lambda: view.job.start(never))
    await until(view, lambda: bool(view.values))
    await asyncio.to_thread(subshell, view.job.stop)
    await until(view, lambda: view.job.state is State.IDLE)
    assert view.states == ["running", "stopping", "idle"]
    assert view.threads == {threading.get_ident()}


def test_stopping_takes_less_than_150_ms() -> None:
    """Even work that refuses to be cancelled is over for the view within 150 ms."""
    release = threading.Event()

    async def stubborn(tell: Tell) -> None:
        while not release.is_set():
            try:
                tell("at it")
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                tell("not yet")

    def stopped() -> float:
        view = View()
        view.job.start(stubborn)
        assert view.seen.wait(BOUND_S)
        began_s = time.perf_counter()
        view.job.stop()
        assert view.job.wait(BOUND_S)
        took_s = time.perf_counter() - began_s
        assert view.states == ["running", "stopping", "idle"]
        return took_s

    try:
        assert at_best(stopped, 0.15) < 0.15
    finally:
        release.set()


def test_a_stopped_job_shows_nothing_more() -> None:
    """What a stopped job tells or returns later never reaches the view."""
    view = View()
    results: list[Any] = []
    cancelled, release = threading.Event(), asyncio.Event()

    async def late(tell: Tell) -> str:
        tell("early")
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancelled.set()
        await release.wait()
        tell("late")
        return "result"

    view.job.start(late, results.append)
    assert view.seen.wait(BOUND_S)
    view.job.stop()
    assert cancelled.wait(BOUND_S)
    assert view.job.wait(BOUND_S)
    engine.default().post(release.set)
    engine.default().wait(lambda: asyncio.sleep(0))
    view.job.start(three, results.append)  # what was left behind would come before it
    assert view.job.wait(BOUND_S)
    assert (view.values, results) == (["early", 0, 1, 2], [3])


def test_stopping_before_the_work_began_runs_no_work_to_its_end() -> None:
    """Stop right after start leaves the job idle and the view untouched."""
    view = View()
    results: list[Any] = []
    view.job.start(three, results.append)
    view.job.stop()
    view.job.stop()
    assert view.job.wait(BOUND_S)
    assert view.job.state is State.IDLE
    assert "failed" not in view.states


def test_an_error_is_text_without_secrets() -> None:
    """A failed job tells why; keys in the message are covered, and no frame is kept."""
    view = View()

    async def fail(_: Tell) -> None:
        raise ValueError("refused: api_key=sk-abcdefghijklmnop")

    view.job.start(fail)
    assert view.job.wait(BOUND_S)
    assert view.job.state is State.FAILED
    assert view.job.error.startswith("ValueError: refused")
    assert "abcdefgh" not in view.job.error
    view.job.start(three)
    assert view.job.wait(BOUND_S)
    assert (view.job.state, view.job.error) == (State.IDLE, "")


@pytest.mark.parametrize("where", ["show", "done"])
def test_an_error_of_the_view_itself_is_shown(where: str) -> None:
    """If showing raises, the job is stopped and the view's error is told."""

    def fail(_: Any) -> None:
        raise RuntimeError("cannot draw")

    view = View()
    job: Job[Any] = Job(view.changed, fail if where == "show" else None)
    view.job = job
    job.start(three, fail if where == "done" else None)
    assert job.wait(BOUND_S)
    assert (job.state, job.error) == (State.FAILED, "RuntimeError: cannot draw")


def test_a_view_that_cannot_show_its_state_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the callback for states is logged and ends nothing."""

    def broken() -> None:
        raise RuntimeError("no state")

    job: Job[int] = Job(broken)
    job.start(three)
    assert job.wait(BOUND_S)
    assert "no state" in caplog.text


def test_a_second_start_is_left_alone_while_one_runs() -> None:
    """Starting twice runs once; after a stop, a new start does not wait for the old one's end."""
    view = View()
    results: list[Any] = []
    view.job.start(never)
    view.job.start(three, results.append)
    assert view.seen.wait(BOUND_S)
    view.job.stop()
    view.job.start(three, results.append)
    assert view.job.wait(BOUND_S)
    assert results == [3]


async def test_updates_are_gathered() -> None:
    """Thousands of updates reach the view in order, at most RATE_HZ times a second."""
    view = View()

    async def chatter(tell: Tell) -> int:
        began_s, count = time.monotonic(), 0
        while time.monotonic() - began_s < 0.5:
            tell(count)
            count += 1
            await asyncio.sleep(0)
        return count

    results: list[int] = []
    view.job.start(chatter, results.append)
    await until(view, lambda: bool(results))
    assert view.values == list(range(results[0]))
    assert results[0] > 100
    assert view.shown <= 0.5 * RATE_HZ + 3


def test_calls_for_a_closed_loop_are_made_at_once() -> None:
    """A view made on a loop that is gone can still be changed."""

    async def make() -> Home:
        return Home()

    home = asyncio.run(make())
    seen: list[int] = []
    home.call(seen.append, 1)
    assert seen == [1]


def test_our_errors_are_told_with_their_hint() -> None:
    """Our own errors keep message and hint."""
    assert told(ConfigurationError("bad", hint="do this")) == "bad\ndo this"


@pytest.mark.parametrize(
    ("version", "subshells", "words"),
    [((7, 4), True, ""), ((7, 3), True, "JupyterLab 4.4"), ((6, 31), False, "running cell")],
)
def test_old_kernels_tell_when_clicks_act(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], subshells: bool, words: str
) -> None:
    """On kernels before 7.4 people are told that a click may wait for the running cell."""
    kernel = SimpleNamespace(_supports_kernel_subshells=subshells)
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(__import__("sys").modules, "IPython", shell)
    monkeypatch.setitem(
        __import__("sys").modules, "ipykernel", SimpleNamespace(version_info=version)
    )
    note = clicks_note()
    assert words in note
    assert bool(note) == bool(words)
