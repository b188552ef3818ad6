"""Promises of what people hold: the same calls, awaited or blocking, refused after the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from nbproviders.core.client import Client, SyncClient
from nbproviders.core.completion import Completion
from nbproviders.core.params import GenerationParams, Request
from nbproviders.errors import (
    ClosedError,
    InvalidRequestError,
    ServiceUnavailableError,
    TimeoutError,
)
from tests.scripted import BOUND_S, Gate, ScriptedModel, joined, settled


def nothing() -> None:
    """A lease that is given back to nobody."""


async def test_async_calls() -> None:
    """generate, generate_many and chat return completions, in the order of their prompts."""
    m = Client(ScriptedModel(parallel=4), nothing)
    assert await m.generate("one two") == "one two"
    assert type(await m.generate("x")) is Completion
    assert await m.generate_many(["a", "b", "c"]) == ["a", "b", "c"]
    assert "be brief" in await m.chat("hi", system="be brief")


def test_blocking_calls() -> None:
    """The blocking client gives the same."""
    m = SyncClient(ScriptedModel(parallel=4), nothing)
    assert m.generate("one two", timeout_s=BOUND_S) == "one two"
    assert m.generate_many(["a", "b"], timeout_s=BOUND_S) == ["a", "b"]
    assert "be brief" in m.chat("hi", system="be brief", timeout_s=BOUND_S)


async def test_what_is_said_reaches_the_model() -> None:
    """Parameters, single overrides and raw arrive as they were given."""
    model = ScriptedModel()
    m = Client(model, nothing)
    await m.generate("x", GenerationParams(seed=1), max_tokens=5, raw=True)
    await m.generate_many(["y"], temperature=0)
    await m.chat([{"role": "user", "content": "z"}], system="s", seed=2)
    assert model.requests[0] == Request("x", GenerationParams(seed=1, max_tokens=5), False, True)
    assert model.requests[1].params == GenerationParams(temperature=0)
    assert model.requests[2].params.seed == 2
    assert [turn["role"] for turn in model.requests[2].prompt] == ["system", "user"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.generate("x", max_tokens=-1), "max_tokens=-1"),
        (lambda m: m.generate("x", temperature=9), "temperature=9"),
        (lambda m: m.generate(5), "not int: 5"),
        (lambda m: m.generate_many([]), "empty list of prompts"),
        (lambda m: m.generate_many("abc"), "not one str: 'abc'"),
        (lambda m: m.generate_many(["a", 5]), "not int: 5"),
        (lambda m: m.chat([]), "empty list of messages"),
        (lambda m: m.stream(None), "not NoneType"),
    ],
)
def test_bad_input_never_reaches_the_model(call: Callable[[Any], Any], said: str) -> None:
    """What cannot be asked is refused with its value before anything is computed."""
    model = ScriptedModel()
    with pytest.raises(InvalidRequestError) as caught:
        call(SyncClient(model, nothing))
    assert said in caught.value.message
    assert model.requests == []


async def test_generate_many_raises_the_first_failure_after_all_ended() -> None:
    """One failure is told as an exception, when nothing is under way any more."""
    model = ScriptedModel(failure=ServiceUnavailableError("down"))
    m = Client(model, nothing)
    with pytest.raises(ServiceUnavailableError, match="down"):
        await m.generate_many(["a", "b", "c"])
    assert len(model.requests) == 3
    assert model.running == 0


async def test_used_after_its_end() -> None:
    """A closed client refuses every call and says the line to write."""
    m = Client(ScriptedModel(), nothing, "write this line")
    async with m:
        assert not m.closed
    assert m.closed
    for call in (m.generate("x"), m.generate_many(["x"]), m.chat("x")):
        with pytest.raises(
            ClosedError, match="'scripted:model' was used after its end.\nwrite this"
        ):
            await call
    with pytest.raises(ClosedError, match="used after its end"):
        m.stream("x")
    with pytest.raises(ClosedError, match="used after its end"):
        _ = m.raw
    with pytest.raises(ClosedError, match="used after its end"):
        async with m:
            pass


def test_blocking_client_used_after_its_end() -> None:
    """The blocking client refuses as well, with a line to write even if none was given."""
    with SyncClient(ScriptedModel(), nothing) as m:
        pass
    with pytest.raises(ClosedError, match="async with provider.model"):
        m.generate("x")
    with pytest.raises(ClosedError, match="used after its end"), m:
        pass


async def test_closing_gives_back_once() -> None:
    """However often a client is closed, its lease goes back once."""
    given_back: list[int] = []
    m = Client(ScriptedModel(), lambda: given_back.append(1))
    m.close()
    m.close()
    await m.aclose()
    assert given_back == [1]


def test_what_a_client_tells() -> None:
    """Name, reference and state can be read, also after the end."""
    model = ScriptedModel()
    m = SyncClient(model, nothing)
    assert (m.spec, m.model, m.info, m.raw, m.waist) == (
        "scripted:model",
        "model",
        model.info,
        model,
        model,
    )
    assert repr(m) == "<SyncClient scripted:model>"
    m.close()
    assert repr(m) == "<SyncClient scripted:model closed>"


async def test_cancelling_a_call_cancels_the_generation() -> None:
    """Stop ends the generation, and the next call works at once."""
    gate = Gate()
    model = ScriptedModel(gate=gate)
    m = Client(model, nothing)
    call = asyncio.ensure_future(m.generate("x"))
    assert await asyncio.to_thread(gate.reached.wait, BOUND_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(model.ended.wait, BOUND_S)
    assert model.running == 0
    gate.open()
    assert await m.generate("next") == "next"


def test_a_blocking_call_has_an_end() -> None:
    """`timeout_s` ends a call and the generation behind it."""
    model = ScriptedModel(gate=Gate())
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        SyncClient(model, nothing).generate("x", timeout_s=0.05)
    assert model.cancelled.wait(BOUND_S)


def test_one_client_from_many_threads_and_loops() -> None:
    """A client works from any thread and any loop, at once."""
    m, b = Client(ScriptedModel(parallel=8), nothing), SyncClient(ScriptedModel(), nothing)
    answers: dict[int, list[str]] = {}

    async def ask(number: int) -> list[str]:
        return list(await asyncio.gather(*(m.generate(f"{number} {n}") for n in range(5))))

    def run(number: int) -> None:
        answers[number] = [*asyncio.run(ask(number)), b.generate(f"{number} b", timeout_s=BOUND_S)]

    with joined(*(threading.Thread(target=run, args=(n,)) for n in range(4))):
        pass
    assert answers == {n: [*(f"{n} {k}" for k in range(5)), f"{n} b"] for n in range(4)}


async def test_a_failed_call_keeps_nothing_alive() -> None:
    """An error that a notebook keeps for its traceback does not keep the model."""
    model = ScriptedModel(failure=ServiceUnavailableError("down"))
    kept = weakref.ref(model)
    m = Client(model, nothing)
    error: BaseException | None = None
    try:
        await m.generate("x")
    except ServiceUnavailableError as caught:
        error = caught
    frames = []
    trace = error.__traceback__ if error else None
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "_run" not in frames
    del m, model, trace
    if error is not None:
        error.__traceback__ = None
    settled()  # the engine's own task ends a moment after the caller was told
    gc.collect()
    assert kept() is None
