"""Devices as torch sees them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import Memory
from nbproviders.runtimes import devices, virtual

torch = pytest.importorskip("torch")


def test_auto_is_a_device_that_is_there() -> None:
    """Nobody's choice is a device that can be used."""
    chosen = devices.resolve_device("auto")
    assert torch.zeros(1, device=chosen).sum() == 0


def test_an_absent_device_is_refused() -> None:
    """A device that is not there is refused with those that are."""
    with pytest.raises(ConfigurationError, match="cuda:42"):
        devices.resolve_device("cuda:42")


def test_the_cpu_can_always_be_read() -> None:
    """The CPU has a reading after accelerators were added."""
    memory = Memory()
    devices.add_probes(memory)
    reading = memory.reading("cpu")
    assert reading is not None
    assert 0 < reading.free_bytes <= reading.total_bytes


def test_virtual_devices_are_there_when_described_and_nobodys_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A virtual device is resolved by its name, computed by the CPU, read, and never chosen by itself."""
    monkeypatch.delenv(virtual.VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match="virtual:3"):
        devices.resolve_device("virtual:3")
    monkeypatch.setenv(virtual.VARIABLE, "virtual:3=7MiB")
    assert devices.resolve_device("virtual:3") == "virtual:3"
    assert devices.computes_on("virtual:3") == "cpu"
    assert devices.resolve_device("auto") == devices.best_device() != "virtual:3"
    with pytest.raises(ConfigurationError) as caught:
        devices.resolve_device("virtual:4")
    assert "virtual:3" in caught.value.hint
    memory = Memory()
    devices.add_probes(memory)
    reading = memory.reading("virtual:3")
    assert reading is not None
    assert reading.free_bytes == 7 * 2**20


def test_small_work_takes_one_core_of_this_thread_alone() -> None:
    """Small work is done by one core; other threads, there and to come, keep all of torch's."""
    everything = torch.get_num_threads()
    seen: dict[str, int] = {}

    def small_then_large() -> None:
        devices.suit_threads(1_000)
        seen["small"] = torch.get_num_threads()
        devices.suit_threads(10**12)
        seen["large"] = torch.get_num_threads()
        devices.suit_threads(1_000)

    def later() -> None:
        seen["later"] = torch.get_num_threads()

    for work in (small_then_large, later):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == {"small": 1, "large": everything, "later": everything}
    assert torch.get_num_threads() == everything


def test_cuda_devices_are_counted_without_torch() -> None:
    """The count is torch's own, and asking imports nothing; devices that are hidden do not count."""
    code = (
        "import sys, nbproviders.runtimes.devices as d; n = d.cuda_count();"
        "print(n, 'torch' in sys.modules); import torch; print(d.cuda_count() == n)"
    )
    for hidden in ({}, {"CUDA_VISIBLE_DEVICES": ""}):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **hidden},
            capture_output=True,
            text=True,
            check=True,
        )
        count = 0 if hidden else torch.cuda.device_count()
        assert ran.stdout.split() == [str(count), "False", "True"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_read() -> None:
    """A CUDA device tells its memory."""
    memory = Memory()
    devices.add_probes(memory)
    reading = memory.reading("cuda:0")
    assert reading is not None
    assert reading.total_bytes > 2**30


class Nvml:
    """NVIDIA's management library with one GPU, for machines without one."""

    def __init__(self, *, parts: int = 0, version: str = "_v2") -> None:
        self.parts, self.opened = parts, 0
        setattr(self, f"nvmlInit{version}", self._init)

    def _init(self) -> int:
        self.opened += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.opened -= 1
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, place: bytes, handle: object) -> int:
        return 0 if place == b"0000:c1:00.0" else 6  # not found

    def nvmlDeviceGetMigMode(self, handle: object, parts: Any, pending: object) -> int:
        parts._obj.value = self.parts
        return 0

    def nvmlDeviceGetUUID(self, handle: object, text: Any, size: int) -> int:
        text.value = b"GPU-1a2b3c4d-0000-1111-2222-333344445555"
        return 0


@pytest.mark.parametrize(
    ("nvml", "place", "uuid"),
    [
        (Nvml(), "0000:c1:00.0", "1a2b3c4d-0000-1111-2222-333344445555"),
        (Nvml(), "0000:c2:00.0", ""),
        (Nvml(), "", ""),
        (Nvml(parts=1), "0000:c1:00.0", ""),
        (Nvml(version=""), "0000:c1:00.0", ""),
    ],
)
def test_a_gpus_uuid_without_torch(
    nvml: Nvml, place: str, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is NVIDIA's without ``GPU-``, as torch has it; none for an unknown, a shared out, an old one."""
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: nvml)
    assert devices.nvidia_uuid(place) == uuid
    assert nvml.opened == 0


def test_no_library_no_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without NVIDIA's library has no UUIDs, and no error."""

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    assert devices.nvidia_uuid("0000:c1:00.0") == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_uuid_is_torchs() -> None:
    """torch and NVIDIA's library name a GPU alike."""
    told = torch.cuda.get_device_properties("cuda:0")
    place = f"{told.pci_domain_id:04x}:{told.pci_bus_id:02x}:{told.pci_device_id:02x}.0"
    assert devices.nvidia_uuid(place) == str(told.uuid)
