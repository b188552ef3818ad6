"""Promises of a model's own thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from nbproviders.errors import ClosedError
from nbproviders.runtimes.threads import Worker, claim
from tests.scripted import BOUND_S, happened


async def test_jobs_run_in_order_on_one_thread() -> None:
    """Everything of one model happens on one thread, one after another."""
    worker, seen = Worker("lab"), []
    results = await asyncio.gather(
        *(worker.run(lambda n=n: seen.append((n, threading.get_ident())) or n) for n in range(20))  # type: ignore[misc,func-returns-value]
    )
    assert results == list(range(20))
    assert [n for n, _ in seen] == list(range(20))
    assert len({ident for _, ident in seen}) == 1
    assert await worker.run(lambda: threading.current_thread().name) == "nbproviders-lab"
    assert await worker.run(pow, 2, 3) == 8
    await worker.close()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt("x"), SystemExit(3)])
async def test_errors_come_back_and_the_thread_goes_on(error: BaseException) -> None:
    """What a job raises is raised at its caller, whatever it is."""
    worker = Worker("lab")

    def fail() -> None:
        raise error

    caught: BaseException | None = None
    try:
        await worker.run(fail)
    except BaseException as found:
        caught = found
    assert str(error) in f"{caught} {caught.__cause__}" or type(caught) is type(error)
    assert await worker.run(lambda: 1) == 1
    await worker.close()


async def test_stop_iteration_comes_back_too() -> None:
    """The one exception that futures refuse is still told, as something they carry."""
    worker = Worker("lab")

    def fail() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(3):
            await worker.run(fail)
    assert await worker.run(lambda: 1) == 1
    await worker.close()


async def test_cancelling_does_not_wait_and_does_not_disturb() -> None:
    """A cancelled caller is free at once; the job ends for itself and the next one runs."""
    worker, started, go_on, ended = (
        Worker("lab"),
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    def job() -> None:
        started.set()
        go_on.wait(BOUND_S)
        ended.set()

    call = asyncio.ensure_future(worker.run(job))
    await happened(started)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not ended.is_set()
    go_on.set()
    assert await worker.run(ended.is_set)
    await worker.close()


async def test_closing_lets_queued_jobs_end() -> None:
    """What was asked before the end is done; what comes after is refused; the thread is gone."""
    worker, done = Worker("lab"), []
    jobs = [asyncio.ensure_future(worker.run(done.append, n)) for n in range(5)]
    await asyncio.sleep(0)
    await asyncio.gather(worker.close(), worker.close())
    await asyncio.gather(*jobs)
    assert done == list(range(5))
    worker._thread.join(BOUND_S)
    assert not worker._thread.is_alive()
    await worker.close()
    with pytest.raises(ClosedError, match="closed"):
        await worker.run(print)


async def test_a_worker_can_close_itself() -> None:
    """A model that ends on its own thread does not wait for itself."""
    worker = Worker("lab")
    await worker.run(lambda: asyncio.run(worker.close()))
    with pytest.raises(ClosedError):
        worker.post(print)


async def test_an_idle_thread_keeps_nothing() -> None:
    """Between jobs a thread holds no model alive."""

    class Weights: ...

    worker, weights, gone = Worker("lab"), Weights(), threading.Event()
    kept = weakref.ref(weights, lambda _: gone.set())
    await worker.run(lambda w: None, weights)
    del weights
    gc.collect()
    await happened(gone)
    assert kept() is None
    await worker.close()


async def test_a_callers_loop_may_close_before_the_job_ends() -> None:
    """A result for a loop that is gone disturbs nobody."""
    worker, go_on = Worker("lab"), threading.Event()

    def elsewhere() -> None:
        async def give_up() -> None:
            call = asyncio.ensure_future(worker.run(go_on.wait, BOUND_S))
            await asyncio.sleep(0)
            call.cancel()

        asyncio.run(give_up())

    await asyncio.to_thread(elsewhere)
    go_on.set()
    assert await worker.run(lambda: "alive") == "alive"
    await worker.close()


async def test_a_model_claims_the_thread_it_was_loaded_on() -> None:
    """What loads on a worker stays there; elsewhere a new thread is made."""
    worker = Worker("lab")
    assert await worker.run(claim) is worker
    assert worker.claimed
    other = claim()
    assert other is not worker
    assert other.claimed
    await worker.close()
    await other.close()
