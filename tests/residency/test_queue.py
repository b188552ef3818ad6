"""Promises of the queue before memory: who is next, who may pass, and that no cancellation is lost in it."""

from __future__ import annotations

import asyncio

import pytest

from nbproviders.residency.entry import Entry
from nbproviders.residency.memory import HOST
from nbproviders.residency.queue import MOST_OVERTAKEN, Changes, Queue, Waiting, Want, may_pass
from tests.scripted import ScriptedLoader, in_virtual_time, turns


def want(name: str, **need: int) -> Want:
    loader = ScriptedLoader(name)
    return Want(Entry(loader.key, loader.spec, loader, 0.0), need)


@in_virtual_time
@pytest.mark.parametrize("between", range(4))
async def test_cancelled_in_the_moment_of_a_change(between: int) -> None:
    """Who is cancelled while he is woken is cancelled, in whatever order the two arrive."""
    changes, went_on = Changes(), []

    async def wait() -> None:
        await changes.wait()
        went_on.append(True)
        await asyncio.sleep(1)
        went_on.append(False)

    task = asyncio.ensure_future(wait())
    await turns()
    changes.tell()
    for _ in range(between):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert False not in went_on


@in_virtual_time
async def test_without_a_change_it_is_looked_again() -> None:
    """Free memory can change without anybody here."""
    await Changes().wait()
    assert 0 < asyncio.get_running_loop().time() <= 1


def test_the_first_of_each_device_is_first() -> None:
    """Who wants two devices stands behind both, and in the way of both."""
    queue = Queue()
    one, two, both, last = (
        Waiting([want(name, **need)], 0.0)
        for name, need in (
            ("one", {"gpu": 1}),
            ("two", {"npu": 1}),
            ("both", {"gpu": 1, "npu": 1}),
            ("last", {"npu": 1}),
        )
    )
    for waiting in (one, two, both, last):
        queue.join(waiting)
    assert [queue.is_first(w) for w in (one, two, both, last)] == [True, True, False, False]
    queue.leave(one)
    queue.leave(two)
    assert [queue.is_first(w) for w in (both, last)] == [True, False]
    assert queue.before([want("new", npu=1)]) == [both, last]
    assert queue.before([want("new", gpu=1)]) == [both]
    assert queue.before([want("hosted")]) == queue.before([want("hosted", gpu=0)]) == []


def test_copies_for_devices_lie_in_main_memory() -> None:
    """Who waits for main memory is in the way of who wants it for copies."""
    queue = Queue()
    queue.join(waiting := Waiting([want("a", cpu=1)], 0.0))
    assert queue.before([Want(want("b").entry, {HOST: 1})]) == [waiting]


def test_who_may_pass() -> None:
    """Eight times anybody; nobody while room is made; never who left to make it."""
    new = [want("new", gpu=1)]
    waiting = Waiting([want("a", gpu=1)], 0.0, overtaken=MOST_OVERTAKEN - 1)
    assert may_pass([], new)
    assert may_pass([waiting], new)
    waiting.asked = [want("other").entry]
    assert may_pass([waiting], new)
    waiting.asked.append(want("new").entry)
    assert not may_pass([waiting], new)
    waiting.asked.clear()
    waiting.making_room = True
    assert not may_pass([waiting], new)
    waiting.making_room = False
    waiting.overtaken = MOST_OVERTAKEN
    assert not may_pass([waiting], new)
