"""Models that have to be brought to this machine first: room is looked for when they are here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from nbproviders.core.model import Model
from nbproviders.errors import ModelAccessError, ProviderError
from nbproviders.residency.entry import State
from nbproviders.residency.progress import Progress
from tests.scripted import (
    Gate,
    ScriptedLoader,
    house,
    in_virtual_time,
    operate,
    resident,
    start,
    turns,
)


class DistantLoader(ScriptedLoader):
    """Its files come when the gate lets them; half of their 1000 bytes are told at once."""

    def __init__(self, name: str = "distant", *, coming: Gate, **named: Any) -> None:
        super().__init__(name, **named)
        self.coming, self.here, self.fails = coming, False, False
        self.downloads = self.stopped = 0
        self.told: list[Progress] = []

    async def download(self, progress: Progress) -> None:
        if self.here:
            return
        self.downloads += 1
        self.told.append(progress)
        progress.report(500, 1000, "downloading")
        try:
            await self.coming.passed()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if self.fails:
            raise ModelAccessError("The Hub has no such model.")
        self.here = True

    async def estimate(self) -> Mapping[str, int]:
        return self.needs if self.here else {}

    async def load(self, progress: Progress) -> Model:
        assert self.here
        return await super().load(progress)


@in_virtual_time
async def test_room_is_made_for_what_was_not_known_before_the_download() -> None:
    """The first load of a model evicts as much for it as every later one."""
    home = house(100)
    coming, old = Gate(), ScriptedLoader("old", needs=60)
    await resident(home, old)
    asking = start(home.lease(DistantLoader(coming=coming, needs=70)))
    await turns()
    assert home.find(old.key) is not None  # of use as long as the other is on its way
    coming.open()
    (await asking).release()
    assert [one.spec for one in home.residents()] == ["scripted:distant"]
    assert old.model.closed


@in_virtual_time
async def test_a_download_takes_no_memory_and_tells_how_far_it_is() -> None:
    """What has come is on the disk: all of the device is there for others."""
    home, coming = house(100), Gate()
    asking = start(home.lease(DistantLoader(coming=coming, needs=70)))
    await turns()
    [seen] = home.residents()
    assert (seen.progress, seen.bytes) == (0.5, {})
    entry = home.find(DistantLoader(coming=coming).key)
    assert entry is not None
    assert (entry.shown.phase, entry.taken("gpu")) == ("downloading", 0)
    other = ScriptedLoader("other", needs=100)
    await resident(home, other)
    assert other.loads == 1
    coming.open()
    (await asking).release()
    [seen] = home.residents()
    assert (seen.state, seen.progress, seen.bytes) == (State.HOT, None, {"gpu": 70})


@in_virtual_time
async def test_a_download_that_nobody_wants_any_more_stops() -> None:
    """And nothing of it is in the table; whoever asks again begins again."""
    home, coming = house(100), Gate()
    loader = DistantLoader(coming=coming, needs=70)
    asking = start(home.lease(loader))
    await turns()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await turns()
    assert (loader.stopped, home.residents()) == (1, [])
    coming.open()
    (await home.lease(loader)).release()
    assert (loader.downloads, loader.loads) == (2, 1)


@in_virtual_time
async def test_many_who_want_it_have_it_brought_once() -> None:
    """Those who want it alone, and those who want it with another."""
    home, coming = house(100), Gate()
    loader, other = DistantLoader(coming=coming, needs=30), ScriptedLoader("other", needs=30)
    asking = [start(home.lease(loader)) for _ in range(3)]
    together = [start(home.lease_all([other, loader])) for _ in range(2)]
    await turns()
    coming.open()
    await asyncio.gather(*asking, *together)
    assert (loader.downloads, loader.loads, other.loads) == (1, 1, 1)


@in_virtual_time
@pytest.mark.parametrize(("first", "downloads"), [("alone", 1), ("together", 2)])
async def test_who_gives_up_a_download_stops_nobody_elses(first: str, downloads: int) -> None:
    """It goes on for who still wants the model, or he has the rest brought."""
    home, coming = house(100), Gate()
    loader = DistantLoader(coming=coming, needs=30)
    other = ScriptedLoader("other", needs=30)
    ways = {
        "alone": lambda: home.lease(loader),
        "together": lambda: home.lease_all([other, loader]),
    }
    gone = start(ways.pop(first)())
    await turns()
    [stays] = [start(way()) for way in ways.values()]
    await turns()
    gone.cancel()
    await turns()
    coming.open()
    await stays
    assert (loader.downloads, loader.stopped, loader.loads) == (downloads, downloads - 1, 1)
    assert not loader.told[-1].cancelled


@in_virtual_time
async def test_a_download_that_fails_is_told_to_all_and_leaves_nothing() -> None:
    """Each waiter has the error; the next ask tries again."""
    home, coming = house(100), Gate()
    loader = DistantLoader(coming=coming, needs=30)
    loader.fails = True
    asking = [start(home.lease(loader)), start(home.lease(loader))]
    asking.append(start(home.lease_all([loader, ScriptedLoader("other")])))  # type: ignore[arg-type]
    await turns()
    coming.open()
    for failure in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(failure, ProviderError)
        assert "The Hub has no such model." in failure.message
    loader.fails = False
    (await home.lease(loader)).release()
    assert [one.spec for one in home.residents()] == ["scripted:distant"]


@in_virtual_time
async def test_unloading_by_force_ends_a_download() -> None:
    """Whoever waits for it is told."""
    home, coming = house(100), Gate()
    loader = DistantLoader(coming=coming, needs=30)
    asking = start(home.lease(loader))
    await turns()
    assert await home.unload(lambda _: True, force=True) == 0
    with pytest.raises(ProviderError):
        await asking
    assert (loader.stopped, home.residents()) == (1, [])


@in_virtual_time
async def test_bringing_back_costs_what_the_load_took() -> None:
    """Neither the download nor waiting for room is paid again; the policy would spare it for that."""
    home, using = house(100), Gate()
    busy = ScriptedLoader("busy", needs=60)
    holding = start(operate(home, busy, using))
    await turns()

    class Slow(DistantLoader):
        async def download(self, progress: Progress) -> None:
            await asyncio.sleep(100)
            self.here = True

        async def load(self, progress: Progress) -> Model:
            await asyncio.sleep(3)
            return await super().load(progress)

    asking = start(home.lease(Slow(coming=using, needs=70)))
    await asyncio.sleep(130)
    assert [one.state for one in home.residents()] == [State.HOT, State.WAITING]
    using.open()
    await holding
    (await asking).release()
    [seen] = home.residents()
    assert seen.load_s == pytest.approx(3)
    [made] = [one for one in home.events() if one.kind == "created" and "distant" in one.spec]
    assert made.detail == "3.000 s"
