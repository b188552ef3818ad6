"""One model on its way into memory, in it, asleep, or on its way out; and what loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from nbproviders.core.model import Model
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.errors import ProviderError
from nbproviders.residency.memory import HOST
from nbproviders.residency.progress import Progress
from nbproviders.residency.sleeping import Sleeps


class State(StrEnum):
    """Where a model is.

    Hot: ready to compute. Warm: asleep, its weights on the host or in its files, the rest of it in memory.
    Draining: on its way out of the device, by sleep or for good.
    """

    COLD = "cold"
    WAITING = "waiting"
    LOADING = "loading"
    HOT = "hot"
    WARM = "warm"
    WAKING = "waking"
    DRAINING = "draining"
    FAILED = "failed"


class Loader(Protocol):
    """How one key is loaded. Light: it may outlive the weights.

    One that has ``prepare()`` has it called before room is looked for, and then, if it has one,
    ``download(progress)``; one with ``prefetch(progress)`` may be asked to read ahead.
    """

    @property
    def spec(self) -> ModelSpec:
        """The reference as written."""

    @property
    def key(self) -> ResourceKey:
        """What is loaded."""

    async def estimate(self) -> Mapping[str, int]:
        """Return the bytes it will take on each device, before loading; better an `Estimate`."""

    async def load(self, progress: Progress) -> Model:
        """Load it, on the engine's loop; long work goes to a thread of its own."""


@dataclass(eq=False)
class Entry:
    """The mutable record of one key in the residency's table; guarded by the table's lock.

    Attributes
    ----------
    charges
        Bytes that are spoken for on each device, taken or not.
    held
        What of them stays while it sleeps.
    reserve
        What of them is only taken while it computes.
    optional
        Bytes that it would like besides, for a copy on the host.
    weights_bytes
        Its weights as they were estimated; 0 if nobody knew.
    awake
        What it needs to compute: what it was charged after its load; more, if a wake took more.
    admitted
        Whether there is room for it already, by a reservation for several.
    groups
        How many who want several at once have it in mind, and wait for room or look how much they need.
    hard
        Hard leases: operations under way, and waiters that were granted the model.
    moving
        The task that loads it, wakes it or puts it to sleep; one at a time.
    download
        How far its files are on their way to this machine, which takes no memory; None if they are not.
    slept_bytes
        What its last sleep gave back of what it had taken.
    refused
        Why its last sleep was refused by the model itself; None if it was not.
    yielding
        Operations that have not begun wait, so that somebody who waits for memory has a turn.
    """

    key: ResourceKey
    spec: ModelSpec
    loader: Loader
    created_s: float
    state: State = State.COLD
    model: Model | None = None
    charges: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    reserve: dict[str, int] = field(default_factory=dict)
    optional: dict[str, int] = field(default_factory=dict)
    weights_bytes: int = 0
    awake: dict[str, int] = field(default_factory=dict)
    admitted: bool = False
    groups: int = 0
    hard: int = 0
    pinned: bool = False
    yielding: bool = False
    slept_bytes: int = 0
    refused: ProviderError | None = None
    specs: set[str] = field(default_factory=set)
    waiters: list[asyncio.Future[Model]] = field(default_factory=list)
    running: set[asyncio.Task[object]] = field(default_factory=set)
    moving: asyncio.Task[None] | None = None
    freeing: asyncio.Task[None] | None = None
    progress: Progress = field(default_factory=Progress)
    download: Progress | None = None
    last_used_s: float = 0.0
    uses: int = 0
    load_s: float = 0.0
    wake_s: float = 0.0
    forced: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def charged_bytes(self) -> int:
        """Bytes on all devices together."""
        return sum(self.charges.values())

    @property
    def taken_bytes(self) -> int:
        """Bytes of its charges that are really allocated, on all devices together."""
        return sum(self.taken(device) for device in self.charges)

    @property
    def idle(self) -> bool:
        """Whether it is in memory and nobody would miss it this moment."""
        if self.hard or self.pinned or self.moving is not None or self.freeing is not None:
            return False
        # Who waits for one that sleeps is about to wake it; who waits for a hot one lets it make a break.
        return self.state is State.HOT or (self.state is State.WARM and not self.waiters)

    @property
    def sleeper(self) -> Sleeps | None:
        """The model, if it can sleep."""
        model = self.model
        if model is None or "sleep" not in model.info.can or not isinstance(model, Sleeps):
            return None
        return model

    @property
    def coming(self) -> bool:
        """Whether it is on its way to where it can compute."""
        return self.state in (State.COLD, State.WAITING, State.LOADING, State.WAKING)

    @property
    def shown(self) -> Progress:
        """What to tell people of how far it is."""
        return self.download or self.progress

    def awake_with(self, held: Mapping[str, int]) -> dict[str, int]:
        """Return what it is charged while it holds so much and may compute."""
        return {d: held.get(d, 0) + self.reserve.get(d, 0) for d in {**held, **self.reserve}}

    def woke(self, held: Mapping[str, int]) -> None:
        """Note what it holds after a wake, and what it will need for the next one."""
        asleep, self.charges = self.held, self.awake_with(held)
        for device, count in self.charges.items():
            # What it held asleep of a device, others looked into; or the load counted it as well.
            beside = 0 if device == HOST else asleep.get(device, 0)
            self.awake[device] = max(count - beside, self.awake.get(device, 0))

    @property
    def on_the_move(self) -> bool:
        """Whether its progress is that of what happens to it now: it comes, or falls asleep."""
        return self.coming or (self.state is State.DRAINING and self.moving is not None)

    def taken(self, device: str) -> int:
        """Return the bytes of its charge that are really allocated, and that free memory shows no more."""
        weights = max(self.charges.get(device, 0) - self.reserve.get(device, 0), 0)
        if not self.coming:
            return weights
        # Asleep until now, it has what it holds; what is loading has what it reported, on all devices alike.
        there = self.held.get(device, 0) if self.model is not None else 0
        share = self.progress.fraction
        done = self.progress.done_bytes if share is None else int(weights * share)
        return min(weights, max(there, done, self.progress.allocated_bytes.get(device, 0)))
