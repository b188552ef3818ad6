"""Devices by our names, their memory, and cores: the lesser of affinity, quota and real cores."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from nbproviders.residency.memory import Memory, Reading
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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two CUDA devices, one on Vulkan, and Metal, as llama.cpp and NVIDIA's library would tell them."""
    places = {"cuda:0": "0000:c1:00.0", "cuda:1": "", "vulkan:0": "0000:c1:00.0", "mps": ""}
    monkeypatch.setattr(devices, "accelerators", lambda: places)
    monkeypatch.setattr(devices, "_bus_id", lambda device: device)
    monkeypatch.setattr(devices, "nvidia_uuid", lambda bus: "1a2b-3c" if bus else "")
    monkeypatch.setattr(devices, "read_memory", lambda device: Reading(1000, 10))
    devices.identity.cache_clear()
    yield
    devices.identity.cache_clear()


@pytest.mark.usefixtures("gpus")
def test_a_gpu_has_the_name_that_torch_gives_it() -> None:
    """Kernels with llama.cpp alone share a GPU with those that have torch; unknown ones are not shared."""
    memory = Memory()
    devices.add_probes(memory)
    assert memory.reading("cuda:0") == memory.reading("vulkan:0") == Reading(1000, 10)
    names = ["cuda:0", "cuda:1", "vulkan:0", "mps", "cpu"]
    assert [memory.identity(name) for name in names] == ["cuda:1a2b-3c", "", "", "mps", ""]


@pytest.mark.usefixtures("gpus")
def test_what_is_read_already_stays_so() -> None:
    """torch's reading, which counts what its allocator could give back, is not replaced."""
    memory = Memory()
    memory.add_probe("cuda", lambda device: Reading(1000, 700), identity=lambda device: "torch")
    devices.add_probes(memory)
    assert memory.reading("cuda:0") == Reading(1000, 700)
    assert memory.identity("cuda:0") == "torch"
    assert memory.reading("vulkan:0") == Reading(1000, 10)


def test_properties_lie_where_llama_cpp_writes_them() -> None:
    """Name and memory of its first device, which has no place on a bus, are those that it tells singly."""
    ggml = devices._ggml()
    device = ggml.ggml_backend_dev_get(0)
    told = devices._Properties()
    ggml.ggml_backend_dev_get_props(device, ctypes.byref(told))
    assert told.name == ggml.ggml_backend_dev_name(device)
    assert told.memory_total == devices.read_memory(device).total_bytes
    assert told.type == ggml.ggml_backend_dev_type(device)
    if not devices.accelerators():
        assert devices._bus_id(device) == ""
