"""How well estimates were met: each load's measurement kept, and what to learn of them.

One line of JSON for each load, in a file that several processes add to. It is a help and nothing more: a
folder that cannot be written is logged once, and a line that cannot be read is passed over.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MOST_RECORDS = 1000
_FILE = "estimates.jsonl"
_LINE_BYTES = 4096
_FILE_BYTES = 2**20  # a record takes about 350
# A new measurement counts a third: three loads in a row outweigh what was learned before.
_WEIGHT = 1 / 3
# Beyond these bounds something else was measured than one model's computing.
_BOUNDS = (0.5, 4.0)
_AS_LONG = 0.9


@dataclass(frozen=True, slots=True)
class Measured:
    """One model: what was told before it was loaded, and what it took.

    Attributes
    ----------
    time_s
        Since 1970.
    spec
        Its reference; options are cut off.
    architecture
        As the estimate has it.
    device
        Where: ``cuda:0``.
    weights_bytes, cache_bytes, workspace_bytes
        As estimated.
    context_tokens
        The longest text that was estimated with.
    measured_weights_bytes
        What the weights took.
    measured_peak_bytes
        The most that weights, cache and workspace took at once; None if it was not measured.
    measured_tokens
        The longest text until then; 0 if nobody counted.
    """

    time_s: float
    spec: str
    architecture: str
    device: str
    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    measured_weights_bytes: int
    measured_peak_bytes: int | None = None
    context_tokens: int = 0
    measured_tokens: int = 0

    @property
    def error(self) -> float:
        """How far off the estimate was, as a share of what was measured; positive if too high.

        Of all bytes where the peak was measured, else of the weights.
        """
        if self.measured_peak_bytes is None:
            return self.weights_bytes / max(self.measured_weights_bytes, 1) - 1
        total = self.weights_bytes + self.cache_bytes + self.workspace_bytes
        return total / max(self.measured_peak_bytes, 1) - 1

    @property
    def factor(self) -> float | None:
        """What the estimated workspace should have been multiplied with; None if that is not known.

        A text shorter than the estimate's says nothing against it: it can only show that it was too low.
        """
        if self.measured_peak_bytes is None or not self.workspace_bytes:
            return None
        taken = self.measured_peak_bytes - self.measured_weights_bytes - self.cache_bytes
        factor = taken / self.workspace_bytes
        if factor < 1 and self.measured_tokens < _AS_LONG * max(self.context_tokens, 1):
            return None
        return min(max(factor, _BOUNDS[0]), _BOUNDS[1])


class History:
    """The last thousand measurements of this user, read when they are first needed.

    Parameters
    ----------
    folder
        Where the file lies; made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._guard = threading.Lock()
        self._known: tuple[tuple[int, int, int], tuple[Measured, ...]] | None = None
        self._told = False

    def add(self, measured: Measured) -> None:
        """Keep a measurement."""
        told = {**asdict(measured), "spec": measured.spec.partition("?")[0]}
        line = json.dumps(told, separators=(",", ":")).encode() + b"\n"
        if len(line) > _LINE_BYTES:
            return
        with self._guard:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with _locked(self._path) as descriptor:
                    _append(descriptor, line)
            except OSError as error:
                if not self._told:
                    logger.warning("estimates are not kept: %s: %s", self._path, error.strerror)
                self._told = True

    def records(self) -> tuple[Measured, ...]:
        """Return what is kept, the oldest first."""
        with self._guard:
            try:
                found = self._path.stat()
                state = (found.st_mtime_ns, found.st_size, found.st_ino)
                if self._known is None or self._known[0] != state:
                    self._known = state, tuple(_read(self._path.read_bytes()))
            except OSError:  # nothing was kept yet, or it is not ours to read
                return ()
            return self._known[1]

    def p95_error(self, architecture: str = "", device: str = "") -> float | None:
        """Return the error that 95 of 100 estimates did not exceed; None before the first.

        Parameters
        ----------
        architecture, device
            Only of these; ``cuda`` means all such devices. Empty is any.
        """
        errors = sorted(abs(one.error) for one in self._of(architecture, device))
        return errors[math.ceil(0.95 * len(errors)) - 1] if errors else None

    def correction(self, architecture: str, device: str) -> float:
        """Return what an estimated workspace is to be multiplied with; 1 where nothing was learned."""
        factor = 1.0
        for one in self._of(architecture, device.partition(":")[0]):
            if (found := one.factor) is not None:
                factor += _WEIGHT * (found - factor)
        return factor

    def _of(self, architecture: str, device: str) -> Iterator[Measured]:
        for one in self.records():
            fits = device in ("", one.device, one.device.partition(":")[0])
            if fits and architecture in ("", one.architecture):
                yield one


_TYPES: Mapping[str, tuple[type, ...]] = {
    "time_s": (float, int),
    "spec": (str,),
    "architecture": (str,),
    "device": (str,),
    "measured_peak_bytes": (int, type(None)),
}


def _read(raw: bytes) -> list[Measured]:
    found = [_parsed(line) for line in raw.split(b"\n")[-MOST_RECORDS - 1 :]]
    return [one for one in found if one is not None][-MOST_RECORDS:]


def _parsed(line: bytes) -> Measured | None:
    """Return what a line says; None for one that was cut off, damaged, or is of another version."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names = {one.name for one in fields(Measured)}
    if not isinstance(told, dict) or set(told) != names:
        return None
    return Measured(**told) if all(_fits(name, told[name]) for name in names) else None


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, _TYPES.get(name, (int,))):
        return False
    return not isinstance(value, int | float) or (math.isfinite(value) and value >= 0)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open the file for one process at a time; on Windows, where that is not to be had, for any."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _append(descriptor: int, line: bytes) -> None:
    """Add a line, and forget the oldest ones once the file is long."""
    size = os.fstat(descriptor).st_size
    before = os.pread(descriptor, 1, size - 1) if size and hasattr(os, "pread") else b"\n"
    if before != b"\n":  # somebody was killed while he wrote
        line = b"\n" + line
    if size > _FILE_BYTES and hasattr(os, "pread"):
        lines = os.pread(descriptor, size, 0).split(b"\n")
        kept = [one for one in lines if one][-MOST_RECORDS:]
        # In place: whoever waits for the lock has this very file open.
        os.ftruncate(descriptor, 0)
        line = b"\n".join([*kept, line.lstrip(b"\n")])
    os.write(descriptor, line)
