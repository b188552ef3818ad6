"""`Router`: one model made of several; it chooses who is asked, and asks another where that may help.

It falls back on retryable errors only, also on those that a member has retried to the end; a wrong key or
a wrong prompt is its user's to know. Never after the first chunk of a stream: nobody gets half of two
answers. It knows no provider, and keeps no prompt.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from nbproviders.core import engine
from nbproviders.core.client import Client
from nbproviders.core.closing import closing_on_failure
from nbproviders.core.completion import (
    UNPRICED,
    Chunk,
    Completion,
    Cost,
    Finish,
    Usage,
    finish_of,
)
from nbproviders.core.model import Model, ModelInfo, Stream, answer
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    ProviderError,
    fresh,
    mapped,
)
from nbproviders.routing.calls import Call, Decision, Member, Outcome, summary, unused
from nbproviders.routing.health import STRATEGIES
from nbproviders.routing.reference import Referred, as_model
from nbproviders.routing.streams import AnsweredStream, Answering, late, left_behind

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
HISTORY = 1000
_PASSED_ON = frozenset({"chat", "logprobs"})


class Router(Model):
    """A model that hands each request to one of its members.

    Parameters
    ----------
    strategy
        ``round-robin``: in turn. ``random``: any. ``first-available``: in the order of adding.
        ``best-available``: the healthiest, then the quickest; new and long unused members are tried.
        All ask the unhealthy last.
    seed
        Of ``random``.
    window
        How many of a member's last answers its health is made of.
    timeout_s
        How long a member may take for a completion, or for each next chunk of a stream; the time in which
        a reference is opened does not count. None: as long as it takes.
    name
        For tables: the router's reference is ``router:<name>``. The strategy, if none is given.
    clock
        Seconds that only grow.

    Examples
    --------
    >>> router = Router(strategy="first-available")
    >>> router.add_provider("echo:echo")
    'echo:echo'
    >>> router.route_sync("hello")
    'hello'
    """

    def __init__(
        self,
        strategy: str = "round-robin",
        *,
        seed: int | None = None,
        window: int = 20,
        timeout_s: float | None = None,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ConfigurationError(
                f"Unknown strategy {strategy!r}.", hint=f"Strategies: {', '.join(STRATEGIES)}."
            )
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ConfigurationError(f"window={window!r} must be a whole number, at least 1.")
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigurationError(f"timeout_s={timeout_s!r} must be above 0 seconds, or None.")
        self._strategy = strategy
        self._window, self._timeout_s, self._clock = window, timeout_s, clock
        self._spec = f"router:{name or strategy}"
        self._began_s = clock()
        self._rng = random.Random(seed)
        self._turns = 0
        self._closed = False
        self._members: dict[str, Member] = {}
        self._decisions: deque[Decision] = deque(maxlen=HISTORY)
        # Guards members, their health and the decisions; never held across an await.
        self._lock = threading.Lock()

    def add_provider(self, provider: Any, name: str | None = None) -> str:
        """Add a member, also while others answer, and return its name.

        Parameters
        ----------
        provider
            A provider's instance (kept, run on the engine's loop, never closed here), a reference such as
            ``"transformers:demo-m"`` (loaded when first asked), a client, a model, or another router.
        name
            For errors and tables; its reference if none is given.

        Raises
        ------
        ConfigurationError
            For what is no model, for a name that is taken, and for the router itself.
        """
        if provider is self or (isinstance(provider, Client) and provider.waist is self):
            raise ConfigurationError("A router cannot be a member of itself.")
        model = as_model(provider)
        with self._lock:
            self._refuse_if_closed()
            if name in self._members:
                raise ConfigurationError(
                    f"This router has a member {name!r} already.", hint="Give another name=…"
                )
            chosen = name or unused(model.info.spec, self._members)
            self._members[chosen] = Member(chosen, model, self._window)
        return chosen

    def remove_provider(self, name: str) -> None:
        """Take a member out; what it is answering now it answers to the end.

        Raises
        ------
        ConfigurationError
            If there is none of this name.
        """
        with self._lock:
            member = self._members.pop(name, None)
            names = ", ".join(self._members)
        if member is None:
            raise ConfigurationError(
                f"This router has no member {name!r}.", hint=f"Members: {names or 'none'}."
            )
        member.close()

    @property
    def members(self) -> tuple[str, ...]:
        """The names of its members, in the order of adding."""
        with self._lock:
            return tuple(self._members)

    @property
    def info(self) -> ModelInfo:  # type: ignore[override]  # read anew: members come, go and load
        """All members' places together; what every one of them can; the shortest context."""
        with self._lock:
            infos = [member.model.info for member in self._members.values()]
        contexts = [info.context_tokens for info in infos if info.context_tokens is not None]
        can = frozenset.intersection(*(info.can for info in infos)) if infos else frozenset()
        return ModelInfo(
            self._spec,
            parallel=max(1, sum(max(info.parallel, 1) for info in infos)),
            remote=bool(infos) and all(info.remote for info in infos),
            context_tokens=min(contexts, default=None),
            can=can & _PASSED_ON,
        )

    def cost(self, usage: Usage) -> Cost:
        """The dearest member's, for anyone may be asked; unpriced if any of them is."""
        with self._lock:
            models = [member.model for member in self._members.values()]
        found = [model.cost(usage) for model in models]
        if not found or any(cost.usd is None for cost in found):
            return UNPRICED
        return max(found, key=lambda cost: (cost.usd or 0.0, cost.kind != "free"))

    async def open(self) -> None:
        """Open the members that are references, before any is asked: then their prices are known."""
        with self._lock:
            models = [member.model for member in self._members.values()]
        for model in models:
            if isinstance(model, Referred):
                await model.open()

    async def route(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """Return one member's completion, from any loop; its ``spec`` tells who answered.

        Parameters
        ----------
        prompt
            Text or messages.
        params
            How to generate; `overrides` such as ``temperature=0`` replace single fields.

        Raises
        ------
        ProviderError
            The last error. Its message lists all members that were asked, its ``errors`` holds
            ``(name, error)`` for each.
        """
        __tracebackhide__ = True
        request = as_request(prompt, params, whole=True, **overrides)
        return await engine.default().call(lambda: self._generate(request))

    def route_sync(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        *,
        timeout_s: float | None = None,
        **overrides: Any,
    ) -> Completion:
        """The same as `route`, blocking; `timeout_s` bounds the whole."""
        __tracebackhide__ = True
        request = as_request(prompt, params, whole=True, **overrides)
        return engine.default().wait(lambda: self._generate(request), timeout_s)

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """The same as `route`."""
        __tracebackhide__ = True
        return await self.route(prompt, params, **overrides)

    def client(self) -> Client:
        """Return a client of the router, for the usual calls; closing it leaves the router open."""
        self._refuse_if_closed()
        return Client(self, _nothing, "Take another: m = router.client()")

    def stream(self, request: str | Messages | Request) -> Stream:
        """Stream from one member; on the engine's loop. In a notebook: ``router.client().stream(…)``."""
        asked = as_request(request)
        told = Answering(self._spec)
        return AnsweredStream(self._run(asked, told), asked, told)

    def history(self) -> pd.DataFrame:
        """Return the last 1,000 calls of members, oldest first: a row each, columns as in `Decision`."""
        import pandas as pd

        with self._lock:
            rows = [asdict(decision) for decision in self._decisions]
        frame = pd.DataFrame(rows, columns=list(Decision.__dataclass_fields__))
        return frame.astype({"time_s": "float64", "total_s": "float64"})

    async def aclose(self) -> None:
        """Give back what the router opened; the rest is its owners'."""
        with self._lock:
            self._closed = True
            members, self._members = list(self._members.values()), {}
        for member in members:
            member.close()

    def __repr__(self) -> str:
        return f"<{self._spec}: {', '.join(self.members) or 'no members'}>"

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._spec} was used after its end.", hint="Make another Router.")

    async def _generate(self, request: Request) -> Completion:
        async def ask(member: Member) -> Completion:
            work = answer(member.model, request)
            return await (work if self._timeout_s is None else left_behind(work, self._timeout_s))

        completion, call = await self._asked(ask)
        self._ended(call, "answered")
        return completion

    async def _run(self, request: Request, told: Answering) -> AsyncGenerator[str | Finish, None]:
        async def begin(member: Member) -> tuple[Stream, Chunk | None]:
            stream = member.model.stream(request)
            async with closing_on_failure(stream):
                return stream, await self._next(member, stream)

        (stream, chunk), call = await self._asked(begin)
        try:
            with self._noted(call):
                async with aclosing(stream):
                    while chunk is not None:
                        yield chunk
                        chunk = await self._next(call.member, stream)
                    end = stream.completion
        except ProviderError as error:
            raise summary([(call.member.name, error)]) from None
        self._ended(call, "answered")
        told.spec = end.spec
        yield finish_of(end)

    async def _next(self, member: Member, stream: Stream) -> Chunk | None:
        """Return a stream's next chunk, within the time; None at its end."""
        try:
            async with asyncio.timeout(self._timeout_s) as bound:
                with mapped(member.model.info.spec):
                    return await anext(stream, None)
        except builtins.TimeoutError:
            if not bound.expired():
                raise
            raise late(self._timeout_s) from None

    async def _asked(self, ask: Callable[[Member], Awaitable[T]]) -> tuple[T, Call]:
        """Return what the first member gives that does not fail, and its call, which has not ended."""
        failures: list[tuple[str, ProviderError]] = []
        for member in self._order():
            if member.removed:
                continue
            call = self._call(member, failures[-1][0] if failures else None)
            try:
                with self._noted(call):
                    if isinstance(member.model, Referred):
                        await member.model.open()
                        call.opened()
                    return await ask(member), call
            except ProviderError as error:
                if member.removed and isinstance(error, ClosedError):
                    continue  # it was taken out while it opened: that is no failure of the request
                failures.append((member.name, fresh(error)))
                if not error.retryable:
                    break
        raise summary(failures) if failures else self._nobody()

    @contextmanager
    def _noted(self, call: Call) -> Iterator[None]:
        """Note the end of a call that fails or is stopped in the block; one that goes well goes on."""
        end: Outcome | None = "stopped"
        failure: ProviderError | None = None
        try:
            yield
            end = None
        except ProviderError as error:
            end, failure = "failed", error
            raise
        finally:
            if end is not None:
                self._ended(call, end, failure)

    def _order(self) -> list[Member]:
        """Return all members, in the order in which this request asks them."""
        with self._lock:
            self._refuse_if_closed()
            members = list(self._members.values())
            if not members:
                raise self._nobody()
            health = [member.health for member in members]
            order = STRATEGIES[self._strategy](health, self._clock(), self._rng)
            self._turns += 1
            health[order[0]].turn = self._turns
        return [members[number] for number in order]

    def _nobody(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._spec} has no members.",
            hint='Add one: router.add_provider("transformers:demo-m")',
        )

    def _call(self, member: Member, fell_back_from: str | None) -> Call:
        with self._lock:
            return Call(member, self._clock, fell_back_from)

    def _ended(self, call: Call, outcome: Outcome, error: ProviderError | None = None) -> None:
        with self._lock:
            self._decisions.append(call.ended(outcome, error, self._strategy, self._began_s))


def _nothing() -> None:
    """A client of the router has nothing to give back."""
