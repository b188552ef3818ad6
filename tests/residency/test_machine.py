"""Promises that hold in every order of events: a machine leases, uses, cancels, has models sleep and wake,
run out of memory, pins, frees, lowers budgets and lets time pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nbproviders.core.model import Model
from nbproviders.errors import (
    InsufficientMemoryError,
    InvalidRequestError,
    ProviderError,
    UnsupportedError,
)
from nbproviders.residency.entry import State
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.lease import Lease
from nbproviders.residency.memory import HOST, Memory
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from nbproviders.residency.sleeping import Transfer
from tests.scripted import (
    Gate,
    ScriptedLoader,
    ScriptedModel,
    SleepyModel,
    VirtualLoop,
    runs_out,
    turns,
)

BUDGET, HOST_BUDGET = 100, 90
NEEDS = {"a": 40, "b": 40, "c": 60, "d": 100, "e": 130, "f": 30, "g": 60, "h": 50}
DEVICES = {name: "npu" if name in "gh" else "gpu" for name in NEEDS}
SLEEPERS = "abcfg"  # of these, f and g take no copy on the host
DISTANT = "cdf"  # have to be brought here before the first load
names = st.sampled_from("aabbccffdegh")
likely = st.sampled_from([True, True, True, True, False])


class Words:
    """What is under way here, each waiting for a word of the machine: whether it succeeds."""

    def __init__(self) -> None:
        self.words: list[asyncio.Future[bool]] = []

    async def word(self, what: str) -> None:
        word: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.words.append(word)
        try:
            if not await asyncio.shield(word):
                raise OSError(f"this {what} fails")
        except asyncio.CancelledError:
            await asyncio.wait({word})  # a thread that notices late
            raise
        finally:
            self.words.remove(word)


class Plain(ScriptedModel):
    """Its closing takes a moment."""

    async def aclose(self) -> None:
        await asyncio.sleep(0.05)
        await super().aclose()


class Sleepy(SleepyModel, Plain):
    """Falling asleep takes a moment, and each wake waits for a word."""

    def __init__(self, memory_bytes: Mapping[str, int], words: Words) -> None:
        super().__init__(memory_bytes)
        self._words = words

    async def sleep(self, progress: Progress) -> Transfer:
        await asyncio.sleep(0.05)
        progress.check()
        return await super().sleep(progress)

    async def wake(self, progress: Progress) -> Transfer:
        await self._words.word("wake")
        return await super().wake(progress)


class Loader(ScriptedLoader):
    """Each load waits for a word of the machine; one that is told to stop may take its time."""

    def __init__(self, name: str, words: Words) -> None:
        super().__init__(name, needs=NEEDS[name], device=DEVICES[name])
        self.name, self._words = name, words
        self.alive: list[ScriptedModel] = []

    async def estimate(self) -> Mapping[str, int]:
        copy = {HOST: NEEDS[self.name]} if self.name in "abc" else {}
        return Estimate(weights=self.needs, optional=copy)

    async def load(self, progress: Progress) -> Model:
        self.loads += 1
        self.loading += 1
        self.most_loading = max(self.loading, self.most_loading)
        try:
            await self._words.word("load")
        finally:
            self.loading -= 1
        held = {**self.needs, **({HOST: progress.host_bytes} if progress.host_bytes else {})}
        sleeps = self.name in SLEEPERS
        model = Sleepy(held, self._words) if sleeps else Plain(memory_bytes=held)
        self.alive.append(model)
        return model


class Distant(Loader):
    """What it takes is known only when it is here, and bringing it waits for a word as well."""

    def __init__(self, name: str, words: Words) -> None:
        super().__init__(name, words)
        self.here = False
        self.coming = self.most_coming = 0

    async def download(self, progress: Progress) -> None:
        assert not progress.cancelled
        if self.here:
            return
        self.coming += 1
        self.most_coming = max(self.coming, self.most_coming)
        try:
            await self._words.word("download")
        finally:
            self.coming -= 1
        self.here = True

    async def estimate(self) -> Mapping[str, int]:
        return await super().estimate() if self.here else {}

    async def load(self, progress: Progress) -> Model:
        assert self.here
        return await super().load(progress)


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
                assert is_awake(model)


def is_awake(model: Model) -> bool:
    assert isinstance(model, ScriptedModel)
    return not model.closed and getattr(model, "awake", True)


def budget(gpu: int) -> dict[str, int]:
    return {"gpu": gpu, "npu": BUDGET, HOST: HOST_BUDGET}


class ResidencyMachine(RuleBasedStateMachine):
    """Every rule is one step of somebody; after each, what can go on has gone on."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.asking: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.operations: list[tuple[asyncio.Task[None], Operation]] = []
        self.unloading: list[asyncio.Task[int]] = []
        self.groups: list[tuple[asyncio.Task[list[Lease]], int]] = []
        self.others: list[asyncio.Task[Any]] = []
        self.granted = self.released = 0
        self.forced = False
        self.pinned: set[str] = set()
        self.allowed = BUDGET

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
        for group in [group for group in self.groups if group[0].done()]:
            self.groups.remove(group)
            task, size = group
            if not task.cancelled() and task.exception() is None:
                assert len(task.result()) == size
                self.leases += task.result()
                self.granted += size
            elif not task.cancelled():
                self.is_excused(task.exception())
        for other in [task for task in self.others if task.done()]:
            self.others.remove(other)
            if not other.cancelled() and other.exception() is not None:
                self.is_excused(other.exception())

    def is_excused(self, error: BaseException | None) -> None:
        """Nobody is refused without a cause: no room, a load that fails, or force."""
        assert isinstance(error, ProviderError)
        failed = any(f"this {what} fails" in error.message for what in ("load", "wake", "download"))
        failed = failed or isinstance(error, (UnsupportedError, InvalidRequestError))
        assert failed or isinstance(error, InsufficientMemoryError) or self.forced, error

    @initialize()
    def begin(self) -> None:
        async def make() -> None:
            self.home = Residency(Memory(budget(BUDGET)), asyncio.get_running_loop().time)

        self.runner.run(make())
        self.words = Words()
        self.loaders = {
            name: (Distant if name in DISTANT else Loader)(name, self.words) for name in NEEDS
        }

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

    @rule(wanted=st.lists(names, min_size=1, max_size=3))
    def lease_together(self, wanted: list[str]) -> None:
        loaders = [self.loaders[name] for name in wanted]
        self.groups.append((self.start(self.home.lease_all(loaders)), len(wanted)))
        self.step()

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def cancel_a_group(self, data: st.DataObject) -> None:
        self.groups[data.draw(st.integers(0, len(self.groups) - 1))][0].cancel()
        self.step()

    @rule(name=names)
    def sleep_by_hand(self, name: str) -> None:
        entry = self.home.find(self.loaders[name].key)
        if entry is not None and entry.state is State.HOT:
            self.others.append(self.start(self.home.sleep(entry)))
        self.step()

    @rule(name=names)
    def pin(self, name: str) -> None:
        self.others.append(self.start(self.home.pin(self.loaders[name])))
        self.step()

    @rule(name=names)
    def unpin(self, name: str) -> None:
        entry = self.home.find(self.loaders[name].key)
        self.pinned.discard(name)

        async def unpin() -> None:
            if entry is not None:
                self.home.unpin(entry)

        self.step(unpin())

    @rule(name=names)
    def run_out_of_memory(self, name: str) -> None:
        loader = self.loaders[name]
        entry = self.home.find(loader.key)
        if entry is not None and entry.hard:
            self.others.append(self.start(runs_out(self.home, loader)))
        self.step()

    @rule(allowed=st.sampled_from([50, 80, BUDGET]))
    def allow(self, allowed: int) -> None:
        async def change() -> None:
            self.home.memory.set_budget(budget(allowed))
            self.home.settle()

        self.allowed = allowed
        self.step(change())

    @rule(name=names, keep_s=st.sampled_from([None, 5.0, 100.0]))
    def keep(self, name: str, keep_s: float | None) -> None:
        self.home.memory.set_keep(keep_s)
        self.step()

    @precondition(lambda self: self.words.words)
    @rule(data=st.data(), succeeds=likely)
    def let_what_is_under_way_end(self, data: st.DataObject, succeeds: bool) -> None:
        words = self.words.words
        word = words[data.draw(st.integers(0, len(words) - 1))]
        if not word.done():
            word.set_result(succeeds)
        self.step()

    @precondition(lambda self: self.words.words)
    @rule()
    def let_all_of_them_end(self) -> None:
        for word in self.words.words:
            if not word.done():
                word.set_result(True)
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
        for word in self.words.words:
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
        self.pinned.discard(name)
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
        for device, most in budget(BUDGET).items():
            assert sum(one.bytes.get(device, 0) for one in self.home.residents()) <= most

    @invariant()
    def what_is_too_much_is_wanted(self) -> None:
        there = [
            entry
            for entry in self.home.entries()
            if "gpu" in entry.charges
            and entry.freeing is None
            and entry.state is not State.DRAINING
        ]
        if sum(entry.charges["gpu"] for entry in there) > self.allowed:
            assert not [entry for entry in there if entry.idle]

    @invariant()
    def what_is_alive_is_charged(self) -> None:
        alive = {
            name: [model for model in loader.alive if not model.closed]
            for name, loader in self.loaders.items()
        }
        for name, models in alive.items():
            known = [e for e in self.home.entries() if e.key == self.loaders[name].key]
            assert all(model in [entry.model for entry in known] for model in models)
            on_device = NEEDS[name] * sum(is_awake(model) for model in models)
            assert on_device <= sum(entry.charges.get(DEVICES[name], 0) for entry in known)

    @invariant()
    def who_is_asleep_says_so(self) -> None:
        for entry in self.home.entries():
            if entry.state is State.HOT:
                assert entry.model is not None
                assert is_awake(entry.model)
            if entry.state is State.WARM:
                assert entry.model is not None
                assert not is_awake(entry.model)
                assert set(entry.charges) <= {HOST}

    @invariant()
    def what_is_pinned_stays(self) -> None:
        pinned = {entry.key.model for entry in self.home.entries() if entry.pinned}
        assert self.pinned <= pinned
        self.pinned = pinned
        for entry in self.home.entries():
            assert not entry.pinned or entry.state is State.HOT

    @invariant()
    def a_hard_lease_implies_the_model(self) -> None:
        for _, operation in self.operations:
            if operation.inside is not None:
                assert is_awake(operation.inside)
        inside = sum(operation.inside is not None for _, operation in self.operations)
        # A group's leases are granted one by one, and are soft only when all have come.
        hard = sum(entry.hard for entry in self.home.entries())
        assert inside <= hard <= inside + sum(size for _, size in self.groups)

    @invariant()
    def one_load_at_a_time_for_a_key(self) -> None:
        assert all(loader.most_loading <= 1 for loader in self.loaders.values())
        distant = [one for one in self.loaders.values() if isinstance(one, Distant)]
        assert all(loader.most_coming <= 1 for loader in distant)

    @invariant()
    def leases_are_grants_less_releases(self) -> None:
        held = sum(self.home.handles(loader.key) for loader in self.loaders.values())
        assert held == self.granted - self.released

    @invariant()
    def nothing_is_closed_twice(self) -> None:
        assert all(m.closed <= 1 for loader in self.loaders.values() for m in loader.alive)

    def _tasks(self) -> list[asyncio.Task[Any]]:
        pairs = [*self.operations, *self.groups]
        return [*self.asking, *self.unloading, *self.others, *(pair[0] for pair in pairs)]

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
            for entry in self.home.entries():
                self.home.unpin(entry)
            for _ in range(400):  # who waits in a queue has his turn when all before him had theirs
                if not self.words.words and all(task.done() for task in self._tasks()):
                    break
                for _, operation in self.operations:
                    operation.gate.open()
                for word in self.words.words:
                    if not word.done():
                        word.set_result(True)
                await turns()
                await asyncio.sleep(2)

        self.step(end())
        for lease in self.leases:
            lease.release()
        stuck = [(task.get_coro(), task.get_stack()) for task in self._tasks()]
        assert not stuck, (stuck, self.home.residents(), self.home.events()[-5:])
        self.step(self.home.unload(lambda _: True))
        assert self.home.residents() == []
        assert all(self.home.handles(loader.key) == 0 for loader in self.loaders.values())
        assert all(m.closed == 1 for loader in self.loaders.values() for m in loader.alive)
        assert {entry.state for entry in self.home.entries()} <= {State.COLD}


ResidencyMachine.TestCase.settings = settings(
    max_examples=1000,
    stateful_step_count=32,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestResidency = ResidencyMachine.TestCase
