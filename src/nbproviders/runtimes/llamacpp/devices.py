"""Where llama.cpp computes: its devices by our names, their memory, and how many cores are ours."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from nbproviders.residency.memory import Memory, Reading
from nbproviders.runtimes.devices import nvidia_uuid
from nbproviders.runtimes.llamacpp.native import library

_GPU = 1  # ggml_backend_dev_type: GGML_BACKEND_DEVICE_TYPE_GPU
_KINDS = {"metal": "mps", "mtl": "mps", "rocm": "cuda"}  # torch calls AMD's devices cuda too
_QUOTA = "/sys/fs/cgroup/cpu.max"
_SIBLINGS = "/sys/devices/system/cpu/smt/active"


def offloads() -> bool:
    """Whether this build of llama.cpp can put layers on an accelerator."""
    return bool(library().llama_supports_gpu_offload())


def our_name(native: str) -> str:
    """Return our name of a device of llama.cpp's: ``CUDA0`` is ``cuda:0``, ``Metal`` is ``mps``.

    Examples
    --------
    >>> our_name("CUDA1"), our_name("CPU_Mapped"), our_name("CUDA_Host"), our_name("Vulkan0")
    ('cuda:1', 'cpu', 'cpu', 'vulkan:0')
    """
    low = native.lower()
    if low.startswith("cpu") or low.endswith("_host"):
        return "cpu"
    found = re.fullmatch(r"([a-z]+)(\d*)(?:_.*)?", low)
    if found is None:
        return low
    kind = _KINDS.get(found[1], found[1])
    return kind if kind == "mps" else f"{kind}:{found[2] or 0}"


def accelerators() -> dict[str, Any]:
    """Return the accelerators that llama.cpp sees: our name, and its pointer."""
    ggml = _ggml()
    found = {}
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        if ggml.ggml_backend_dev_type(device) == _GPU:
            found[our_name(ggml.ggml_backend_dev_name(device).decode())] = device
    return found


def read_memory(device: Any) -> Reading:
    """Return total and free bytes of a device of llama.cpp's."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _ggml().ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return Reading(total.value, free.value)


def add_probes(memory: Memory) -> None:
    """Teach a residency's memory to read the accelerators that llama.cpp sees.

    Those that are read already stay as they are: torch knows what its own allocator could give back.
    """
    for name in accelerators():
        kind = name.partition(":")[0]
        if not memory.has_probe(kind):
            memory.add_probe(kind, lambda one: read_memory(accelerators()[one]), identity=identity)


@cache
def identity(device: str) -> str:
    """Return a device's name for all processes of this machine, as torch tells it; empty if unknown."""
    if device == "mps":
        return device
    if not device.startswith("cuda:"):
        return ""
    uuid = nvidia_uuid(_bus_id(accelerators()[device]))
    return f"cuda:{uuid}" if uuid else ""


class _Properties(ctypes.Structure):
    """The beginning of ``ggml_backend_dev_props``, and room for what a later version may append."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("rest", ctypes.c_char * 64),
    ]


def _bus_id(device: Any) -> str:
    """Return a device's place on the PCI bus, as ``0000:c1:00.0``; empty if it has none."""
    told = _Properties()
    _ggml().ggml_backend_dev_get_props(device, ctypes.byref(told))
    return (told.device_id or b"").decode("ascii", "replace")


def _ggml() -> Any:
    library()
    from llama_cpp._ggml import libggml as ggml

    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_memory.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.POINTER(ctypes.c_size_t),
    ]
    ggml.ggml_backend_dev_memory.restype = None
    ggml.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    ggml.ggml_backend_dev_get_props.restype = None
    return ggml


def cores() -> int:
    """Return how many cores this process may use, at least 1.

    The lesser of its affinity and its container's quota; where two threads share a core, they count as one:
    llama.cpp's threads wait for one another, and more than there are cores slow it down many times.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = allowed or 1
    if _read(_SIBLINGS) == "1" and count == os.cpu_count():
        count //= 2
    quota, _, period = _read(_QUOTA).partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        count = min(count, int(quota) // int(period))
    return max(count, 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # not Linux, or hidden
        return ""
