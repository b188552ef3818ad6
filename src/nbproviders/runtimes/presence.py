"""Which devices this machine has, told before anything computes on one of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import HOST, Memory
from nbproviders.runtimes import virtual
from nbproviders.runtimes.devices import cuda_count


def require(devices: Iterable[str], memory: Memory) -> None:
    """Refuse devices that are not here: a budget for one would limit nothing.

    Parameters
    ----------
    devices
        Names as in a budget: a device, a kind without number, or empty for any accelerator.
    memory
        What can be read, and was asked for.

    Raises
    ------
    ConfigurationError
        For the first that is not here, with those that are.
    """
    there = {"cpu", HOST, *(f"cuda:{i}" for i in range(cuda_count())), *virtual.devices()}
    if sys.platform == "darwin":
        there.add("mps")
    kinds = {_kind(name) for name in there}
    known = there | kinds | memory.seen
    # Other kinds are known once they were asked: by an author's probe, or by llama.cpp itself.
    others = memory.kinds() - {"cpu", "cuda", "mps", virtual.KIND}
    for device in filter(None, devices):
        if device in known or _kind(device) in others or device in _seldom():
            continue
        raise ConfigurationError(
            f"There is no device {device!r} here.",
            hint=f"Devices here: {', '.join(sorted(there))}. A size alone is for the accelerators, or "
            "for the CPU if there is none.",
        )


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _seldom() -> set[str]:
    """Return accelerators that only llama.cpp computes on, and their kinds."""
    if importlib.util.find_spec("llama_cpp") is None:
        return set()
    from nbproviders.runtimes.llamacpp.devices import accelerators

    found = set(accelerators())
    return found | {_kind(name) for name in found}
