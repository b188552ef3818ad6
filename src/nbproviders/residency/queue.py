"""Who waits for memory, in which order, and who may go before them. Knows nothing of sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from nbproviders.residency.entry import Entry, State
from nbproviders.residency.memory import HOST

RECHECK_S = 0.5
# How many may go before one who waits, because they are small enough for what is free.
MOST_OVERTAKEN = 8
OUTSIDE = (State.COLD, State.WARM, State.WAITING)  # nothing is reserved yet for what it will need


class Changes:
    """Tells those who wait that something was given back. Lives on the engine's loop."""

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def tell(self) -> None:
        """Wake all who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait until something was given back, half a second at most."""
        if self._event is None:
            self._event = asyncio.Event()
        # Not wait_for(): in Python 3.11 it swallows a cancellation that comes in the moment of the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_S):  # other programs come and go without telling us
                await self._event.wait()


@dataclass(frozen=True, slots=True)
class Want:
    """A model that is to come in.

    Attributes
    ----------
    entry
        Its record.
    need
        Bytes on each device once it can compute, with what it holds already.
    reserve
        What of them is only taken while it computes.
    optional
        Bytes that it would like, and does without.
    """

    entry: Entry
    need: Mapping[str, int]
    reserve: Mapping[str, int] = field(default_factory=dict)
    optional: Mapping[str, int] = field(default_factory=dict)

    @property
    def now(self) -> Mapping[str, int]:
        """What it needs, or what was reserved for it meanwhile by somebody else who asked for it."""
        return self.need if self.entry.state in OUTSIDE else self.entry.charges

    @property
    def more(self) -> set[str]:
        """The devices of which it wants more than it is charged: nobody has to make room for what it has."""
        has = self.entry.charges
        if self.entry.state in OUTSIDE:  # asleep: what else it holds may be what others look into
            has = {HOST: has.get(HOST, 0)}
        return {device for device, count in self.now.items() if count > has.get(device, 0)}


@dataclass(eq=False)
class Waiting:
    """Somebody in the queue. Whoever has nobody before him on his devices makes room; others wait.

    Attributes
    ----------
    since_s
        Since when he waits, and
    turn_s
        since when it is his turn.
    overtaken
        How many went before him.
    hopeless_s
        Since when nobody is seen whose leaving would do.
    making_room
        Whether what comes free now is meant for him.
    asked
        Models that make a break for him.
    """

    wants: Sequence[Want]
    since_s: float
    turn_s: float = 0.0
    overtaken: int = 0
    hopeless_s: float | None = None
    making_room: bool = False
    asked: list[Entry] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether others who want these models as well have reserved their room, or one of them is gone."""
        entries = [want.entry for want in self.wants]
        return all(e.admitted for e in entries) or any(e.gone.is_set() for e in entries)


class Queue:
    """Those who wait, the first one first. Who wants memory of other devices is in nobody's way."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []

    def join(self, waiting: Waiting) -> None:
        """Stand last."""
        self._waiting.append(waiting)

    def leave(self, waiting: Waiting) -> None:
        """Go."""
        self._waiting.remove(waiting)

    def is_first(self, waiting: Waiting) -> bool:
        """Whether nobody before him waits for memory of the same devices."""
        before = self._waiting[: self._waiting.index(waiting)]
        return not any(_comes_before(one, waiting.wants) for one in before)

    def before(self, wants: Sequence[Want]) -> list[Waiting]:
        """Return those whom somebody who comes now would go before."""
        return [one for one in self._waiting if _comes_before(one, wants)]


def may_pass(before: Sequence[Waiting], wants: Sequence[Want]) -> bool:
    """Whether somebody may take what is free, though others waited before him."""
    return not any(
        one.making_room or one.overtaken >= MOST_OVERTAKEN or _makes_a_break(one, wants)
        for one in before
    )


def _comes_before(one: Waiting, wants: Sequence[Want]) -> bool:
    # Looked at anew each time: what was there for one who waits may have left meanwhile.
    return bool(_devices(one.wants) & _devices(wants)) or _makes_a_break(one, wants)


def _makes_a_break(one: Waiting, wants: Sequence[Want]) -> bool:
    """Whether one of these models makes a break for the sake of somebody who waits."""
    # By key: one that was freed for the one who waits comes back with a new record.
    asked = {entry.key for entry in one.asked}
    return any(want.entry.key in asked for want in wants)


def _devices(wants: Sequence[Want]) -> frozenset[str]:
    # Copies for other devices lie in the same main memory.
    return frozenset("cpu" if device == HOST else device for want in wants for device in want.more)
