"""Promises of adapting: whatever a provider returned becomes a model, or is held for its user."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nbproviders.authoring.adapted import Adapted, Held, adapt
from nbproviders.core.completion import Completion, Finish, Usage
from nbproviders.core.params import GenerationParams
from nbproviders.errors import ClosedError, ProviderError, UnsupportedError
from tests.scripted import BOUND_S, ScriptedModel, happened


class Sync:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def generate(self, prompt: Any) -> str:
        self.seen.append((prompt, threading.current_thread()))
        return f"sync {prompt}"


class Async:
    async def generate(self, prompt: str) -> str:
        await asyncio.sleep(0)
        return f"async {prompt}"


class Calling:
    """An object whose generate returns something to await, without being a coroutine function."""

    def generate(self, prompt: str) -> Any:
        return Async().generate(prompt)


async def text_of(thing: object, prompt: Any = "hi", **overrides: Any) -> Completion:
    model = adapt(thing)
    try:
        return await model.generate(prompt, **overrides)
    finally:
        await model.aclose()


async def chunks_of(thing: object) -> list[str]:
    model = adapt(thing)
    try:
        return [chunk async for chunk in model.stream("hi")]
    finally:
        await model.aclose()


async def test_a_model_is_taken_as_it_is() -> None:
    """Nothing is wrapped that is a model already."""
    model = ScriptedModel()
    assert adapt(model) is model


async def test_nothing_is_no_model() -> None:
    """None is refused with what to return."""
    with pytest.raises(ProviderError, match="returned None for x:y.\nReturn the model"):
        adapt(None, spec="x:y")


@pytest.mark.parametrize(
    ("thing", "text"),
    [(Sync(), "sync hi"), (Async(), "async hi"), (Calling(), "async hi")],
)
async def test_generate_sync_or_async(thing: object, text: str) -> None:
    """An object with generate is a model whose text comes in one chunk."""
    assert await text_of(thing) == text
    assert await chunks_of(thing) == [text]
    assert type(await text_of(thing)) is Completion


async def test_a_plain_generate_runs_on_a_thread_of_its_own() -> None:
    """Blocking code does not hold up the loop, and stays on one thread."""
    thing = Sync()
    model = adapt(thing)
    await model.generate("a")
    await model.generate("b")
    threads = {thread for _, thread in thing.seen}
    assert len(threads) == 1
    assert threads.isdisjoint({threading.current_thread()})
    await model.aclose()
    with pytest.raises(ClosedError):
        await model.generate("c")


async def test_messages_reach_it_as_dicts() -> None:
    """A chat arrives as a list of plain dicts."""
    thing = Sync()
    await text_of(thing, [{"role": "user", "content": "hi"}])
    assert thing.seen[0][0] == [{"role": "user", "content": "hi"}]


class Recorder:
    got: Any


class WithParams(Recorder):
    def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
        self.got = params
        return prompt


class WithNames(Recorder):
    def generate(self, prompt: str, temperature: float = 1, max_tokens: int = 9) -> str:
        self.got = (temperature, max_tokens)
        return prompt


class WithKeywords(Recorder):
    async def generate(self, prompt: str, **options: Any) -> str:
        self.got = options
        return prompt


class WithNothing(Recorder):
    def generate(self, prompt: str) -> str:
        self.got = ()
        return prompt


@pytest.mark.parametrize(
    ("thing", "got"),
    [
        (WithParams(), GenerationParams(temperature=0.5, seed=1)),
        (WithNames(), (0.5, 9)),
        (WithKeywords(), {"temperature": 0.5, "seed": 1}),
        (WithNothing(), ()),
    ],
)
async def test_parameters_by_signature(thing: Recorder, got: Any) -> None:
    """It gets what its signature takes: params, single ones, all that were given, or none."""
    await text_of(thing, temperature=0.5, seed=1)
    assert thing.got == got


class Streaming:
    def __init__(self) -> None:
        self.where: list[str] = []
        self.closed = threading.Event()

    def stream(self, prompt: str) -> Iterator[str]:
        for word in ("one", " two"):
            self.where.append(threading.current_thread().name)
            yield word


class AsyncStreaming:
    def __init__(self) -> None:
        self.left = threading.Event()

    async def stream(self, prompt: str) -> AsyncIterator[str]:
        try:
            yield "one"
            yield " two"
        finally:
            self.left.set()


class LateStreaming:
    async def stream(self, prompt: str) -> Any:
        return iter(["one", " two"])


class Iterable:
    """Not an async iterator itself: it makes one, as many clients' streams do."""

    def stream(self, prompt: str) -> Any:
        return self

    def __aiter__(self) -> AsyncIterator[str]:
        return AsyncStreaming().stream("")


class Listed:
    def stream(self, prompt: str) -> list[str]:
        return ["one", " two"]


@pytest.mark.parametrize(
    "make", [Streaming, AsyncStreaming, LateStreaming, Iterable, Listed], ids=lambda c: c.__name__
)
async def test_stream_sync_or_async(make: type) -> None:
    """An object with stream gives its pieces one by one, whatever kind of iterable it returns."""
    assert await chunks_of(make()) == ["one", " two"]
    assert await text_of(make()) == "one two"


async def test_a_plain_generator_runs_on_its_thread() -> None:
    """Each step of a blocking stream is computed off the loop."""
    thing = Streaming()
    await chunks_of(thing)
    assert threading.current_thread().name not in thing.where


async def test_a_plain_stream_method_runs_on_its_thread() -> None:
    """Opening a stream may block as much as reading it: it happens off the loop too."""
    where: list[threading.Thread] = []

    class Opening:
        def stream(self, prompt: str) -> Any:
            where.append(threading.current_thread())
            return iter(["one"])

    assert await chunks_of(Opening()) == ["one"]
    assert where[0] is not threading.current_thread()


async def test_leaving_a_stream_leaves_its_source() -> None:
    """Stopping early ends the author's generator, so that its `finally` runs."""
    thing = AsyncStreaming()
    model = adapt(thing)
    async with model.stream("x") as stream:
        assert await anext(stream) == "one"
    assert thing.left.is_set()
    await model.aclose()


class Both:
    def generate(self, prompt: str) -> str:
        return "whole"

    def stream(self, prompt: str) -> Iterator[str]:
        yield "in"
        yield " parts"


async def test_whole_texts_come_from_generate_and_streams_from_stream() -> None:
    """Each call uses the method made for it."""
    assert await text_of(Both()) == "whole"
    assert await chunks_of(Both()) == ["in", " parts"]


async def test_an_answer_that_is_no_text() -> None:
    """Anything but a str is refused by its type."""

    class Wrong:
        def generate(self, prompt: str) -> int:
            return 42

    with pytest.raises(ProviderError, match="Wrong.generate returned int, not str"):
        await text_of(Wrong())


async def test_a_completion_keeps_what_it_tells() -> None:
    """An author who returns a Completion has its usage and finish passed on."""

    class Telling:
        def generate(self, prompt: str) -> str:
            return Completion("x", end=Finish("length", Usage(1, 2), chat=True))

    got = await text_of(Telling())
    assert (got.finish, got.usage, got.chat) == ("length", Usage(1, 2), True)


async def test_an_answer_that_runs_out() -> None:
    """`return next(answers)` with none left is an error of the call, and leaves nobody waiting."""

    class Scripted:
        answers = iter(["only"])

        def generate(self, prompt: str) -> str:
            return next(self.answers)

    model = adapt(Scripted())
    assert await model.generate("x") == "only"
    with pytest.raises((ProviderError, RuntimeError), match="StopIteration"):
        async with asyncio.timeout(3):
            await model.generate("x")
    await model.aclose()


class Connection:
    def __init__(self) -> None:
        self.closed = 0
        self.thread: threading.Thread | None = None

    def close(self) -> None:
        self.closed += 1
        self.thread = threading.current_thread()

    def ask(self, question: str, *, loud: bool = False) -> str:
        return question.upper() if loud else question


class AsyncConnection(Connection):
    async def aclose(self) -> None:
        self.close()


@pytest.mark.parametrize("kind", [Connection, AsyncConnection])
async def test_any_other_object_is_held_and_closed(kind: type[Connection]) -> None:
    """A resource that is no model is kept, handed out as it is, and closed once."""
    thing = kind()
    model = adapt(thing, spec="x:y")
    assert type(model) is Held
    assert model.raw is thing
    with pytest.raises(UnsupportedError, match=f"holds a {kind.__name__}.*neither generate nor"):
        model.stream("x")
    await model.aclose()
    await model.aclose()
    assert thing.closed == 1


async def test_calls_of_a_held_object() -> None:
    """Plain functions run on its thread, coroutines on this loop."""
    thing = Connection()
    model = adapt(thing)
    assert isinstance(model, Held)
    assert await model.call(("ask",), ("hi",), {"loud": True}) == "HI"
    told = adapt(Async())
    assert await told.call(("generate",), ("x",), {}) == "async x"
    await told.aclose()
    await model.aclose()
    assert thing.thread is not threading.current_thread()


async def test_a_held_object_that_cannot_be_closed() -> None:
    """Not every resource has a close; its thread ends all the same."""
    model = adapt(object())
    await model.aclose()
    failing = adapt(type("Bad", (), {"close": lambda self: 1 // 0})())
    with pytest.raises(ZeroDivisionError):
        await failing.aclose()
    assert isinstance(failing, Held)
    failing._worker._thread.join(BOUND_S)
    assert not failing._worker._thread.is_alive()


async def test_an_adapted_model_tells_its_reference() -> None:
    """Its text says where it came from, and it takes several requests at once."""
    model = adapt(Async(), spec="x:y")
    assert isinstance(model, Adapted)
    assert (await model.generate("a")).spec == "x:y"
    assert model.info.parallel > 1
    await model.aclose()


async def test_stop_during_a_blocking_generate() -> None:
    """Like any model, it ends when its thread has let go: whoever holds it knows when it is free."""
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        def generate(self, prompt: str) -> str:
            started.set()
            go_on.wait(BOUND_S)
            return "late"

    model = adapt(Slow())
    call = asyncio.ensure_future(model.generate("x"))
    await happened(started)
    call.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    stopped_early = call.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    await model.aclose()
    assert not stopped_early
