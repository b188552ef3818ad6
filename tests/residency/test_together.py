"""Promises of several models in memory together: all of them or none, and never one each for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nbproviders.errors import InsufficientMemoryError, ProviderError
from nbproviders.residency import queue
from nbproviders.residency.admission import PATIENCE_S
from nbproviders.residency.entry import State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.lease import Lease
from nbproviders.residency.memory import Memory
from nbproviders.residency.residency import Residency
from tests.scripted import (
    Gate,
    ScriptedLoader,
    SleepyLoader,
    SlowToLeave,
    house,
    in_virtual_time,
    operate,
    resident,
    start,
    turns,
)


class Slow(SleepyLoader):
    """One whose estimate takes a few turns, as reading a file's header does."""

    async def estimate(self) -> Mapping[str, int]:
        await turns(3)
        return Estimate(weights=self.needs)


def states(home: Residency) -> dict[str, State]:
    return {one.spec.partition(":")[2]: one.state for one in home.residents()}


def released(leases: list[Lease]) -> None:
    for lease in leases:
        lease.release()


def nothing_is_held(home: Residency) -> None:
    """No lease and no charge is left but those of what is in memory, which is there for who comes next."""
    for entry in home.entries():
        assert (entry.hard, entry.waiters, entry.admitted) == (0, [], False)
        assert entry.state in (State.HOT, State.WARM)
        assert entry.charges == (entry.awake if entry.state is State.HOT else entry.held)
        assert home.handles(entry.key) == 0


@in_virtual_time
async def test_all_come_in_together() -> None:
    """Room is made for all before the first loads; each gets a lease, in the order asked for."""
    home, gate = house(100, host=0), Gate()
    old = SleepyLoader("old", needs=50)
    await resident(home, old)
    loaders = [SleepyLoader(name, needs=40, gate=gate) for name in "ab"]
    asking = start(home.lease_all(loaders))
    await turns()
    assert states(home) == {"old": State.WARM, "a": State.LOADING, "b": State.LOADING}
    assert [one.running for one in home.residents()] == [0, 0, 0]
    gate.open()
    leases = await asking
    assert [lease.loader for lease in leases] == loaders
    assert [home.handles(loader.key) for loader in loaders] == [1, 1]
    assert [one.running for one in home.residents()] == [0, 0, 0]
    released(leases)
    nothing_is_held(home)


@in_virtual_time
async def test_what_is_there_stays_for_the_others() -> None:
    """A model of the group is never the one that leaves for another of it; one that sleeps wakes."""
    home = house(100, host=0)
    hot, warm, new = (SleepyLoader(name, needs=30) for name in ("hot", "warm", "new"))
    other = SleepyLoader("other", needs=40)
    await resident(home, warm, hot, other)
    entry = home.find(warm.key)
    assert entry is not None
    await home.sleep(entry)
    released(await home.lease_all([hot, warm, new]))
    assert states(home) == {
        "warm": State.HOT,
        "hot": State.HOT,
        "other": State.WARM,
        "new": State.HOT,
    }
    assert (hot.loads, hot.sleeper.sleeps, warm.loads, warm.sleeper.wakes) == (1, 0, 1, 1)


@in_virtual_time
async def test_what_never_fits_together_is_refused_at_once() -> None:
    """Each alone would fit: nobody waits, nothing loads, nobody leaves, and the error names them all."""
    home = house(100, host=0)
    small = ScriptedLoader("small", needs=20)
    await resident(home, small)
    loaders = [ScriptedLoader(name, needs=60) for name in "ab"]
    with pytest.raises(InsufficientMemoryError) as caught:
        await home.lease_all(loaders)
    assert "scripted:a and scripted:b need 120 B on gpu. That is 20 B on gpu too much" in str(
        caught.value
    )
    assert "scripted:small: gpu 20 B" in str(caught.value)
    assert asyncio.get_running_loop().time() == 0
    assert [loader.loads for loader in loaders] == [0, 0]
    assert states(home) == {"small": State.HOT}
    nothing_is_held(home)


@in_virtual_time
async def test_a_group_waits_for_what_runs() -> None:
    """None of it loads before there is room for all; then all do."""
    home, gate = house(100, host=0), Gate()
    running = start(operate(home, ScriptedLoader("busy", needs=30), gate))
    await turns()
    loaders = [ScriptedLoader(name, needs=40) for name in "ab"]
    asking = start(home.lease_all(loaders))
    await asyncio.sleep(4)
    assert [loader.loads for loader in loaders] == [0, 0]
    assert sum(e.kind == "waiting" for e in home.events()) == 2
    gate.open()
    released(await asking)
    await running
    assert states(home) == {"a": State.HOT, "b": State.HOT}


@in_virtual_time
async def test_a_group_that_waits_too_long_is_refused_and_leaves_nothing() -> None:
    """After its time the error says that running models did not end; another may have what it wanted."""
    home = house(100, host=0)
    home.set_wait(5.0)
    running = start(operate(home, ScriptedLoader("busy", needs=30), Gate()))
    await turns()
    loaders = [ScriptedLoader(name, needs=40) for name in "ab"]
    with pytest.raises(InsufficientMemoryError, match="did not end in time"):
        await home.lease_all(loaders)
    assert states(home) == {"busy": State.HOT}
    await resident(home, loaders[0])
    running.cancel()
    await turns()
    nothing_is_held(home)


@in_virtual_time
async def test_one_that_is_named_twice_is_one_model_with_two_leases() -> None:
    """Its room is counted once, it loads once, and each lease is given back by itself."""
    home = house(100, host=0)
    one, other = ScriptedLoader("one", needs=60), ScriptedLoader("other", needs=40)
    leases = await home.lease_all([one, other, one])
    assert [lease.loader for lease in leases] == [one, other, one]
    assert (one.loads, home.handles(one.key), home.handles(other.key)) == (1, 2, 1)
    leases[0].release()
    assert home.handles(one.key) == 1
    released(leases)
    nothing_is_held(home)


@in_virtual_time
async def test_a_group_of_none_is_nothing() -> None:
    """No model, no lease, no wait."""
    assert await house(100).lease_all([]) == []


@in_virtual_time
async def test_if_one_fails_none_is_leased() -> None:
    """The error is that of the one; what loaded well stays until it is in the way, held by nobody."""
    home = house(100, host=0)
    good, bad = ScriptedLoader("good", needs=40), ScriptedLoader("bad", needs=40)
    bad.failure = OSError("no such file")
    for loaders in ([good, bad], [bad, good]):
        with pytest.raises(ProviderError, match="'scripted:bad': OSError: no such file"):
            await home.lease_all(loaders)
        await turns()
        nothing_is_held(home)
        assert set(states(home)) <= {"good"}
        await resident(home, ScriptedLoader("large", needs=100))


@in_virtual_time
async def test_a_failing_estimate_fails_the_group() -> None:
    """Nothing of it loads, and nothing is left in the table."""

    class Unknown(ScriptedLoader):
        why: Exception = ProviderError("no such model")

        async def estimate(self) -> Mapping[str, int]:
            raise self.why

    home, good, bad = house(100), ScriptedLoader("good", needs=40), Unknown("bad")
    for why, said in ((bad.why, "no such model"), (OSError("no disk"), "OSError: no disk")):
        bad.why = why
        with pytest.raises(ProviderError, match=f"Failed to setup .*'scripted:bad': {said}"):
            await home.lease_all([good, bad])
        assert (home.residents(), good.loads) == ([], 0)


@in_virtual_time
async def test_two_groups_that_want_each_others_models_both_get_there() -> None:
    """Whatever the order, neither holds one and waits for the other for ever."""
    home = house(100, host=0)
    a, b, c = (Slow(name, needs=50) for name in "abc")

    async def use(*loaders: SleepyLoader) -> None:
        for _ in range(5):
            leases = await home.lease_all(loaders)
            for lease in leases:
                assert home.handles(lease.loader.key)
            await asyncio.sleep(0.1)
            released(leases)

    async with asyncio.timeout(100):
        await asyncio.gather(use(a, b), use(b, a), use(b, c), use(c, a))
    nothing_is_held(home)
    assert (a.loads, b.loads, c.loads) == (1, 1, 1)


@in_virtual_time
async def test_two_groups_in_use_take_turns() -> None:
    """Held for operations, not only open: one group after the other, both to their end."""
    home = house(100, host=0)
    a, b, c = (SleepyLoader(name, needs=50) for name in "abc")
    order: list[str] = []

    async def use(*loaders: SleepyLoader) -> None:
        leases = await home.lease_all(loaders)
        async with home.using(loaders[0]), home.using(loaders[1]):
            order.append("+")
            assert all(loader.sleeper.awake for loader in loaders)
            await asyncio.sleep(1)
            order.append("-")
        released(leases)

    async with asyncio.timeout(100):
        await asyncio.gather(use(a, b), use(b, c))
    assert order == ["+", "-", "+", "-"]


@in_virtual_time
async def test_a_group_and_one_who_asks_for_one_of_it_load_it_once() -> None:
    """In whichever order they come, and whoever stands in the queue first."""
    for group_first in (True, False):
        home, gate = house(100, host=0), Gate()
        busy, one, two = (ScriptedLoader(n, needs=k) for n, k in (("b", 80), ("1", 40), ("2", 40)))
        running = start(operate(home, busy, gate))
        await turns()
        both: list[Callable[[], Any]] = [
            lambda: home.lease_all([one, two]),  # noqa: B023
            lambda: home.lease(one),  # noqa: B023
        ]
        asking = [start(ask()) for ask in (both if group_first else both[::-1])]
        await turns()
        gate.open()
        ended = await asyncio.gather(*asking)
        await running
        assert (one.loads, two.loads, home.handles(one.key)) == (1, 1, 2)
        for found in ended:
            released(found if isinstance(found, list) else [found])
        nothing_is_held(home)


@in_virtual_time
async def test_who_leaves_while_the_group_waits_is_loaded_anew() -> None:
    """Unloaded in between, by hand or by force, it is there all the same when the group has it."""
    for force in (True, False):
        home, gate = house(100, host=0), Gate()
        there, busy = SleepyLoader("there", needs=40), ScriptedLoader("busy", needs=60)
        await resident(home, there)
        running = start(operate(home, busy, gate))
        await turns()
        asking = start(home.lease_all([there, SleepyLoader("new", needs=50)]))
        await asyncio.sleep(1)
        assert not asking.done()
        await home.unload(lambda entry: entry.spec.name == "there", force=force)
        await home.pin(there)  # a new one, which nobody counts twice
        gate.open()
        async with asyncio.timeout(30):
            released(await asking)
        await running
        assert (there.loads, states(home)["there"]) == (2, State.HOT)
        nothing_is_held(home)


@in_virtual_time
@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_who_is_unloaded_while_the_group_waits_for_another_is_never_doubled(
    order: str,
) -> None:
    """Two loads of one model are never in memory at once, whoever leaves in whatever order."""
    home, closing, using = house(), Gate(), Gate()
    loaders = {
        "a": ScriptedLoader("a"),
        "b": ScriptedLoader("b", make=lambda: SlowToLeave(closing)),
    }
    await resident(home, *loaders.values())
    running = start(operate(home, loaders["a"], using))
    unloading = [start(home.unload(lambda entry: entry.key == loaders["b"].key))]
    await turns()
    group = start(home.lease_all([loaders[name] for name in order]))
    await turns()
    unloading.append(start(home.unload(lambda entry: entry.key == loaders["a"].key)))
    await turns()
    closing.open()
    await turns()
    assert loaders["a"].loads == 1
    using.open()
    await running
    released(await group)
    await asyncio.gather(*unloading)
    assert [one.loads for one in loaders.values()] == [2, 2]
    nothing_is_held(home)


def _asleep_and_new(home: Residency) -> list[SleepyLoader]:
    return [SleepyLoader("warm", needs=30), Slow("new", needs=30), SleepyLoader("hot", needs=30)]


@pytest.mark.parametrize("rival", [False, True], ids=["alone", "beside another"])
@in_virtual_time
async def test_cancelled_at_any_moment(rival: bool) -> None:
    """Whenever Stop comes: no lease and no charge of the group stays, and the next one gets there.

    Also while another group, which wants the same models, goes on.
    """
    for moment in range(31):
        home, gate = house(100, host=0), Gate()
        warm, new, hot = _asleep_and_new(home)
        await resident(home, warm, hot)
        entry = home.find(warm.key)
        assert entry is not None
        await home.sleep(entry)
        running = start(operate(home, ScriptedLoader("busy", needs=50), gate))
        await turns()
        asking = start(home.lease_all([warm, new, hot]))
        other = start(home.lease_all([new, warm])) if rival else None
        await turns(moment // 2)
        gate.open()
        await turns(moment - moment // 2)
        asking.cancel()
        await turns(40)
        await running
        if not asking.cancelled():
            released(asking.result())
        if other is not None:
            async with asyncio.timeout(30):
                released(await other)
        await turns()
        nothing_is_held(home)
        leases = await home.lease_all([warm, new, hot])
        assert max(warm.loads, new.loads, hot.loads) <= 2
        released(leases)
        await home.unload(lambda _: True)
        assert home.residents() == []


@in_virtual_time
async def test_a_cancelled_group_harms_no_other_that_waits_for_the_same() -> None:
    """It goes on waiting, at its place in the queue, though a model of it is pinned meanwhile."""
    home, gate = house(100, host=0), Gate()
    a, b = ScriptedLoader("a", needs=50), ScriptedLoader("b", needs=50)
    running = start(operate(home, ScriptedLoader("busy", needs=50), gate))
    await turns()
    first = start(home.lease_all([a, b]))
    await turns()
    second = start(home.lease_all([b, a]))
    await turns()
    first.cancel()
    await turns()
    pinning = start(home.pin(a))
    await turns()
    gate.open()
    async with asyncio.timeout(30):
        released(await second)
        await pinning
    await running
    assert (a.loads, b.loads) == (1, 1)


@in_virtual_time
async def test_a_load_that_a_group_waits_for_goes_on_without_its_first_waiter() -> None:
    """Stop of the one who asked for it alone does not have it begin anew."""
    home, running_gate, loading = house(100, host=0), Gate(), Gate()
    a, b = ScriptedLoader("a", needs=40, gate=loading), ScriptedLoader("b", needs=40)
    running = start(operate(home, ScriptedLoader("busy", needs=50), running_gate))
    alone = start(home.lease(a))
    await turns()
    group = start(home.lease_all([a, b]))
    await turns()
    alone.cancel()
    await turns()
    assert (a.loads, a.cancelled, states(home)["a"]) == (1, 0, State.LOADING)
    loading.open()
    running_gate.open()
    released(await group)
    await running
    assert (a.loads, b.loads) == (1, 1)


@in_virtual_time
async def test_what_room_was_made_for_does_not_queue_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group whose turn came loads at once, and so does who wants one of it and stands far behind."""
    monkeypatch.setattr(queue, "MOST_OVERTAKEN", 0)
    home, gate = house(100, host=0), Gate()
    a, b, large = (SleepyLoader(n, needs=k) for n, k in (("a", 40), ("b", 40), ("large", 100)))
    running = start(operate(home, ScriptedLoader("busy", needs=80), gate))
    await turns()
    group = start(home.lease_all([a, b]))
    await turns()
    behind = start(home.lease(large))
    await turns()
    one = start(home.lease(a))
    await asyncio.sleep(1)
    gate.open()
    await running
    released([*await group, await one])
    assert asyncio.get_running_loop().time() < 2
    (await behind).release()
    assert (a.loads, b.loads, large.loads) == (1, 1, 1)


def two_devices() -> Residency:
    return Residency(Memory({"gpu": 100, "gpu2": 100}), asyncio.get_running_loop().time)


@in_virtual_time
async def test_a_group_does_not_take_a_model_out_of_its_break() -> None:
    """It makes a break for somebody who waits: he comes first, though the group needs nothing for it."""
    home, computing, loading = two_devices(), Gate(), Gate()
    used, waited = ScriptedLoader("used", needs=60), ScriptedLoader("waited", needs=60)
    other = ScriptedLoader("other", needs=60, device="gpu2", gate=loading)
    await resident(home, used)
    running = start(operate(home, used, computing))
    await turns()
    asking = start(home.lease(waited))
    await asyncio.sleep(PATIENCE_S + 1)
    group = start(home.lease_all([used, other]))
    await turns()
    computing.open()
    await running
    await asyncio.sleep(1)
    (await asking).release()
    loading.open()
    released(await group)
    nothing_is_held(home)


@in_virtual_time
async def test_a_group_keeps_its_place_for_what_was_there_when_it_came() -> None:
    """What leaves while the group waits for another device is wanted all the same, in its turn."""
    home, using = two_devices(), Gate()
    mine = SleepyLoader("mine", needs=100, wish=False)
    new, busy = (ScriptedLoader(name, needs=60, device="gpu2") for name in ("new", "busy"))
    await resident(home, mine)
    running = start(operate(home, busy, using))
    await turns()
    group = start(home.lease_all([mine, new]))
    await turns()

    async def call(number: int) -> None:
        async with home.using(ScriptedLoader(f"small{number}", needs=30)):
            await asyncio.sleep(2)

    calls = []
    for number in range(40):
        calls.append(start(call(number)))
        await asyncio.sleep(1)
        if number == 3:
            using.open()
        if group.done():
            break
    assert len(calls) < 4 + queue.MOST_OVERTAKEN
    released(await group)
    await running
    await asyncio.gather(*calls)
    nothing_is_held(home)
