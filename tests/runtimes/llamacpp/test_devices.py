"""Devices by our names, their memory, and cores: the lesser of affinity, quota and real cores."""

from __future__ import annotations

import os

import pytest

from nbproviders.residency.memory import Memory
from nbproviders.runtimes.llamacpp import devices

pytest.importorskip("llama_cpp")


@pytest.mark.parametrize(
    ("native", "ours"),
    [
        ("CUDA0", "cuda:0"),
        ("CUDA12", "cuda:12"),
        ("CUDA1_Split", "cuda:1"),
        ("CPU", "cpu"),
        ("CPU_Mapped", "cpu"),
        ("CPU_REPACK", "cpu"),
        ("CUDA_Host", "cpu"),
        ("Vulkan_Host", "cpu"),
        ("Metal", "mps"),
        ("MTL0", "mps"),
        ("Metal_Mapped", "mps"),
        ("Vulkan3", "vulkan:3"),
        ("ROCm0", "cuda:0"),
        ("???", "???"),
    ],
)
def test_names(native: str, ours: str) -> None:
    """llama.cpp's buffers are on the devices that others call by our names, AMD's as torch calls them."""
    assert devices.our_name(native) == ours


def the_machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cores: int,
    ours: int,
    smt: str = "0",
    quota: str = "max 100000",
) -> None:
    """Have the machine look like this."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(ours)), raising=False)
    told = {devices._SIBLINGS: smt, devices._QUOTA: quota}
    monkeypatch.setattr(devices, "_read", told.__getitem__)


@pytest.mark.parametrize(
    ("machine", "count"),
    [
        ({"cores": 8, "ours": 8}, 8),
        ({"cores": 8, "ours": 3}, 3),
        ({"cores": 8, "ours": 8, "smt": "1"}, 4),
        ({"cores": 1, "ours": 1, "smt": "1"}, 1),
        ({"cores": 8, "ours": 8, "quota": "250000 100000"}, 2),
        ({"cores": 8, "ours": 8, "quota": "50000 100000"}, 1),
        ({"cores": 8, "ours": 8, "quota": ""}, 8),
        ({"cores": 8, "ours": 8, "quota": "nonsense"}, 8),
    ],
)
def test_cores(monkeypatch: pytest.MonkeyPatch, machine: dict[str, int], count: int) -> None:
    """Threads that share a core count as one; a container's quota is rounded down, to one at least."""
    the_machine(monkeypatch, **machine)  # type: ignore[arg-type]
    assert devices.cores() == count


def test_this_machine() -> None:
    """Whatever it is: at least one core, and every accelerator has memory that can be read."""
    assert 1 <= devices.cores() <= (os.cpu_count() or 1)
    memory = Memory()
    devices.add_probes(memory)
    found = devices.accelerators()
    assert bool(found) <= devices.offloads()
    for device in found.values():
        reading = devices.read_memory(device)
        assert 0 < reading.free_bytes <= reading.total_bytes
