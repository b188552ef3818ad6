"""One model on its way into memory, in it, or on its way out; and what loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from nbproviders.core import engine
from nbproviders.core.model import Model
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.residency.memory import size_text
from nbproviders.residency.progress import Progress


class State(StrEnum):
    """Where a model is."""

    COLD = "cold"
    WAITING = "waiting"
    LOADING = "loading"
    HOT = "hot"
    WARM = "warm"
    DRAINING = "draining"
    FAILED = "failed"


class Loader(Protocol):
    """How one key is loaded. Light: it may outlive the weights."""

    @property
    def spec(self) -> ModelSpec:
        """The reference as written."""

    @property
    def key(self) -> ResourceKey:
        """What is loaded."""

    async def estimate(self) -> Mapping[str, int]:
        """Return the bytes it will take on each device, before loading."""

    async def load(self, progress: Progress) -> Model:
        """Load it, on the engine's loop; long work goes to a thread of its own."""


@dataclass(eq=False)
class Entry:
    """The mutable record of one key in the residency's table; guarded by the table's lock."""

    key: ResourceKey
    spec: ModelSpec
    created_s: float
    state: State = State.COLD
    model: Model | None = None
    charges: dict[str, int] = field(default_factory=dict)
    hard: int = 0
    specs: set[str] = field(default_factory=set)
    waiters: list[asyncio.Future[Model]] = field(default_factory=list)
    running: set[asyncio.Task[object]] = field(default_factory=set)
    loading: asyncio.Task[None] | None = None
    freeing: asyncio.Task[None] | None = None
    progress: Progress = field(default_factory=Progress)
    last_used_s: float = 0.0
    uses: int = 0
    load_s: float = 0.0
    forced: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def charged_bytes(self) -> int:
        """Bytes on all devices together."""
        return sum(self.charges.values())


@dataclass(frozen=True, slots=True)
class Resident:
    """What is told of a model in memory.

    Attributes
    ----------
    spec
        Its reference, as first written.
    state
        As in `State`.
    bytes
        Charged on each device.
    handles
        Open soft leases.
    running
        Operations under way.
    idle_s
        Seconds since its last use.
    uses
        How often it was used.
    load_s
        Seconds it took to load.
    progress
        Share of the load that is done; None if unknown or not loading.
    key
        The key's digest.
    notes
        What its loading tells, such as an optimisation that stepped back and why.
    """

    spec: str
    state: State
    bytes: Mapping[str, int]
    handles: int
    running: int
    idle_s: float
    uses: int
    load_s: float
    progress: float | None
    key: str
    notes: tuple[str, ...] = ()


def ledger(residents: Sequence[Resident]) -> str:
    """Return who holds what, as lines of text, for an error message."""
    if not residents:
        return "Nothing is in memory."
    lines = []
    for one in residents:
        held = ", ".join(f"{device} {size_text(n)}" for device, n in one.bytes.items()) or "0 B"
        use = f"{one.running} running, {one.handles} open"
        lines.append(f"  {one.spec}: {held} ({one.state}, {use})")
    return "In memory:\n" + "\n".join(lines)


class Lease:
    """A soft lease: an open handle. Its model may be evicted, and loads again at the next call.

    One that is dropped gives itself back, so that a handle lost in a re-run cell leaks nothing.
    """

    __slots__ = ("_release", "loader")

    def __init__(self, loader: Loader, release: Callable[[Loader], None]) -> None:
        self.loader = loader
        self._release: Callable[[Loader], None] | None = release

    @property
    def active(self) -> bool:
        """Whether it was not given back yet."""
        return self._release is not None

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release(self.loader)

    def __del__(self) -> None:
        release = getattr(self, "_release", None)
        if release is not None:
            engine.default().post_from_finalizer(release, self.loader)
