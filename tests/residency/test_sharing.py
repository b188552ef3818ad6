"""Promises of kernels on one device: together they never take more than it has, and nobody starves."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from nbproviders.core.model import Model
from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency import ledger as ledgers
from nbproviders.residency.admission import SETTLED_S
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.ledger import Ledger, Row
from nbproviders.residency.memory import HOST, Memory, Reading
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from nbproviders.residency.sleeping import Transfer
from tests.residency.kernels import GPU, Kernel
from tests.scripted import (
    BOUND_S,
    Gate,
    ScriptedLoader,
    ScriptedModel,
    SleepyLoader,
    SleepyModel,
    operate,
    resident,
    start,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no ledger there")

TOTAL, USABLE = 1000, 900  # a tenth stays free


def held(model: Model | None) -> int:
    """Return what a model really has on the device."""
    if not isinstance(model, SleepyModel) or model.closed or not model.awake:
        return 0
    return model.info.memory_bytes.get("gpu:0", 0)


class Card:
    """A device that counts what is really on it, whoever put it there; too much is an error."""

    def __init__(self) -> None:
        self.models: list[ScriptedModel] = []
        self.strangers = 0
        self.most = 0

    @property
    def used(self) -> int:
        return sum(map(held, self.models)) + self.strangers

    def holds(self) -> None:
        self.most = max(self.most, self.used)
        assert self.used <= TOTAL

    def probe(self, _: str) -> Reading:
        return Reading(TOTAL, TOTAL - self.used)


class OnCard(SleepyModel):
    """One whose bytes the card counts."""

    def __init__(self, card: Card, memory_bytes: Mapping[str, int]) -> None:
        super().__init__(memory_bytes)
        self._card = card
        card.models.append(self)
        card.holds()

    async def wake(self, progress: Progress) -> Transfer:
        transfer = await super().wake(progress)
        self._card.holds()
        return transfer


class CardLoader(SleepyLoader):
    """Loads onto the card; `reserve` is only taken to compute."""

    def __init__(
        self, card: Card, name: str = "a", needs: int = 600, *, reserve: int = 0, **named: object
    ) -> None:
        super().__init__(name, needs=needs, device="gpu:0", **named)  # type: ignore[arg-type]
        self._card, self._reserve = card, reserve

    async def estimate(self) -> Mapping[str, int]:
        return Estimate(weights=self.needs, workspace={"gpu:0": self._reserve})

    async def load(self, progress: Progress) -> Model:
        self.loads += 1
        if self.gate is not None:
            await self.gate.passed()
        self.models.append(OnCard(self._card, self.needs))
        return self.models[-1]


MakeKernel = Callable[..., Residency]


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernels of this test meet, and no others."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return runtime / "nbproviders" / "ledger"


@pytest.fixture
async def kernel(card: Card, folder: Path) -> AsyncIterator[MakeKernel]:
    """Makes residencies as kernels of their own have them: each with its own page in the ledger."""
    made: list[Residency] = []

    def one(*, sees_others: bool = True, budget: Mapping[str, int] | None = None) -> Residency:
        def own(_: str) -> Reading:
            return Reading(TOTAL, TOTAL - sum(held(entry.model) for entry in home.entries()))

        memory = Memory({HOST: 0, **(budget or {})})
        probe = card.probe if sees_others else own
        memory.add_probe("gpu", probe, identity=lambda _: GPU, sees_others=sees_others)
        home = Residency(memory)
        made.append(home)
        return home

    yield one
    for home in made:
        await home.close()


@pytest.fixture
def process(folder: Path) -> Iterator[Callable[[], Kernel]]:
    """Starts real processes that meet there."""
    started = []

    def one() -> Kernel:
        started.append(Kernel(folder, "other.ipynb"))
        return started[-1]

    yield one
    for other in started:
        other.end()


async def until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(BOUND_S):
        while not true():
            await asyncio.sleep(0.005)


def rows(folder: Path) -> dict[str, tuple[str, int, int, bool]]:
    """Return what somebody else reads of all kernels: state, charged, taken, idle."""
    found: list[Row] = Ledger(folder).others(GPU)
    return {
        row.spec.partition(":")[2]: (row.state, row.charged_bytes, row.taken_bytes, row.idle)
        for row in found
    }


def pages(folder: Path) -> list[Path]:
    return list(folder.glob("*.json"))


@pytest.mark.parametrize("sees_others", [True, False])
async def test_together_they_never_take_more_than_there_is(
    card: Card, kernel: MakeKernel, sees_others: bool
) -> None:
    """Three kernels use models of all sizes in any order, at once: all get there, and it is never over."""
    homes = [kernel(sees_others=sees_others) for _ in range(3)]
    dice = random.Random(7)

    async def use(home: Residency, names: str) -> None:
        loaders = [CardLoader(card, name, dice.choice([150, 250, 400, 700])) for name in names]
        for _ in range(8):
            async with home.using(dice.choice(loaders)) as model:
                assert isinstance(model, OnCard)
                assert model.awake
                assert sum(_charged(home) for home in homes) <= USABLE
                await asyncio.sleep(0.001 * dice.randrange(5))

    async with asyncio.timeout(6 * BOUND_S):
        await asyncio.gather(*(use(home, names) for home in homes for names in ("ab", "cd")))
    assert 600 < card.most <= USABLE


def _charged(home: Residency) -> int:
    return sum(one.bytes.get("gpu:0", 0) for one in home.residents())


async def test_one_asks_the_other_and_gets_what_is_idle(card: Card, kernel: MakeKernel) -> None:
    """The other's model sleeps, its handle stays open, and its next call gets the room back the same way."""
    mine, theirs = kernel(), kernel()
    old, new = CardLoader(card, "old"), CardLoader(card, "new")
    handle = await theirs.lease(old)
    await resident(mine, new)
    assert (old.sleeper.awake, new.sleeper.awake) == (False, True)
    async with theirs.using(old):
        assert (old.sleeper.awake, new.sleeper.awake) == (True, False)
    assert (old.loads, new.loads, old.sleeper.wakes) == (1, 1, 1)
    assert [e.detail for e in theirs.events() if e.kind == "slept"] == [
        "another kernel asked for room"
    ]
    handle.release()


async def test_others_are_asked_for_no_more_than_is_missing(card: Card, kernel: MakeKernel) -> None:
    """One of two idle models is enough: the other stays."""
    mine, theirs = kernel(), kernel()
    olds = [CardLoader(card, name, 300) for name in "ab"]
    await resident(theirs, *olds)
    await resident(mine, CardLoader(card, "new", 500))
    assert sorted(old.sleeper.awake for old in olds) == [False, True]


async def test_ones_own_idle_models_leave_first(card: Card, kernel: MakeKernel) -> None:
    """Nobody else is troubled while it can be had here."""
    mine, theirs = kernel(), kernel()
    own, old = CardLoader(card, "own", 400), CardLoader(card, "old", 400)
    await resident(theirs, old)
    await resident(mine, own, CardLoader(card, "new", 400))
    assert (own.sleeper.awake, old.sleeper.awake) == (False, True)


async def test_busy_peers_are_waited_for(card: Card, kernel: MakeKernel) -> None:
    """What runs elsewhere is as safe as what runs here; when it has ended its room can be had."""
    mine, theirs, gate = kernel(), kernel(), Gate()
    busy, new = CardLoader(card, "busy"), CardLoader(card, "new")
    running = start(operate(theirs, busy, gate))
    await until(lambda: busy.models and theirs.residents()[0].running)
    asking = start(mine.lease(new))
    await until(lambda: any(e.kind == "waiting" for e in mine.events()))
    assert (busy.sleeper.awake, new.loads) == (True, 0)
    gate.open()
    (await asyncio.wait_for(asking, BOUND_S)).release()
    assert (busy.sleeper.awake, busy.sleeper.closed) == (False, 0)
    await running


async def test_what_a_peer_keeps_is_refused_in_the_end(card: Card, kernel: MakeKernel) -> None:
    """A pinned model of another kernel stays; the one who waits is told after its time."""
    mine, theirs = kernel(), kernel()
    pinned = CardLoader(card, "pinned")
    await theirs.pin(pinned)
    mine.set_wait(0.2)
    with pytest.raises(
        InsufficientMemoryError, match="needs 600 B on gpu:0. That is 300 B on gpu:0 too much"
    ):
        await mine.lease(CardLoader(card, "new"))
    assert pinned.sleeper.awake
    assert mine.residents() == []


async def test_a_load_elsewhere_counts_before_it_has_taken_anything(
    card: Card, kernel: MakeKernel
) -> None:
    """What is promised there still shows as free: it is not promised twice."""
    mine, theirs, gate = kernel(), kernel(), Gate()
    coming = CardLoader(card, "coming", gate=gate)
    loading = start(theirs.lease(coming))
    await until(lambda: coming.loads)
    mine.set_wait(0.2)
    assert card.used == 0
    new = CardLoader(card, "new")
    with pytest.raises(InsufficientMemoryError):
        await mine.lease(new)
    await resident(mine, CardLoader(card, "small", 250))
    gate.open()
    (await loading).release()
    assert card.most <= USABLE


async def test_what_the_own_budget_forbids_troubles_nobody(card: Card, kernel: MakeKernel) -> None:
    """More than our own budget is refused at once, though others could give it; they stay as they are."""
    mine, theirs = kernel(budget={"gpu:0": 300}), kernel()
    old = CardLoader(card, "old")
    await resident(theirs, old)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(InsufficientMemoryError, match="models may take 300 B on gpu:0 in all"):
        await mine.lease(CardLoader(card, "new", 400))
    assert asyncio.get_running_loop().time() - began_s < 1
    assert old.sleeper.awake


async def test_more_than_the_device_has_is_refused_at_once(card: Card, kernel: MakeKernel) -> None:
    """Whatever others could give: they are not asked."""
    mine, theirs = kernel(), kernel()
    old = CardLoader(card, "old")
    await resident(theirs, old)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(InsufficientMemoryError, match="models may take 300 B on gpu:0 in all"):
        await mine.lease(CardLoader(card, "new", 950))
    assert asyncio.get_running_loop().time() - began_s < SETTLED_S / 2
    assert old.sleeper.awake


async def test_memory_that_comes_back_late_is_waited_for(card: Card, kernel: MakeKernel) -> None:
    """A kernel that ended is out of the ledger at once, while its memory still shows as taken."""
    mine, theirs = kernel(), kernel()
    await resident(theirs, CardLoader(card, "old"))
    card.strangers = 600
    await theirs.close()
    asking = start(mine.lease(CardLoader(card, "new")))
    await until(lambda: any(e.kind == "waiting" for e in mine.events()))
    card.strangers = 0
    (await asking).release()


async def test_what_others_do_not_have_is_refused_soon(card: Card, kernel: MakeKernel) -> None:
    """Programs that keep no ledger are not waited for, and peers do not give in vain."""
    mine, theirs = kernel(), kernel()
    old = CardLoader(card, "old", 200)
    await resident(theirs, old)
    card.strangers = 400
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(InsufficientMemoryError):
        await mine.lease(CardLoader(card, "new", 550))
    assert asyncio.get_running_loop().time() - began_s < SETTLED_S + 2
    assert old.sleeper.awake
    await resident(mine, CardLoader(card, "less", 450))
    assert not old.sleeper.awake


async def test_a_peer_that_dies_is_forgotten(
    card: Card, kernel: MakeKernel, process: Callable[[], Kernel]
) -> None:
    """However it died, its room is free for who waits for it."""
    mine, doomed = kernel(sees_others=False), process()
    doomed.do("publish", ["theirs", 800, False])
    new = CardLoader(card, "new")
    asking = start(mine.lease(new))
    await until(lambda: any(e.kind == "waiting" for e in mine.events()))
    assert new.loads == 0
    doomed.kill()
    (await asyncio.wait_for(asking, BOUND_S)).release()


async def test_room_is_taken_while_nobody_else_can(
    card: Card,
    kernel: MakeKernel,
    process: Callable[[], Kernel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two that look at the same moment do not both find it free: the device is held meanwhile."""
    monkeypatch.setattr(ledgers, "RESERVE_S", 0.1)
    mine, other = kernel(), process()
    await resident(mine, CardLoader(card, "a", 100))
    assert caplog.text == ""
    other.do("hold")
    await resident(mine, CardLoader(card, "b", 100))
    assert f"Another process has held the ledger of {GPU}" in caplog.text


async def test_a_real_process_gives_what_is_idle(
    card: Card, kernel: MakeKernel, process: Callable[[], Kernel]
) -> None:
    """Between processes as within one."""
    mine, other = kernel(sees_others=False), process()
    other.do("publish", ["theirs", 800, True])
    other.do("serve")
    await resident(mine, CardLoader(card, "new"))
    assert other.do("calls") == [500]


async def test_what_is_told_to_others(card: Card, kernel: MakeKernel, folder: Path) -> None:
    """Each model with its state, what it is charged and has taken, whether it could leave; asleep none."""
    mine, gate, ends = kernel(), Gate(), Gate()
    loader = CardLoader(card, "a", 500, reserve=70, gate=gate)
    asking = start(mine.lease(loader))
    await until(lambda: loader.loads)
    assert rows(folder)["a"][1:] == (570, 0, False)
    gate.open()
    (await asking).release()
    await until(lambda: rows(folder)["a"] == ("hot", 570, 500, True))
    running = start(operate(mine, loader, ends))
    await resident(mine, CardLoader(card, "b", 100))
    busy, idle = ("hot", 570, 500, False), ("hot", 570, 500, True)
    await until(lambda: rows(folder) == {"a": busy, "b": ("hot", 100, 100, True)})
    ends.open()
    await running
    await until(lambda: rows(folder)["a"] == idle)
    entry = mine.find(loader.key)
    assert entry is not None
    await mine.sleep(entry)
    assert set(rows(folder)) == {"b"}
    await mine.unload(lambda _: True)
    assert rows(folder) == {}


async def test_who_closes_leaves_nothing_behind(
    card: Card, kernel: MakeKernel, folder: Path
) -> None:
    """No page, and no port that answers; the next load would enter it again."""
    mine = kernel()
    await resident(mine, CardLoader(card))
    assert rows(folder)
    await mine.close()
    assert pages(folder) == []
    await resident(mine, CardLoader(card))
    assert rows(folder)


async def test_what_is_ours_alone_is_told_to_nobody(folder: Path) -> None:
    """Main memory and devices without a name that all know: no folder and no file is made for them."""
    memory = Memory({HOST: 0, "gpu:0": 100, "cpu": 100})
    home = Residency(memory)
    loaders = [
        SleepyLoader("a", needs=60, device="gpu:0"),
        SleepyLoader("b", needs=60, device="cpu"),
    ]
    await resident(home, *loaders)
    await resident(home, SleepyLoader("c", needs=60, device="gpu:0"))
    await home.fit(loaders[0])
    home.devices()
    for loader in loaders:
        entry = home.find(loader.key)
        assert entry is not None
        await home.sleep(entry)
    with pytest.raises(InsufficientMemoryError):
        await home.lease(ScriptedLoader("huge", needs=200, device="gpu:0"))
    await home.close()
    assert not folder.parent.exists()


async def test_a_hosted_model_on_a_machine_with_a_shared_device_tells_nothing(
    kernel: MakeKernel, folder: Path
) -> None:
    """Only who takes a shared device enters the ledger."""
    mine = kernel()
    await resident(mine, ScriptedLoader("hosted"))
    assert not folder.parent.exists()


async def test_peers_are_seen_before_anything_is_loaded(
    card: Card, kernel: MakeKernel, folder: Path
) -> None:
    """Who asks whether a model fits, or looks at the devices, is told of others at once."""
    mine, theirs = kernel(sees_others=False), kernel(sees_others=False)
    await resident(theirs, CardLoader(card, "old"))
    new = CardLoader(card, "new")
    fit = await mine.fit(new)
    assert (fit.verdict, fit.limits) == ("wait", {"gpu:0": 300})
    mine.memory.set_budget({"gpu:0": TOTAL})
    [use] = [use for use in mine.devices() if use.device == "gpu:0"]
    assert use.peers == 600
    assert new.loads == 0
