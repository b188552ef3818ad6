"""Promises of deadlines: they end what takes too long, in time, and never what somebody else cancelled."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nbproviders.runtimes.http.deadlines import Deadline, Deadlines
from tests.scripted import BOUND_S, in_virtual_time


def here() -> Deadlines:
    return Deadlines(asyncio.get_running_loop())


def now_s() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_a_block_that_takes_too_long_is_ended() -> None:
    """It ends at its time with Python's TimeoutError, and the task is as good as before."""
    began_s, deadline = now_s(), Deadline(here(), 3)
    with pytest.raises(TimeoutError), deadline:
        await asyncio.sleep(60)
    assert deadline.expired
    assert now_s() - began_s == pytest.approx(3)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@in_virtual_time
async def test_a_block_that_ends_in_time_is_left_alone() -> None:
    """Its result and its own errors come through, and nothing happens afterwards."""
    deadlines = here()
    with Deadline(deadlines, 3) as deadline:
        await asyncio.sleep(2)
    with pytest.raises(LookupError), Deadline(deadlines, 3):
        raise LookupError
    await asyncio.sleep(60)
    assert not deadline.expired


@in_virtual_time
async def test_each_ends_at_its_own_time() -> None:
    """Many wait at once, begun in any order, short after long: each is ended when its time has come."""
    deadlines, began_s = here(), now_s()

    async def ended_s(seconds: float) -> float:
        with contextlib.suppress(TimeoutError), Deadline(deadlines, seconds):
            await asyncio.sleep(60)
        return now_s() - began_s

    waits = [5.0, 1.0, 4.0, 1.0, 0.5]
    assert await asyncio.gather(*map(ended_s, waits)) == pytest.approx(waits)


@in_virtual_time
async def test_a_moved_one_ends_later() -> None:
    """Each sign of life begins the time anew, but not beyond the last moment."""
    deadlines, began_s = here(), now_s()

    async def dribble() -> None:
        with Deadline(deadlines, 2) as deadline:
            while True:
                await asyncio.sleep(1)
                deadline.move(2, began_s + 7.5)

    with pytest.raises(TimeoutError):
        await dribble()
    assert now_s() - began_s == pytest.approx(7.5)


@in_virtual_time
async def test_a_cancellation_from_outside_comes_first() -> None:
    """A task that somebody else cancels at the same time is cancelled, not late."""
    deadlines = here()

    async def wait() -> None:
        with Deadline(deadlines, 3):
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    asyncio.get_running_loop().call_later(3, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


@in_virtual_time
async def test_one_inside_another() -> None:
    """The inner one's end is no end of the outer block; the outer one's is not taken for the inner's."""
    deadlines = here()
    with Deadline(deadlines, 60) as outer:
        with pytest.raises(TimeoutError), Deadline(deadlines, 1):
            await asyncio.sleep(30)
        await asyncio.sleep(1)
    inner = Deadline(deadlines, 60)
    with pytest.raises(TimeoutError), Deadline(deadlines, 1) as outer, inner:
        await asyncio.sleep(30)
    assert (outer.expired, inner.expired) == (True, False)


async def test_many_in_a_row_set_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that end in time cost no timer each."""
    loop, timers = asyncio.get_running_loop(), []
    set_timer = loop.call_at

    def counted(*arguments: object, **named: object) -> object:
        timers.append(arguments)
        return set_timer(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_at", counted)
    deadlines = here()
    for _ in range(100):
        with Deadline(deadlines, BOUND_S):
            pass
    assert len(timers) == 1
    deadlines.close()
