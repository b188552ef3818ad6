"""A budget in US dollars: a model that is asked only as long as the money lasts.

The most that a call can cost is reserved before it is made, and replaced by what it did cost afterwards. So
the budget holds as long as those bounds do. It knows no prices; it asks the model.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, runtime_checkable

from nbproviders.comparison.costs import dollars
from nbproviders.core.completion import FREE, Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.model import Model
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.wrapping import Wrapping
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    ForeignError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelAccessError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    UnsupportedError,
)

# What a chat template may add: at the beginning (a preamble of the service, the turn it opens for the
# answer), and round each message (its role and the marks of its beginning and end).
_PREAMBLE_TOKENS = 64
_MESSAGE_TOKENS = 16
_ROUNDING_USD = 1e-9
_NEVER_CHARGED = (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelAccessError,
    RateLimitError,
    UnsupportedError,
)
# A connection that never was: nothing was sent.
_UNCONNECTED = frozenset(
    "ClientConnectorError ClientConnectorDNSError ClientConnectorSSLError ClientConnectorCertificateError "
    "ClientProxyConnectionError ClientHttpProxyError ConnectionTimeoutError ConnectionRefusedError".split()
)


class Budget:
    """What may be spent, what was, and what calls on their way have reserved. On one event loop only.

    Parameters
    ----------
    usd
        US dollars, 0 or more.
    allow_unpriced
        Let models whose price nobody knows be asked beside it.

    Raises
    ------
    ConfigurationError
        If it is no such number.
    """

    def __init__(self, usd: float, *, allow_unpriced: bool = False) -> None:
        if isinstance(usd, bool) or not isinstance(usd, (int, float)) or not 0 <= usd < math.inf:
            raise ConfigurationError(
                f"budget_usd={usd!r} must be a number of US dollars, 0 or more.",
                hint="For example budget_usd=0.50; None sets no bound.",
            )
        self.usd = float(usd)
        self.allow_unpriced = allow_unpriced
        self.spent_usd = 0.0
        self.doubtful_usd = 0.0
        self.unpriced: dict[str, None] = {}
        self._reserved: list[float] = []
        self._settled = asyncio.Event()

    @property
    def left_usd(self) -> float:
        """What is neither spent, nor perhaps spent by calls that failed, nor reserved."""
        return self.usd - math.fsum([self.spent_usd, self.doubtful_usd, *self._reserved])

    async def reserve(self, usd: float, spec: str) -> None:
        """Reserve the most that a call can cost, once it fits.

        It waits for calls on their way that may give enough back. What was refused once is refused for
        good, and so is all that costs as much: what is spent never comes back.

        Raises
        ------
        ConfigurationError
            If it cannot fit.
        """
        while usd > self.left_usd + _ROUNDING_USD:
            rest_usd = self.usd - self.spent_usd - self.doubtful_usd
            if usd > rest_usd + _ROUNDING_USD:
                raise ConfigurationError(
                    f"{spec} was not asked: this call may cost {dollars(usd)}, and of the budget of "
                    f"{dollars(self.usd)} there is {dollars(max(rest_usd, 0.0))} left.",
                    hint="Give a greater budget_usd, or a smaller max_tokens.",
                )
            await self._settled.wait()
        self._reserved.append(usd)

    def settle(self, reserved_usd: float, spent_usd: float | None) -> None:
        """Replace a reservation by what was spent; None, if nobody knows: then all of it may be."""
        self._reserved.remove(reserved_usd)
        if spent_usd is None:
            self.doubtful_usd += reserved_usd
        else:
            self.spent_usd += spent_usd
        waited, self._settled = self._settled, asyncio.Event()
        waited.set()

    def notes(self) -> list[str]:
        """Return what the reader of a result should know."""
        notes = [f"Budget: {dollars(self.spent_usd)} of {dollars(self.usd)} spent."]
        if self.doubtful_usd:
            notes.append(
                f"Calls that failed or told no tokens may have cost up to {dollars(self.doubtful_usd)} more."
            )
        if self.unpriced:
            names = ", ".join(self.unpriced)
            notes.append(f"Of unknown price, so neither in the sum nor in the budget: {names}.")
        return notes


@runtime_checkable
class _Opens(Protocol):
    """A model that knows its price only once it is open."""

    async def open(self) -> object: ...


class Budgeted(Wrapping):
    """A model whose calls are paid from a budget. What costs nothing is not held up.

    Parameters
    ----------
    model
        Who is asked.
    budget
        Shared by all that are paid from it.
    """

    def __init__(self, model: Model, budget: Budget) -> None:
        super().__init__(model)
        self._budget = budget
        self._opened = self._free = False

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """The inner model's, if the budget allows it."""
        request = as_request(prompt, params, whole=True, **overrides)
        async with self._paid(request) as answers:
            completion = await self._model.generate(request)
            answers.append(completion)
        return completion

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        async with self._paid(request) as answers, self._model.stream(request) as stream:
            async for chunk in stream:
                yield chunk
            answers.append(stream.completion)
            yield finish_of(stream.completion)

    @asynccontextmanager
    async def _paid(self, request: Request) -> AsyncIterator[list[Completion]]:
        """Reserve what a request may cost; afterwards its answer, put into the list, tells what it did."""
        answers: list[Completion] = []
        most = await self._most(request)
        if most.usd is None or most.kind == "free":
            yield answers
            return
        await self._budget.reserve(most.usd, self._model.info.spec)
        spent_usd: float | None = None
        try:
            yield answers
        except ProviderError as error:
            spent_usd = None if maybe_charged(error) else 0.0
            raise
        finally:
            if answers:
                spent_usd = 0.0 if replayed(answers[-1]) else answers[-1].cost.usd
            self._budget.settle(most.usd, spent_usd)

    async def _most(self, request: Request) -> Cost:
        """Return the most that a request can cost.

        Raises
        ------
        ConfigurationError
            If nobody knows, and that is not allowed.
        """
        if self._free:  # what is computed here stays free, also when it has to be loaded again
            return FREE
        usage = most_tokens(request)
        cost = self._model.cost(usage)
        if cost.usd is None and not self._opened and isinstance(self._model, _Opens):
            await self._model.open()
            self._opened = True
            cost = self._model.cost(usage)
        self._free = cost.kind == "free"
        spec, budget = self._model.info.spec, self._budget
        if cost.usd is None and not budget.allow_unpriced:
            raise ConfigurationError(
                f"{spec} was not asked: nobody knows its price, so that it cannot be held to the "
                f"budget of {dollars(budget.usd)}.",
                hint="To ask it all the same, at a cost that is in no sum: allow_unpriced=True.",
            )
        if cost.usd is None:
            budget.unpriced[spec] = None
        return cost


def most_tokens(request: Request) -> Usage:
    """Return the most tokens that a request can be charged for.

    A prompt counts a token for each of its bytes in UTF-8. It is about a quarter of that in English, but no
    tokenizer in use makes a token of less than a byte, while any lower figure is too low for some text:
    Thai, emoji, base64. What this reserves too much comes back with the answer.

    Raises
    ------
    ConfigurationError
        Without ``max_tokens``.
    """
    if request.params.max_tokens is None:
        raise ConfigurationError(
            "Without max_tokens nobody knows what an answer may cost.", hint="Give max_tokens=256."
        )
    prompt = request.prompt
    texts = [prompt] if isinstance(prompt, str) else [str(turn["content"]) for turn in prompt]
    size = sum(len(text.encode("utf-8", "surrogatepass")) + _MESSAGE_TOKENS for text in texts)
    return Usage(size + _PREAMBLE_TOKENS, request.params.max_tokens)


def maybe_charged(error: ProviderError) -> bool:
    """Whether a service may have worked, and charge for it, though its answer did not come.

    So after a timeout, after a connection that broke once it was there, and if something failed that
    nobody knows. Not if nothing was sent, or if the service said that it refused or failed.
    """
    members: list[tuple[str, ProviderError]] | None = getattr(error, "errors", None)
    if members:  # a router's: all that were asked
        return any(maybe_charged(one) for _, one in members)
    if isinstance(error, _NEVER_CHARGED):
        return False
    cause = error.__cause__
    if isinstance(cause, ForeignError):
        return cause.type_name not in _UNCONNECTED
    return not isinstance(error, ServiceUnavailableError)


def replayed(completion: Completion) -> bool:
    """Whether it came from a recording: its cost was paid when that was made."""
    return completion.spec.startswith("replay:")
