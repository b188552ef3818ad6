"""Promises that hold in every order of events: a machine leases, uses, cancels, frees and lets time pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nbproviders.core.model import Model
from nbproviders.errors import InsufficientMemoryError, ProviderError
from nbproviders.residency.entry import Lease, State
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from tests.scripted import Gate, ScriptedLoader, ScriptedModel, VirtualLoop, house, turns

BUDGET = 100
NEEDS = {"a": 40, "b": 40, "c": 60, "d": 100, "e": 130}
names = st.sampled_from(sorted(NEEDS))


class Loader(ScriptedLoader):
    """Each load waits for a word of the machine; one that is told to stop may take its time."""

    def __init__(self, name: str) -> None:
        super().__init__(name, needs=NEEDS[name])
        self.words: list[asyncio.Future[bool]] = []
        self.alive: list[ScriptedModel] = []

    async def load(self, progress: Progress) -> Model:
        self.loads += 1
        self.loading += 1
        self.most_loading = max(self.loading, self.most_loading)
        word: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.words.append(word)
        try:
            if not await asyncio.shield(word):
                raise OSError("this load fails")
        except asyncio.CancelledError:
            await asyncio.wait({word})  # a thread that notices late
            raise
        finally:
            self.words.remove(word)
            self.loading -= 1
        model = ScriptedModel(memory_bytes=self.needs)
        self.alive.append(model)
        return model


class Operation:
    """One use of a model: `inside` is the model while it is held."""

    def __init__(self, home: Residency, loader: Loader) -> None:
        self.gate = Gate()
        self.loader = loader
        self.inside: Model | None = None
        self._home = home

    async def run(self) -> None:
        async with self._home.using(self.loader) as model:
            self.inside = model
            try:
                await self.gate.passed()
            finally:
                self.inside = None


class ResidencyMachine(RuleBasedStateMachine):
    """Every rule is one step of somebody; after each, what can go on has gone on."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.asking: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.operations: list[tuple[asyncio.Task[None], Operation]] = []
        self.unloading: list[asyncio.Task[int]] = []
        self.granted = self.released = 0
        self.forced = False

    def step(self, work: Awaitable[Any] | None = None) -> None:
        async def run() -> None:
            if work is not None:
                await work
            await turns()

        self.runner.run(run())
        for task in [task for task in self.asking if task.done()]:
            self.asking.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.leases.append(task.result())
                self.granted += 1
            elif not task.cancelled():
                self.is_excused(task.exception())
        for pair in [pair for pair in self.operations if pair[0].done()]:
            self.operations.remove(pair)
            if not pair[0].cancelled() and pair[0].exception() is not None:
                self.is_excused(pair[0].exception())
        for free in [task for task in self.unloading if task.done()]:
            self.unloading.remove(free)
            assert free.result() >= 0

    def is_excused(self, error: BaseException | None) -> None:
        """Nobody is refused without a cause: no room, a load that fails, or force."""
        assert isinstance(error, ProviderError)
        failed = "this load fails" in error.message
        assert failed or isinstance(error, InsufficientMemoryError) or self.forced, error

    @initialize()
    def begin(self) -> None:
        async def make() -> None:
            self.home = house(BUDGET)

        self.runner.run(make())
        self.loaders = {name: Loader(name) for name in NEEDS}

    def start(self, work: Any) -> Any:
        return self.runner.get_loop().create_task(work)

    @rule(name=names)
    def lease(self, name: str) -> None:
        self.asking.append(self.start(self.home.lease(self.loaders[name])))
        self.step()

    @rule(name=names)
    def lease_now(self, name: str) -> None:
        lease = self.home.lease_now(self.loaders[name])
        if lease is not None:
            self.leases.append(lease)
            self.granted += 1
        self.step()

    @rule(name=names, operations=st.integers(1, 2))
    def use(self, name: str, operations: int) -> None:
        for _ in range(operations):
            operation = Operation(self.home, self.loaders[name])
            self.operations.append((self.start(operation.run()), operation))
        self.step()

    @precondition(lambda self: any(loader.words for loader in self.loaders.values()))
    @rule(data=st.data(), succeeds=st.booleans())
    def let_a_load_end(self, data: st.DataObject, succeeds: bool) -> None:
        words = [word for loader in self.loaders.values() for word in loader.words]
        word = words[data.draw(st.integers(0, len(words) - 1))]
        if not word.done():
            word.set_result(succeeds)
        self.step()

    @precondition(lambda self: self.operations)
    @rule(data=st.data(), cancel=st.booleans())
    def end_an_operation(self, data: st.DataObject, cancel: bool) -> None:
        task, operation = self.operations[data.draw(st.integers(0, len(self.operations) - 1))]
        if cancel:
            task.cancel()
        else:
            operation.gate.open()
        self.step()

    @precondition(lambda self: self.asking)
    @rule(data=st.data(), turns_before=st.integers(0, 3))
    def cancel_a_waiter(self, data: st.DataObject, turns_before: int) -> None:
        task = self.asking[data.draw(st.integers(0, len(self.asking) - 1))]
        for loader in self.loaders.values():
            for word in loader.words:
                if not word.done() and turns_before:
                    word.set_result(True)

        async def cancel() -> None:
            await turns(turns_before)
            task.cancel()

        self.step(cancel())

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        lease = self.leases[data.draw(st.integers(0, len(self.leases) - 1))]
        self.released += lease.active
        lease.release()
        if not keep:
            self.leases.remove(lease)
        self.step()

    @rule(name=names, force=st.booleans(), ask_first=st.booleans(), then_ask=st.booleans())
    def unload(self, name: str, force: bool, ask_first: bool, then_ask: bool) -> None:
        key = self.loaders[name].key
        self.forced = self.forced or force
        if ask_first:
            self.asking.append(self.start(self.home.lease(self.loaders[name])))
        self.unloading.append(
            self.start(self.home.unload(lambda entry: entry.key == key, force=force))
        )
        if then_ask:
            self.asking.append(self.start(self.home.lease(self.loaders[name])))
        self.step()

    @rule(seconds=st.sampled_from([0.1, 1, 70]))
    def let_time_pass(self, seconds: float) -> None:
        self.step(asyncio.sleep(seconds))

    @invariant()
    def charges_stay_within_the_budget(self) -> None:
        charged = sum(sum(one.bytes.values()) for one in self.home.residents())
        assert charged <= BUDGET

    @invariant()
    def what_is_alive_is_charged(self) -> None:
        alive = {
            name: [model for model in loader.alive if not model.closed]
            for name, loader in self.loaders.items()
        }
        assert sum(NEEDS[name] * len(models) for name, models in alive.items()) <= BUDGET
        for name, models in alive.items():
            known = [e.model for e in self.home.entries() if e.key == self.loaders[name].key]
            assert all(model in known for model in models)

    @invariant()
    def a_hard_lease_implies_the_model(self) -> None:
        for _, operation in self.operations:
            if operation.inside is not None:
                assert isinstance(operation.inside, ScriptedModel)
                assert operation.inside.closed == 0
        inside = sum(operation.inside is not None for _, operation in self.operations)
        assert sum(entry.hard for entry in self.home.entries()) == inside

    @invariant()
    def one_load_at_a_time_for_a_key(self) -> None:
        assert all(loader.most_loading <= 1 for loader in self.loaders.values())

    @invariant()
    def leases_are_grants_less_releases(self) -> None:
        held = sum(self.home.handles(loader.key) for loader in self.loaders.values())
        assert held == self.granted - self.released

    @invariant()
    def nothing_is_closed_twice(self) -> None:
        assert all(m.closed <= 1 for loader in self.loaders.values() for m in loader.alive)

    def teardown(self) -> None:
        try:
            self._everything_ends()
        finally:
            self.runner.close()

    def _everything_ends(self) -> None:
        if not hasattr(self, "home"):
            return
        for lease in self.leases:
            lease.release()

        async def end() -> None:
            for _ in range(40):
                for _, operation in self.operations:
                    operation.gate.open()
                for loader in self.loaders.values():
                    for word in loader.words:
                        if not word.done():
                            word.set_result(True)
                await turns()
                await asyncio.sleep(2)

        self.step(end())
        for lease in self.leases:
            lease.release()
        assert self.asking == self.operations == self.unloading == []
        self.step(self.home.unload(lambda _: True))
        assert self.home.residents() == []
        assert all(self.home.handles(loader.key) == 0 for loader in self.loaders.values())
        assert all(m.closed == 1 for loader in self.loaders.values() for m in loader.alive)
        assert {entry.state for entry in self.home.entries()} <= {State.COLD}


ResidencyMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestResidency = ResidencyMachine.TestCase
