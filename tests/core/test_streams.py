"""Promises of streams as people read them: cancelled by leaving, at the reader's own pace."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from nbproviders.core import engine, streams
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.completion import Chunk
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    ProviderError,
    ServiceUnavailableError,
    TimeoutError,
)
from tests.interrupted import interrupted
from tests.scripted import BOUND_S, Gate, ScriptedModel, happened, settled


def nothing() -> None:
    """A lease that is given back to nobody."""


class Held(ScriptedModel):
    """Writes the first word at once; the others wait for a gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._words = 0
        self._gate = self  # type: ignore[assignment]
        self._behind = gate

    async def passed(self) -> None:
        self._words += 1
        if self._words > 1:
            await self._behind.passed()


async def test_a_stream_equals_generate() -> None:
    """Chunk by chunk or at once, the text and what is known of it are the same."""
    m = Client(ScriptedModel(), nothing)
    stream = m.stream("one two three", seed=3)
    chunks = [chunk async for chunk in stream]
    whole = await m.generate("one two three", seed=3)
    assert [type(chunk) for chunk in chunks] == [Chunk] * 3
    assert "".join(chunks) == stream.text == stream.completion == whole
    assert stream.completion.usage == whole.usage
    assert stream.completion.params == whole.params


def test_a_blocking_stream_equals_generate() -> None:
    """The same, blocking."""
    m = SyncClient(ScriptedModel(), nothing)
    stream = m.stream("one two three", timeout_s=BOUND_S)
    assert list(stream) == ["one", " two", " three"]
    assert stream.completion == stream.text == m.generate("one two three", timeout_s=BOUND_S)
    assert list(stream) == []


async def test_nothing_is_generated_before_the_first_read() -> None:
    """A stream that nobody reads costs nothing, and dropping it neither."""
    model = ScriptedModel()
    stream = Client(model, nothing).stream("x")
    blocking = SyncClient(model, nothing).stream("x")
    del stream, blocking
    gc.collect()
    settled()
    assert model.requests == []


async def test_a_break_cancels() -> None:
    """Leaving the loop early and dropping the stream ends the generation."""
    gate = Gate()
    model = Held(gate)
    async for chunk in Client(model, nothing).stream("one two"):
        assert chunk == "one"
        break
    gc.collect()
    await happened(model.ended)
    assert model.cancelled.is_set()
    assert model.running == 0


def test_a_break_out_of_a_blocking_stream_cancels() -> None:
    """The same, blocking."""
    model = Held(Gate())
    for chunk in SyncClient(model, nothing).stream("one two", timeout_s=BOUND_S):
        assert chunk == "one"
        break
    gc.collect()
    assert model.ended.wait(BOUND_S)
    assert model.cancelled.is_set()


async def test_closing_cancels_and_ends() -> None:
    """aclose and the block's end stop the generation; reading on gives nothing."""
    for leave_by_block in (True, False):
        model = Held(Gate())
        stream = Client(model, nothing).stream("one two")
        if leave_by_block:
            async with stream:
                assert await anext(stream) == "one"
        else:
            assert await anext(stream) == "one"
            await stream.aclose()
            await stream.aclose()
        await happened(model.cancelled)
        assert [chunk async for chunk in stream] == []
        with pytest.raises(ClosedError, match="not read to its end"):
            _ = stream.completion
        assert stream.text == "one"


def test_closing_a_blocking_stream() -> None:
    """The same, blocking; a stream that was never read closes too."""
    model = Held(Gate())
    with SyncClient(model, nothing).stream("one two", timeout_s=BOUND_S) as stream:
        assert next(stream) == "one"
    assert model.cancelled.wait(BOUND_S)
    assert list(stream) == []
    with SyncClient(model, nothing).stream("never read") as unread:
        pass
    assert list(unread) == []


def test_ctrl_c_at_any_line_of_a_blocking_stream_cancels() -> None:
    """Wherever the first read is stopped, the model is not left at work, and nothing more is read."""
    places = set()
    for line in range(1, 40):
        gate = Gate()
        model = ScriptedModel(gate=gate)
        stream = SyncClient(model, nothing).stream("one two")
        with pytest.raises(KeyboardInterrupt), interrupted(line, engine, streams) as functions:
            next(stream)
        places.add(functions[-1])
        settled()
        assert not gate.reached.is_set() or model.cancelled.wait(BOUND_S)
    assert places >= {"__next__", "post", "_get"}


async def test_cancelling_the_reader_cancels_the_generation() -> None:
    """Stop while waiting for the next chunk ends at once, and the work behind it too."""
    model = Held(Gate())
    stream = Client(model, nothing).stream("one two")
    assert await anext(stream) == "one"
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await happened(model.cancelled)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_reading_slowly_does_not_hold_the_model() -> None:
    """The model ends its text at its own pace; the reader finds it all later."""
    model = ScriptedModel()
    stream = Client(model, nothing).stream("one two three")
    assert await anext(stream) == "one"
    await happened(model.ended)
    assert model.running == 0
    assert [chunk async for chunk in stream] == [" two", " three"]
    assert stream.completion == "one two three"


async def test_an_error_ends_the_stream() -> None:
    """A failure after some text is raised once; the text before it stays readable."""
    model = ScriptedModel(failure=ServiceUnavailableError("dropped", hint="again"))
    stream = Client(model, nothing).stream("one two")
    assert await anext(stream) == "one"
    with pytest.raises(ServiceUnavailableError, match="dropped\nagain"):
        await anext(stream)
    assert [chunk async for chunk in stream] == []
    assert stream.text == "one"


def test_an_error_ends_a_blocking_stream() -> None:
    """The same, blocking."""
    model = ScriptedModel(failure=ServiceUnavailableError("dropped"))
    stream = SyncClient(model, nothing).stream("one two", timeout_s=BOUND_S)
    assert next(stream) == "one"
    with pytest.raises(ServiceUnavailableError, match="dropped"):
        next(stream)
    assert list(stream) == []


class Unheard(BaseException):
    """No error, and no way of asyncio's to stop."""


async def test_whatever_ends_the_model_ends_the_stream() -> None:
    """Nobody reads on for ever: what is no error at all ends the stream as well, with one of ours."""
    loop, told = engine.default()._loop, list[object]()
    loop.call_soon_threadsafe(loop.set_exception_handler, lambda _, context: told.append(context))
    try:
        stream = Client(ScriptedModel(failure=Unheard()), nothing).stream("x")
        with pytest.raises(ClosedError, match="before its end"):
            await asyncio.wait_for(anext(stream), BOUND_S)
        del stream
        for _ in range(100):  # asyncio tells of it when the task is garbage
            settled()
            gc.collect()
            if told:
                break
        assert told
    finally:
        loop.call_soon_threadsafe(loop.set_exception_handler, None)


def test_a_foreign_error_ends_the_stream_too() -> None:
    """A model that raises something of its own ends its stream with an error of ours, not in silence."""
    stream = SyncClient(ScriptedModel(failure=ZeroDivisionError("oops")), nothing).stream(
        "x", timeout_s=1
    )
    with pytest.raises(ProviderError, match="ZeroDivisionError"):
        next(stream)


def test_waiting_for_a_chunk_has_an_end() -> None:
    """`timeout_s` bounds the wait for each chunk; then the generation is cancelled."""
    model = Held(Gate())
    stream = SyncClient(model, nothing).stream("one two", timeout_s=0.2)
    assert next(stream) == "one"
    with pytest.raises(TimeoutError, match=r"No chunk within 0\.2 s"):
        next(stream)
    assert model.cancelled.wait(BOUND_S)


def test_a_blocking_stream_on_the_engine_itself_is_refused() -> None:
    """Reading a blocking stream on the engine's thread would wait for itself: an error at once."""
    stream = SyncClient(ScriptedModel(), nothing).stream("x", timeout_s=0.3)

    async def block() -> str:
        return next(stream)

    with pytest.raises(ConfigurationError, match="engine's own thread"):
        engine.default().wait(block, BOUND_S)


def test_streams_in_loops_of_several_threads() -> None:
    """Each thread's loop reads its own stream of the same client."""
    m = Client(ScriptedModel(parallel=4), nothing)
    texts: dict[int, str] = {}

    async def read(number: int) -> str:
        return "".join([chunk async for chunk in m.stream(f"{number} a b")])

    threads = [
        threading.Thread(target=lambda n=n: texts.__setitem__(n, asyncio.run(read(n))))  # type: ignore[misc]
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert texts == {n: f"{n} a b" for n in range(4)}
