"""Where torch can compute, how much room there is, and giving memory back to the machine."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import Memory, Reading


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
    if name not in there and not (kind in ("cpu", "mps") and kind in there and index == "0"):
        raise ConfigurationError(
            f"There is no device {wanted!r} here", hint=f"Devices here: {', '.join(there)}."
        )
    return kind if kind in ("cpu", "mps") else name


def add_probes(memory: Memory) -> None:
    """Teach a residency's memory to read the accelerators that torch sees."""
    import torch

    if torch.cuda.is_available():
        memory.add_probe("cuda", _probe_cuda)
    if torch.backends.mps.is_available():
        memory.add_probe("mps", _probe_mps)


def _probe_cuda(device: str) -> Reading:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    # What our own allocator has cached but not handed out is ours to use.
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Reading(total, free + spare)


def _probe_mps(device: str) -> Reading:
    import torch

    total = int(torch.mps.recommended_max_memory())
    return Reading(total, max(total - int(torch.mps.driver_allocated_memory()), 0))


def release_cached() -> None:
    """Return freed blocks to the devices and to the system."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """Return glibc's ``malloc_trim``: without it, small freed blocks stay with the process."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
