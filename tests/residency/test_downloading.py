"""Models that have to be brought to this machine first: room is looked for when they are here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from nbproviders.core.model import Model
from nbproviders.errors import InsufficientMemoryError, ModelAccessError, ProviderError
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
@pytest.mark.parametrize("first", ["alone", "together"])
async def test_who_gives_up_a_download_stops_nobody_elses(first: str) -> None:
    """It goes on for who still wants the model."""
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
    assert (loader.downloads, loader.stopped, loader.loads) == (1, 0, 1)


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
async def test_unloading_by_force_ends_the_download_of_a_group() -> None:
    """The group is told; nothing is loaded behind."""
    home, coming = house(100), Gate()
    loader, other = DistantLoader(coming=coming, needs=30), ScriptedLoader("other", needs=30)
    asking = start(home.lease_all([other, loader]))
    await turns()
    await home.unload(lambda _: True, force=True)
    with pytest.raises(ProviderError, match="cancelled"):
        await asking
    await turns()
    assert (loader.stopped, loader.loads, other.loads, home.residents()) == (1, 0, 0, [])


@in_virtual_time
async def test_a_group_that_cannot_fit_downloads_nothing() -> None:
    """What is known to be too much is refused at once, whatever the others take."""
    home, coming = house(100), Gate()
    loader = DistantLoader(coming=coming, needs=30)
    with pytest.raises(InsufficientMemoryError, match="30 B on gpu too much"):
        await home.lease_all([loader, ScriptedLoader("huge", needs=130)])
    assert (loader.downloads, home.residents()) == (0, [])


@in_virtual_time
async def test_a_group_downloads_at_the_same_time() -> None:
    """And one that cannot be had ends the downloads of the others."""
    home, coming, failing = house(100), Gate(), Gate()
    large = DistantLoader("large", coming=coming, needs=30)
    typo = DistantLoader("typo", coming=failing, needs=30)
    typo.fails = True
    asking = start(home.lease_all([large, typo]))
    await turns()
    assert (large.downloads, typo.downloads) == (1, 1)
    failing.open()
    with pytest.raises(ProviderError, match="no such model"):
        await asking
    await turns()
    assert (large.stopped, home.residents()) == (1, [])


@in_virtual_time
async def test_one_that_is_stopping_is_waited_for() -> None:
    """A thread that notices late, and then the next: never two at a time for a model."""

    class Late(DistantLoader):
        async def download(self, progress: Progress) -> None:
            assert not progress.cancelled
            try:
                await super().download(progress)
            except asyncio.CancelledError:
                progress.cancel()
                await asyncio.sleep(10)
                raise

    home, coming = house(100), Gate()
    loader = Late(coming=coming, needs=30)
    asking = start(home.lease(loader))
    await turns()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    again = start(home.lease(loader))
    await asyncio.sleep(5)
    assert loader.downloads == 1
    await asyncio.sleep(6)
    assert loader.downloads == 2
    coming.open()
    (await again).release()
    assert loader.loads == 1


@in_virtual_time
async def test_a_model_is_brought_ahead_of_its_load() -> None:
    """Whoever loads it meanwhile joins in; nothing of it is in the table before."""
    home, coming = house(100), Gate()
    loader = DistantLoader(coming=coming, needs=30)
    ahead = start(home.download(loader))
    await turns()
    assert home.residents() == []
    asking = start(home.lease(loader))
    await turns()
    coming.open()
    await ahead
    (await asking).release()
    assert (loader.downloads, loader.loads) == (1, 1)


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
