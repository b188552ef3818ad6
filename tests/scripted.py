"""Models, loaders and providers that do as a test says, and an event loop whose time is not real."""

from __future__ import annotations

import asyncio
import functools
import itertools
import selectors
import threading
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from nbproviders.authoring.resident import ResidentProvider
from nbproviders.core import engine
from nbproviders.core.completion import UNPRICED, Cost, Finish, Usage
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.memory import HOST, Memory
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from nbproviders.residency.sleeping import Transfer

BOUND_S = 10.0  # no wait in a test is longer; it is reached only by a defect


class Gate:
    """Holds coroutines of any loop until it is opened, from any thread."""

    def __init__(self, *, opened: bool = False) -> None:
        self._lock = threading.Lock()
        self._opened = opened
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.reached = threading.Event()

    async def passed(self) -> None:
        """Return when it is open."""
        with self._lock:
            if self._opened:
                self.reached.set()
                return
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        self.reached.set()
        await future

    def open(self) -> None:
        with self._lock:
            self._opened = True
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            loop.call_soon_threadsafe(_pass, future)


def _pass(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def happened(event: threading.Event) -> None:
    """Wait for an event of another thread without holding up this loop."""
    assert await asyncio.to_thread(event.wait, BOUND_S), "it never happened"


def settled(turns: int = 5) -> None:
    """Return when the engine has done what it was handed so far."""

    async def nothing() -> None:
        await asyncio.sleep(0)

    for _ in range(turns):
        engine.default().wait(nothing, BOUND_S)


def ends(name: str) -> bool:
    """Whether every thread of this name ends by itself."""
    threads = [thread for thread in threading.enumerate() if thread.name == name]
    for thread in threads:
        thread.join(BOUND_S)
    return not any(thread.is_alive() for thread in threads)


class ScriptedModel(Model):
    """Writes the prompt back word by word.

    Each word passes `gate`; `failure` is raised instead of the last word; `closing` is raised by the
    end. What happens to it is counted.
    """

    def __init__(
        self,
        *,
        gate: Gate | None = None,
        failure: BaseException | None = None,
        closing: BaseException | None = None,
        parallel: int = 1,
        memory_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self._gate, self._failure, self._closing = gate, failure, closing
        self.info = ModelInfo("scripted:model", parallel, dict(memory_bytes or {}))
        self.requests: list[Request] = []
        self.running = self.most_running = self.closed = 0
        self.ended = threading.Event()
        self.cancelled = threading.Event()

    def stream(self, request: str | Messages | Request) -> Stream:
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            text = request.prompt if isinstance(request.prompt, str) else str(request.prompt)
            words = text.split(" ")
            for count, word in enumerate(words):
                if self._gate is not None:
                    await self._gate.passed()
                if self._failure is not None and count == len(words) - 1:
                    raise self._failure
                yield f" {word}" if count else word
            yield Finish(usage=Usage(len(words), len(words)), params=request.params)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
            self.ended.set()

    async def aclose(self) -> None:
        self.closed += 1
        if self._closing is not None:
            raise self._closing


class SlowToLeave(ScriptedModel):
    """Its closing takes until a gate lets it."""

    def __init__(self, leaving: Gate, memory_bytes: Mapping[str, int] | None = None) -> None:
        super().__init__(memory_bytes=memory_bytes)
        self._leaving = leaving

    async def aclose(self) -> None:
        await self._leaving.passed()
        await super().aclose()


class SleepyModel(ScriptedModel):
    """One that can sleep: it keeps a copy on the host if one was granted, else its files.

    `failure` is raised by the next sleep or wake; each wake passes `gate`. What it says of itself is checked:
    nobody puts it to sleep while it is used, and nobody uses it while it sleeps.
    """

    def __init__(self, memory_bytes: Mapping[str, int], gate: Gate | None = None) -> None:
        super().__init__(memory_bytes=memory_bytes)
        self.info = replace(self.info, can=frozenset({"sleep"}))
        self.awake = True
        self.gate = gate
        self.sleeps = self.wakes = 0
        self.upset: BaseException | None = None

    def _raise(self) -> None:
        upset, self.upset = self.upset, None
        if upset is not None:
            raise upset

    async def sleep(self, progress: Progress) -> Transfer:
        assert self.awake
        assert not self.closed
        await asyncio.sleep(0)
        self._raise()
        self.awake = False
        self.sleeps += 1
        return Transfer({d: n for d, n in self.info.memory_bytes.items() if d == HOST})

    async def wake(self, progress: Progress) -> Transfer:
        assert not self.awake
        assert not self.closed
        if self.gate is not None:
            await self.gate.passed()
        progress.check()
        self._raise()
        self.awake = True
        self.wakes += 1
        held = self.info.memory_bytes
        moved = sum(n for device, n in held.items() if device != HOST)
        return Transfer(held, moved, "host copy" if HOST in held else "files")


class PricedModel(Model):
    """Takes a price for each token, of a prompt that has one for each byte.

    Parameters
    ----------
    usd
        Of a token; None: nobody knows it.
    writes
        Tokens of the answer; a failure takes its place, `charged` or not. Each call takes the next.
    takes_s
        Seconds that it takes; each call takes the next.
    """

    def __init__(
        self,
        name: str = "model",
        usd: float | None = 0.001,
        *,
        writes: Sequence[int | tuple[BaseException, bool]] = (5,),
        takes_s: Sequence[float] = (0.0,),
        parallel: int = 1,
    ) -> None:
        self.info = ModelInfo(f"priced:{name}", parallel)
        self.usd = usd
        self.requests: list[Request] = []
        self.charged_usd = 0.0
        self._writes, self._takes_s = itertools.cycle(writes), itertools.cycle(takes_s)

    def cost(self, usage: Usage) -> Cost:
        if self.usd is None:
            return UNPRICED
        return Cost(usage.total_tokens * self.usd, "known" if self.usd else "free")

    def stream(self, request: str | Messages | Request) -> Stream:
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        self.requests.append(request)
        writes, takes_s = next(self._writes), next(self._takes_s)
        most = request.params.max_tokens or 0
        read = len(str(request.prompt).encode())
        await asyncio.sleep(takes_s)
        if isinstance(writes, tuple):
            failure, charged = writes
            self.charged_usd += charged * (self.cost(Usage(read, most)).usd or 0.0)
            raise failure
        usage = Usage(read, min(writes, most))
        self.charged_usd += self.cost(usage).usd or 0.0
        yield "x" * usage.completion_tokens
        yield Finish(usage=usage, params=request.params, cost=self.cost(usage))

    async def aclose(self) -> None:
        """Nothing to free."""


class ScriptedLoader:
    """Loads what its script says, when its gate lets it."""

    def __init__(
        self,
        name: str = "a",
        *,
        needs: int = 0,
        device: str = "gpu",
        gate: Gate | None = None,
        failure: BaseException | None = None,
        make: Callable[[], Model] | None = None,
    ) -> None:
        self.spec = ModelSpec.of("scripted", name)
        self.key = ResourceKey("scripted", name, "{}")
        self.needs = {device: needs} if needs else {}
        self.gate, self.failure = gate, failure
        self.make = make or (lambda: ScriptedModel(memory_bytes=self.needs))
        self.loads = self.loading = self.most_loading = self.cancelled = 0
        self.models: list[Model] = []

    async def estimate(self) -> Mapping[str, int]:
        return self.needs

    async def load(self, progress: Progress) -> Model:
        self.loads += 1
        self.loading += 1
        self.most_loading = max(self.loading, self.most_loading)
        try:
            if self.gate is not None:
                await self.gate.passed()
            if self.failure is not None:
                raise self.failure
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.loading -= 1
        self.models.append(self.make())
        return self.models[-1]

    @property
    def model(self) -> ScriptedModel:
        """What was loaded last."""
        last = self.models[-1]
        assert isinstance(last, ScriptedModel)
        return last


class SleepyLoader(ScriptedLoader):
    """Loads models that can sleep, with a copy on the host where there is room for one."""

    def __init__(self, name: str = "a", *, needs: int = 0, wish: bool = True, **named: Any) -> None:
        super().__init__(name, needs=needs, **named)
        self.wish = wish

    async def estimate(self) -> Mapping[str, int]:
        return Estimate(
            weights=self.needs, optional={HOST: sum(self.needs.values())} if self.wish else {}
        )

    async def load(self, progress: Progress) -> Model:
        copy = {HOST: progress.host_bytes} if progress.host_bytes else {}
        self.make = lambda: SleepyModel({**self.needs, **copy})
        return await super().load(progress)

    @property
    def sleeper(self) -> SleepyModel:
        """What was loaded last."""
        last = self.models[-1]
        assert isinstance(last, SleepyModel)
        return last


class ScriptedProvider(ResidentProvider):
    """A provider whose every subclass counts its own loads; set `failure` or `hold` on the subclass."""

    options = None
    loads: ClassVar[list[ResourceKey]]
    models: ClassVar[list[ScriptedModel]]
    failure: ClassVar[BaseException | None] = None
    hold: ClassVar[threading.Event | None] = None
    started: ClassVar[threading.Event]
    gate: ClassVar[Gate | None] = None

    def __init__(self, tag: Any = "") -> None:
        self.tag = tag

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.loads, cls.models, cls.started = [], [], threading.Event()

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        self.loads.append(key)
        self.started.set()
        while self.hold is not None and not self.hold.wait(0.01):
            progress.check()
        if self.failure is not None:
            raise self.failure
        self.models.append(ScriptedModel(gate=self.gate, parallel=4))
        return self.models[-1]


# Time that is not real


class _Jump(selectors.DefaultSelector):
    """Lets a loop that would sleep go on at once, at the time it wanted to wake."""

    now_s = 0.0
    end_s = 10_000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        if not ready and timeout:
            self.now_s += timeout
        if self.now_s > self.end_s:
            self.end_s *= 2
            raise RuntimeError("everything looks again and again for something that never comes")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: when all wait, its time jumps; when nothing would, it says so."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


Test = Callable[..., Coroutine[Any, Any, None]]


def in_virtual_time(test: Test) -> Callable[..., None]:
    """Run an async test on a `VirtualLoop`: waiting costs nothing, and a lost wake-up is an error."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*arguments, **named))

    return run


async def turns(count: int = 20) -> None:
    """Let everything that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def house(limit: int | None = None, host: int | None = None) -> Residency:
    """An empty residency by this loop's time; ``gpu`` is the device that `limit` bounds."""
    budget = {} if limit is None else {"gpu": limit}
    if host is not None:
        budget[HOST] = host
    return Residency(Memory(budget), asyncio.get_running_loop().time)


def start(work: Awaitable[Any]) -> asyncio.Task[Any]:
    """Start work beside the test."""
    return asyncio.ensure_future(work)  # type: ignore[return-value]


async def resident(home: Residency, *loaders: ScriptedLoader) -> None:
    """Have models in memory, held by nobody."""
    for loader in loaders:
        (await home.lease(loader)).release()
    await turns()


async def runs_out(home: Residency, loader: ScriptedLoader) -> None:
    """Compute something for which the model's device has too little memory the first time."""
    tries = iter([InsufficientMemoryError("the device is full")])

    async def work() -> None:
        for error in tries:
            raise error

    await home.tried_twice(loader, work)


async def operate(residency: Residency, loader: ScriptedLoader, gate: Gate) -> None:
    """Hold a model, as an operation does, until the gate opens."""
    async with residency.using(loader):
        await gate.passed()


@contextmanager
def joined(*threads: threading.Thread) -> Iterator[None]:
    """Start threads, and see each of them end."""
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(BOUND_S)
        assert not thread.is_alive()
