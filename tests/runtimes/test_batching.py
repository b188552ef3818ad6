"""Promises of gathering: what comes together goes together, and each gets its own text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from nbproviders.core.completion import Finish
from nbproviders.core.params import Request, as_request
from nbproviders.errors import ClosedError, InvalidRequestError, ProviderError
from nbproviders.runtimes.batching import Batcher, Ticket
from nbproviders.runtimes.threads import Worker
from tests.scripted import BOUND_S, happened


class Machine:
    """Runs batches on a thread: each row's words one after another, when `go_on` lets it."""

    def __init__(self, limit: int = 4) -> None:
        self.worker = Worker("batch")
        self.batcher = Batcher(self.worker, self.run, limit)
        self.batches: list[list[str]] = []
        self.tokens = 0
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def run(self, tickets: Sequence[Ticket]) -> None:
        self.batches.append([str(ticket.request.prompt) for ticket in tickets])
        self.started.set()
        assert self.go_on.wait(BOUND_S)
        for ticket in tickets:
            if ticket.request.prompt == "bad":
                ticket.fail(InvalidRequestError("bad prompt"))
                continue
            *words, last = str(ticket.request.prompt).split(" ")
            for word in words:
                if ticket.cancelled:
                    break
                self.tokens += 1
                ticket.emit(f"{word} ")
            ticket.end("" if ticket.cancelled else last, Finish())

    async def text(self, prompt: str | Request) -> str:
        parts = []
        async for item in self.batcher.read(as_request(prompt)):
            if not isinstance(item, Finish):
                parts.append(item)
        return "".join(parts)


@pytest.fixture
async def machine():  # type: ignore[no-untyped-def]
    made = Machine()
    yield made
    made.go_on.set()
    await made.worker.close()


async def test_what_comes_together_goes_together(machine: Machine) -> None:
    """Requests of one turn of the loop are one batch, up to the limit, in their order."""
    texts = await asyncio.gather(*(machine.text(f"p {n}") for n in range(6)))
    assert texts == [f"p {n}" for n in range(6)]
    assert machine.batches == [["p 0", "p 1", "p 2", "p 3"], ["p 4", "p 5"]]


async def test_what_comes_while_a_batch_runs_is_the_next(machine: Machine) -> None:
    """Nobody waits for a fuller batch, and nobody is lost."""
    machine.go_on.clear()
    first = asyncio.ensure_future(machine.text("first"))
    await happened(machine.started)
    later = [asyncio.ensure_future(machine.text(f"later {n}")) for n in range(2)]
    await asyncio.sleep(0)
    machine.go_on.set()
    assert await asyncio.gather(first, *later) == ["first", "later 0", "later 1"]
    assert machine.batches == [["first"], ["later 0", "later 1"]]


async def test_alone_means_alone(machine: Machine) -> None:
    """A request that must not be batched has a batch of its own, before and behind others."""
    alone = Request("alone", alone=True)
    texts = await asyncio.gather(
        machine.text("a"), machine.text(alone), machine.text(alone), machine.text("b")
    )
    assert texts == ["a", "alone", "alone", "b"]
    assert machine.batches == [["a"], ["alone"], ["alone"], ["b"]]


async def test_a_failure_takes_only_its_row(machine: Machine) -> None:
    """The others of its batch get their texts."""
    good, bad = await asyncio.gather(machine.text("x"), machine.text("bad"), return_exceptions=True)
    assert good == "x"
    assert isinstance(bad, InvalidRequestError)


async def test_leaving_early_waits_for_the_worker(machine: Machine) -> None:
    """Whoever stops is free when the thread has let go of its row, not before."""
    machine.go_on.clear()
    reading = asyncio.ensure_future(machine.text("a b c d"))
    await happened(machine.started)
    reading.cancel()
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.sleep(0)
    assert not reading.done()
    machine.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert machine.tokens == 0
    assert await machine.text("next") == "next"


async def test_leaving_before_the_turn_costs_nothing(machine: Machine) -> None:
    """A request that is given up while it waits never reaches the worker."""
    machine.go_on.clear()
    first = asyncio.ensure_future(machine.text("first"))
    await happened(machine.started)
    waiting = asyncio.ensure_future(machine.text("given up"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    machine.go_on.set()
    await first
    assert machine.batches == [["first"]]


async def test_a_closed_worker_fails_every_request(machine: Machine) -> None:
    """After the end each request is refused, more of them than fit a batch too."""
    await machine.worker.close()
    async with asyncio.timeout(3):
        ended = await asyncio.gather(
            *(machine.text(str(n)) for n in range(6)), return_exceptions=True
        )
    assert all(isinstance(error, ClosedError) for error in ended)


def test_a_run_that_breaks_leaves_nobody_waiting() -> None:
    """A defect in the batch itself is an error for every row of it, and the next batch runs."""
    broken = [True]

    class Breaking(Machine):
        def run(self, tickets: Sequence[Ticket]) -> None:
            if broken:
                broken.clear()
                raise ZeroDivisionError("defect")
            super().run(tickets)

    async def use() -> None:
        machine = Breaking()
        ended.extend(
            await asyncio.gather(machine.text("a"), machine.text("b"), return_exceptions=True)
        )
        ended.append(await machine.text("next"))
        await machine.worker.close()

    ended: list[object] = []
    # In a thread that may be left behind: rows are waited for even by those who are cancelled.
    thread = threading.Thread(target=lambda: asyncio.run(use()), daemon=True)
    thread.start()
    thread.join(3)
    assert not thread.is_alive()
    assert all(isinstance(error, ProviderError) for error in ended[:2])
    assert ended[2] == "next"


# Taking more while a run goes on


class Endless(Machine):
    """Runs as long as requests come: each turn takes what has come, then ends the oldest."""

    def __init__(self, limit: int = 4, turn: Callable[[int], object] = lambda _: None) -> None:
        super().__init__(limit)
        self.turn, self.turns, self.alone = turn, 0, list[bool]()
        self.cancels = 0
        self.batcher = Batcher(self.worker, self.run, limit, self._cancelled)

    def _cancelled(self) -> None:
        self.cancels += 1

    def run(self, tickets: Sequence[Ticket]) -> None:
        self.batches.append([str(ticket.request.prompt) for ticket in tickets])
        active = list(tickets)
        self.started.set()
        while active:
            assert self.go_on.wait(BOUND_S)
            self.turns += 1
            self.turn(self.turns)
            if not any(one.request.alone for one in active):
                active += self.batcher.take(4 - len(active))
            self.alone.append(any(one.request.alone for one in active) and len(active) > 1)
            ticket = active.pop(0)
            ticket.end("" if ticket.cancelled else str(ticket.request.prompt), Finish())


async def closed(machine: Machine) -> None:
    machine.go_on.set()
    await machine.worker.close()


async def test_what_comes_meanwhile_joins_the_run() -> None:
    """Nobody is answered twice, and nobody is left out."""
    machine = Endless()
    machine.go_on.clear()
    first = asyncio.ensure_future(machine.text("first"))
    await happened(machine.started)
    later = [asyncio.ensure_future(machine.text(f"later {n}")) for n in range(20)]
    await asyncio.sleep(0)
    machine.go_on.set()
    assert await asyncio.gather(first, *later) == ["first", *(f"later {n}" for n in range(20))]
    assert machine.batches == [["first"]]
    assert machine.turns == 21
    await closed(machine)


async def test_nobody_joins_one_that_is_alone_nor_the_other_way_round() -> None:
    """Those behind it wait for it: they do not overtake."""
    machine = Endless()
    machine.go_on.clear()
    tasks = [asyncio.ensure_future(machine.text("a"))]
    await happened(machine.started)
    for prompt in ("b", Request("alone", alone=True), "c"):
        tasks.append(asyncio.ensure_future(machine.text(prompt)))
        await asyncio.sleep(0)
    machine.go_on.set()
    assert await asyncio.gather(*tasks) == ["a", "b", "alone", "c"]
    assert machine.batches == [["a"], ["alone"], ["c"]]
    assert not any(machine.alone)
    await closed(machine)


async def test_who_leaves_while_others_are_taken_is_in_one_place() -> None:
    """Given up before it is taken it never runs; after, it ends there; all others are answered."""
    machine = Endless()
    outcomes: list[object] = []
    for batch in range(30):
        tasks = [asyncio.ensure_future(machine.text(f"{batch} {n}")) for n in range(12)]
        await asyncio.sleep(0)
        for task in tasks[batch % 3 :: 3]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for n, outcome in enumerate(done):
            assert isinstance(outcome, asyncio.CancelledError) or outcome == f"{batch} {n}"
        outcomes += done
    assert sum(isinstance(outcome, str) for outcome in outcomes) >= 30 * 8
    assert machine.turns <= len(outcomes)
    await closed(machine)


async def test_nobody_hurries_for_one_as_long_as_another_waits() -> None:
    """Only when nobody is left who wants the run, once the last of them has left."""
    machine = Endless()
    machine.go_on.clear()
    tasks = [asyncio.ensure_future(machine.text(prompt)) for prompt in "abc"]
    await happened(machine.started)
    seen = []
    for task in tasks:
        task.cancel()
        await asyncio.sleep(0)
        seen.append(machine.cancels)
    assert seen == [0, 0, 1]
    machine.go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await closed(machine)


async def test_a_long_run_keeps_none_that_were_answered(machine: Machine) -> None:
    """However many come, only those still running are known."""
    machine.go_on.clear()
    first = asyncio.ensure_future(machine.text("first"))
    await happened(machine.started)
    for _ in range(50):
        later = [asyncio.ensure_future(machine.text("later")) for _ in range(2)]
        await asyncio.sleep(0)
        for ticket in machine.batcher.take(4):  # as the run does, on its thread
            ticket.end("answer", Finish())
        assert await asyncio.gather(*later) == ["answer", "answer"]
        assert len(machine.batcher._taken) <= 3
    machine.go_on.set()
    await first
    await machine.worker.run(lambda: None)
    assert machine.batcher._taken == []


async def test_who_was_taken_is_told_when_the_run_breaks() -> None:
    """As those are who began it."""

    class Breaking(Endless):
        def run(self, tickets: Sequence[Ticket]) -> None:
            self.started.set()
            assert self.go_on.wait(BOUND_S)
            assert len(self.batcher.take(4)) == 2
            raise ZeroDivisionError("defect")

    machine = Breaking()
    machine.go_on.clear()
    tasks = [asyncio.ensure_future(machine.text("a"))]
    await happened(machine.started)
    tasks += [asyncio.ensure_future(machine.text(prompt)) for prompt in "bc"]
    await asyncio.sleep(0)
    machine.go_on.set()
    async with asyncio.timeout(3):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, ProviderError) for error in ended)
    await closed(machine)


class Halting(Machine):
    """Says one word of each row, and the rest when `go_on` lets it."""

    def run(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            ticket.emit("word ")
        assert self.go_on.wait(BOUND_S)
        for ticket in tickets:
            ticket.end("end", Finish())


async def test_a_timeout_round_leaving_is_heard() -> None:
    """The row is waited for all the same; then whoever bounded that learns that it took too long."""
    machine = Halting()
    machine.go_on.clear()
    source = machine.batcher.read(as_request("x"))
    assert await anext(source) == "word "

    async def leave() -> None:
        async with asyncio.timeout(0):
            await source.aclose()

    leaving = asyncio.ensure_future(leave())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not leaving.done()
    machine.go_on.set()
    with pytest.raises(TimeoutError):
        await leaving
    await closed(machine)
