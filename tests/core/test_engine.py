"""Promises of the engine thread: calls from anywhere, cancelled at once, waiting that can be stopped."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError as FutureTimeoutError
from typing import Any

import pytest

from nbproviders.core import engine as engines
from nbproviders.core.engine import Engine, Mailbox
from nbproviders.errors import ClosedError, ConfigurationError, ProviderError, TimeoutError
from tests.interrupted import interrupted
from tests.scripted import BOUND_S, Gate, happened, joined


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()
    assert not made._thread.is_alive()
    made._loop.close()


async def name_of_thread() -> str:
    return threading.current_thread().name


async def test_work_runs_on_the_engine(engine: Engine) -> None:
    """A call's work runs on the engine's thread, and its result comes back to the caller's loop."""
    assert await engine.call(name_of_thread) == "nbproviders-engine"
    assert not engine.here


def test_waiting_needs_no_loop(engine: Engine) -> None:
    """Plain code waits for the same work."""
    assert engine.wait(name_of_thread, BOUND_S) == "nbproviders-engine"


async def test_waiting_inside_a_running_loop(engine: Engine) -> None:
    """A blocking call works in a cell too, where a loop runs already."""
    assert engine.wait(name_of_thread, BOUND_S) == "nbproviders-engine"


async def test_a_call_on_the_engine_runs_in_place(engine: Engine) -> None:
    """Work that calls the engine again is not queued behind itself."""

    async def outer() -> tuple[bool, str]:
        return engine.here, await engine.call(name_of_thread)

    assert await engine.call(outer) == (True, "nbproviders-engine")


def test_calls_from_many_loops_and_threads(engine: Engine) -> None:
    """Threads with loops of their own all get their own answers."""
    answers: dict[int, list[int]] = {}

    async def answer(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def ask(thread: int) -> list[int]:
        return await asyncio.gather(
            *(engine.call(lambda n=n: answer(100 * thread + n)) for n in range(50))  # type: ignore[misc]
        )

    def run(thread: int) -> None:
        answers[thread] = asyncio.run(ask(thread))

    with joined(*(threading.Thread(target=run, args=(n,)) for n in range(4))):
        pass
    assert answers == {t: [100 * t + n for n in range(50)] for t in range(4)}


async def test_errors_cross_without_frames(engine: Engine) -> None:
    """An error of ours arrives fresh: the frames of the work, and what they hold, stay behind."""

    async def fail() -> None:
        raise ProviderError("no", hint="try") from OSError("x")

    errors = []
    for _ in range(2):
        with pytest.raises(ProviderError, match="no") as caught:
            await engine.call(fail)
        errors.append(caught.value)
    frames = [entry.name for entry in caught.traceback]
    assert "fail" not in frames
    assert str(errors[0]) == "no\ntry"


def test_errors_are_shown_without_the_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a blocking call raises has no frame of those who waited: only ours, which notebooks hide."""

    async def fail() -> None:
        raise ProviderError("no")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ProviderError) as failed:
        engine.wait(fail)
    monkeypatch.setattr(Future, "exception", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        engine.wait(name_of_thread)
    for caught in (failed, stopped):
        assert [entry.name for entry in caught.traceback][1:] == ["wait", "_result"]
        assert "concurrent" not in "".join(traceback.format_exception(caught.value))


async def test_a_stopped_call_says_so(engine: Engine) -> None:
    """What a notebook shows of it is not an empty name; a reason that was given stays."""
    for given, said in ((), engines.STOPPED), (("enough",), "enough"):
        call = asyncio.ensure_future(engine.call(asyncio.Event().wait))
        await asyncio.sleep(0)
        call.cancel(*given)
        with pytest.raises(asyncio.CancelledError, match=said):
            await call


@pytest.mark.filterwarnings("error")
async def test_work_that_cannot_even_start_is_an_error(engine: Engine) -> None:
    """A mistake before the first await reaches the caller, and disturbs no other call."""

    def broken() -> Any:
        raise ValueError("not even a coroutine")

    async with asyncio.timeout(3):
        first, second = await asyncio.gather(
            engine.call(broken), engine.call(name_of_thread), return_exceptions=True
        )
    assert isinstance(first, ValueError)
    assert second == "nbproviders-engine"


async def test_cancelling_returns_at_once_and_cancels_the_work(engine: Engine) -> None:
    """The caller does not wait for work that is slow to notice; the work is cancelled all the same."""
    started, cancelled, ended, go_on = (threading.Event() for _ in range(4))

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.to_thread(go_on.wait, BOUND_S)
            ended.set()
            raise

    call = asyncio.ensure_future(engine.call(work))
    await happened(started)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not ended.is_set()
    await happened(cancelled)
    go_on.set()
    await happened(ended)


async def test_cancelled_before_it_began(engine: Engine) -> None:
    """A call that is given up before the engine took it up does no work."""
    hold, ran = threading.Event(), threading.Event()
    engine.post(hold.wait, BOUND_S)

    async def work() -> None:
        ran.set()

    call = asyncio.ensure_future(engine.call(work))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    hold.set()
    await engine.call(name_of_thread)
    assert not ran.is_set()


async def test_work_that_is_cancelled_itself(engine: Engine) -> None:
    """Work that ends as cancelled leaves no one waiting."""

    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await engine.call(give_up)
    with pytest.raises(ClosedError, match="cancelled before it ended"):
        engine.wait(give_up, BOUND_S)


def test_waiting_has_an_end(engine: Engine) -> None:
    """After `timeout_s` the caller is free, told so by our error, and the work is cancelled."""
    cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        engine.wait(endless, 0.05)
    assert cancelled.wait(BOUND_S)


def test_ctrl_c_at_any_line_leaves_nothing_running(engine: Engine) -> None:
    """A Stop that comes while a call is still on its way over the border cancels it as well."""
    running = 0

    async def endless() -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.sleep(BOUND_S)
        finally:
            running -= 1

    async def idle() -> None:
        while running:
            await asyncio.sleep(0.001)

    places = set()
    for line in range(1, 40):
        with pytest.raises(KeyboardInterrupt), interrupted(line, engines) as functions:
            engine.wait(endless)
        places.add(functions[-1])
        engine.wait(idle, BOUND_S)
    assert places >= {"wait", "post", "_result"}


def test_a_full_stack_leaves_the_engine_in_reach(engine: Engine) -> None:
    """A recursion that ends in the midst of a call, wherever, fails that call and no later one."""

    def deeper() -> str:
        return deeper() + engine.wait(name_of_thread, BOUND_S)

    def asking() -> str:
        return engine.wait(name_of_thread, BOUND_S) + asking()

    for endless in (deeper, asking):
        with pytest.raises(RecursionError):
            endless()
        assert engine.wait(name_of_thread, BOUND_S) == "nbproviders-engine"


def test_ctrl_c_between_the_calls_of_a_burst_loses_none() -> None:
    """What an interrupt leaves of a burst is done at the loop's next turn, though nobody posts again."""
    loop, done = asyncio.new_event_loop(), list[str]()

    def interrupt() -> None:
        raise KeyboardInterrupt

    mailbox = Mailbox(loop)
    for function in (interrupt, lambda: done.append("after")):
        mailbox.post(function)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert done == ["after"]


def test_an_interrupted_post_leaves_no_other_lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who posts while another is stopped in the midst of waking the loop is heard all the same."""
    loop, done = asyncio.new_event_loop(), list[str]()
    mailbox, wake = Mailbox(loop), loop.call_soon_threadsafe

    def interrupted_wake(*_: Any) -> Any:
        monkeypatch.undo()
        mailbox.post(done.append, "other")  # it sees that the loop is being woken
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted_wake)
    with pytest.raises(KeyboardInterrupt):
        mailbox.post(done.append, "one")
    assert loop.call_soon_threadsafe == wake
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert done == ["one", "other"]


async def test_work_that_exits_is_an_error(engine: Engine) -> None:
    """sys.exit in somebody's coroutine ends the call, not the engine."""

    async def leave() -> None:
        sys.exit("bye")

    with pytest.raises(ProviderError, match="SystemExit: bye"):
        await engine.call(leave)
    with pytest.raises(ProviderError, match="SystemExit: bye"):
        engine.wait(leave, BOUND_S)
    assert engine.wait(name_of_thread, BOUND_S)


def test_the_works_own_timeout_is_not_ours(engine: Engine) -> None:
    """A TimeoutError raised by the work arrives as it is, however long the wait might be."""

    async def fail() -> None:
        raise TimeoutError("the service is slow", hint="its words")

    with pytest.raises(TimeoutError, match="the service is slow"):
        engine.wait(fail, BOUND_S)


def test_a_result_in_the_last_moment_is_not_lost() -> None:
    """A result that comes while the waiting wakes is returned, not turned into a timeout."""

    class Late(Future[int]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            if not self.done():
                self.set_result(7)
                raise FutureTimeoutError
            return super().exception(timeout)

    assert engines._result(Late(), None) == 7
    assert engines._result(Late(), 0) == 7


def test_waiting_on_the_engine_itself_is_refused(engine: Engine) -> None:
    """A blocking call on the engine's own thread would wait for itself; it is an error at once."""

    async def block() -> None:
        engine.wait(name_of_thread)

    with pytest.raises(ConfigurationError, match="engine's own thread.*\n.*await"):
        engine.wait(block, BOUND_S)


def test_a_callers_closed_loop_disturbs_nobody(engine: Engine) -> None:
    """Work whose caller's loop is gone ends for itself, and the engine goes on."""
    gate, done = Gate(), threading.Event()

    async def work() -> None:
        try:
            await gate.passed()
        except asyncio.CancelledError:
            pass
        finally:
            done.set()

    loop = asyncio.new_event_loop()
    call = loop.create_task(engine.call(work))
    loop.run_until_complete(asyncio.wait_for(asyncio.to_thread(gate.reached.wait), BOUND_S))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    gate.open()
    assert done.wait(BOUND_S)
    assert engine.wait(name_of_thread, BOUND_S)
    call._log_destroy_pending = False  # type: ignore[attr-defined]  # left behind on purpose


def test_a_mailbox_of_a_closed_loop_says_so() -> None:
    """Posting to a loop that is closed, or gone, tells that nothing will come of it."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    assert mailbox.post(print)
    loop.close()
    assert not Mailbox(loop).post(print)
    assert not mailbox.post(print)
    del loop
    gc.collect()
    assert not mailbox.post(print)


def test_a_mailbox_wakes_once_for_a_burst() -> None:
    """A burst of calls is one wake-up, and all of it is done in order."""
    loop = asyncio.new_event_loop()
    wakes: list[object] = []
    post = loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *a: wakes.append(a) or post(*a)  # type: ignore[method-assign,func-returns-value]
    done: list[int] = []
    mailbox = Mailbox(loop)
    for number in range(100):
        mailbox.post(done.append, number)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert done == list(range(100))
    assert len(wakes) == 1


def test_a_failing_call_in_a_burst_takes_no_other_with_it() -> None:
    """What was posted after a function that raises is done all the same."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    done: list[str] = []
    mailbox = Mailbox(loop)
    mailbox.post(done.append, "before")
    mailbox.post(lambda: 1 // 0)
    mailbox.post(done.append, "after")
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert done == ["before", "after"]


def test_loops_are_not_kept(engine: Engine) -> None:
    """A loop that called the engine and was closed is freed: a notebook makes many."""
    loops = []

    async def use() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await engine.call(name_of_thread)

    for _ in range(5):
        asyncio.run(use())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 5


async def test_a_waiting_loop_is_woken_again_and_again() -> None:
    """While a call is under way its loop wakes every 50 ms, so that an interrupt is seen."""
    port = engines.port()
    with port:
        assert port._ticking
        ticks = [handle for handle in _scheduled() if handle._callback == port._tick]
        assert len(ticks) == 1
        assert ticks[0].when() - asyncio.get_running_loop().time() <= engines.TICK_S
    port._tick()
    assert not port._ticking


def _scheduled() -> list[Any]:
    return list(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


async def test_what_finalizers_post_is_done(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer's call reaches the engine, also one that runs while its own thread is posting."""
    posted, finalized = threading.Event(), threading.Event()
    wake = engine._loop.call_soon_threadsafe

    def collecting(*arguments: Any) -> Any:
        monkeypatch.undo()
        engine.post_from_finalizer(finalized.set)
        return wake(*arguments)

    monkeypatch.setattr(engine._loop, "call_soon_threadsafe", collecting)
    engine.post(posted.set)
    await happened(posted)
    await happened(finalized)


def test_closing_runs_what_was_left_for_the_end() -> None:
    """At the interpreter's end resources are freed, a failing one does not stop the others."""
    engine, done = Engine(), []

    async def fail() -> None:
        raise ProviderError("cannot")

    async def free() -> None:
        done.append("freed")

    engine.at_close(fail)
    engine.at_close(free)
    engine.close()
    assert done == ["freed"]
    assert not engine._thread.is_alive()
    engine.close()
    engine._loop.close()


def test_closing_closes_the_loop() -> None:
    """A closed engine leaves no open loop behind for the garbage collector to complain of."""
    engine = Engine()
    engine.wait(name_of_thread, BOUND_S)
    engine.close()
    closed = engine._loop.is_closed()
    engine._loop.close()
    assert closed


def test_there_is_one_default_engine() -> None:
    """Threads that ask first at the same time get the same engine."""
    found: list[Engine] = []
    with joined(
        *(threading.Thread(target=lambda: found.append(engines.default())) for _ in range(8))
    ):
        pass
    assert len(set(map(id, found))) == 1


can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def run_alone(code: str) -> str:
    """Run code in an interpreter of its own, and return what it printed."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


FORK = """
import os, signal, sys, warnings
import nbproviders as nbp
warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is the point
{before}
child = os.fork()
if child == 0:
    signal.alarm(10)
    try:
        {inside}
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(child, 0)
print("ended", status, flush=True)
"""


@can_fork
def test_a_forked_child_has_an_engine_of_its_own() -> None:
    """After a fork the child's first call starts a new engine instead of waiting for a dead thread."""
    code = FORK.format(
        before="nbp.load_sync('echo:a').generate('x', timeout_s=5)",
        inside="print(nbp.load_sync('echo:b', timeout_s=5).generate('child', timeout_s=5), flush=True)",
    )
    assert run_alone(code).split() == ["child", "ended", "0"]


@can_fork
def test_a_forked_child_has_an_empty_residency() -> None:
    """A model that the parent holds is not in the child's memory list; the child loads its own."""
    code = FORK.format(
        before="nbp.load_sync('echo:a')",
        inside="print(len(nbp.residents()), flush=True); nbp.load_sync('echo:a', timeout_s=5);"
        " print([r.spec for r in nbp.residents()], flush=True)",
    )
    assert run_alone(code).split() == ["0", "['echo:a']", "ended", "0"]


@can_fork
def test_a_parents_model_is_not_used_by_the_child() -> None:
    """A reference the parent had open loads anew in the child: the parent's threads are not there."""
    code = FORK.format(
        before=(
            "class Plain:\n"
            "    async def setup(self, spec): return nbp.ModelHandle(spec, self, self)\n"
            "    async def teardown(self, rid): pass\n"
            "    def generate(self, prompt): return prompt\n"
            "nbp.register_provider('plain', Plain())\n"
            "nbp.load_sync('plain:a').generate('x', timeout_s=5)"
        ),
        inside="print(nbp.load_sync('plain:a', timeout_s=5).generate('child', timeout_s=5), flush=True)",
    )
    assert run_alone(code).split() == ["child", "ended", "0"]


@can_fork
def test_a_parents_client_in_the_child_does_not_hang() -> None:
    """A client made before the fork works in the child, or says that it cannot; it never just waits."""
    code = FORK.format(
        before="m = nbp.load_sync('echo:a')",
        inside="\n        try: m.generate('x', timeout_s=5)\n"
        "        except nbp.ClosedError: pass\n"
        "        print('told', flush=True)",
    )
    assert run_alone(code).split() == ["told", "ended", "0"]


def test_a_load_that_exits_does_not_end_the_engine() -> None:
    """Foreign code that calls sys.exit fails its own load; everything else goes on."""
    code = """
import sys
import nbproviders as nbp
from nbproviders.abc import ResidentProvider
class Leaver(ResidentProvider):
    def load(self, key, progress):
        sys.exit(3)
try:
    with Leaver().model("x") as m: pass
except nbp.ProviderError as error:
    print("failed")
print(nbp.load_sync("echo:a", timeout_s=5).generate("alive", timeout_s=5))
"""
    code = "import signal; signal.alarm(10)\n" + code
    assert run_alone(code).split() == ["failed", "alive"]


def test_the_interpreter_ends_with_models_open() -> None:
    """A script that leaves models, clients and streams open ends by itself, in silence."""
    code = """
import nbproviders as nbp
m = nbp.load_sync("echo:a?delay_s=0.001")
s = m.stream("one two three")
print(next(s))
"""
    assert run_alone(code).split() == ["one"]
