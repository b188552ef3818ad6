"""Promises of the figures of each device: every byte is told once, and as whose it is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.ledger import Ledger
from nbproviders.residency.memory import BUDGET_VARIABLE, HOST, Memory, Reading
from nbproviders.residency.residency import Residency
from nbproviders.residency.residents import DeviceUse
from tests.residency.kernels import GPU, row
from tests.scripted import Gate, ScriptedLoader, SleepyLoader, operate, resident, start, turns

used = {"gpu:0": 0, "cpu": 0}


def probe(device: str) -> Reading:
    return Reading(1000, 1000 - used.get(device, used["cpu"]))


@pytest.fixture
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Residency]:
    """A residency with a shared device and main memory of 1000 bytes each."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    used.update({"gpu:0": 0, "cpu": 0})
    memory = Memory({"gpu:0": 800, HOST: 300}, {"cpu": probe})
    memory.add_probe("gpu", probe, identity=lambda _: GPU)
    home = Residency(memory)
    yield home
    await home.close()


def use_of(home: Residency, device: str) -> DeviceUse:
    """Return the figures of a device, whose parts add up to what it has."""
    [use] = [use for use in home.devices() if use.device == device]
    parts = use.in_use, use.idle, use.peers, use.strangers, use.free, use.kept
    assert sum(parts) == use.total
    assert min(parts) >= 0
    return use


async def test_a_machine_without_models(home: Residency) -> None:
    """What the budget names and main memory are told, accelerators first; all that is taken is others'."""
    used["gpu:0"], used["cpu"] = 250, 100
    assert [use.device for use in home.devices()] == ["gpu:0", "cpu", HOST]
    gpu = use_of(home, "gpu:0")
    assert (gpu.total, gpu.limit, gpu.strangers, gpu.free, gpu.kept) == (1000, 650, 250, 650, 100)
    assert (gpu.in_use, gpu.idle, gpu.peers) == (0, 0, 0)
    assert use_of(home, "cpu").strangers == 100
    copies = use_of(home, HOST)
    assert (copies.total, copies.limit, copies.free) == (300, 300, 300)


async def test_models_in_use_idle_and_asleep(home: Residency) -> None:
    """In use is what could not leave now; what sleeps takes nothing of the device, and its copy is told."""
    gate = Gate()
    busy, idle, pinned, warm = (
        SleepyLoader(name, needs=count, device="gpu:0", wish=name == "warm")
        for name, count in (("busy", 100), ("idle", 200), ("pinned", 50), ("warm", 300))
    )
    await resident(home, idle, warm)
    entry = home.find(warm.key)
    assert entry is not None
    await home.sleep(entry)
    await home.pin(pinned)
    running = start(operate(home, busy, gate))
    await turns()
    used["gpu:0"], used["cpu"] = 350, 300
    gpu = use_of(home, "gpu:0")
    assert (gpu.in_use, gpu.idle, gpu.strangers, gpu.free, gpu.kept) == (150, 200, 0, 450, 200)
    copies = use_of(home, HOST)
    assert (copies.idle, copies.in_use, copies.free) == (300, 0, 0)
    gate.open()
    await running


async def test_a_copy_in_main_memory_is_no_other_program(home: Residency) -> None:
    """It is told with main memory as well: as ours."""
    await resident(home, SleepyLoader("a", needs=200, device="gpu:0"))
    used["gpu:0"], used["cpu"] = 200, 260
    cpu = use_of(home, "cpu")
    assert (cpu.idle, cpu.in_use, cpu.strangers, cpu.free, cpu.kept) == (200, 0, 60, 640, 100)
    assert cpu.limit == cpu.idle + cpu.free


@pytest.mark.skipif(sys.platform == "win32", reason="no ledger there")
async def test_other_kernels_are_not_other_programs(home: Residency) -> None:
    """What peers have, promised or taken, is theirs; the rest that is taken is nobody's whom we know."""
    await resident(home, ScriptedLoader("mine", needs=100, device="gpu:0"))
    peer = Ledger()
    peer.publish([row("theirs", 300)])
    used["gpu:0"] = 100 + 300 + 70
    gpu = use_of(home, "gpu:0")
    assert (gpu.idle, gpu.peers, gpu.strangers, gpu.free, gpu.kept) == (100, 300, 70, 430, 100)
    peer.publish([])
    assert use_of(home, "gpu:0").peers == 0
    await peer.close()


async def test_what_is_reserved_is_in_use_and_not_others(home: Residency) -> None:
    """A load under way, and what a model only takes to compute, are ours before they show as taken."""

    class Worked(ScriptedLoader):
        async def estimate(self) -> Mapping[str, int]:
            return Estimate(weights=self.needs, workspace={"gpu:0": 50})

    gate = Gate()
    await resident(home, Worked("idle", needs=100, device="gpu:0"))
    loading = start(home.lease(ScriptedLoader("new", needs=200, device="gpu:0", gate=gate)))
    await turns()
    used["gpu:0"] = 100 + 30
    gpu = use_of(home, "gpu:0")
    assert (gpu.in_use, gpu.idle, gpu.strangers) == (200, 150, 30)
    gate.open()
    (await loading).release()


async def test_free_is_what_models_can_have(home: Residency) -> None:
    """A model of just that size comes in with nobody leaving; one byte more and somebody has to."""
    await resident(home, SleepyLoader("idle", needs=300, device="gpu:0", wish=False))
    used["gpu:0"] = 350
    free = use_of(home, "gpu:0").free
    fitting, large = (ScriptedLoader(str(n), needs=n, device="gpu:0") for n in (free, free + 1))
    assert (await home.fit(fitting)).verdict == "fits"
    assert (await home.fit(large)).verdict == "after"


async def test_mapped_weights_do_not_overfill_a_machine() -> None:
    """Free memory stays as it was, as with weights that are mapped: idle models leave all the same."""
    home = Residency(Memory({}, {"cpu": lambda _: Reading(1600, 1500)}))
    for n in range(5):
        (await home.lease(ScriptedLoader(str(n), needs=1000, device="cpu"))).release()
    assert [sum(one.bytes.values()) for one in home.residents()] == [1000]
    await home.close()


async def test_copies_and_models_share_main_memory() -> None:
    """What one kind of charge has taken is not there for the other, whatever shows as free."""
    memory = Memory({HOST: 900}, {"cpu": lambda _: Reading(1000, 1000)})
    memory.add_probe("gpu", lambda _: Reading(9000, 9000))
    home = Residency(memory)
    await resident(home, ScriptedLoader("here", needs=500, device="cpu"))
    there = SleepyLoader("there", needs=600, device="gpu:0")
    await resident(home, there)
    assert [one.bytes for one in home.residents()][1] == {"gpu:0": 600}
    await home.close()


async def test_no_bar_for_copies_without_room() -> None:
    """With no budget for copies there is no bar for them."""
    home = Residency(Memory({HOST: 5000}, {"cpu": lambda _: Reading(9000, 9000)}))
    assert [use.device for use in home.devices()] == ["cpu", HOST]
    home.memory.set_budget({HOST: 0})
    assert [use.device for use in home.devices()] == ["cpu"]
    home.memory.set_budget({HOST: 5000})
    await resident(home, ScriptedLoader("b", needs=2000, device=HOST))
    home.memory.set_budget({HOST: 0})
    assert [use.device for use in home.devices()] == ["cpu", HOST]
    await home.close()


async def test_a_device_that_nobody_can_read() -> None:
    """Its size is the budget, or unknown; nobody is accused of taking what cannot be seen."""
    home = Residency(Memory({"npu:0": 500, HOST: 0}))
    await resident(home, ScriptedLoader("a", needs=200, device="npu:0"))
    await resident(home, ScriptedLoader("b", needs=10, device="odd:0"))
    await turns()
    npu = use_of(home, "npu:0")
    assert (npu.total, npu.limit, npu.idle, npu.strangers, npu.free) == (500, 500, 200, 0, 300)
    [odd] = [use for use in home.devices() if use.device == "odd:0"]
    assert (odd.total, odd.limit, odd.idle, odd.free) == (0, None, 10, 0)
    await home.close()


async def test_a_budget_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one of our errors here too, with the value."""
    monkeypatch.setenv(BUDGET_VARIABLE, "gpu:0=many")
    with pytest.raises(ConfigurationError, match="many"):
        Residency().devices()


async def test_the_figures_can_be_had_from_any_thread(home: Residency) -> None:
    """While models come and go on the engine's loop."""
    loaders = [SleepyLoader(str(n), needs=300, device="gpu:0", wish=False) for n in range(4)]

    async def come_and_go() -> None:
        for _ in range(20):
            for loader in loaders:
                async with home.using(loader):
                    await asyncio.sleep(0)

    def look() -> int:
        return max(
            use.in_use + use.idle
            for _ in range(60)
            for use in home.devices()
            if use.device == "gpu:0"
        )

    looking = asyncio.to_thread(look)
    most, _ = await asyncio.gather(looking, come_and_go())
    assert most <= 1000
