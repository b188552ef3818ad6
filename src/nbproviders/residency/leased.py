"""A model by way of its lease: each call holds it in memory, loading it again if it has left."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from nbproviders.core.closing import closing_on_failure
from nbproviders.core.completion import UNPRICED, Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.model import Model, ModelInfo, Stream, require, tokens_of
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.tokens import Score, Token
from nbproviders.errors import ClosedError
from nbproviders.residency.entry import Loader, State
from nbproviders.residency.lease import Lease
from nbproviders.residency.residency import Residency

T = TypeVar("T")


class LeasedModel(Model):
    """What a client talks to. Holds the key and the way to load it; never the weights.

    Parameters
    ----------
    residency
        Where the model lives.
    loader
        How it is loaded.
    chat, alone
        What a request that does not say takes: the reference's options ``chat`` and ``invariant``.
    defaults
        Parameters that a request takes where it gives none.
    """

    def __init__(
        self,
        residency: Residency,
        loader: Loader,
        *,
        chat: bool | None = None,
        alone: bool = False,
        defaults: GenerationParams | None = None,
    ) -> None:
        self._residency = residency
        self._loader = loader
        self._chat = chat
        self._alone = alone
        self._defaults = {} if defaults is None else defaults.given()
        self._told: ModelInfo | None = None
        self._known: ModelInfo | None = None

    @property
    def loader(self) -> Loader:
        """How the model is loaded."""
        return self._loader

    @property
    def info(self) -> ModelInfo:  # type: ignore[override]  # read anew: it may have loaded since
        """The model's own; before the first load only its reference."""
        entry = self._residency.find(self._loader.key)
        if entry is not None and entry.model is not None:
            told = entry.model.info
            if told is not self._told:  # asked for at each call
                self._told, self._known = told, replace(told, spec=self._loader.spec.text)
        return self._known or ModelInfo(self._loader.spec.text)

    def _asked(self, request: str | Messages | Request, **changes: Any) -> Request:
        asked = as_request(request, **changes)
        if not (self._defaults or self._alone) and (self._chat is None or asked.chat is not None):
            return asked
        chat = self._chat if asked.chat is None else asked.chat
        params = asked.params
        if self._defaults:
            params = params.merged(**{**self._defaults, **params.given()})
        return replace(asked, params=params, chat=chat, alone=self._alone or asked.alone)

    def stream(self, request: str | Messages | Request) -> Stream:
        """Stream under a hard lease that ends when the model's computation ends."""
        asked = self._asked(request)
        return Stream(self._run(asked), asked, self._loader.spec.text)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        async with self._residency.using(self._loader) as model:
            _require_logprobs(model, request)
            # Once its first text has come, it is too late to begin anew.
            inner, first = await self._tried_twice(lambda: _begun(model, request))
            async with inner:
                if first is not None:
                    yield first
                async for chunk in inner:
                    yield chunk
                yield finish_of(inner.completion)

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """Generate under a hard lease. Not by way of `stream`: two streams for one text cost time."""
        request = self._asked(prompt, params=params, whole=True, **overrides)
        async with self._residency.using(self._loader) as model:
            _require_logprobs(model, request)
            completion = await self._tried_twice(lambda: model.generate(request))
        completion.spec = self._loader.spec.text
        return completion

    async def _tried_twice(self, work: Callable[[], Awaitable[T]]) -> T:
        return await self._residency.tried_twice(self._loader, work)

    async def open(self) -> None:
        """Have it in memory, for what only a loaded model can tell."""
        async with self._residency.using(self._loader):
            pass

    def cost(self, usage: Usage) -> Cost:
        """The loaded model's; while it is not in memory, nobody knows: see `open`."""
        entry = self._residency.find(self._loader.key)
        loaded = None if entry is None else entry.model
        return UNPRICED if loaded is None else loaded.cost(usage)

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        """The loaded model's, under a hard lease."""
        async with self._residency.using(self._loader) as model:
            asked, told = self._asked(request), tokens_of(model, "next_tokens")
            return await self._tried_twice(lambda: told.next_tokens(asked, k))

    async def score(self, request: Request, continuation: str) -> Score:
        """The loaded model's, under a hard lease."""
        async with self._residency.using(self._loader) as model:
            asked, told = self._asked(request), tokens_of(model, "score")
            found = await self._tried_twice(lambda: told.score(asked, continuation))
        return replace(found, spec=self._loader.spec.text)

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Call a method of a held resource under a hard lease."""
        async with self._residency.using(self._loader) as model:
            return await model.call(path, arguments, named)

    @property
    def raw(self) -> object:
        """The loaded object itself."""
        entry = self._residency.find(self._loader.key)
        if entry is None or entry.model is None:
            raise ClosedError(
                f"{self._loader.spec} is not in memory now.", hint="Generate something first."
            )
        # Its weights are empty then: figures of them would be wrong in silence.
        if entry.state is not State.HOT:
            raise ClosedError(
                f"The weights of {self._loader.spec} are not in memory now: it is asleep, or on its way.",
                hint="nbp.pin(m), where m is this model, brings them back and keeps them there.",
            )
        return entry.model.raw

    async def aclose(self) -> None:
        """Nothing: the lease is its holder's to give back."""


async def _begun(model: Model, request: Request) -> tuple[Stream, str | None]:
    """Return a stream and what came first of it; None if it has ended."""
    inner = model.stream(request)
    async with closing_on_failure(inner):
        return inner, await anext(inner, None)


def _require_logprobs(model: Model, request: Request) -> None:
    """Refuse rather than leave the tokens out in silence."""
    if request.logprobs:
        require(model, "logprobs")


__all__ = ["Lease", "LeasedModel"]
