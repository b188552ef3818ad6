"""What a device has: budgets as people write them, and free bytes as the machine tells them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nbproviders.errors import ConfigurationError

MIB, GIB = 2**20, 2**30
BUDGET_VARIABLE = "NBPROVIDERS_BUDGET"
KEEP_VARIABLE = "NBPROVIDERS_KEEP_S"
HOST = "host"  # main memory that keeps copies of weights for devices with memory of their own
# Of main memory, for such copies. ComfyUI pins as much on Linux and Windows (its model_management.py).
HOST_SHARE = 0.4
_UNITS = {"": 1, "b": 1}
_UNITS |= {letter + "ib": 1024**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {letter + "b": 1000**power for power, letter in enumerate("kmgt", 1)}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_SIZE_HINT = "Write a number and a unit: 20GiB, 512MiB."
# A kind of device of which there is one, which has no number.
_SINGLE = frozenset({"cpu", HOST, "mps"})
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of one device: in all, and free now."""

    total_bytes: int
    free_bytes: int


Probe = Callable[[str], Reading]


def parse_size(text: str) -> int:
    """Return bytes of a text such as ``20GiB`` or ``512 MB``.

    A number alone is taken for bytes from 1 MiB on, where a program wrote it; 0 needs no unit.

    Raises
    ------
    ConfigurationError
        For anything else; a small number without a unit may mean GiB or bytes.
    """
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].lower(), math.inf) if found else math.inf
    count = float(found[1]) * unit if found else math.inf
    if not count < math.inf:
        raise ConfigurationError(f"{text!r} is not a size", hint=_SIZE_HINT)
    if found is not None and not found[2] and 0 < count < MIB:
        meant = f"{found[1]}{'GiB' if count < 10_000 else 'B'}"
        raise ConfigurationError(
            f"{text.strip()!r} has no unit: did you mean {meant}?", hint=_SIZE_HINT
        )
    return int(count)


def parse_budget(text: str) -> dict[str, int]:
    """Return bytes for each device of ``20GiB`` or ``cuda:0=20GiB,cpu=8GiB``.

    A size without a device is under the key ``""``: the accelerators, or the CPU if there is none. A kind
    without a number, such as ``cuda``, means each device of the kind that is not named itself.

    Raises
    ------
    ConfigurationError
        For anything else.
    """
    if not isinstance(text, str):
        raise ConfigurationError(
            f"A budget is a str, not {type(text).__name__}: {text!r}",
            hint='Write sizes with units: "20GiB", or "cuda:0=20GiB,cpu=8GiB".',
        )
    budget: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        device, equals, size = part.rpartition("=")
        if not equals:
            _check_equals(part)
        name = device.strip().lower() if equals else ""
        if name in budget:
            raise ConfigurationError(
                f"{text!r} has two budgets for {name or 'the accelerators'}",
                hint="Give one size for each device.",
            )
        budget[name] = parse_size(size)
    return budget


def _check_equals(part: str) -> None:
    """Refuse a colon where the equals sign belongs: it is part of a device's name."""
    device, colon, size = (piece.strip() for piece in part.rpartition(":"))
    if not colon:
        return
    # "cuda:0" alone is a name; "cpu:8GiB" and "cuda:0:20GiB" end in a size.
    is_size = _SIZE.fullmatch(size) is not None and not (size.isdigit() and ":" not in device)
    raise ConfigurationError(
        f"{part!r} is not a budget",
        hint=f"Write {device}={size}." if is_size else f"Write a size as well: {part}=20GiB.",
    )


def parse_named_budget(text: str) -> dict[str, int]:
    """Return the budget that the environment variable holds; an error names the variable."""
    with naming(BUDGET_VARIABLE):
        return parse_budget(text)


@contextmanager
def naming(variable: str) -> Iterator[None]:
    """Have an error about a value say which environment variable holds it."""
    try:
        yield
    except ConfigurationError as error:
        message = f"{variable}: {error.message}"
        raise ConfigurationError(message, hint=error.hint) from None


def parse_keep(value: object) -> float:
    """Return a number of seconds above 0 that a model may stay unused.

    Raises
    ------
    ConfigurationError
        For anything else.
    """
    hint = f"Write a number above 0, as in {KEEP_VARIABLE}=900."
    return _seconds(value, "that a model may stay unused", hint)


def parse_wait(value: object) -> float:
    """Return a number of seconds above 0 to wait for memory.

    Raises
    ------
    ConfigurationError
        For anything else.
    """
    return _seconds(value, "to wait for memory", "Write a number above 0: wait_s=120.")


def _seconds(value: object, what: str, hint: str) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigurationError(f"{value!r} is no number of seconds {what}.", hint=hint)
    return seconds


def size_text(count: int) -> str:
    """Return bytes as people read them: ``1.6 MiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def headroom(total_bytes: int) -> int:
    """Return bytes kept free: the greater of 5 % and 512 MiB; 10 % on a device under 4 GiB."""
    if total_bytes < 4 * GIB:
        return total_bytes // 10
    return max(total_bytes // 20, 512 * MIB)


def probe_cpu(device: str = "cpu") -> Reading:
    """Return main memory: the lesser of what the system has and what this container may use."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit_path, usage_path in _CGROUPS:
        limit, usage = _number(limit_path), _number(usage_path)
        if limit is not None and usage is not None and limit < total:
            total, free = limit, min(free, max(limit - usage, 0))
    return Reading(total, free)


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:  # no such cgroup version here
        return None
    return int(text) if text.isdigit() else None


class Memory:
    """Budgets and probes of all devices.

    Parameters
    ----------
    budget
        Bytes by device, as `parse_budget` returns them. None: from ``NBPROVIDERS_BUDGET``, read anew
        at each admission.
    probes
        How to read a kind of device (``cpu``, ``cuda``); runtimes add their own by `add_probe`.
    """

    def __init__(
        self,
        budget: Mapping[str, int] | None = None,
        probes: Mapping[str, Probe] | None = None,
    ) -> None:
        self._budget = budget
        self._keep_s: float | None = None
        self._probes = dict(probes or {"cpu": probe_cpu})
        self._identities: dict[str, Callable[[str], str]] = {}
        self._blind: set[str] = set()
        self.seen: set[str] = set()  # devices that somebody wanted room on

    def add_probe(
        self,
        kind: str,
        probe: Probe,
        *,
        identity: Callable[[str], str] | None = None,
        sees_others: bool = True,
    ) -> None:
        """Read devices of this kind (``cuda``) by this function from now on.

        Parameters
        ----------
        kind
            What stands before the colon of their names.
        probe
            Returns what a device has, and what is free.
        identity
            Returns a device's name for all processes of this machine, such as a GPU's UUID: then they
            tell each other what they have there. None: it is not shared.
        sees_others
            Whether free memory that the probe tells is less what other processes have taken.
        """
        self._probes[kind] = probe
        if identity is not None:
            self._identities[kind] = identity
        if not sees_others:
            self._blind.add(kind)

    def has_probe(self, kind: str) -> bool:
        """Whether devices of this kind can be read."""
        return kind in self._probes

    def identity(self, device: str) -> str:
        """Return a device's name for all processes of this machine; empty if it is not shared."""
        identity = self._identities.get(_kind(device))
        return identity(device) if identity is not None else ""

    def sees_others(self, device: str) -> bool:
        """Whether a device's free memory is less what other processes have taken."""
        return _kind(device) not in self._blind

    def kinds(self) -> set[str]:
        """Return the kinds of devices that can be read."""
        return set(self._probes)

    def named(self) -> set[str]:
        """Return the devices that the budget names; not those for other machines with the same variable."""
        names = {name for name in self._told() if ":" in name or name in _SINGLE}
        if self._budget is not None:
            return names
        return {name for name in names if name == HOST or _kind(name) in self._probes}

    def _told(self) -> Mapping[str, int]:
        if self._budget is not None:
            return self._budget
        return parse_named_budget(os.environ.get(BUDGET_VARIABLE, ""))

    def set_budget(self, budget: Mapping[str, int] | None) -> None:
        """Replace the budget; None goes back to the environment variable."""
        self._budget = budget

    def set_keep(self, keep_s: float | None) -> None:
        """Replace how long unused models stay; None goes back to the environment variable."""
        self._keep_s = keep_s

    def budget(self, device: str) -> int | None:
        """Return the budget a user gave for a device; None if none."""
        budget = self._told()
        if device in budget:
            return budget[device]
        if device == HOST:
            return int(probe_cpu().total_bytes * HOST_SHARE)
        if _kind(device) in budget:
            return budget[_kind(device)]
        return budget.get("") if self._is_for_any(device) else None

    def _is_for_any(self, device: str) -> bool:
        """Whether a size without a device is for this one: an accelerator, or the CPU if there is none."""
        accelerators = self._probes.keys() - {"cpu"}
        if device == "cpu":
            return not accelerators
        # Devices that are only accounted for stand in for accelerators where there is no other.
        return self.sees_others(device) or accelerators <= self._blind

    def check(self) -> None:
        """Read what the environment variables hold, where somebody can be told that it is mistyped.

        Raises
        ------
        ConfigurationError
            If one of them cannot be read.
        """
        self._told()
        self.keep_s()

    def keep_s(self) -> float | None:
        """Return how long a model stays that nobody uses, in seconds; None: until its room is wanted.

        Raises
        ------
        ConfigurationError
            If ``NBPROVIDERS_KEEP_S`` is no number of seconds above 0.
        """
        if self._keep_s is not None:
            return self._keep_s
        text = os.environ.get(KEEP_VARIABLE, "").strip()
        if not text:
            return None
        with naming(KEEP_VARIABLE):
            return parse_keep(text)

    def reading(self, device: str) -> Reading | None:
        """Return what the device has; None for one that nobody can read."""
        kind = "cpu" if device == HOST else _kind(device)
        probe = self._probes.get(kind)
        return probe(device) if probe is not None else None

    def limit(
        self, device: str, taken_bytes: int, pending_bytes: int = 0, beside_bytes: int = 0
    ) -> int | None:
        """Return the most bytes that residents may be charged in all; None without any limit.

        The least of the budget, of what residents have taken plus what is free less headroom, and of the
        whole device less headroom: weights that are only mapped from their files do not lower what is free.

        Parameters
        ----------
        taken_bytes
            What residents have really taken of the device.
        pending_bytes
            What is promised of the same memory by another name, and still shows as free.
        beside_bytes
            What is really taken of the same memory by another name.
        """
        self.seen.add(device)
        limits = []
        budget = self.budget(device)
        if budget is not None:
            limits.append(budget)
        reading = self.reading(device)
        if reading is not None:
            reserve = headroom(reading.total_bytes) + pending_bytes
            limits.append(taken_bytes + max(reading.free_bytes - reserve, 0))
            # What is there already is not too much because more was promised elsewhere.
            limits.append(max(reading.total_bytes - reserve - beside_bytes, taken_bytes))
            limits.append(reading.total_bytes - headroom(reading.total_bytes))
        return min(limits) if limits else None


def _kind(device: str) -> str:
    return device.partition(":")[0]
