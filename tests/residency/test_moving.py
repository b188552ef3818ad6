"""Promises of one model on its way: to sleep, awake again, out for good; by itself, by hand, or by force."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from nbproviders.core.model import Model
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    InsufficientMemoryError,
    InvalidRequestError,
    ProviderError,
    UnsupportedError,
)
from nbproviders.residency.entry import Entry, State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.memory import BUDGET_VARIABLE, HOST, KEEP_VARIABLE, Memory, Reading
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from nbproviders.residency.sleeping import Transfer
from tests.scripted import (
    Gate,
    ScriptedLoader,
    ScriptedModel,
    SleepyLoader,
    SleepyModel,
    house,
    in_virtual_time,
    operate,
    resident,
    runs_out,
    start,
    turns,
)


async def asleep(home: Residency, *loaders: SleepyLoader) -> None:
    await resident(home, *loaders)
    for loader in loaders:
        await home.sleep(there(home, loader))


def there(home: Residency, loader: ScriptedLoader) -> Entry:
    entry = home.find(loader.key)
    assert entry is not None
    return entry


def charges(home: Residency) -> dict[str, Mapping[str, int]]:
    return {one.spec.partition(":")[2]: one.bytes for one in home.residents()}


def told(home: Residency, *kinds: str) -> list[tuple[str, str, int, int]]:
    """Return kind, model, bytes and moved bytes of events of these kinds."""
    return [
        (e.kind, e.spec.partition(":")[2], e.bytes, e.moved_bytes)
        for e in home.events()
        if e.kind in kinds
    ]


# Asleep and awake


@in_virtual_time
async def test_a_model_sleeps_for_another_and_wakes_at_its_next_use() -> None:
    """Room is made by sleep, not by a new load later; each use finds its model awake."""
    home = house(100, host=1000)
    first, second = SleepyLoader("first", needs=60), SleepyLoader("second", needs=60)
    await resident(home, first, second)
    assert (there(home, first).state, there(home, second).state) == (State.WARM, State.HOT)
    async with home.using(first) as model:
        assert model is first.sleeper
        assert first.sleeper.awake
    assert (first.loads, first.sleeper.wakes, first.sleeper.closed) == (1, 1, 0)
    assert there(home, second).state is State.WARM


@in_virtual_time
async def test_many_wait_for_one_wake() -> None:
    """However many want a model that is asleep, it wakes once, and each has a lease of its own."""
    home, gate, ends = house(100, host=0), Gate(), Gate()
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    loader.sleeper.gate = gate
    running = [start(operate(home, loader, ends)) for _ in range(16)]
    leases = [start(home.lease(loader)) for _ in range(16)]
    await turns()
    [one] = home.residents()
    assert (one.state, one.bytes) == (State.WAKING, {"gpu": 60})
    gate.open()
    await turns()
    assert (loader.sleeper.wakes, loader.loads) == (1, 1)
    assert (home.residents()[0].running, home.handles(loader.key)) == (16, 16)
    ends.open()
    await asyncio.gather(*running)
    for lease in leases:
        lease.result().release()


@in_virtual_time
async def test_what_a_sleep_and_a_wake_tell() -> None:
    """slept: the bytes that came back, none moved; woken: what came and moved, and from where."""
    home = house(100, host=50)
    copied, plain = SleepyLoader("copied", needs=40), SleepyLoader("plain", needs=30, wish=False)
    await resident(home, copied, plain)
    assert [await home.sleep(there(home, one)) for one in (copied, plain)] == [40, 30]
    assert charges(home) == {"copied": {HOST: 40}, "plain": {}}
    assert told(home, "slept") == [("slept", "copied", 40, 0), ("slept", "plain", 30, 0)]
    await asyncio.sleep(3)
    await resident(home, copied, plain)
    assert told(home, "woken") == [("woken", "copied", 40, 40), ("woken", "plain", 30, 30)]
    details = [e.detail for e in home.events() if e.kind == "woken"]
    assert details == ["0.000 s from host copy", "0.000 s from files"]
    assert {e.detail for e in home.events() if e.kind == "slept"} == {"by hand"}


def why(home: Residency) -> list[tuple[str, str, str]]:
    """Return who slept or left, in what order, and why."""
    kinds = ("slept", "evicted", "freed")
    return [
        (e.kind, e.spec.removeprefix("scripted:"), e.detail)
        for e in home.events()
        if e.kind in kinds
    ]


@in_virtual_time
async def test_why_a_model_leaves_is_told() -> None:
    """Who wanted its room, that less is allowed now, or how long nobody had used it."""
    home = house(100, host=0)
    sleepy, plain, other = (
        SleepyLoader("a", needs=60),
        ScriptedLoader("b", needs=60),
        ScriptedLoader("c", needs=50),
    )
    await resident(home, sleepy, plain, other)
    home.memory.set_budget({"gpu": 40})
    await home.settled()
    home.memory.set_keep(2.5)
    await resident(home, ScriptedLoader("d", needs=30))
    await asyncio.sleep(3)
    assert why(home) == [
        ("slept", "a", "to make room for scripted:b"),
        ("evicted", "b", "to make room for scripted:c"),
        ("evicted", "c", "less memory is allowed now"),
        ("evicted", "a", "unused for 2.5 s"),
        ("evicted", "d", "unused for 2.5 s"),
    ]


@in_virtual_time
async def test_who_asked_for_a_models_memory_is_told() -> None:
    """One that took more than was told, one that ran out of memory, and a person."""
    home = house(100)
    small, large = ScriptedLoader("small", needs=50), ScriptedLoader("large", needs=40)
    large.make = lambda: ScriptedModel(memory_bytes={"gpu": 60})
    await resident(home, small, large)
    await turns()
    await resident(home, ScriptedLoader("next", needs=20))
    await runs_out(home, large)
    await home.unload(lambda entry: True)
    assert why(home) == [
        ("evicted", "small", "scripted:large took more than was told"),
        ("evicted", "next", "scripted:large ran out of memory"),
        ("freed", "large", ""),
    ]


@in_virtual_time
async def test_what_is_only_taken_to_compute_is_charged_and_not_taken() -> None:
    """Cache and workspace count wherever it may compute, and never as allocated; asleep not at all."""
    home, loading, waking = house(100, host=0), Gate(), Gate()

    class Worked(SleepyLoader):
        async def estimate(self) -> Mapping[str, int]:
            return Estimate(weights={"gpu": 50}, cache={"gpu": 20}, workspace={"gpu": 5})

    loader = Worked(needs=40, gate=loading)
    asking = start(home.lease(loader))
    await turns()
    entry = there(home, loader)
    assert (entry.state, entry.charges, entry.taken("gpu")) == (State.LOADING, {"gpu": 75}, 0)
    entry.progress.report(30, 50)
    assert entry.taken("gpu") == 30
    loading.open()
    (await asking).release()
    assert (entry.state, entry.charges, entry.taken("gpu")) == (State.HOT, {"gpu": 65}, 40)
    assert await home.sleep(entry) == 40
    assert (entry.state, entry.charges, entry.taken("gpu")) == (State.WARM, {}, 0)
    loader.sleeper.gate = waking
    asking = start(home.lease(loader))
    await turns()
    assert (entry.state, entry.charges, entry.taken("gpu")) == (State.WAKING, {"gpu": 65}, 0)
    waking.open()
    (await asking).release()
    assert (entry.state, entry.charges, entry.taken("gpu")) == (State.HOT, {"gpu": 65}, 40)
    assert told(home, "created", "slept", "woken") == [
        ("created", "a", 65, 40),
        ("slept", "a", 65, 0),
        ("woken", "a", 65, 40),
    ]


@in_virtual_time
async def test_a_copy_on_the_host_is_taken_also_while_it_wakes() -> None:
    """It is there all the time; what the wake brings is promised first, and taken as far as it tells."""
    home, gate = house(100, host=100), Gate()
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    loader.sleeper.gate = gate
    asking = start(home.lease(loader))
    await turns()
    entry = there(home, loader)
    assert entry.charges == {"gpu": 60, HOST: 60}
    assert (entry.taken(HOST), entry.taken("gpu")) == (60, 0)
    entry.progress.report(25, 60)
    assert (entry.taken(HOST), entry.taken("gpu")) == (60, 25)
    gate.open()
    (await asking).release()
    assert (entry.taken(HOST), entry.taken("gpu")) == (60, 60)


@in_virtual_time
async def test_a_load_to_two_devices_takes_of_each_its_share() -> None:
    """What it reports is of all its weights together."""
    home, gate = Residency(Memory({})), Gate()
    loader = ScriptedLoader(gate=gate)
    loader.needs = {"gpu": 60, "cpu": 20}
    asking = start(home.lease(loader))
    await turns()
    entry = there(home, loader)
    entry.progress.report(40, 80)
    assert (entry.taken("gpu"), entry.taken("cpu")) == (30, 10)
    gate.open()
    (await asking).release()
    assert (entry.taken("gpu"), entry.taken("cpu")) == (60, 20)


@in_virtual_time
async def test_a_cache_that_is_made_with_the_model_was_not_moved() -> None:
    """What a load moves are weights, though the model holds more."""
    home, loader = house(100), ScriptedLoader(needs=80)

    async def estimate() -> Estimate:
        return Estimate(weights={"gpu": 60}, cache={"gpu": 20}, held=True)

    loader.estimate = estimate  # type: ignore[method-assign]
    await resident(home, loader)
    assert told(home, "created") == [("created", "a", 80, 60)]


@in_virtual_time
async def test_more_than_was_estimated_has_idle_others_leave() -> None:
    """Where a load took more than was told, the budget holds again at once, and the new one stays."""
    home = house(100, host=0)
    idle = SleepyLoader("idle", needs=50)
    await resident(home, idle)
    grown = ScriptedLoader("grown", needs=40, make=lambda: ScriptedModel(memory_bytes={"gpu": 70}))
    await resident(home, grown)
    await turns()
    assert charges(home) == {"idle": {}, "grown": {"gpu": 70}}
    assert (there(home, idle).state, grown.model.closed) == (State.WARM, 0)


@in_virtual_time
@pytest.mark.parametrize("kind", [ScriptedLoader, SleepyLoader])
async def test_more_than_there_is_room_for_stays_until_it_can_leave(
    kind: type[ScriptedLoader],
) -> None:
    """While nobody's leaving would help, nobody leaves, and never the one that grew; then who helps does."""
    home, gate = house(100, host=0), Gate()
    busy, idle = ScriptedLoader("busy", needs=40), ScriptedLoader("idle", needs=10)
    running = start(operate(home, busy, gate))
    await resident(home, idle)
    await turns()
    grown = kind("grown")
    grown.needs = {"gpu": 80}  # what it holds

    async def estimate() -> Estimate:
        return Estimate(weights={"gpu": 40})

    grown.estimate = estimate  # type: ignore[method-assign]
    for _ in range(3):
        async with home.using(grown):
            await turns()
        await turns()
    assert (grown.loads, there(home, grown).state) == (1, State.HOT)
    assert there(home, idle).state is State.HOT
    gate.open()
    await running
    await turns()
    assert charges(home) == {"idle": {"gpu": 10}, "grown": {"gpu": 80}}
    assert why(home) == [("evicted", "busy", "scripted:grown took more than was told")]


@in_virtual_time
async def test_one_that_is_too_large_for_the_budget_by_itself_stays() -> None:
    """It would come back as large: it is not loaded again for each use."""
    home = house(100, host=0)
    grown = ScriptedLoader("grown", needs=40, make=lambda: ScriptedModel(memory_bytes={"gpu": 120}))
    for _ in range(4):
        await operate(home, grown, Gate(opened=True))
        await turns()
    assert grown.loads == 1


@in_virtual_time
async def test_nobody_leaves_for_what_one_took_that_has_gone() -> None:
    """Too much was charged for its sake; what other programs take later is another matter."""
    free = [1000]
    memory = Memory({}, {"gpu": lambda _: Reading(1000, free[0])})
    home, gate = Residency(memory, asyncio.get_running_loop().time), Gate()
    busy = ScriptedLoader("busy", needs=300)
    grown = ScriptedLoader(
        "grown", needs=100, make=lambda: ScriptedModel(memory_bytes={"gpu": 700})
    )
    running = start(operate(home, busy, gate))
    await turns()
    free[0] = 500
    await resident(home, grown)
    await home.unload(lambda entry: entry.key == grown.key)
    free[0] = 0
    home.memory.set_budget({"gpu": 200})  # nobody was told of it
    gate.open()
    await running
    await turns()
    assert there(home, busy).state is State.HOT


@in_virtual_time
async def test_what_was_pinned_when_less_was_allowed_leaves_when_it_is_unpinned() -> None:
    """Until then nobody else is sent away for it time and again, on whatever device."""
    home = Residency(Memory({"gpu": 100, "gpu2": 100}), asyncio.get_running_loop().time)
    pinned = ScriptedLoader("pinned", needs=60)
    grown = ScriptedLoader(
        "grown", needs=90, device="gpu2", make=lambda: ScriptedModel(memory_bytes={"gpu2": 110})
    )
    await home.pin(pinned)
    await resident(home, grown)
    home.memory.set_budget({"gpu": 50, "gpu2": 100})
    await home.settled()
    for _ in range(4):
        await operate(home, grown, Gate(opened=True))
        await turns()
    assert (grown.loads, pinned.model.closed) == (2, 0)
    home.unpin(there(home, pinned))
    await turns()
    assert pinned.model.closed == 1


@in_virtual_time
async def test_what_was_pinned_when_a_load_took_more_than_told_leaves_when_it_is_unpinned() -> None:
    """What is charged comes within the limit as soon as somebody can leave."""
    home = house(100)
    pinned = ScriptedLoader("pinned", needs=50)
    grown = ScriptedLoader("grown", needs=40, make=lambda: ScriptedModel(memory_bytes={"gpu": 70}))
    await home.pin(pinned)
    await resident(home, grown)
    await operate(home, grown, Gate(opened=True))
    assert (pinned.model.closed, grown.loads) == (0, 1)
    home.unpin(there(home, pinned))
    await turns()
    assert (pinned.model.closed, charges(home)) == (1, {"grown": {"gpu": 70}})


@in_virtual_time
async def test_a_lowered_budget_holds_though_a_sleep_that_was_under_way_is_refused() -> None:
    """It was counted on, and is tried again."""
    home, loader, sleeping = await falling_asleep()
    home.memory.set_budget({"gpu": 50, HOST: 0})
    home.settle()
    await turns()
    loader.sleeper.upset = UnsupportedError("its weights were changed")
    loader.falling.open()
    await asyncio.gather(sleeping, return_exceptions=True)
    await turns()
    assert (loader.sleeper.sleeps, charges(home)) == (1, {"a": {}})


@in_virtual_time
async def test_one_that_takes_more_awake_than_it_told_is_known_by_then() -> None:
    """Its next wake asks for what the last one took, and is not let in beside who runs."""
    home, gate = house(120, host=0), Gate()
    loader = SleepyLoader(needs=60, wish=False)
    await asleep(home, loader)

    async def wake(progress: Progress) -> Transfer:
        loader.sleeper.awake = True
        return Transfer({"gpu": 100}, 100, "files")

    loader.sleeper.wake = wake  # type: ignore[method-assign]
    await resident(home, loader)
    await asleep(home, loader)
    running = start(operate(home, ScriptedLoader("busy", needs=50), gate))
    await turns()
    asking = start(home.lease(loader))
    await asyncio.sleep(1)
    assert not asking.done()
    gate.open()
    await running
    (await asking).release()
    assert charges(home) == {"a": {"gpu": 100}}


@in_virtual_time
async def test_a_lowered_budget_is_not_forgotten_for_one_that_is_used_just_then() -> None:
    """What was to leave, and was taken up before it could, leaves when it is idle again."""
    home, loader, gate = house(100), ScriptedLoader("a", needs=60), Gate()
    await resident(home, loader)
    running = start(operate(home, loader, gate))
    home.memory.set_budget({"gpu": 20})
    home.settle()
    await turns()
    assert loader.model.closed == 0
    gate.open()
    await running
    await turns()
    assert (loader.model.closed, home.residents()) == (1, [])


@in_virtual_time
async def test_a_budget_mistyped_during_a_load_costs_no_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is loaded stays, whatever it took; the next load tells of the typing error."""
    monkeypatch.setenv(BUDGET_VARIABLE, "gpu=100MiB")
    home, gate = Residency(Memory(probes={}), asyncio.get_running_loop().time), Gate()
    loader = ScriptedLoader(
        "a", needs=80, gate=gate, make=lambda: ScriptedModel(memory_bytes={"gpu": 81})
    )
    asking = start(home.lease(loader))
    await turns()
    monkeypatch.setenv(BUDGET_VARIABLE, "gpu=100")
    gate.open()
    (await asking).release()
    assert there(home, loader).state is State.HOT
    with pytest.raises(ConfigurationError, match="has no unit"):
        await home.lease(ScriptedLoader("b"))


@in_virtual_time
async def test_stop_while_a_budget_is_lowered_stops_only_the_waiting() -> None:
    """What was to leave leaves: also what says, after the Stop, that it cannot sleep."""
    home, falling = house(100, host=0), Gate()
    loader = FallingLoader(falling)
    await resident(home, loader)
    home.memory.set_budget({"gpu": 40, HOST: 0})
    settling = start(home.settled())
    await turns()
    settling.cancel()
    await turns()
    loader.sleeper.upset = UnsupportedError("its weights were changed")
    falling.open()
    await turns()
    assert (loader.sleeper.closed, home.residents()) == (1, [])


def beside(name: str, *, gpu: int, host: int) -> SleepyLoader:
    """A model that keeps bytes in main memory that it had not told of."""
    loader = SleepyLoader(name, needs=gpu, wish=False)

    async def load(progress: Progress) -> Model:
        loader.loads += 1
        loader.models.append(SleepyModel({"gpu": gpu, HOST: host}))
        return loader.models[-1]

    loader.load = load  # type: ignore[method-assign]
    return loader


@in_virtual_time
async def test_nobody_has_to_make_room_for_what_a_model_has_already() -> None:
    """What it keeps in main memory is no reason why it could not wake, or be opened with others."""
    home = house(100, host=100)
    one, two = beside("one", gpu=60, host=10), beside("two", gpu=30, host=10)
    await resident(home, one, two)
    await home.sleep(there(home, one))
    await home.pin(two)
    home.memory.set_budget({"gpu": 100, HOST: 15})  # nobody has looked yet
    await resident(home, one)
    for lease in await home.lease_all([one, two]):
        lease.release()
    assert (one.loads, two.loads, one.sleeper.wakes) == (1, 1, 1)


@in_virtual_time
async def test_what_is_allocated_at_once_is_taken_at_once() -> None:
    """A slab shows as free memory no more, long before it is filled."""
    home, gate = house(100), Gate()
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    loader.sleeper.gate = gate
    asking = start(home.lease(loader))
    await turns()
    entry = there(home, loader)
    entry.progress.report(10, 60)
    assert entry.taken("gpu") == 10
    entry.progress.allocated_bytes["gpu"] = 61  # in whole pages
    assert entry.taken("gpu") == 60
    gate.open()
    (await asking).release()


# By hand


@in_virtual_time
async def test_sleep_by_hand_waits_for_what_runs() -> None:
    """A running call ends in peace, however long it takes."""
    home, gate, loader = house(), Gate(), SleepyLoader(needs=40)
    running = start(operate(home, loader, gate))
    await turns()
    sleeping = start(home.sleep(there(home, loader)))
    await asyncio.sleep(100)
    assert not sleeping.done()
    assert loader.sleeper.awake
    gate.open()
    await running
    assert await sleeping == 40
    assert there(home, loader).state is State.WARM


@in_virtual_time
async def test_sleep_by_hand_of_what_is_asleep_or_gone_is_nothing() -> None:
    """Twice gives no bytes twice, and one that left meanwhile gives none."""
    home, gate, loader = house(), Gate(), SleepyLoader(needs=40)
    await asleep(home, loader)
    entry = there(home, loader)
    assert await home.sleep(entry) == 0
    running = start(operate(home, loader, gate))
    await turns()
    sleeping, leaving = start(home.sleep(entry)), start(home.unload(lambda _: True))
    await turns()
    gate.open()
    await asyncio.gather(running, leaving)
    assert await sleeping == 0
    assert (loader.sleeper.sleeps, loader.sleeper.closed) == (1, 1)


@in_virtual_time
async def test_a_pinned_model_refuses_to_sleep() -> None:
    """The error says why, and the line to write; also where it is pinned while the sleep waits."""
    home, gate, loader = house(), Gate(), SleepyLoader(needs=40)
    await home.pin(loader)
    entry = there(home, loader)
    with pytest.raises(InvalidRequestError, match="scripted:a is pinned") as caught:
        await home.sleep(entry)
    assert 'nbp.unpin("scripted:a")' in caught.value.hint
    home.unpin(entry)
    running = start(operate(home, loader, gate))
    await turns()
    sleeping = start(home.sleep(entry))
    await home.pin(loader)
    gate.open()
    await running
    with pytest.raises(InvalidRequestError, match="pinned"):
        await sleeping
    assert loader.sleeper.awake


@in_virtual_time
async def test_what_cannot_sleep_says_so_and_why() -> None:
    """The reason that its loading told is in the error; the model stays, and the hint says what to do."""
    home = house()

    def stiff() -> ScriptedModel:
        model = ScriptedModel(memory_bytes={"gpu": 40})
        model.info = replace(model.info, notes=("It does not sleep: its weights are quantized.",))
        return model

    loader = ScriptedLoader(needs=40, make=stiff)
    await resident(home, loader)
    with pytest.raises(
        UnsupportedError, match=r"cannot sleep\. .* weights are quantized"
    ) as caught:
        await home.sleep(there(home, loader))
    assert "Unload it" in caught.value.hint
    assert there(home, loader).state is State.HOT
    assert not home.residents()[0].sleeps


@in_virtual_time
async def test_who_only_says_that_it_sleeps_is_freed_instead() -> None:
    """A model that names the capability without having it is not trusted with it."""
    home = house(100, host=0)

    def boasting() -> ScriptedModel:
        model = ScriptedModel(memory_bytes={"gpu": 60})
        model.info = replace(model.info, can=frozenset({"sleep"}))
        return model

    boaster = ScriptedLoader("boaster", make=boasting, needs=60)
    await resident(home, boaster)
    assert not home.residents()[0].sleeps
    await resident(home, ScriptedLoader("b", needs=60))
    assert (boaster.model.closed, told(home, "failed")) == (1, [])
    assert set(charges(home)) == {"b"}


# What goes wrong


@in_virtual_time
async def test_a_failing_sleep_frees_the_model_and_tells_who_waits() -> None:
    """Nobody can say what it still holds: it is charged until it is closed, and loads anew."""
    home, closing = house(100, host=0), Gate()

    class Slow(SleepyModel):
        async def aclose(self) -> None:
            await closing.passed()
            await super().aclose()

    class SlowLoader(SleepyLoader):
        async def load(self, progress: Progress) -> Slow:  # type: ignore[override]
            self.loads += 1
            self.models.append(Slow(self.needs))
            return self.sleeper  # type: ignore[return-value]

    loader = SlowLoader(needs=60)
    await resident(home, loader)
    first = loader.sleeper
    first.upset = OSError("the device is lost")
    sleeping = start(home.sleep(there(home, loader)))
    await asyncio.sleep(0)
    waiting = [start(operate(home, loader, Gate())) for _ in range(2)]
    ended = await asyncio.gather(sleeping, *waiting, return_exceptions=True)
    assert len(set(map(id, ended))) == 3
    for error in ended:
        assert isinstance(error, ProviderError)
        assert "OSError: the device is lost" in error.message
    assert charges(home) == {"a": {"gpu": 60}}
    again = start(home.lease(loader))
    await turns()
    assert (first.closed, loader.loads) == (0, 1)
    closing.open()
    (await again).release()
    assert (first.closed, loader.loads) == (1, 2)
    assert told(home, "freed") == [("freed", "a", 60, 0)]


@in_virtual_time
async def test_a_failing_sleep_still_makes_room() -> None:
    """Who wanted the memory gets it: the model that could not sleep has left."""
    home = house(100, host=0)
    old, new = SleepyLoader("old", needs=60), SleepyLoader("new", needs=60)
    await resident(home, old)
    old.sleeper.upset = OSError("no")
    await resident(home, new)
    assert charges(home) == {"new": {"gpu": 60}}
    assert old.sleeper.closed == 1


@in_virtual_time
async def test_a_failing_wake_is_told_to_each_and_the_next_use_loads_anew() -> None:
    """Each waiter has an error of its own, with reference and cause; what it would wake from is let go."""
    home, gate = house(100, host=100), Gate()
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    first = loader.sleeper
    first.gate, first.upset = gate, OSError("the file is gone")
    waiting = [start(home.lease(loader)) for _ in range(3)]
    await turns()
    gate.open()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert len(set(map(id, errors))) == 3
    for error in errors:
        assert isinstance(error, ProviderError)
        assert error.message == "Failed to setup resource 'scripted:a': OSError: the file is gone"
    await turns()
    assert (first.closed, home.residents()) == (1, [])
    await resident(home, loader)
    assert (loader.loads, loader.sleeper is first) == (2, False)


@in_virtual_time
async def test_out_of_memory_at_a_wake_has_idle_ones_leave_and_tries_once_more() -> None:
    """Whatever was planned: one that is idle sleeps, and the wake is tried again."""
    home = house(100, host=0)
    loader, idle = SleepyLoader("a", needs=40), SleepyLoader("idle", needs=40)
    await asleep(home, loader)
    await resident(home, idle)
    loader.sleeper.upset = InsufficientMemoryError("the device is full")
    await resident(home, loader)
    assert (loader.sleeper.awake, loader.loads, idle.sleeper.awake) == (True, 1, False)


@in_virtual_time
async def test_out_of_memory_at_a_wake_leaves_it_asleep() -> None:
    """With nobody to leave it is an error with the table, once and not for ever; the model can still wake."""
    home = house(100, host=100)
    loader = SleepyLoader(needs=40)
    await asleep(home, loader)
    running = start(operate(home, ScriptedLoader("busy", needs=40), Gate()))
    await turns()
    loader.sleeper.upset = InsufficientMemoryError("the device is full")
    with pytest.raises(InsufficientMemoryError, match="the device is full") as caught:
        await home.lease(loader)
    assert "scripted:busy: gpu 40 B (ready, 1 running, 0 open)" in str(caught.value)
    entry = there(home, loader)
    assert (entry.state, entry.charges) == (State.WARM, {HOST: 40})
    await resident(home, loader)
    assert (loader.loads, loader.sleeper.wakes) == (1, 1)
    running.cancel()


@in_virtual_time
async def test_no_room_for_a_wake_leaves_it_asleep() -> None:
    """Refused at the door, nothing of it changed; once there is room it wakes."""
    home = house(100, host=0)
    loader, pinned = SleepyLoader(needs=60), ScriptedLoader("pinned", needs=60)
    await asleep(home, loader)
    await home.pin(pinned)
    with pytest.raises(
        InsufficientMemoryError,
        match="models may take 100 B on gpu in all, and what is there stays",
    ):
        await home.lease(loader)
    assert there(home, loader).state is State.WARM
    home.unpin(there(home, pinned))
    await resident(home, loader)
    assert (loader.loads, loader.sleeper.wakes, pinned.model.closed) == (1, 1, 1)


# Cancelled, and in between


@in_virtual_time
async def test_a_wake_that_nobody_waits_for_is_cancelled() -> None:
    """The last waiter gone it stays asleep, gives its room back, and the next use wakes it."""
    home, gate = house(100, host=0), Gate()
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    loader.sleeper.gate = gate
    first, second = start(home.lease(loader)), start(home.lease(loader))
    await turns()
    first.cancel()
    await turns()
    assert there(home, loader).state is State.WAKING
    second.cancel()
    await turns()
    entry = there(home, loader)
    assert (entry.state, entry.charges, loader.sleeper.awake) == (State.WARM, {}, False)
    assert "failed" not in {e.kind for e in home.events()}
    gate.open()
    await resident(home, loader)
    assert (loader.loads, loader.sleeper.wakes, loader.sleeper.closed) == (1, 1, 0)


@in_virtual_time
async def test_who_comes_while_a_wake_is_cancelled_has_it_wake_again() -> None:
    """Stop, then the same cell again: the new request is not told of the old one's end."""
    home = house(100, host=0)
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    gate = loader.sleeper.gate = Gate()
    first = start(home.lease(loader))
    await turns()
    first.cancel()
    await asyncio.sleep(0)
    second = start(home.lease(loader))
    await turns()
    gate.open()
    (await second).release()
    assert (loader.sleeper.wakes, loader.loads) == (1, 1)


@in_virtual_time
async def test_cancelled_at_any_moment_of_a_wake() -> None:
    """Whenever Stop comes, no lease and no charge stays, and the model is asleep or awake as it says."""
    for moment in range(16):
        home = house(100, host=0)
        loader = SleepyLoader(needs=60)
        await asleep(home, loader)
        asking = start(operate(home, loader, Gate()))
        await turns(moment)
        asking.cancel()
        await turns()
        entry = there(home, loader)
        assert (entry.hard, entry.waiters, entry.running) == (0, [], set())
        assert entry.state is (State.HOT if loader.sleeper.awake else State.WARM)
        assert entry.charges == ({"gpu": 60} if loader.sleeper.awake else {})
        await resident(home, loader)
        assert loader.loads == 1


class Falling(SleepyModel):
    """Falls asleep when it is let; one that is told to stop stays awake."""

    def __init__(self, held: Mapping[str, int], falling: Gate) -> None:
        super().__init__(held)
        self.falling = falling

    async def sleep(self, progress: Progress) -> Transfer:
        progress.report(30, 60, "comparing")
        await self.falling.passed()
        progress.report(60)
        return await super().sleep(progress)


class FallingLoader(SleepyLoader):
    """Loads models that take a while to fall asleep."""

    def __init__(self, falling: Gate) -> None:
        super().__init__(needs=60)
        self.falling = falling

    async def load(self, progress: Progress) -> Model:
        self.loads += 1
        self.models.append(Falling(self.needs, self.falling))
        return self.models[-1]


async def falling_asleep() -> tuple[Residency, FallingLoader, asyncio.Task[int]]:
    """Have a model on its way to sleep, until ``loader.falling`` lets it."""
    home, loader = house(100, host=0), FallingLoader(Gate())
    await resident(home, loader)
    sleeping = start(home.sleep(there(home, loader)))
    await turns()
    return home, loader, sleeping


@in_virtual_time
async def test_how_far_a_sleep_is_can_be_seen() -> None:
    """Who waits for it sees it go on; when it is over there is nothing to see."""
    home, loader, sleeping = await falling_asleep()
    [seen] = home.residents()
    assert (seen.state, seen.progress) == (State.DRAINING, 0.5)
    loader.falling.open()
    await sleeping
    [seen] = home.residents()
    assert (seen.state, seen.progress) == (State.WARM, None)


@in_virtual_time
@pytest.mark.parametrize("force", [False, True])
async def test_who_waits_for_one_that_is_unloaded_in_its_sleep_loads_anew(force: bool) -> None:
    """It is not woken for him: whoever unloads it does not wait until he has done what he came for."""
    home, loader, sleeping = await falling_asleep()
    computing = Gate()
    coming = start(operate(home, loader, computing))
    await turns()
    unloading = start(home.unload(lambda _: True, force=force))
    await turns()
    loader.falling.open()
    assert await unloading == 60
    old, new = loader.models
    assert isinstance(old, Falling)
    assert (old.closed, old.wakes, loader.loads) == (1, 0, 2)
    assert isinstance(new, Falling)
    assert new.closed == 0
    if force:
        with pytest.raises(ClosedError, match="was unloaded"):
            await sleeping
    else:
        assert await sleeping == 60
    assert old.sleeps == int(not force)  # told to stop, it did
    computing.open()
    await coming


@in_virtual_time
async def test_of_two_who_send_it_to_sleep_none_begins_again_once_it_is_unloaded() -> None:
    """An unload by force does not wait for a sleep that was begun after it."""
    home, falling = house(100, host=0), Gate()
    loader = FallingLoader(falling)
    await resident(home, loader)
    entry = there(home, loader)
    sleeping = [start(home.sleep(entry))]
    await turns()
    sleeping.append(start(home.sleep(entry)))
    await turns()
    unloading = start(home.unload(lambda _: True, force=True))
    await turns()
    falling.open()
    await unloading
    ended = await asyncio.gather(*sleeping, return_exceptions=True)
    assert [type(one) for one in ended] == [ClosedError, ClosedError]
    assert (loader.sleeper.sleeps, loader.sleeper.closed) == (0, 1)


class SeenModel(SleepyModel):
    """Somebody looks into its weights over its next sleep: they stay beside the new ones."""

    seen = 40
    held: Mapping[str, int] = {}

    async def sleep(self, progress: Progress) -> Transfer:
        await super().sleep(progress)
        self.held = {"gpu": self.seen} if self.seen else {}
        return Transfer(self.held)

    async def wake(self, progress: Progress) -> Transfer:
        await super().wake(progress)
        return Transfer({"gpu": 60 + self.held.get("gpu", 0)}, 60, "files")


@in_virtual_time
async def test_what_others_kept_once_is_not_asked_for_again() -> None:
    """A model needs for its wake what it needed for its load, whatever was there beside it meanwhile."""
    home, loader = house(110, host=0), SleepyLoader(needs=60, wish=False)

    async def load(progress: Progress) -> Model:
        loader.models.append(SeenModel({"gpu": 60}))
        return loader.models[-1]

    loader.load = load  # type: ignore[method-assign]
    await asleep(home, loader)
    assert charges(home) == {"a": {"gpu": 40}}
    await resident(home, loader)
    assert charges(home) == {"a": {"gpu": 100}}
    loader.models[-1].seen = 0  # type: ignore[attr-defined]
    await asleep(home, loader)
    await home.pin(ScriptedLoader("pinned", needs=50))
    await resident(home, loader)
    assert charges(home) == {"a": {"gpu": 60}, "pinned": {"gpu": 50}}


@in_virtual_time
async def test_who_comes_during_a_sleep_is_woken_for() -> None:
    """A sleep goes on to its end; then the model wakes, and nobody is told that it had left."""
    home, loader, sleeping = await falling_asleep()
    assert home.lease_now(loader) is None
    coming, gone = start(home.lease(loader)), start(home.lease(loader))
    await turns()
    assert there(home, loader).state is State.DRAINING
    gone.cancel()
    await turns()
    loader.falling.open()
    await sleeping
    (await coming).release()
    assert (loader.sleeper.sleeps, loader.sleeper.wakes) == (1, 1)
    assert there(home, loader).state is State.HOT


@in_virtual_time
async def test_a_cancelled_sleep_goes_on_to_its_end() -> None:
    """Half asleep is nothing a model can be."""
    home, loader = house(100, host=0), SleepyLoader(needs=60)
    await resident(home, loader)
    sleeping = start(home.sleep(there(home, loader)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sleeping.cancel()
    await turns()
    assert there(home, loader).state is (State.HOT if loader.sleeper.awake else State.WARM)
    assert not loader.sleeper.awake


# Out


@in_virtual_time
async def test_unload_frees_one_that_sleeps() -> None:
    """Its copy on the host comes back, and it is closed without being woken."""
    home = house(100, host=100)
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    assert await home.unload(lambda _: True) == 60
    assert (home.residents(), loader.sleeper.wakes, loader.sleeper.closed) == ([], 0, 1)


@in_virtual_time
async def test_unload_during_a_sleep_closes_it_once_asleep() -> None:
    """One move after the other, and the bytes are told once."""
    home, loader = house(100, host=100), SleepyLoader(needs=60)
    await resident(home, loader)
    sleeping = start(home.sleep(there(home, loader)))
    await asyncio.sleep(0)
    assert await home.unload(lambda _: True) == 120
    assert (await sleeping, loader.sleeper.sleeps, loader.sleeper.closed) == (60, 1, 1)
    assert home.residents() == []
    assert told(home, "slept", "freed") == [("slept", "a", 60, 0), ("freed", "a", 60, 0)]


@in_virtual_time
async def test_unload_during_a_wake_lets_who_waits_have_it_first() -> None:
    """Without force the call gets its model; then it goes."""
    home, gate, ends = house(100, host=0), Gate(), Gate()
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    loader.sleeper.gate = gate
    running = start(operate(home, loader, ends))
    await turns()
    leaving = start(home.unload(lambda _: True))
    await turns()
    gate.open()
    await turns()
    assert (home.residents()[0].running, leaving.done()) == (1, False)
    ends.open()
    await asyncio.gather(running, leaving)
    assert (home.residents(), loader.sleeper.wakes, loader.sleeper.closed) == ([], 1, 1)


@in_virtual_time
async def test_force_during_a_wake_tells_who_waits() -> None:
    """The wake is given up and the model closed; nobody waits for ever."""
    home = house(100, host=0)
    loader = SleepyLoader(needs=60)
    await asleep(home, loader)
    loader.sleeper.gate = Gate()
    asking = [start(home.lease(loader)) for _ in range(2)]
    await turns()
    await home.unload(lambda _: True, force=True)
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in ended] == [ClosedError, ClosedError]
    assert (home.residents(), loader.sleeper.closed) == ([], 1)


@in_virtual_time
async def test_force_in_the_moment_a_wake_was_asked_for() -> None:
    """A wake that is given up before its first step never begins, and nobody waits for ever."""
    home, loader = house(100, host=0), SleepyLoader(needs=60)
    await asleep(home, loader)
    asking = start(home.lease(loader))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await home.unload(lambda _: True, force=True)
        with pytest.raises(ClosedError):
            await asking
    assert (loader.sleeper.wakes, loader.sleeper.closed, home.residents()) == (0, 1, [])


@in_virtual_time
async def test_force_during_a_sleep_lets_it_end() -> None:
    """A sleep is short and leaves nothing half done: it is waited for, then the model is closed."""
    home, loader = house(100, host=0), SleepyLoader(needs=60)
    await resident(home, loader)
    sleeping = start(home.sleep(there(home, loader)))
    await asyncio.sleep(0)
    assert await home.unload(lambda _: True, force=True) == 60
    assert await sleeping == 60
    assert (loader.sleeper.sleeps, loader.sleeper.closed) == (1, 1)


# A copy on the host


@in_virtual_time
async def test_a_copy_is_granted_within_the_host_budget() -> None:
    """What does not fit is refused, and the model loads without."""
    home = house(1000, host=100)
    loaders = [SleepyLoader(name, needs=60) for name in "ab"]
    await resident(home, *loaders)
    assert charges(home) == {"a": {"gpu": 60, HOST: 60}, "b": {"gpu": 60}}
    assert all(loader.sleeper.awake for loader in loaders)


@in_virtual_time
async def test_who_sleeps_gives_its_copy_to_one_that_loads() -> None:
    """A copy of what is asleep goes before a new model does without; that of an awake one never goes."""
    home = house(1000, host=100)
    old, awake, new = (SleepyLoader(name, needs=50) for name in ("old", "awake", "new"))
    await resident(home, old, awake)
    await home.sleep(there(home, old))
    await resident(home, new)
    assert charges(home) == {"awake": {"gpu": 50, HOST: 50}, "new": {"gpu": 50, HOST: 50}}
    assert (old.sleeper.closed, awake.sleeper.awake) == (1, True)
    await resident(home, SleepyLoader("last", needs=50))
    assert charges(home)["last"] == {"gpu": 50}
    assert awake.sleeper.awake


@in_virtual_time
async def test_nobody_leaves_for_a_copy_that_is_too_large_anyway() -> None:
    """If all that sleep together would not do, they stay."""
    home = house(1000, host=100)
    old = SleepyLoader("old", needs=50)
    await asleep(home, old)
    await resident(home, SleepyLoader("huge", needs=200))
    assert charges(home) == {"old": {HOST: 50}, "huge": {"gpu": 200}}


# Pins


@in_virtual_time
async def test_a_pin_brings_a_model_in_and_keeps_it() -> None:
    """Pinned it survives all pressure, and is shown so; waiting for it is in vain and not tried."""
    home = house(100, host=0)
    pinned = SleepyLoader("pinned", needs=60)
    await home.pin(pinned)
    assert [(one.pinned, one.running) for one in home.residents()] == [(True, 0)]
    with pytest.raises(InsufficientMemoryError, match=r"ready, 0 running, 0 open, pinned"):
        await home.lease(ScriptedLoader("large", needs=60))
    assert asyncio.get_running_loop().time() == 0
    await resident(home, ScriptedLoader("small", needs=40))
    assert pinned.sleeper.awake
    assert told(home, "pinned") == [("pinned", "pinned", 60, 0)]


@in_virtual_time
async def test_a_pin_ends_with_unpin_and_with_unload() -> None:
    """Unpinned it makes room like any other; unloaded it is gone, and what loads anew is not pinned."""
    home = house(100, host=0)
    pinned, large = SleepyLoader("pinned", needs=60), ScriptedLoader("large", needs=60)
    await home.pin(pinned)
    home.unpin(there(home, pinned))
    await resident(home, large)
    assert there(home, pinned).state is State.WARM
    gate = Gate()
    await home.pin(pinned)
    running = start(operate(home, pinned, gate))
    leaving = start(home.unload(lambda entry: entry.pinned))
    await turns()
    assert [one.pinned for one in home.residents() if one.running] == [False]
    gate.open()
    await asyncio.gather(running, leaving)
    assert pinned.sleeper.closed == 1
    await resident(home, pinned, large)
    assert not there(home, pinned).pinned
    assert there(home, pinned).state is State.WARM


@in_virtual_time
async def test_unpin_of_what_is_not_pinned_is_nothing() -> None:
    """No event tells of what did not happen."""
    home, loader = house(100, host=0), SleepyLoader(needs=60)
    await resident(home, loader)
    home.unpin(there(home, loader))
    assert told(home, "unpinned") == []
    await home.pin(loader)
    home.unpin(there(home, loader))
    assert told(home, "unpinned") == [("unpinned", "a", 60, 0)]


# Time to live


@in_virtual_time
async def test_a_model_stays_so_long_after_its_last_use() -> None:
    """Not from its load, and not from when somebody looked: each use begins the time anew."""
    home, loader = house(), ScriptedLoader()
    home.memory.set_keep(10.0)
    await resident(home, loader)
    await asyncio.sleep(9)
    await resident(home, loader)
    await asyncio.sleep(9.5)
    assert loader.model.closed == 0
    await asyncio.sleep(1)
    assert (loader.model.closed, home.residents()) == (1, [])


@in_virtual_time
async def test_time_to_live_frees_what_sleeps_too() -> None:
    """A copy on the host is memory as well."""
    home, loader = house(100, host=100), SleepyLoader(needs=60)
    home.memory.set_keep(10.0)
    await asleep(home, loader)
    await asyncio.sleep(11)
    assert (loader.sleeper.closed, home.residents()) == (1, [])


@in_virtual_time
async def test_time_to_live_never_ends_what_is_used_or_pinned() -> None:
    """A call may take longer than a model is kept; a pin holds for ever; an open handle does not."""
    home, gate = house(), Gate()
    used, pinned, held = (ScriptedLoader(name) for name in ("used", "pinned", "held"))
    home.memory.set_keep(10.0)
    running = start(operate(home, used, gate))
    await home.pin(pinned)
    lease = await home.lease(held)
    await asyncio.sleep(60)
    assert [m.closed for m in (used.model, pinned.model, held.model)] == [0, 0, 1]
    gate.open()
    await running
    await asyncio.sleep(9)
    assert used.model.closed == 0
    await asyncio.sleep(2)
    assert (used.model.closed, pinned.model.closed) == (1, 0)
    home.unpin(there(home, pinned))
    await asyncio.sleep(11)
    assert pinned.model.closed == 1
    lease.release()


@in_virtual_time
async def test_a_shorter_time_to_live_holds_from_the_next_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody sleeps through it because a longer one was set before."""
    home, loader = house(), ScriptedLoader()
    monkeypatch.setenv(KEEP_VARIABLE, "5000")
    await resident(home, loader)
    monkeypatch.setenv(KEEP_VARIABLE, "10")
    await operate(home, loader, Gate(opened=True))
    await asyncio.sleep(11)
    assert loader.model.closed == 1
    home.memory.set_keep(5000)
    await resident(home, loader)
    home.memory.set_keep(10)
    home.settle()
    await asyncio.sleep(11)
    assert loader.model.closed == 1


class Downloaded(ScriptedLoader):
    """Downloads before it can be measured."""

    prepared = 0

    async def prepare(self) -> None:
        self.prepared += 1


@in_virtual_time
@pytest.mark.parametrize("variable", [BUDGET_VARIABLE, KEEP_VARIABLE])
async def test_a_mistyped_variable_is_told_before_anything_is_downloaded(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for gigabytes to be told of a typing error."""
    home, loader = Residency(Memory(probes={}), asyncio.get_running_loop().time), Downloaded()
    monkeypatch.setenv(variable, "soon")
    with pytest.raises(ConfigurationError, match="'soon' is"):
        await home.lease(loader)
    assert loader.prepared == 0
    monkeypatch.delenv(variable)
    await resident(home, loader)
    assert (loader.prepared, loader.loads) == (1, 1)


@in_virtual_time
async def test_a_time_to_live_that_is_no_time_is_told_at_the_next_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mistyped variable is an error that names it, not silence; what is there can still be used."""
    home, loader = house(), ScriptedLoader()
    monkeypatch.setenv(KEEP_VARIABLE, "10")
    await resident(home, loader)
    monkeypatch.setenv(KEEP_VARIABLE, "soon")
    await resident(home, loader)
    await asyncio.sleep(30)
    with pytest.raises(ConfigurationError, match="'soon' is no number of seconds") as caught:
        await home.lease(ScriptedLoader("b"))
    assert KEEP_VARIABLE in caught.value.hint
    monkeypatch.setenv(KEEP_VARIABLE, "10")
    await resident(home, ScriptedLoader("b"))
    await asyncio.sleep(11)
    assert home.residents() == []


# What ends programs ends no engine


class Exits(SleepyLoader):
    """Its code says that the program shall end."""

    at = "load"

    async def estimate(self) -> Mapping[str, int]:
        if self.at == "estimate":
            raise SystemExit("no licence")
        return await super().estimate()

    async def load(self, progress: Progress) -> ScriptedModel:
        if self.at == "load":
            raise KeyboardInterrupt("no licence")
        await super().load(progress)
        return self.model


@in_virtual_time
@pytest.mark.parametrize("at", ["estimate", "load", "wake"])
async def test_code_that_exits_fails_its_own_load_only(at: str) -> None:
    """``sys.exit`` in a provider is told as any failure; the loop goes on, and so do other models."""
    home, loader = house(100), Exits(needs=40)
    loader.at = at
    if at == "wake":
        await asleep(home, loader)
        loader.sleeper.upset = SystemExit("no licence")
    with pytest.raises(ProviderError, match="Failed to setup resource.*no licence"):
        await home.lease(loader)
    (await home.lease(ScriptedLoader("other", needs=40))).release()
    assert {str(entry.spec) for entry in home.entries()} == {"scripted:other"}
