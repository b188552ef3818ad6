"""The promises of `test_machine` with real models on the CPU: weights that sleep, wake and leave for real."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import nbproviders as nbp
from nbproviders.core.client import Client
from nbproviders.errors import InsufficientMemoryError, InvalidRequestError, ProviderError
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Entry, State
from tests.scripted import BOUND_S

pytest.importorskip("torch")

MODELS = {
    name: f"transformers:{name}?dtype={dtype}"
    for name, dtype in (("demo-xs", "float32"), ("demo-s", "float32"), ("demo-m", "float32"))
}
TEXTS = ("12+30=", "reverse otter:", "upper cat:")
names = st.sampled_from(sorted(MODELS))
MARGIN_BYTES = 100_000


class RealMachine(RuleBasedStateMachine):
    """Every rule is one step of somebody, on a notebook's loop; the engine goes on beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clients: list[tuple[str, Client]] = []
        self.running: list[tuple[asyncio.Task[Any], str, str]] = []
        self.home = residencies.default()

    @initialize()
    def begin(self) -> None:
        nbp.unload_all(force=True)
        self.right = right_answers()
        nbp.unload_all()
        self.budget = enough_for_two()
        nbp.set_memory(f"cpu={self.budget}", wait_s=5)

    def step(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        async def run() -> list[Any]:
            found = await asyncio.gather(*work, return_exceptions=True)
            await asyncio.sleep(0.002)
            return found

        found = self.runner.run(run())
        for failure in found:
            if isinstance(failure, BaseException) and not isinstance(failure, CancelledError):
                is_excused(failure)
        return found

    @rule(name=names)
    def open(self, name: str) -> None:
        [client] = self.step(nbp.load(MODELS[name]))
        if isinstance(client, Client):
            self.clients.append((name, client))

    @rule(pair=st.permutations(sorted(MODELS)))
    def open_two(self, pair: list[str]) -> None:
        async def both() -> tuple[Client, ...]:
            return await nbp.models(*(MODELS[name] for name in pair[:2])).open()

        [clients] = self.step(both())
        if isinstance(clients, tuple):
            self.clients += zip(pair[:2], clients, strict=True)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        _, client = self.clients.pop(data.draw(st.integers(0, len(self.clients) - 1)))
        client.close()
        client.close()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), text=st.sampled_from(TEXTS), count=st.integers(1, 3))
    def generate(self, data: st.DataObject, text: str, count: int) -> None:
        name, client = self.clients[data.draw(st.integers(0, len(self.clients) - 1))]

        async def ask() -> str:
            return str(await client.generate(text))

        for _ in range(count):
            self.running.append((self.runner.get_loop().create_task(ask()), name, text))
        self.step()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), cancel=st.booleans())
    def end(self, data: st.DataObject, cancel: bool) -> None:
        # Not before: what rules may come next must not depend on how fast this machine is.
        task, name, text = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if cancel:
            task.cancel()
        [found] = self.step(asyncio.wait_for(task, BOUND_S))
        if not isinstance(found, BaseException):
            assert found == self.right[name, text]

    @rule()
    def let_it_run(self) -> None:
        self.step(asyncio.sleep(0.05))

    @rule(name=names, how=st.sampled_from([nbp.sleep, nbp.wake, nbp.pin, nbp.unpin, nbp.unload]))
    def by_hand(self, name: str, how: Any) -> None:
        self.step(asyncio.to_thread(how, MODELS[name]))

    @invariant()
    def charges_stay_within_the_budget(self) -> None:
        if hasattr(self, "budget"):
            charged = sum(one.bytes.get("cpu", 0) for one in self.home.residents())
            assert charged <= self.budget

    @invariant()
    def weights_are_where_the_table_says(self) -> None:
        for entry in self.home.entries():
            if entry.moving is None and entry.state is State.HOT:
                assert weight_bytes(entry) > 0
            if entry.moving is None and entry.state is State.WARM:
                assert weight_bytes(entry) < MARGIN_BYTES

    @invariant()
    def leases_are_those_that_are_open(self) -> None:
        held = sum(one.handles for one in self.home.residents())
        assert held <= len(self.clients)  # of those that left, no row tells

    def teardown(self) -> None:
        try:
            for name in MODELS.values():
                nbp.unpin(name)
            self.step(*(asyncio.wait_for(task, BOUND_S) for task, *_ in self.running))
            for _, client in self.clients:
                client.close()
            models = [entry for entry in self.home.entries() if entry.model is not None]
            kept = [entry.model for entry in models]
            nbp.unload_all()
            assert self.home.residents() == []
            assert all(not left(model) for model in kept)
        finally:
            nbp.set_memory()
            self.runner.close()


def is_excused(error: BaseException | None) -> None:
    """Nobody is refused but for want of room, or because what was asked is pinned."""
    assert isinstance(error, (InsufficientMemoryError, InvalidRequestError)), repr(error)
    assert isinstance(error, ProviderError)


def weight_bytes(entry: Entry) -> int:
    return left(entry.model)


def left(model: Any) -> int:
    """Return the bytes that a model's parameters really have."""
    storages = {p.untyped_storage()._cdata: p.untyped_storage() for p in model.raw.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


_right: dict[tuple[str, str], str] = {}


def right_answers() -> dict[tuple[str, str], str]:
    """Return what each model says to each text, found once while nothing is in its way."""
    if not _right:
        for name, spec in MODELS.items():
            with nbp.model(spec) as m:
                for text in TEXTS:
                    _right[name, text] = str(m.generate(text))
    return _right


def enough_for_two() -> int:
    """Return a budget for the two largest, and not for all three."""
    sizes = sorted(nbp.will_it_fit(spec).fit.estimate["cpu"] for spec in MODELS.values())
    return sum(sizes[1:]) + sizes[0] // 2


RealMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRealModels = RealMachine.TestCase
