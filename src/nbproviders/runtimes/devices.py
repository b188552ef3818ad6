"""Where torch can compute, how much room there is, and giving memory back to the machine."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import Memory, Reading
from nbproviders.runtimes import virtual

_SMALL_WORK = 100_000_000
_suiting = threading.Lock()


def best_device() -> str:
    """Return the device to use when nobody chose: ``cuda:0``, ``mps`` or ``cpu``."""
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_device(wanted: str | None) -> str:
    """Return a device that is there.

    Raises
    ------
    ConfigurationError
        For one that is not, saying which are.
    """
    import torch

    if wanted in (None, "auto"):
        return best_device()
    assert wanted is not None
    name = "cuda:0" if wanted == "cuda" else wanted.lower()
    kind, _, index = name.partition(":")
    there = ["cpu"]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += list(virtual.devices())
    if name not in there and not (kind in ("cpu", "mps") and kind in there and index == "0"):
        raise ConfigurationError(
            f"There is no device {wanted!r} here", hint=f"Devices here: {', '.join(there)}."
        )
    return kind if kind in ("cpu", "mps") else name


def computes_on(device: str) -> str:
    """Return the device as torch knows it: what is on a virtual one is computed by the CPU."""
    return "cpu" if virtual.is_virtual(device) else device


def cuda_count() -> int:
    """Return how many CUDA devices there are, without importing torch for it.

    By NVIDIA's management library, as torch itself does: asking the driver would forbid to fork.
    """
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None:
        return int(cuda.device_count())
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return 0
    count = ctypes.c_uint(0)
    with _nvml() as nvml:
        if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return 0
    return count.value


def nvidia_uuid(bus_id: str) -> str:
    """Return the UUID of the GPU at a place on the PCI bus, as torch writes it: without ``GPU-``.

    Empty if that is unknown, and where the GPU is shared out: its parts have memory and UUIDs of their own.
    """
    handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    parts, pending = ctypes.c_uint(0), ctypes.c_uint(0)
    with _nvml() as nvml:
        if not bus_id or nvml is None:
            return ""
        if nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(handle)):
            return ""
        asked = nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(parts), ctypes.byref(pending))
        if (asked == 0 and parts.value) or nvml.nvmlDeviceGetUUID(handle, text, len(text)):
            return ""
    return text.value.decode("ascii", "replace").removeprefix("GPU-")


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yield NVIDIA's management library, ready to be asked; None if there is none, or an old one."""
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        nvml: Any = ctypes.CDLL(name)
        failed = bool(nvml.nvmlInit_v2())
    except (OSError, AttributeError):
        nvml, failed = None, True
    try:
        yield None if failed else nvml
    finally:
        if not failed:
            nvml.nvmlShutdown()


def add_probes(memory: Memory) -> None:
    """Teach a residency's memory to read the accelerators that torch sees."""
    import torch

    if torch.cuda.is_available():
        memory.add_probe("cuda", _probe_cuda, identity=_cuda_identity)
    if torch.backends.mps.is_available():
        memory.add_probe("mps", _probe_mps, identity=str)
    if virtual.devices():
        memory.add_probe(virtual.KIND, virtual.probe, identity=str, sees_others=False)


def _probe_cuda(device: str) -> Reading:
    import torch

    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        return Reading(0, 0)  # named in a budget that is shared with machines that have more
    free, total = torch.cuda.mem_get_info(device)
    # What our own allocator has cached but not handed out is ours to use.
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Reading(total, free + spare)


@cache
def _cuda_identity(device: str) -> str:
    """Return a GPU's UUID: its number depends on what a process is allowed to see."""
    import torch

    return f"cuda:{torch.cuda.get_device_properties(device).uuid}"


def _probe_mps(device: str) -> Reading:
    import torch

    total = int(torch.mps.recommended_max_memory())
    return Reading(total, max(total - int(torch.mps.driver_allocated_memory()), 0))


def suit_threads(work: int) -> None:
    """Have this thread compute with one core for small work, with all of torch's for the rest.

    Small steps are not worth sharing out, and on a machine with other work each of them waits until the
    scheduler gives the other core back: with one of two cores busy, 70 prompts took demo-m 10 s where one
    core needs 0.3 s.

    Parameters
    ----------
    work
        Parameters of the model times rows of the batch: half the multiplications and additions of a step.
    """
    import torch

    with _suiting:  # in between, a thread that asks for the first time would see the wrong number
        everything = _all_threads()
        wanted = 1 if work < _SMALL_WORK else everything
        if torch.get_num_threads() == wanted:
            return
        torch.set_num_threads(wanted)
        # That also sets what later threads begin with, theirs and ours: put back, by a thread of its own.
        other = threading.Thread(target=torch.set_num_threads, args=(everything,))
        other.start()
        other.join()


@cache
def _all_threads() -> int:
    import torch

    return torch.get_num_threads()


def release_cached() -> None:
    """Return freed blocks to the devices and to the system."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """Return glibc's ``malloc_trim``: without it, small freed blocks stay with the process."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
