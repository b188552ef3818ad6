"""What models have in common whose tokens are computed here: prompts, limits, batches, one thread.

An engine adds how text becomes tokens and how a batch is computed: see `TransformersModel` and others.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nbproviders.core.completion import FREE, Cost, Finish, Usage
from nbproviders.core.model import Model, Stream
from nbproviders.core.params import Message, Messages, Request, as_request
from nbproviders.core.tokens import Score, Token
from nbproviders.errors import (
    ClosedError,
    InvalidRequestError,
    ProviderError,
    foreign,
    fresh,
    mapped,
)
from nbproviders.runtimes.batching import Batcher, Ticket
from nbproviders.runtimes.rows import Row, continuation_ids, effective
from nbproviders.runtimes.threads import Worker

T = TypeVar("T")

_FALLBACK_ROOM_TOKENS = 512


class Stop:
    """Whether somebody still waits; asked by a computation, set when its caller was cancelled.

    Parameters
    ----------
    then
        Called when it is set, if the computation has begun: before, it would stop another's.
    """

    def __init__(self, then: Callable[[], object] | None = None) -> None:
        self._event = threading.Event()
        self._then = then
        self._begun = False

    def set(self) -> None:
        """Nobody waits any more."""
        self._event.set()
        if self._begun and self._then is not None:
            self._then()

    def check(self) -> None:
        """Raise `ClosedError` if nobody waits any more."""
        self._begun = True  # first: whoever sets it in between is seen below
        if self._event.is_set():
            raise ClosedError("Nobody waits for it any more.")


class LocalModel(Model):
    """A model on its own thread.

    Parameters
    ----------
    worker
        The thread that its weights were loaded on.
    limit
        Most requests in one batch.
    """

    def __init__(self, worker: Worker, limit: int) -> None:
        self._worker = worker
        self._batcher = Batcher(worker, self._run_batch, limit, self._hurry)
        self._asked = 0  # calls for probabilities that have not ended
        self._closed = False
        self._freed = False

    def stream(self, request: str | Messages | Request) -> Stream:
        """Generate; requests made together are computed together."""
        asked = as_request(request)
        return Stream(self._batcher.read(asked), asked, self.info.spec)

    def cost(self, usage: Usage) -> Cost:
        """Nothing: it is computed here."""
        return FREE

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        """Return the most likely next tokens, from one pass over the prompt."""
        return await self._told(self._next_of, request, k)

    async def score(self, request: Request, continuation: str) -> Score:
        """Return how likely a continuation is, from one pass over both."""
        return await self._told(self._score_of, request, continuation)

    async def _told(self, function: Callable[..., T], *arguments: Any) -> T:
        stop = Stop(self._hurry)
        self._asked += 1
        try:
            return await self._worker.run_to_end(function, *arguments, stop, on_cancel=stop.set)
        finally:
            self._asked -= 1

    async def aclose(self) -> None:
        """Free the weights for real, and end the thread."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._worker.run(self._end)
        finally:
            await self._worker.close()

    def _hurry(self) -> None:
        """Stop a computation that nobody waits for, if the engine can; called on the loop."""

    @property
    def _others_wait(self) -> bool:
        """Whether something else waits for the thread, so that a run takes no more into itself."""
        return self._asked > 0 or self._closed

    # On the worker's thread from here on; what an engine writes comes first

    @abstractmethod
    def _generate(self, rows: list[Row]) -> None:
        """Compute rows to their ends."""

    @abstractmethod
    def _next_tokens(self, ids: list[int], k: int, stop: Stop) -> tuple[Token, ...]:
        """Return the most likely next tokens."""

    @abstractmethod
    def _scored(self, ids: list[int], continuation: list[int], stop: Stop) -> tuple[Token, ...]:
        """Return the tokens of a continuation with their probabilities."""

    @abstractmethod
    def _free(self) -> None:
        """Free what the model holds."""

    @abstractmethod
    def _encode(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of a text, with what the model wants around it if `special`."""

    @abstractmethod
    def _templated(self, turns: Sequence[Message]) -> str:
        """Return the turns of a chat as text; only called if there is a template."""

    @property
    @abstractmethod
    def _beginning(self) -> int | None:
        """The token that begins a text."""

    @property
    @abstractmethod
    def _temperature(self) -> float:
        """What the checkpoint recommends; 0 is greedy."""

    def _run_batch(self, tickets: Sequence[Ticket]) -> None:
        taken: list[Ticket] = []
        try:
            rows = self._rows(tickets, taken)
            if rows:
                with mapped(self.info.spec):
                    self._compute(rows, taken)
        except ProviderError as error:
            for ticket in taken:
                ticket.fail(fresh(error))
        except BaseException as error:  # whatever it is, each request must be told
            failure = ProviderError(f"{self.info.spec} failed: {foreign(error)}")
            failure.__cause__ = foreign(error)
            for ticket in taken:
                ticket.fail(fresh(failure))

    def _compute(self, rows: list[Row], taken: list[Ticket]) -> None:
        """Compute a batch; an engine that takes more meanwhile notes them in `taken`."""
        self._generate(rows)

    def _rows(self, tickets: Sequence[Ticket], taken: list[Ticket]) -> list[Row]:
        """Return those requests that can run, and note all of them as taken."""
        taken[:] = [ticket for ticket in taken if not ticket.ended] + list(tickets)
        self._require_open()
        return [row for ticket in tickets if (row := self._row(ticket)) is not None]

    def _row(self, ticket: Ticket) -> Row | None:
        """Return a request ready to run; None if it was cancelled or cannot be run."""
        if ticket.cancelled:
            ticket.end("", Finish("cancelled", cost=FREE))
            return None
        try:
            with mapped(self.info.spec):
                text, chat = self._rendered(ticket.request)
                ids = self._ids(text, chat)
                room = self._room(len(ids))
        except ProviderError as error:
            ticket.fail(fresh(error))
            return None
        return Row(ticket, ids, effective(ticket.request.params, self._temperature, room), chat)

    def _end(self) -> None:
        self._freed = True
        self._free()

    def _require_open(self) -> None:
        """Refuse what was queued behind the end: native code would read memory that is gone."""
        if self._freed:
            raise ClosedError(f"{self.info.spec} was closed.", hint="Open the model again.")

    def _next_of(self, request: Request, k: int, stop: Stop) -> tuple[Token, ...]:
        self._require_open()
        stop.check()
        ids = self._ids(*self._rendered(request))
        self._room(len(ids))
        return self._next_tokens(ids, k, stop)

    def _score_of(self, request: Request, continuation: str, stop: Stop) -> Score:
        self._require_open()
        stop.check()
        text, chat = self._rendered(request)
        ids = self._ids(text, chat)
        more = self._continued(text, chat, ids, continuation)
        return Score(self._scored(ids, more, stop), self.info.spec, len(ids))

    def _continued(self, text: str, chat: bool, ids: list[int], continuation: str) -> list[int]:
        """Return the tokens of a continuation, if there is room for them."""
        more = continuation_ids(
            lambda whole: self._encode(whole, special=not chat), text, ids, continuation
        )
        self._room(len(ids) + len(more) - 1)
        return more

    def _rendered(self, request: Request) -> tuple[str, bool]:
        """Return the prompt's text, and whether it went through the chat template."""
        prompt, template = request.prompt, "chat" in self.info.can
        if isinstance(prompt, str) and (not template or request.chat is False):
            return prompt, False
        if not template:
            raise InvalidRequestError(
                f"{self.info.spec} has no chat template, so it cannot take messages.",
                hint="Give plain text instead: m.generate(text).",
            )
        if isinstance(prompt, str):
            return self._templated([{"role": "user", "content": prompt}]), True
        return self._templated(prompt), True

    def _ids(self, text: str, chat: bool) -> list[int]:
        """Return the tokens of a prompt; an empty one is the beginning token alone."""
        ids = self._encode(text, special=not chat)
        if ids:
            return ids
        if self._beginning is None:
            raise InvalidRequestError(
                f"{self.info.spec} has no beginning token, so an empty prompt says nothing to it.",
                hint="Give it some text.",
            )
        return [self._beginning]

    def _room(self, prompt_tokens: int) -> int:
        """Return how many tokens a prompt leaves free; at least one."""
        most = self.info.context_tokens
        if most is None:
            return _FALLBACK_ROOM_TOKENS
        if prompt_tokens >= most:
            raise InvalidRequestError(
                f"The prompt has {prompt_tokens} tokens; {self.info.spec} has a context of "
                f"{most}, and at least one must stay free for the answer.",
                hint=self._too_long,
            )
        return most - prompt_tokens

    _too_long = "Shorten the prompt, or choose a model with a longer context."
