"""Promises of letting a load in: idle ones leave, busy ones are waited for, too much is refused."""

from __future__ import annotations

import asyncio

import pytest

from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency.admission import BREAK_S, PATIENCE_S
from nbproviders.residency.entry import State
from nbproviders.residency.memory import HOST, Memory, Reading
from nbproviders.residency.progress import Progress
from nbproviders.residency.queue import MOST_OVERTAKEN
from nbproviders.residency.residency import Residency
from tests.scripted import (
    Gate,
    ScriptedLoader,
    ScriptedModel,
    SleepyLoader,
    house,
    in_virtual_time,
    operate,
    resident,
    start,
    turns,
)


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
    assert (
        "needs 60 B on gpu. That is 20 B on gpu too much: models that are running did not end"
        in text
    )
    assert "scripted:busy: gpu 60 B (ready, 1 running, 0 open)" in text
    assert "nbp.unload(…, force=True)" in text
    assert "wait_s" in text
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
    assert (
        "needs 130 B on gpu. That is 30 B on gpu too much: models may take 100 B on gpu in all"
        in text
    )
    assert "scripted:small: gpu 10 B" in text
    assert "huge:" not in text
    assert "Choose a smaller model" in text
    assert "Unload" not in text  # for that would not help
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


# Turns


@in_virtual_time
async def test_what_needs_no_memory_never_waits() -> None:
    """A hosted model goes before one that waits, however often, and takes nobody's turn."""
    home, gate = house(100), Gate()
    running = start(operate(home, ScriptedLoader("busy", needs=60), gate))
    await turns()
    large = start(home.lease(ScriptedLoader("large", needs=60)))
    await turns()
    for number in range(MOST_OVERTAKEN + 2):
        (await home.lease(ScriptedLoader(f"hosted{number}"))).release()
    (await home.lease(ScriptedLoader("small", needs=1))).release()  # its right is not used up
    assert asyncio.get_running_loop().time() == 0
    gate.open()
    await running
    (await large).release()


@in_virtual_time
async def test_who_wants_another_device_does_not_wait() -> None:
    """Also if somebody there has to leave for him."""
    home = Residency(Memory({"gpu": 100, "npu": 100}), asyncio.get_running_loop().time)
    idle = ScriptedLoader("idle", needs=80, device="npu")
    await resident(home, idle)
    running = start(operate(home, ScriptedLoader("busy", needs=60), Gate()))
    await turns()
    large = start(home.lease(ScriptedLoader("large", needs=60)))
    await turns()
    (await home.lease(ScriptedLoader("other", needs=80, device="npu"))).release()
    assert asyncio.get_running_loop().time() == 0
    assert idle.model.closed == 1
    for task in (large, running):
        task.cancel()


@in_virtual_time
async def test_who_does_not_fit_has_not_gone_before() -> None:
    """Ten that stand behind leave the right to go before to one that fits."""
    home = house(100)
    running = start(operate(home, ScriptedLoader("busy", needs=60), Gate()))
    await turns()
    waiting = [
        start(home.lease(ScriptedLoader(f"large{number}", needs=60))) for number in range(10)
    ]
    await turns()
    (await home.lease(ScriptedLoader("small", needs=30))).release()
    assert asyncio.get_running_loop().time() == 0
    for task in (*waiting, running):
        task.cancel()


@in_virtual_time
async def test_no_more_than_some_go_before_one_who_waits() -> None:
    """Small ones pass while there is room for them, eight at most; then they stand behind."""
    home, gate = house(100), Gate()
    running = start(operate(home, ScriptedLoader("busy", needs=60), gate))
    await turns()
    large = start(home.lease(ScriptedLoader("large", needs=90)))
    await turns()
    small = [ScriptedLoader(f"s{n}", needs=2) for n in range(12)]
    asking = [start(home.lease(loader)) for loader in small]
    await asyncio.sleep(1)
    assert sum(loader.loads for loader in small) == MOST_OVERTAKEN
    assert not large.done()
    gate.open()
    (await large).release()
    for task in asking:
        (await task).release()
    await running
    assert sum(loader.loads for loader in small) == len(small)


async def use_without_end(home: Residency, loader: ScriptedLoader, stop: asyncio.Event) -> int:
    """Use a model by two who take turns, so that it is never free; return how often."""
    uses = 0

    async def again_and_again() -> None:
        nonlocal uses
        while not stop.is_set():
            async with home.using(loader):
                uses += 1
                await asyncio.sleep(1)

    second = start(again_and_again())
    await asyncio.sleep(0.5)
    await again_and_again()
    await second
    return uses


@pytest.mark.parametrize("kind", [SleepyLoader, ScriptedLoader])
@in_virtual_time
async def test_a_model_used_without_end_makes_a_break_for_one_who_waits(
    kind: type[ScriptedLoader],
) -> None:
    """Calls that overlap would keep it for ever: after a while new ones wait, and the other has its turn."""
    home, stop = house(100, host=0), asyncio.Event()
    endless, new = kind("endless", needs=60), ScriptedLoader("new", needs=60)
    using = start(use_without_end(home, endless, stop))
    await asyncio.sleep(3)
    began_s = asyncio.get_running_loop().time()
    lease = await home.lease(new)
    waited_s = asyncio.get_running_loop().time() - began_s
    assert PATIENCE_S <= waited_s < PATIENCE_S + 3
    assert new.loads == 1
    lease.release()
    await asyncio.sleep(5)
    assert specs(home) - {"new"} == {"endless"}
    stop.set()
    assert await using > 10


@pytest.mark.parametrize("kind", [SleepyLoader, ScriptedLoader])
@in_virtual_time
async def test_who_makes_a_break_does_not_take_the_room_back(kind: type[ScriptedLoader]) -> None:
    """The room was made for the one who waits: the others come after it, though they would fit again."""
    home, stop = house(100, host=0), asyncio.Event()
    endless, new = kind("endless", needs=60), ScriptedLoader("new", needs=60)
    using = start(use_without_end(home, endless, stop))
    await asyncio.sleep(3)
    (await home.lease(new)).release()
    stop.set()
    await using
    woken = sum(e.kind == "woken" for e in home.events())
    assert endless.loads + woken == 2  # at first, and after the other had its turn


@in_virtual_time
async def test_a_break_has_an_end() -> None:
    """A use inside a use of the same model waits for itself while the model makes a break: not for ever."""
    home, done = house(100), []

    async def nested() -> None:
        async with home.using(loader):
            await asyncio.sleep(PATIENCE_S + 1)
            async with home.using(loader):
                done.append(asyncio.get_running_loop().time())

    loader = ScriptedLoader("nested", needs=60)
    using = start(nested())
    await turns()
    new = start(home.lease(ScriptedLoader("new", needs=60)))
    await using
    assert PATIENCE_S + BREAK_S <= done[0] < PATIENCE_S + BREAK_S + 1
    (await new).release()


@in_virtual_time
async def test_a_use_inside_a_use_that_cannot_both_fit_is_refused() -> None:
    """Waiting for one's own model comes to an end, with the table that shows it; then all is as before."""
    home = house(100)
    outer, inner = ScriptedLoader("outer", needs=60), ScriptedLoader("inner", needs=60)
    with pytest.raises(InsufficientMemoryError, match="scripted:outer: gpu 60 B .ready, 1 running"):
        async with home.using(outer), home.using(inner):
            pass
    assert asyncio.get_running_loop().time() < 62
    await resident(home, inner, outer)


@in_virtual_time
async def test_the_longest_wait_can_be_set() -> None:
    """It is counted from the beginning, whoever else waits."""
    home = house(100)
    home.set_wait(7.0)
    running = start(operate(home, ScriptedLoader("busy", needs=60), Gate()))
    await turns()
    first = start(home.lease(ScriptedLoader("first", needs=60)))
    second = start(home.lease(ScriptedLoader("second", needs=60)))
    for task in (first, second):
        with pytest.raises(InsufficientMemoryError):
            await task
        assert 7 <= asyncio.get_running_loop().time() < 8
    running.cancel()


@in_virtual_time
async def test_who_stands_behind_waits_no_longer() -> None:
    """Also while the first one's room takes its time to come free."""

    class Slow(ScriptedModel):
        async def aclose(self) -> None:
            await asyncio.sleep(1000)
            await super().aclose()

    home = house(100)
    home.set_wait(7.0)
    slow = ScriptedLoader("slow", needs=60, make=lambda: Slow(memory_bytes={"gpu": 60}))
    await resident(home, slow)
    first = start(home.lease(ScriptedLoader("first", needs=60)))
    await turns()
    with pytest.raises(InsufficientMemoryError, match="40 B on gpu: others waited before it"):
        await home.lease(ScriptedLoader("second", needs=40))
    assert 7 <= asyncio.get_running_loop().time() < 8
    (await first).release()


@in_virtual_time
async def test_a_refused_or_cancelled_one_ends_the_break_it_asked_for() -> None:
    """Nobody waits in vain for one who has gone."""
    home, gate = house(100), Gate()
    busy = ScriptedLoader("busy", needs=60)
    running = start(operate(home, busy, gate))
    await turns()
    waiting = start(home.lease(ScriptedLoader("new", needs=60)))
    await asyncio.sleep(PATIENCE_S + 1)
    held_up = start(operate(home, busy, Gate(opened=True)))
    await turns()
    assert not held_up.done()
    waiting.cancel()
    await turns()
    assert held_up.done()
    gate.open()
    await running


@in_virtual_time
async def test_a_pinned_model_makes_no_break() -> None:
    """It will not leave, so nobody who uses it is held up for the sake of another."""
    home = house(100)
    pinned, busy = ScriptedLoader("pinned", needs=30), ScriptedLoader("busy", needs=60)
    await home.pin(pinned)
    running = [start(operate(home, loader, Gate())) for loader in (pinned, busy)]
    await turns()
    waiting = start(home.lease(ScriptedLoader("new", needs=60)))
    await asyncio.sleep(PATIENCE_S + 1)
    yielding = {str(entry.spec): entry.yielding for entry in home.entries()}
    assert yielding == {"scripted:pinned": False, "scripted:busy": True, "scripted:new": False}
    for task in (*running, waiting):
        task.cancel()


@in_virtual_time
async def test_less_is_allowed_though_what_runs_is_too_much() -> None:
    """Who is idle leaves at once, and what runs when it ends."""
    home, gate = house(200), Gate()
    idle, busy = ScriptedLoader("idle", needs=40), ScriptedLoader("busy", needs=60)
    await resident(home, idle)
    running = start(operate(home, busy, gate))
    await turns()
    home.memory.set_budget({"gpu": 50})
    home.settle()
    await turns()
    assert specs(home) == {"busy"}
    gate.open()
    await running
    await turns()
    assert specs(home) == set()


@in_virtual_time
async def test_who_is_used_before_it_could_leave_stays_until_then() -> None:
    """What has to leave may be taken into use in the same moment."""
    home, idle = house(100), ScriptedLoader("idle", needs=40)
    await resident(home, idle)
    home.memory.set_budget({"gpu": 30})
    home.settle()
    async with home.using(idle):
        await asyncio.sleep(1)
        entry = home.find(idle.key)
        assert entry is not None
        assert (entry.state, idle.model.closed) == (State.HOT, 0)


@in_virtual_time
async def test_less_is_allowed_from_now_on() -> None:
    """A smaller budget has idle models leave at once, the least missed first; those in use stay."""
    home, gate = house(100), Gate()
    idle = [ScriptedLoader(name, needs=20) for name in "ab"]
    await resident(home, *idle)
    running = start(operate(home, ScriptedLoader("busy", needs=40), gate))
    await turns()
    home.memory.set_budget({"gpu": 70})
    home.settle()
    await turns()
    assert specs(home) == {"b", "busy"}
    gate.open()
    await running


def one_memory(budget: dict[str, int]) -> Residency:
    """A residency whose copies and CPU models share 1,000 bytes, of which 100 are headroom."""
    homes: list[Residency] = []

    def probe(device: str) -> Reading:
        entries = homes[0].entries() if homes else []
        return Reading(1000, 1000 - sum(one.taken("cpu") + one.taken(HOST) for one in entries))

    homes.append(Residency(Memory(budget, {"cpu": probe}), asyncio.get_running_loop().time))
    return homes[0]


@in_virtual_time
@pytest.mark.parametrize("awake", [False, True])
async def test_copies_make_room_for_models_of_the_cpu(awake: bool) -> None:
    """They lie in the same memory: an idle model's copy leaves, and no more of them than has to."""
    home = one_memory({"gpu": 1000, HOST: 600})
    large, small = SleepyLoader("large", needs=400), SleepyLoader("small", needs=150)
    await resident(home, large, small)
    if not awake:
        for entry in home.entries():
            await home.sleep(entry)
    new = ScriptedLoader("new", needs=600, device="cpu")
    assert [move for move, _ in (await home.fit(new)).moves] == ["scripted:large"]
    await resident(home, new)
    assert specs(home) == {"small", "new"}


@in_virtual_time
@pytest.mark.parametrize(
    ("cpu", "others", "there", "needs"),
    [
        (300, 0, 0, 301),  # more than the CPU's budget
        (550, 0, 300, 260),  # what is left of it is too little
        (1000, 0, 0, 901),  # more than the machine has
        (1000, 550, 0, 380),  # others took of the headroom, too
    ],
)
async def test_copies_do_not_leave_in_vain(cpu: int, others: int, there: int, needs: int) -> None:
    """Where their leaving would not be enough, it is an error, and they stay."""
    home = one_memory({"gpu": 1000, HOST: 600, "cpu": cpu})
    copied = SleepyLoader("copied", needs=400)
    await resident(home, copied)
    await home.pin(ScriptedLoader("there", needs=there, device="cpu"))
    probe = home.memory._probes["cpu"]

    def less(device: str) -> Reading:
        return Reading(1000, max(probe(device).free_bytes - others, 0))

    home.memory.add_probe("cpu", less)
    new = ScriptedLoader("new", needs=needs, device="cpu")
    found = await home.fit(new)
    assert (found.verdict, found.moves) == ("no", ())
    with pytest.raises(InsufficientMemoryError, match="cpu"):
        await home.lease(new)
    assert specs(home) == {"copied", "there"}


@in_virtual_time
async def test_copies_do_not_leave_for_one_who_waits_for_another() -> None:
    """The CPU's budget is what he waits for: a model on an accelerator is not loaded anew for each use."""
    home, gate = one_memory({"gpu": 1000, HOST: 600, "cpu": 550}), Gate()
    busy = ScriptedLoader("busy", needs=300, device="cpu")
    running = start(operate(home, busy, gate))
    copied = SleepyLoader("copied", needs=400)
    await resident(home, copied)
    asking = start(home.lease(ScriptedLoader("new", needs=260, device="cpu")))
    for _ in range(10):
        await asyncio.sleep(1)
        await operate(home, copied, Gate(opened=True))
    assert copied.loads == 1
    gate.open()
    await running
    (await asking).release()


@in_virtual_time
async def test_a_running_models_copy_is_waited_for() -> None:
    """It may leave when its call has ended."""
    home, gate = one_memory({"gpu": 1000, HOST: 600}), Gate()
    copied, new = SleepyLoader("copied", needs=400), ScriptedLoader("new", needs=600, device="cpu")
    running = start(operate(home, copied, gate))
    await turns()
    assert (await home.fit(new)).verdict == "wait"
    asking = start(home.lease(new))
    await turns()
    assert not asking.done()
    gate.open()
    await running
    (await asking).release()
    assert specs(home) == {"new"}


@in_virtual_time
async def test_a_models_own_copy_is_no_room_for_it() -> None:
    """Copies of those that want to come in stay: others' leave for them, and nobody looks for ever."""
    home = one_memory({"gpu": 1000, HOST: 600})
    mine, others = SleepyLoader("mine", needs=400), SleepyLoader("others", needs=100)
    await resident(home, mine, others)
    new = ScriptedLoader("new", needs=500, device="cpu")
    for lease in await home.lease_all([mine, new]):
        lease.release()
    assert specs(home) == {"mine", "new"}


@in_virtual_time
async def test_one_who_waits_to_wake_is_in_no_cpu_models_way() -> None:
    """He has his copy in main memory, and waits for another device."""
    home, gate = one_memory({"gpu": 100, HOST: 100, "cpu": 500}), Gate()
    sleeper, busy = SleepyLoader("sleeper", needs=60), ScriptedLoader("busy", needs=60)
    await resident(home, sleeper, ScriptedLoader("old", needs=400, device="cpu"))
    [entry] = [one for one in home.entries() if one.key == sleeper.key]
    await home.sleep(entry)
    running = start(operate(home, busy, gate))
    await turns()
    waking = start(home.lease(sleeper))
    await turns()
    await resident(home, ScriptedLoader("new", needs=400, device="cpu"))
    assert asyncio.get_running_loop().time() < 1
    assert specs(home) == {"sleeper", "busy", "new"}
    gate.open()
    await running
    (await waking).release()


@in_virtual_time
async def test_a_group_is_in_nobodys_way_on_a_device_where_it_has_all_it_wants() -> None:
    """What of it is there needs no room, while it waits for another device."""
    home, gate = (
        Residency(Memory({"gpu": 100, "gpu2": 100}), asyncio.get_running_loop().time),
        Gate(),
    )
    mine, old = ScriptedLoader("mine", needs=50), ScriptedLoader("old", needs=50)
    await resident(home, mine, old)
    running = start(operate(home, ScriptedLoader("busy", needs=60, device="gpu2"), gate))
    await turns()
    group = start(home.lease_all([mine, ScriptedLoader("other", needs=60, device="gpu2")]))
    await operate(home, mine, Gate(opened=True))  # the one that leaves is the other
    await resident(home, ScriptedLoader("new", needs=50))
    assert asyncio.get_running_loop().time() < 1
    gate.open()
    await running
    for lease in await group:
        lease.release()
