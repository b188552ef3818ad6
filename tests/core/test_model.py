"""Promises of the waist: streams, whole completions, and many requests at once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator

import pytest

from nbproviders.core.completion import Chunk, Completion, Finish, Usage
from nbproviders.core.model import Model, ModelInfo, Stream, generate_all
from nbproviders.core.params import GenerationParams, Request, as_request
from nbproviders.errors import ClosedError, ProviderError, ServiceUnavailableError
from tests.scripted import Gate, ScriptedModel, in_virtual_time, start, turns


def test_a_model_without_stream_or_close_cannot_be_made() -> None:
    """The two methods to write are asked for at once, not at the first call."""

    class Half(Model):
        async def aclose(self) -> None: ...

    with pytest.raises(TypeError, match="stream"):
        Half()  # type: ignore[abstract]


async def test_stream_gives_chunks_and_then_the_whole() -> None:
    """Chunks are text, and after the last the completion knows what the backend told."""
    stream = ScriptedModel().stream("one two")
    assert [type(chunk) async for chunk in stream] == [Chunk, Chunk]
    assert stream.completion == stream.text == "one two"
    assert stream.completion.usage == Usage(2, 2)
    assert stream.completion.spec == "scripted:model"
    assert stream.completion.total_s >= stream.completion.ttft_s >= 0


async def test_stream_has_no_completion_before_its_end() -> None:
    """Half a text is never taken for a whole one."""
    stream = ScriptedModel().stream("one two")
    async for _ in stream:
        break
    with pytest.raises(ClosedError, match="not been read to its end"):
        _ = stream.completion
    assert stream.text == "one"


async def test_stream_that_ended_stays_ended() -> None:
    """Reading on after the end gives nothing, and closing does nothing."""
    stream = ScriptedModel().stream("one")
    assert [chunk async for chunk in stream] == ["one"]
    assert [chunk async for chunk in stream] == []
    await stream.aclose()
    assert stream.completion == "one"


async def test_stream_without_a_finish_ends_too() -> None:
    """A backend that only yields text still gives a completion, measured by its reader."""

    async def source() -> AsyncGenerator[str | Finish, None]:
        yield "only text"

    stream = Stream(source(), Request("x", GenerationParams(seed=3)), "a:b")
    assert [chunk async for chunk in stream] == ["only text"]
    assert (stream.completion.finish, stream.completion.params.seed) == ("stop", 3)


async def test_leaving_a_stream_cancels_it() -> None:
    """The block's end stops the generation, wherever it is."""
    model = ScriptedModel()
    async with model.stream("one two") as stream:
        await anext(stream)
    assert model.cancelled.is_set()
    assert model.running == 0


@in_virtual_time
async def test_dropping_a_stream_cancels_it() -> None:
    """Losing the last reference stops the generation as well."""
    model = ScriptedModel()
    stream = model.stream("one two")
    await anext(stream)
    del stream
    gc.collect()
    await turns()
    assert model.cancelled.is_set()


async def test_generate_is_the_stream_read_to_its_end() -> None:
    """generate and stream are the same text, and overrides reach the model."""
    model = ScriptedModel()
    got = await model.generate("one two", seed=4)
    assert type(got) is Completion
    assert got == "one two"
    assert got.params.seed == 4
    assert model.requests[0].whole


async def test_raw_of_a_bare_model_is_itself() -> None:
    """A model with nothing underneath is its own raw object."""
    model = ScriptedModel()
    assert model.raw is model


@in_virtual_time
async def test_generate_all_keeps_order_and_limit() -> None:
    """Results stand where their prompts stood, and no more than `parallel` run at once."""
    gate = Gate()
    model = ScriptedModel(gate=gate, parallel=3)
    work = start(generate_all(model, [as_request(str(n)) for n in range(10)]))
    await turns()
    assert model.running == 3
    gate.open()
    assert await work == [str(n) for n in range(10)]
    assert model.most_running == 3


@in_virtual_time
async def test_generate_all_isolates_failures() -> None:
    """A failed request takes only its own place, and each is told as soon as it is there."""

    class Picky(ScriptedModel):
        async def generate(self, prompt, params=None, **overrides):  # type: ignore[no-untyped-def]
            if prompt.prompt == "bad":
                raise ServiceUnavailableError("no")
            return await super().generate(prompt, params, **overrides)

    told: dict[int, object] = {}

    async def tell(place: int, outcome: object) -> None:
        told[place] = outcome

    requests = [as_request(p) for p in ("a", "bad", "c")]
    results = await generate_all(Picky(), requests, tell)
    assert [str(result) for result in results] == ["a", "no", "c"]
    assert isinstance(results[1], ProviderError)
    assert [told[n] for n in range(3)] == results


@in_virtual_time
async def test_cancelling_generate_all_cancels_what_runs() -> None:
    """Stop stops the requests under way, and no further one begins."""
    model = ScriptedModel(gate=Gate(), parallel=2)
    work = start(generate_all(model, [as_request(str(n)) for n in range(5)]))
    await turns()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (model.running, len(model.requests)) == (0, 2)


def test_info_has_sober_defaults() -> None:
    """A model that tells only its name takes one request at a time and holds nothing."""
    info = ModelInfo("a:b")
    assert (info.parallel, info.memory_bytes, info.context_tokens, info.can) == (
        1,
        {},
        None,
        frozenset(),
    )
