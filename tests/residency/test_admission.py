"""Promises of letting a load in: idle ones leave, busy ones are waited for, too much is refused."""

from __future__ import annotations

import asyncio

import pytest

from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency.entry import State
from nbproviders.residency.memory import Memory, Reading
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from tests.scripted import (
    Gate,
    ScriptedLoader,
    ScriptedModel,
    house,
    in_virtual_time,
    operate,
    start,
    turns,
)


async def resident(home: Residency, *loaders: ScriptedLoader) -> None:
    for loader in loaders:
        (await home.lease(loader)).release()


def specs(home: Residency) -> set[str]:
    return {one.spec.partition(":")[2] for one in home.residents()}


@in_virtual_time
async def test_idle_models_leave_for_a_new_one() -> None:
    """Over budget the longest unused one is closed for real, and only that one."""
    home = house(100)
    old, young, new = (ScriptedLoader(name, needs=40) for name in ("old", "young", "new"))
    await resident(home, old)
    await asyncio.sleep(1000)
    await resident(home, young)
    await resident(home, new)
    assert specs(home) == {"young", "new"}
    assert (old.model.closed, young.model.closed) == (1, 0)
    assert [e.spec for e in home.events() if e.kind == "evicted"] == ["scripted:old"]
    assert next(e.bytes for e in home.events() if e.kind == "evicted") == 40


@in_virtual_time
async def test_a_victim_that_is_used_meanwhile_stays() -> None:
    """While one victim closes another may be taken into use: it is no victim any more."""
    closing, using = Gate(), Gate()

    class Slow(ScriptedModel):
        async def aclose(self) -> None:
            await closing.passed()
            await super().aclose()

    home = house(100)
    loaders = [
        ScriptedLoader(n, needs=50, make=lambda: Slow(memory_bytes={"gpu": 50})) for n in "ab"
    ]
    await resident(home, *loaders)
    asking = start(home.lease(ScriptedLoader("big", needs=100)))
    await turns()
    [stays] = [loader for loader in loaders if home.lease_now(loader)]
    running = start(operate(home, stays, using))
    await turns()
    closing.open()
    await asyncio.sleep(1)
    assert home.find(stays.key) is not None
    assert home.lease_now(stays) is not None
    assert stays.model.closed == 0
    using.open()
    await running
    (await asking).release()
    assert specs(home) == {"big"}


@in_virtual_time
async def test_a_model_with_an_open_handle_leaves_last_and_comes_back() -> None:
    """An open handle is no claim for ever: its next use loads again."""
    home = house(100)
    held, other, big = (ScriptedLoader(n, needs=k) for n, k in (("h", 50), ("o", 50), ("b", 60)))
    lease = await home.lease(held)
    await resident(home, other)
    await resident(home, ScriptedLoader("c", needs=40))
    assert "h" in specs(home)
    await resident(home, big)
    assert "h" not in specs(home)
    assert home.handles(held.key) == 1
    async with home.using(held):
        assert "h" in specs(home)
    assert held.loads == 2
    lease.release()


@in_virtual_time
async def test_a_busy_model_is_waited_for() -> None:
    """A model in use never leaves; the new one comes when the operation ends, and not later."""
    home, gate = house(100), Gate()
    busy, new = ScriptedLoader("busy", needs=60), ScriptedLoader("new", needs=60)
    running = start(operate(home, busy, gate))
    await turns()
    asking = start(home.lease(new))
    await asyncio.sleep(20)
    assert (home.find(new.key).state, new.loads, busy.model.closed) == (State.WAITING, 0, 0)  # type: ignore[union-attr]
    assert "waiting" in {e.kind for e in home.events()}
    gate.open()
    began_s = asyncio.get_running_loop().time()
    (await asking).release()
    assert asyncio.get_running_loop().time() == began_s
    await running
    assert specs(home) == {"new"}


@in_virtual_time
async def test_waiting_has_an_end() -> None:
    """After a minute the refusal says who holds what."""
    home = house(100)
    running = start(operate(home, ScriptedLoader("busy", needs=60), Gate()))
    await turns()
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(InsufficientMemoryError) as caught:
        await home.lease(ScriptedLoader("new", needs=60))
    assert 60 <= asyncio.get_running_loop().time() - began_s < 62
    text = str(caught.value)
    assert "Failed to setup resource 'scripted:new'" in text
    assert "needs 60 B on gpu, 20 B on gpu too much: models that are running did not end" in text
    assert "scripted:busy: gpu 60 B (hot, 1 running, 0 open)" in text
    assert "NBPROVIDERS_BUDGET" in text
    assert specs(home) == {"busy"}
    running.cancel()


@in_virtual_time
async def test_cancelled_while_waiting_for_memory() -> None:
    """Stop ends the wait; nothing of it stays, and the next in line has its turn."""
    home, gate = house(100), Gate()
    running = start(operate(home, ScriptedLoader("busy", needs=60), gate))
    await turns()
    asking = start(home.lease(ScriptedLoader("new", needs=60)))
    following = start(home.lease(ScriptedLoader("next", needs=60)))
    await turns()
    asking.cancel()
    await turns()
    assert specs(home) == {"busy", "next"}
    gate.open()
    (await following).release()
    await running
    assert specs(home) == {"next"}


@in_virtual_time
async def test_what_never_fits_is_refused_at_once() -> None:
    """More than the whole budget: nobody leaves, nobody waits, and the table is shown."""
    home = house(100)
    await resident(home, ScriptedLoader("small", needs=10))
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(InsufficientMemoryError) as caught:
        await home.lease(ScriptedLoader("huge", needs=130))
    assert asyncio.get_running_loop().time() == began_s
    text = str(caught.value)
    assert "needs 130 B on gpu, 30 B on gpu too much: that is more than the budget" in text
    assert "scripted:small: gpu 10 B" in text
    assert "huge:" not in text
    assert specs(home) == {"small"}


@in_virtual_time
async def test_charges_never_exceed_the_budget() -> None:
    """Loads at the same time do not count on the same room."""
    home, gate = house(100), Gate()
    loaders = [ScriptedLoader(str(n), needs=40, gate=gate) for n in range(5)]
    asking = [start(home.lease(loader)) for loader in loaders]
    await turns()
    assert sum(sum(one.bytes.values()) for one in home.residents()) <= 100
    assert sum(loader.loading for loader in loaders) == 2
    gate.open()
    for task in asking:
        (await task).release()
    assert sum(sum(one.bytes.values()) for one in home.residents()) <= 100


@in_virtual_time
async def test_loads_at_once_do_not_count_on_the_same_free_memory() -> None:
    """Without a budget the machine's free memory is shared out once, also before it is taken."""
    taken = 0
    memory = Memory({}, {"gpu": lambda _: Reading(1000, 1000 - taken)})
    home, gate = Residency(memory, asyncio.get_running_loop().time), Gate()
    loaders = [ScriptedLoader(str(n), needs=600, gate=gate) for n in range(2)]
    asking = [start(home.lease(loader)) for loader in loaders]
    await turns()
    assert sum(loader.loading for loader in loaders) == 1
    gate.open()
    await turns()
    for task in asking:
        task.cancel()


@in_virtual_time
async def test_a_measured_model_is_charged_what_it_takes() -> None:
    """After loading the measurement replaces the estimate."""
    home = house(100)
    loader = ScriptedLoader(needs=50, make=lambda: ScriptedModel(memory_bytes={"gpu": 20}))
    await resident(home, loader)
    assert home.residents()[0].bytes == {"gpu": 20}
    unmeasured = ScriptedLoader("b", needs=50, make=ScriptedModel)
    await resident(home, unmeasured)
    assert home.residents()[1].bytes == {"gpu": 50}


class Tight(ScriptedLoader):
    """Runs out of memory a number of times, whatever was planned."""

    failures = 1

    async def load(self, progress: Progress):  # type: ignore[no-untyped-def]
        if self.failures:
            self.failures -= 1
            self.loads += 1
            raise InsufficientMemoryError("the device is full")
        return await super().load(progress)


@in_virtual_time
async def test_out_of_memory_evicts_and_tries_once_more() -> None:
    """If the device is full in spite of the plan, idle models leave and the load is tried again."""
    home = house(100)
    idle = ScriptedLoader("idle", needs=10)
    await resident(home, idle)
    tight = Tight("tight", needs=10)
    await resident(home, tight)
    assert (tight.loads, idle.model.closed) == (2, 1)


@in_virtual_time
async def test_out_of_memory_twice_is_an_error() -> None:
    """It is tried once more, not for ever; with nobody to evict not even that."""
    home = house(100)
    tight = Tight("tight", needs=10)
    with pytest.raises(InsufficientMemoryError, match="Failed to setup.*the device is full"):
        await home.lease(tight)
    assert tight.loads == 1
    await resident(home, ScriptedLoader("idle", needs=10))
    tight.failures = 2
    with pytest.raises(InsufficientMemoryError, match="the device is full"):
        await home.lease(tight)
    assert home.residents() == []


@in_virtual_time
async def test_memory_that_another_program_gave_back() -> None:
    """Free memory is read anew while waiting: other programs come and go without telling us."""
    free = [100]
    memory = Memory({}, {"gpu": lambda _: Reading(1000, free[0])})
    home = Residency(memory, asyncio.get_running_loop().time)
    running = start(operate(home, ScriptedLoader("busy"), Gate()))
    await turns()
    free[0] = 150
    busy = home.find(ScriptedLoader("busy").key)
    assert busy is not None
    busy.charges = {"gpu": 100}
    asking = start(home.lease(ScriptedLoader("new", needs=100)))
    await asyncio.sleep(5)
    assert not asking.done()
    free[0] = 300
    (await asking).release()
    running.cancel()


@in_virtual_time
async def test_one_that_fits_does_not_queue_behind_one_that_waits() -> None:
    """A small model need not wait for a large one's turn."""
    home = house(100)
    running = start(operate(home, ScriptedLoader("busy", needs=60), Gate()))
    await turns()
    large = start(home.lease(ScriptedLoader("large", needs=60)))
    await turns()
    (await home.lease(ScriptedLoader("small", needs=30))).release()
    assert not large.done()
    large.cancel()
    running.cancel()
    await turns()
