"""Promises of a model by way of its lease: there when it is needed, never holding weights itself."""

from __future__ import annotations

import gc
import weakref

import pytest

import nbproviders as nbp
from nbproviders.core.params import Request
from nbproviders.errors import ClosedError, InsufficientMemoryError, ProviderError
from nbproviders.residency.entry import State
from nbproviders.residency.leased import LeasedModel
from tests.scripted import Gate, ScriptedLoader, ScriptedModel, house, in_virtual_time, start, turns


@in_virtual_time
async def test_the_first_call_loads() -> None:
    """Nothing loads before it is asked for; then it stays."""
    home, loader = house(), ScriptedLoader()
    model = LeasedModel(home, loader)
    assert (loader.loads, model.info.spec, model.info.parallel) == (0, "scripted:a", 1)
    assert await model.generate("one two") == "one two"
    assert await model.generate("three") == "three"
    assert loader.loads == 1


@in_virtual_time
async def test_streaming_and_generating_are_the_same() -> None:
    """Both give the text and tell the reference as written, whatever the model calls itself."""
    model = LeasedModel(house(), ScriptedLoader())
    stream = model.stream("one two")
    assert [chunk async for chunk in stream] == ["one", " two"]
    whole = await model.generate("one two")
    assert stream.completion == whole
    assert stream.completion.spec == whole.spec == model.info.spec == "scripted:a"
    assert stream.completion.usage == whole.usage


@in_virtual_time
async def test_a_call_holds_the_model_until_it_ends() -> None:
    """A running call is a hard lease; ended, failed or left early it is none."""
    home, gate = house(), Gate()
    loader = ScriptedLoader(make=lambda: ScriptedModel(gate=gate))
    model = LeasedModel(home, loader)
    call = start(model.generate("x"))
    await turns()
    assert [(r.state, r.running) for r in home.residents()] == [(State.HOT, 1)]
    gate.open()
    await call
    assert home.residents()[0].running == 0
    async with model.stream("one two") as stream:
        await anext(stream)
        assert home.residents()[0].running == 1
    assert home.residents()[0].running == 0
    assert loader.model.cancelled.is_set()


@in_virtual_time
async def test_a_failed_call_gives_the_model_back() -> None:
    """A foreign error is told with the model's reference, and the lease is over."""
    home = house()
    loader = ScriptedLoader(make=lambda: ScriptedModel(failure=ZeroDivisionError("oops")))
    model = LeasedModel(home, loader)
    with pytest.raises(ProviderError, match="scripted:a failed: ZeroDivisionError: oops"):
        await model.generate("x")
    with pytest.raises(ProviderError, match="scripted:a failed"):
        async for _ in model.stream("x"):
            pass
    assert home.residents()[0].running == 0


@in_virtual_time
async def test_what_the_reference_says_of_calls() -> None:
    """`chat` and `alone` of the reference are for requests that do not say."""
    loader = ScriptedLoader()
    model = LeasedModel(house(), loader, chat=False, alone=True)
    await model.generate("x")
    async for _ in model.stream(Request("y", chat=True)):
        pass
    first, second = loader.model.requests
    assert (first.chat, first.alone, first.whole) == (False, True, True)
    assert (second.chat, second.alone, second.whole) == (True, True, False)


@in_virtual_time
async def test_a_model_that_left_loads_again() -> None:
    """Unloaded between two calls, it is there for the second."""
    home, loader = house(), ScriptedLoader()
    model = LeasedModel(home, loader)
    await model.generate("x")
    await home.unload(lambda _: True)
    assert await model.generate("again") == "again"
    assert loader.loads == 2


@in_virtual_time
async def test_it_never_holds_weights() -> None:
    """Whoever keeps a leased model keeps no memory: it goes with the residency's."""
    home, loader = house(), ScriptedLoader()
    model = LeasedModel(home, loader)
    await model.generate("x")
    kept = weakref.ref(loader.models.pop())
    await home.unload(lambda _: True)
    gc.collect()
    assert kept() is None
    assert model.info.spec == "scripted:a"
    await model.aclose()


@in_virtual_time
async def test_raw_is_there_while_the_model_is() -> None:
    """The object underneath can be had while it is in memory; otherwise the error says what to do."""
    home, loader = house(), ScriptedLoader()
    model = LeasedModel(home, loader)
    with pytest.raises(ClosedError, match="not in memory"):
        _ = model.raw
    await model.generate("x")
    assert model.raw is loader.model


async def test_asking_a_model_for_tokens_it_cannot_tell_is_an_error() -> None:
    """Loaded first, then refused: not an empty list in silence."""
    with nbp.model("echo:echo") as m:
        with pytest.raises(nbp.UnsupportedError, match="probability of each token"):
            m.generate("a b", logprobs=True)
        with pytest.raises(nbp.UnsupportedError, match="may come next"):
            m.next_tokens("a b")
        with pytest.raises(nbp.UnsupportedError, match="probability of each token"):
            list(m.stream("a b", logprobs=True))


@in_virtual_time
async def test_defaults_fill_what_a_request_does_not_give() -> None:
    """A reference's seed is taken by requests without one, and by no other."""
    home, loader = house(), ScriptedLoader()
    model = LeasedModel(home, loader, defaults=nbp.GenerationParams(seed=7, max_tokens=5))
    assert model._asked("a").params.given() == {"seed": 7, "max_tokens": 5}
    assert model._asked("a", seed=1).params.given() == {"seed": 1, "max_tokens": 5}
    assert (await model.generate("one two")).spec == "scripted:a"


class Tight(ScriptedModel):
    """Runs out of memory a number of times, before or after the first word."""

    def __init__(self, failures: int, after: int = 0) -> None:
        super().__init__(memory_bytes={"gpu": 10})
        self.failures, self._after = failures, after

    async def _run(self, request: Request):  # type: ignore[no-untyped-def]
        count = 0
        async for item in super()._run(request):
            if self.failures and count == self._after:
                self.failures -= 1
                raise InsufficientMemoryError("the device is full")
            count += 1
            yield item


@in_virtual_time
async def test_out_of_memory_in_a_call_makes_room_once() -> None:
    """Idle models leave the device and the call is made again; whole or streamed, its text is whole."""
    for how in ("generate", "stream"):
        home, idle = house(100), ScriptedLoader("idle", needs=10)
        (await home.lease(idle)).release()
        tight = ScriptedLoader("tight", needs=10, make=lambda: Tight(1))
        model = LeasedModel(home, tight)
        if how == "generate":
            assert await model.generate("one two") == "one two"
        else:
            assert "".join([chunk async for chunk in model.stream("one two")]) == "one two"
        assert idle.model.closed == 1
        assert [e.hard for e in home.entries()] == [0]


@in_virtual_time
async def test_out_of_memory_without_a_way_out_says_who_holds_what() -> None:
    """Nobody idle, or out of memory again, or in the middle of a text: the error has the table."""
    home = house(100)
    model = LeasedModel(home, ScriptedLoader("tight", needs=10, make=lambda: Tight(9)))
    with pytest.raises(InsufficientMemoryError, match="(?s)device is full.*Nothing is in memory"):
        await model.generate("one")
    (await home.lease(ScriptedLoader("idle", needs=10))).release()
    with pytest.raises(InsufficientMemoryError, match="device is full"):
        await model.generate("one")
    model = LeasedModel(home, ScriptedLoader("late", needs=10, make=lambda: Tight(1, after=1)))
    (await home.lease(ScriptedLoader("idle", needs=10))).release()
    stream = model.stream("one two")
    with pytest.raises(InsufficientMemoryError, match="device is full"):
        [chunk async for chunk in stream]
    assert stream.text == "one"
    assert [entry.hard for entry in home.entries()] == [0, 0, 0]
