"""Promises of a look at calls that are waited for: where the caller waits, to the end of the call."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nbproviders.core import engine as engines, watch as watches
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.watch import Watch, looking
from nbproviders.errors import ProviderError, ServiceUnavailableError, TimeoutError
from tests.scripted import BOUND_S, Gate, ScriptedModel


class Looks(Watch):
    """Notes each look and the end; a gate opens at the second look."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate, self.told, self.threads = gate, list[str](), set[int]()

    def look(self) -> None:
        self.told.append("look")
        self.threads.add(threading.get_ident())
        if self.gate is not None and len(self.told) == 2:
            self.gate.open()

    def close(self) -> None:
        self.told.append("close")

    def clients(self, gate: Gate) -> tuple[Client, SyncClient]:
        """Return both clients of a model that waits until it was looked at twice."""
        self.gate = gate
        model = ScriptedModel(gate=gate)
        return (
            Client(model, lambda: None, watch=lambda: self),
            SyncClient(model, lambda: None, watch=lambda: self),
        )


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (watches, engines):
        monkeypatch.setattr(module, "LOOK_S", 0.01)


async def listed(stream: Any) -> list[str]:
    return [chunk async for chunk in stream]


CALLS: list[Callable[[Any], Any]] = [
    lambda m: m.generate("x"),
    lambda m: m.generate_many(["x"]),
    lambda m: m.chat("x"),
    lambda m: m.stream("x"),
]
UNSUPPORTED: list[Callable[[Any], Any]] = [
    lambda m: m.next_tokens("x"),
    lambda m: m.score("x", "y"),
]


@pytest.mark.parametrize("call", CALLS)
async def test_every_awaited_call_is_looked_at(call: Callable[[Any], Any]) -> None:
    """While it waits, on the caller's own loop; and never after its end."""
    looks = Looks()
    m, _ = looks.clients(Gate())
    called = call(m)
    async with asyncio.timeout(BOUND_S):
        await (listed(called) if hasattr(called, "__aiter__") else called)
    assert looks.told == ["look", "look", *looks.told[2:-1], "close"]
    assert set(looks.told[:-1]) == {"look"}
    assert looks.threads == {threading.get_ident()}


@pytest.mark.parametrize("call", CALLS)
def test_every_blocking_call_is_looked_at(call: Callable[[Any], Any]) -> None:
    """While it blocks, on the thread that it blocks."""
    looks = Looks()
    _, m = looks.clients(Gate())
    called = call(m)
    assert list(called)
    assert looks.told == ["look", "look", *looks.told[2:-1], "close"]
    assert set(looks.told[:-1]) == {"look"}
    assert looks.threads == {threading.get_ident()}


@pytest.mark.parametrize("call", UNSUPPORTED)
async def test_a_call_that_fails_is_looked_at_to_its_end(call: Callable[[Any], Any]) -> None:
    """What was shown for it is taken away, awaited or blocking."""
    looks = Looks()
    m, blocking = looks.clients(Gate(opened=True))
    with pytest.raises(ProviderError):
        await call(m)
    with pytest.raises(ProviderError):
        call(blocking)
    assert [one for one in looks.told if one == "close"] == ["close"] * 2


async def test_a_call_that_is_stopped_is_looked_at_to_its_end() -> None:
    """Cancelled, or out of time."""
    looks = Looks()
    m, blocking = looks.clients(Gate())
    looks.gate = None
    for work in (m.generate("x"), listed(m.stream("x"))):
        looks.told.clear()
        with pytest.raises(builtins.TimeoutError):
            async with asyncio.timeout(0.05):
                await work
        assert looks.told.count("close") == 1
        assert looks.told[-1] == "close"
    for call in (blocking.generate, lambda p, timeout_s: next(blocking.stream(p, timeout_s=0))):
        looks.told.clear()
        with pytest.raises(TimeoutError):
            call("x", timeout_s=0.05)
        assert looks.told.count("close") == 1


async def test_a_stream_is_looked_at_until_its_first_chunk() -> None:
    """Then the model is there, however long the rest takes."""
    gate, looks = Gate(opened=True), Looks()
    m, blocking = looks.clients(gate)
    chunks = m.stream("one two")
    await anext(chunks)
    assert looks.told.count("close") <= 1
    told = list(looks.told)
    assert [chunk async for chunk in chunks] == [" two"]
    assert looks.told == told
    looks.told.clear()
    assert list(blocking.stream("one two")) == ["one", " two"]
    assert looks.told.count("close") == 1


async def test_on_the_engine_nobody_looks() -> None:
    """A call of a call is its caller's to look at."""
    looks, engine = Looks(), engines.default()

    async def slow() -> None:
        await asyncio.sleep(0.05)

    await engine.call(lambda: engine.call(slow, looks))
    assert looks.told == []


async def test_without_a_watch_nothing_is_planned() -> None:
    """The loop gets no timer for it."""
    with looking(None) as nobody:
        assert nobody is None


async def test_a_failing_model_is_told_as_before() -> None:
    """Being looked at changes no error."""
    looks = Looks()
    model = ScriptedModel(failure=ServiceUnavailableError("down"))
    m = SyncClient(model, lambda: None, watch=lambda: looks)
    with pytest.raises(ServiceUnavailableError, match="down"):
        m.generate("x")
    assert looks.told[-1] == "close"
