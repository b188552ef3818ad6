"""Letting models in: find room, have others sleep or leave, wait for busy ones, or say that it cannot fit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from nbproviders.errors import InsufficientMemoryError, ProviderError
from nbproviders.residency import refusal
from nbproviders.residency.entry import Entry, State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.events import Record
from nbproviders.residency.fit import Fit, Verdict
from nbproviders.residency.memory import HOST, Memory
from nbproviders.residency.plan import MoveKind, Plan, Seat
from nbproviders.residency.queue import OUTSIDE, Changes, Queue, Waiting, Want, may_pass
from nbproviders.residency.room import Room, total
from nbproviders.residency.seats import Make, after_sleep, seat
from nbproviders.residency.sharing import Sharing
from nbproviders.residency.table import Table

T = TypeVar("T")
WAIT_S = 60.0
# How long one waits before models that are used without a break have to make a break.
PATIENCE_S = 5.0
# How long the break may last: who uses a model from within its own use would wait for himself.
BREAK_S = 10.0
# A kernel that ends takes its page along at once, and its memory a little later.
SETTLED_S = 1.0


class Admission:
    """The queue before memory. Lives on the engine's loop.

    Parameters
    ----------
    table, memory, record
        The residency's.
    make
        Has an entry make a planned move, and records why; returns when it is made, or is no longer possible.
    go_on
        Lets those go on who wait for an entry that is in memory.
    """

    def __init__(
        self,
        table: Table,
        memory: Memory,
        record: Record,
        make: Make,
        go_on: Callable[[Entry], object],
    ) -> None:
        self._table, self._memory, self._record = table, memory, record
        self._make, self._go_on = make, go_on
        self._queue = Queue()
        self.changes = Changes()
        self.sharing = Sharing(table, memory, make)
        self.room = Room(table, memory, self.sharing)
        self.wait_s = WAIT_S
        self.evictions = 0  # for models that ran out of memory

    async def admit(self, wants: Sequence[Want]) -> None:
        """Charge all of them or none, once there is room; none if one of them is gone meanwhile.

        Raises
        ------
        InsufficientMemoryError
            At once if waiting would be in vain; else after `wait_s`.
        """
        before = self._queue.before(wants)
        if may_pass(before, wants) and self._reserve(wants):
            for one in before:
                one.overtaken += 1
            return
        for want in wants:
            if want.entry.state in OUTSIDE:
                want.entry.state = State.WAITING
                want.entry.progress.phase = "waiting for memory"
        waiting = Waiting(wants, self._table.now_s())
        self._queue.join(waiting)
        try:
            await self._turn(waiting)
            await self._wait(waiting)
        finally:
            self._queue.leave(waiting)
            self._end_break(waiting)
            self.changes.tell()

    def require_possible(self, wants: Sequence[Want]) -> None:
        """Refuse what would not fit though all others left.

        Raises
        ------
        InsufficientMemoryError
            As `admit`.
        """
        needs, decided = _asked(wants), self._plan(wants)
        limits = self.room.limits(needs)
        alone = any(needs[device] > limit for device, limit in limits.items())
        if alone and decided.verdict == "never" and not self._may_come(decided):
            raise self._refusal(Waiting(wants, self._table.now_s()), decided)

    async def _turn(self, waiting: Waiting) -> None:
        while not self._queue.is_first(waiting) and not waiting.over:
            if self._waited_s(waiting) >= self.wait_s:
                raise self._refusal(waiting, self._plan(waiting.wants))
            await self.changes.wait()
        waiting.turn_s = self._table.now_s()

    def _waited_s(self, waiting: Waiting) -> float:
        return self._table.now_s() - waiting.since_s

    async def _wait(self, head: Waiting) -> None:
        told = False
        while not head.over and not self._reserve(head.wants):
            decided = self._plan(head.wants)
            if decided.verdict == "fits" and decided.moves:
                head.making_room = True
                await self._make_room(head.wants, decided)
                head.making_room = False
                continue
            if decided.verdict == "fits" and self._waited_s(head) < self.wait_s:
                await self.changes.wait()  # what is free was less a moment ago
                continue
            hopeless = self._is_hopeless(head, decided)
            if await self.sharing.ask(self.room.from_others(decided.short)):
                continue
            if hopeless or self._waited_s(head) >= self.wait_s:
                raise self._refusal(head, decided)
            if not told:
                for want in head.wants:
                    self._record.add(
                        "waiting", want.entry.spec.text, 0, "for running models to end"
                    )
                told = True
            patient_s = self._table.now_s() - head.turn_s
            if patient_s >= PATIENCE_S + BREAK_S:
                self._end_break(head)
            elif patient_s >= PATIENCE_S:
                self._begin_break(head)
            await self.changes.wait()

    def _is_hopeless(self, head: Waiting, decided: Plan) -> bool:
        """Whether waiting is in vain."""
        now_s = self._table.now_s()
        if self._may_come(decided):
            head.hopeless_s = None
            return False
        if self.room.beyond_others(decided.short):
            return True
        if head.hopeless_s is None:
            head.hopeless_s = now_s
        return now_s - head.hopeless_s >= SETTLED_S

    def _may_come(self, decided: Plan) -> bool:
        """Whether waiting can help: who is in the way here is only busy, or lives in another process."""
        return decided.verdict == "wait" or bool(self.room.from_others(decided.short))

    async def _make_room(self, wants: Sequence[Want], decided: Plan) -> None:
        why = f"to make room for {' and '.join(str(want.entry.spec) for want in wants)}"
        entries = {entry.key.digest: entry for entry in self._table.all()}
        for name, kind in decided.moves:
            entry = entries.get(name)
            # Looked at again: the plan is a moment old, and a model in use never leaves.
            if entry is not None and entry.idle:
                await self._make(entry, kind, why)
        await asyncio.sleep(0)  # free memory may be less than it was when this was planned

    # Breaks: a model that is used without end gives way to one that waits

    def _begin_break(self, head: Waiting) -> None:
        busy = self._plan(head.wants, as_if_idle=True)
        names = {name for name, _ in busy.moves}
        for entry in self._table.all():
            if entry.key.digest in names and entry.hard and not entry.yielding:
                entry.yielding = True
                head.asked.append(entry)

    def _end_break(self, head: Waiting) -> None:
        for entry in head.asked:
            entry.yielding = False
            self._go_on(entry)
        head.asked.clear()

    # What fits

    def _reserve(self, wants: Sequence[Want]) -> bool:
        """Charge what is wanted if it fits, in one step under the lock."""
        others = self._others(wants)
        needs = [want.now for want in wants]
        with self.sharing.reserving({device for need in needs for device in need}):
            limits = self.room.limits(_asked(wants))
            with self._table.lock:
                if not _fits(total(needs), others, limits):
                    return False
                for want in wants:
                    if want.entry.state in OUTSIDE:
                        want.entry.charges = dict(want.need)
                        want.entry.reserve = dict(want.reserve)
        return True

    def _add(self, want: Want) -> bool:
        """Charge what a model would like besides, if it fits as things are."""
        limits, entries = self.room.limits(want.optional), self._table.all()
        with self._table.lock:
            if not _fits(want.optional, entries, limits):
                return False
            want.entry.charges = total([want.entry.charges, want.optional])
        return True

    async def reserve_optional(self, want: Want) -> Mapping[str, int]:
        """Charge what a model would like besides, if there is room once sleeping models left; return it."""
        if not want.optional:
            return {}
        if not self._add(want):
            decided = self.room.plan(self._seats([], only=State.WARM), want.optional)
            if decided.verdict != "fits":
                return {}
            await self._make_room([want], decided)
            if not self._add(want):
                return {}
        return want.optional

    def _others(self, wants: Sequence[Want]) -> list[Entry]:
        wanted = {id(want.entry) for want in wants}
        return [entry for entry in self._table.all() if id(entry) not in wanted]

    def _plan(self, wants: Sequence[Want], *, as_if_idle: bool = False) -> Plan:
        return self.room.plan(self._seats(wants, as_if_idle=as_if_idle), _asked(wants))

    def _seats(
        self, wants: Sequence[Want], *, as_if_idle: bool = False, only: State | None = None
    ) -> list[Seat]:
        return [
            seat(entry, self._table, as_if_idle=as_if_idle, only=only)
            for entry in self._others(wants)
        ]

    def would(self, entry: Entry, estimate: Estimate) -> Fit:
        """Return what letting a model in would mean; nothing is changed."""
        need = dict(estimate)
        limits = self.room.limits(need)
        taken = {d: sum(e.charges.get(d, 0) for e in self._table.all()) for d in need}
        decided = self._plan([Want(entry, need)])
        verdict: Verdict
        if entry.state is State.HOT:
            verdict = "here"
        elif not need:
            verdict = "unknown"
        elif decided.verdict == "fits":
            verdict = "after" if decided.moves else "fits"
        else:
            verdict = "wait" if self._may_come(decided) else "no"
        copy, leave = entry.charges.get(HOST, 0), dict(decided.moves)
        if verdict in ("fits", "after") and entry.model is None and entry.state in OUTSIDE:
            copy, more = self._new_copy(entry, estimate, leave)
            leave |= more
            verdict = "after" if leave else "fits"
        names = {other.key.digest: str(other.spec) for other in self._table.all()}
        moves = tuple((names[key], kind) for key, kind in leave.items())
        return Fit(str(entry.spec), verdict, estimate, limits, taken, moves, decided.short, copy)

    def _new_copy(
        self, entry: Entry, estimate: Estimate, moves: Mapping[str, MoveKind]
    ) -> tuple[int, dict[str, MoveKind]]:
        """Return what a new model would keep in main memory to wake from, and who would leave for that.

        Parameters
        ----------
        moves
            What others will have done by then.
        """
        wish = estimate.optional
        seats = [
            after_sleep(one) if one.name in moves else one
            for one in self._seats([Want(entry, wish)], only=State.WARM)
            if moves.get(one.name) != "free"
        ]
        decided = self.room.plan(seats, wish)
        return (wish.get(HOST, 0), dict(decided.moves)) if decided.verdict == "fits" else (0, {})

    async def evict_idle(self, entry: Entry, evictions: int) -> bool:
        """Have all idle models leave the devices of one that ran out of memory; False if none did.

        Parameters
        ----------
        evictions
            How many there had been when it began to compute: who has left since need not leave again.
        """
        mine = {device for device, count in entry.charges.items() if count} - {HOST}
        there = [
            one
            for one in self._table.all()
            if one is not entry and not one.hard and (not mine or mine & set(one.charges))
        ]
        # Several calls run out of memory at once: the first has these leave, the others wait for it.
        leaving = [one for one in there if one.state is State.DRAINING]
        for other in there:
            if other.state is State.HOT and other.idle:
                kind: MoveKind = "sleep" if other.sleeper is not None else "free"
                await self._make(other, kind, f"{entry.spec} ran out of memory")
                self.evictions += other.state is not State.HOT
        for other in leaving:
            while other.state is State.DRAINING:
                await self.changes.wait()
        return bool(leaving) or self.evictions > evictions

    async def tried_twice(self, entry: Entry, work: Callable[[], Awaitable[T]]) -> T:
        """Do what needs a device's memory; once more after others have left, if there was too little.

        Raises
        ------
        InsufficientMemoryError
            With the table of who holds what, if none could leave, or that was not enough.
        """
        evictions = self.evictions
        try:
            return await work()
        except InsufficientMemoryError as error:
            entry.progress.restart()
            if not await self.evict_idle(entry, evictions):
                raise self.refused(entry, error) from None
        try:
            return await work()
        except InsufficientMemoryError as error:
            raise self.refused(entry, error) from None

    def refused(self, entry: Entry, error: InsufficientMemoryError) -> ProviderError:
        """Return an out-of-memory error of a device with the table of who holds what."""
        others = [r for r in self._table.residents() if r.key != entry.key.digest]
        return refusal.out_of_memory(error, others)

    def _refusal(self, waiting: Waiting, decided: Plan) -> ProviderError:
        wants = waiting.wants
        keys = {want.entry.key.digest for want in wants}
        there = (State.HOT, State.WARM) if len(wants) > 1 else ()
        needs = total([want.now for want in wants])
        return refusal.too_much(
            [str(want.entry.spec) for want in wants],
            needs,
            decided.short,
            self.room.limits(needs),
            [r for r in self._table.residents() if r.key not in keys or r.state in there],
            self._waited_s(waiting) if self._may_come(decided) else None,
        )


def _asked(wants: Sequence[Want]) -> dict[str, int]:
    """Return what is wanted together of those devices of which one of them wants more than it has."""
    more = {d for want in wants for d in want.more}
    return {d: n for d, n in total([want.now for want in wants]).items() if d in more}


def _fits(more: Mapping[str, int], there: Sequence[Entry], limits: Mapping[str, int]) -> bool:
    needed = total([*(entry.charges for entry in there), more])
    return all(needed[device] <= limit for device, limit in limits.items())
