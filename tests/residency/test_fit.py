"""Promises of telling whether a model would fit: the same as would happen, and nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from nbproviders.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    ModelAccessError,
    ProviderError,
)
from nbproviders.residency.entry import State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.fit import Fit
from nbproviders.residency.memory import HOST
from nbproviders.residency.residency import Residency
from tests.scripted import (
    Gate,
    ScriptedLoader,
    SleepyLoader,
    house,
    in_virtual_time,
    operate,
    resident,
    start,
    turns,
)


async def fit(home: Residency, loader: ScriptedLoader) -> Fit:
    """Ask, and see that nothing happened by it."""

    def seen() -> object:
        states = [(e.spec, e.state, dict(e.charges), e.hard, e.uses) for e in home.entries()]
        return states, len(home.events()), loader.loads

    before = seen()
    found = await home.fit(loader)
    await turns()
    assert seen() == before
    return found


@in_virtual_time
async def test_there_is_room() -> None:
    """It fits as things are; the figures are told."""
    home = house(100, host=0)
    await resident(home, ScriptedLoader("small", needs=30))
    found = await fit(home, ScriptedLoader("new", needs=70))
    assert (found.verdict, bool(found), found.moves) == ("fits", True, ())
    assert (found.spec, dict(found.estimate)) == ("scripted:new", {"gpu": 70})
    assert (found.limits, found.taken, found.short) == ({"gpu": 100}, {"gpu": 30}, {})


@in_virtual_time
async def test_who_would_make_room() -> None:
    """It fits once others sleep or leave: they are named with what they would do, and just that happens."""
    home = house(100, host=0)
    sleeper, plain = SleepyLoader("sleeper", needs=40), ScriptedLoader("plain", needs=40)
    await resident(home, sleeper, plain)
    new = ScriptedLoader("new", needs=90)
    found = await fit(home, new)
    assert (found.verdict, bool(found)) == ("after", True)
    assert set(found.moves) == {("scripted:sleeper", "sleep"), ("scripted:plain", "free")}
    await resident(home, new)
    done = {(e.spec, e.kind) for e in home.events() if e.kind in ("slept", "evicted")}
    assert done == {("scripted:sleeper", "slept"), ("scripted:plain", "evicted")}


@in_virtual_time
async def test_running_models_are_in_the_way() -> None:
    """It would have to wait, for so many bytes: it cannot be loaded now."""
    home, gate = house(100, host=0), Gate()
    running = start(operate(home, ScriptedLoader("busy", needs=60), gate))
    await turns()
    found = await fit(home, ScriptedLoader("new", needs=60))
    assert (found.verdict, bool(found), found.short) == ("wait", False, {"gpu": 20})
    gate.open()
    await running


@in_virtual_time
async def test_it_never_fits() -> None:
    """For the budget, or for what is pinned; loading it says the same."""
    home = house(100, host=0)
    found = await fit(home, ScriptedLoader("huge", needs=130))
    assert (found.verdict, bool(found), found.short) == ("no", False, {"gpu": 30})
    await home.pin(ScriptedLoader("pinned", needs=60))
    new = ScriptedLoader("new", needs=60)
    found = await fit(home, new)
    assert (found.verdict, found.short) == ("no", {"gpu": 20})
    with pytest.raises(InsufficientMemoryError, match="20 B on gpu too much"):
        await home.lease(new)
    assert asyncio.get_running_loop().time() == 0


@in_virtual_time
async def test_it_is_here() -> None:
    """In memory and ready: nothing would have to be done."""
    home, loader = house(100, host=0), SleepyLoader("a", needs=60)
    await resident(home, loader)
    found = await fit(home, loader)
    assert (found.verdict, bool(found), found.moves) == ("here", True, ())


@in_virtual_time
async def test_one_that_sleeps_is_not_counted_twice() -> None:
    """Its copy is its own already; what it needs to wake is told, and who would leave for it."""
    home, loader = house(100, host=60), SleepyLoader("a", needs=60)
    await resident(home, loader)
    entry = home.find(loader.key)
    assert entry is not None
    await home.sleep(entry)
    assert (await fit(home, loader)).verdict == "fits"
    await resident(home, ScriptedLoader("other", needs=60))
    found = await fit(home, loader)
    assert (found.verdict, found.moves) == ("after", (("scripted:other", "free"),))
    assert entry.state is State.WARM


@in_virtual_time
async def test_whether_it_would_keep_a_copy() -> None:
    """Where main memory has room, or gets it from copies of what sleeps; one that is here keeps its own."""
    home = house(200, host=100)
    first, new = SleepyLoader("first", needs=60), SleepyLoader("new", needs=70)
    assert (await fit(home, new)).copy_bytes == 70
    await resident(home, first)
    assert [(await fit(home, one)).copy_bytes for one in (first, new)] == [60, 0]
    entry = home.find(first.key)
    assert entry is not None
    await home.sleep(entry)
    assert [(await fit(home, one)).copy_bytes for one in (first, new)] == [60, 70]
    crowded = house(100, host=100)
    await resident(crowded, SleepyLoader("first", needs=60))
    found = await fit(crowded, new)
    assert (found.moves, found.copy_bytes) == ((("scripted:first", "free"),), 70)
    await resident(crowded, new)  # it is as was told
    assert [dict(one.charges) for one in crowded.entries()] == [{"gpu": 70, HOST: 70}]
    await crowded.pin(new)
    gate = Gate()
    running = start(operate(home, ScriptedLoader("busy", needs=200), gate))
    await turns()
    found = await fit(home, first)
    assert (found.verdict, found.copy_bytes) == ("wait", 60)  # it sleeps, and has its copy
    gate.open()
    await running
    found = await fit(crowded, SleepyLoader("third", needs=80))
    assert (found.verdict, found.moves, found.copy_bytes) == ("no", (), 0)
    home.memory.set_budget({"gpu": 200, HOST: 0})
    assert (await fit(home, new)).copy_bytes == 0
    assert (await fit(home, ScriptedLoader("plain", needs=10))).copy_bytes == 0


@in_virtual_time
async def test_a_copy_that_is_being_made_is_counted_once() -> None:
    """Asked while it loads, it has the room that it was granted."""
    home, gate = house(100, host=100), Gate()
    new = SleepyLoader("new", needs=70, gate=gate)
    asking = start(home.lease(new))
    await turns()
    assert (await home.fit(new)).copy_bytes == 70
    gate.open()
    (await asking).release()


@in_virtual_time
async def test_nobody_can_tell() -> None:
    """What has no estimate may fit or not: that is not a yes."""
    found = await fit(house(100, host=0), ScriptedLoader("hosted"))
    assert (found.verdict, bool(found), dict(found.limits)) == ("unknown", False, {})


@in_virtual_time
async def test_what_it_only_takes_to_compute_counts() -> None:
    """Cache and workspace are part of what must fit; a copy in main memory is not."""

    class Worked(ScriptedLoader):
        async def estimate(self) -> Mapping[str, int]:
            return Estimate({"gpu": 60}, {"gpu": 30}, {"gpu": 20}, optional={HOST: 10**9})

    found = await fit(house(100, host=0), Worked("new"))
    assert (found.verdict, found.short) == ("no", {"gpu": 10})


@in_virtual_time
async def test_a_device_without_limit_is_not_named() -> None:
    """There everything fits, as far as anybody knows."""
    found = await fit(house(host=0), ScriptedLoader("new", needs=10**15))
    assert (found.verdict, dict(found.limits)) == ("fits", {})


@in_virtual_time
async def test_an_estimate_that_fails_is_told() -> None:
    """It is an error of ours, as at a load: missing files, or nonsense for an estimate."""

    class Broken(ScriptedLoader):
        told: object = None

        async def estimate(self) -> Mapping[str, int]:
            if isinstance(self.told, Exception):
                raise self.told
            return self.told  # type: ignore[return-value]

    home, loader = house(100, host=0), Broken("broken")
    loader.told = ModelAccessError("no such file")
    with pytest.raises(ModelAccessError, match="no such file"):
        await home.fit(loader)
    loader.told = OSError("no disk")
    with pytest.raises(ProviderError, match="Estimating scripted:broken failed: OSError: no disk"):
        await home.fit(loader)
    loader.told = {"gpu": "much"}
    with pytest.raises(ConfigurationError, match="much"):
        await home.fit(loader)
    assert home.residents() == []
