"""Devices that are only accounted for: a total and a copy speed, while the CPU computes.

Where there is no accelerator, they let what moves between memories be tried, tested and measured.
``NBPROVIDERS_VIRTUAL="virtual:0=64MiB@2GiB/s,virtual:1=1GiB"`` says which there are. What other processes
take of one is not known here.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from dataclasses import dataclass

from nbproviders.errors import ConfigurationError, InsufficientMemoryError
from nbproviders.residency.memory import Reading, naming, parse_size, size_text

VARIABLE = "NBPROVIDERS_VIRTUAL"
KIND = "virtual"

_ENTRY = re.compile(r"(virtual:\d+)\s*=\s*([^@]+?)\s*(?:@\s*(.+?)\s*/\s*s)?")
# What slabs of this process have taken: a device is the whole process's, like those that a driver counts.
_taken: dict[str, int] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """One device as the environment describes it.

    Attributes
    ----------
    total_bytes
        What it holds.
    bytes_per_s
        How fast bytes get there; None is as fast as memory copies.
    """

    total_bytes: int
    bytes_per_s: int | None = None


def is_virtual(device: str) -> bool:
    """Whether a device's name is that of a virtual one, there or not."""
    return device.partition(":")[0] == KIND


def devices() -> dict[str, VirtualDevice]:
    """Return the devices that the environment describes now, by name.

    Raises
    ------
    ConfigurationError
        If it cannot be read.
    """
    found = {}
    for part in filter(None, (p.strip() for p in os.environ.get(VARIABLE, "").split(","))):
        entry = _ENTRY.fullmatch(part)
        if entry is None:
            raise ConfigurationError(
                f"{VARIABLE}: {part!r} describes no device.",
                hint=f"Write {VARIABLE}=virtual:0=64MiB@2GiB/s, with commas between devices; a speed "
                "may be left out.",
            )
        name, total, speed = entry.groups()
        with naming(VARIABLE):
            found[name] = VirtualDevice(parse_size(total), parse_size(speed) if speed else None)
    return found


def device(name: str) -> VirtualDevice:
    """Return one device.

    Raises
    ------
    ConfigurationError
        If the environment does not describe it (any more).
    """
    there = devices()
    if name not in there:
        raise ConfigurationError(
            f"There is no device {name!r}: {VARIABLE} does not describe it.",
            hint=f"Virtual devices here: {', '.join(there) or 'none'}.",
        )
    return there[name]


def probe(name: str) -> Reading:
    """Return what a device holds and has left; nothing of one that is not there."""
    there = devices().get(name)
    if there is None:
        return Reading(0, 0)
    return Reading(there.total_bytes, max(there.total_bytes - taken_bytes(name), 0))


def taken_bytes(name: str) -> int:
    """Return what this process has taken of a device."""
    with _lock:
        return _taken.get(name, 0)


class Taking:
    """Bytes of a device, taken until `release`, or until it is forgotten.

    Raises
    ------
    InsufficientMemoryError
        If the device has not so many left.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        total = device(name).total_bytes
        with _lock:
            left = total - _taken.get(name, 0)
            if size_bytes > left:
                raise InsufficientMemoryError(
                    f"{name} is out of memory: {size_text(size_bytes)} were asked for, "
                    f"{size_text(max(left, 0))} of {size_text(total)} are free.",
                    hint="Unload a model, or give the device more in " + VARIABLE + ".",
                )
            _taken[name] = _taken.get(name, 0) + size_bytes
        self._finalizer = weakref.finalize(self, _give_back, name, size_bytes)

    def release(self) -> None:
        """Give them back; a second time does nothing."""
        self._finalizer()


def _give_back(name: str, size_bytes: int) -> None:
    with _lock:
        _taken[name] -= size_bytes
