"""Promises of gathering: what comes together goes together, and each gets its own text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

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
