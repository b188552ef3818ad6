"""`CompletionProvider`: a `HostedProvider` whose service is sent a body for each completion.

The order of things is written here once: whole or streamed, and asking again without a parameter that the
service said it does not take. Bodies, and what answers mean, are the protocol's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from nbproviders.authoring.hosted import HostedProvider
from nbproviders.core.completion import Finish
from nbproviders.core.config import ProviderConfig
from nbproviders.core.params import Request
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    UnsupportedError,
)
from nbproviders.runtimes.chat_completions import reply
from nbproviders.runtimes.http.values import of_form

Refusal = InvalidRequestError | AuthenticationError


class CompletionProvider(HostedProvider):
    """Write `_body`, `_streamed` and `_whole`; the setting ``stream`` has to be among its settings."""

    # What a body says by itself; to have another there would make the answer another's.
    reserved: ClassVar[frozenset[str]] = frozenset({"model", "messages", "prompt", "stream", "n"})

    def __init__(self, config: ProviderConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        wrong = sorted(self.reserved & (self.chosen.get("extra_body") or {}).keys())
        if wrong:
            raise ConfigurationError(
                f"extra_body of {config.name} must not hold {', '.join(wrong)}.",
                hint="The request says that. For a body of your own see the provider's page.",
            )

    @property
    def streams(self) -> bool:
        """Whether a stream is asked for even where only the whole answer is wanted."""
        return bool(self.chosen["stream"])

    @abstractmethod
    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        """Return what to send for a request."""

    @abstractmethod
    def _streamed(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        """Ask for a stream, and yield the text in pieces, then its `Finish`."""

    @abstractmethod
    async def _whole(self, request: Request, body: Mapping[str, Any]) -> tuple[str, Finish]:
        """Ask for a whole answer; its `Finish` has ``ttft_s=math.nan``."""

    def _within(self, request: Request) -> Request:
        """Return a request as the service can take it, or refuse it."""
        return request

    def _learn(self, refusal: Refusal, request: Request, body: Mapping[str, Any]) -> None:
        """Return if there is another way to ask; else raise the refusal."""
        raise refusal

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask; what the service says it does not take is left out, and told."""
        if request.whole and not self.streams:
            text, end = await self.complete(request)
            yield text
            yield end
            return
        request = self._within(request)
        while True:  # each further round asks for less
            body, began = self._body(request, stream=True), False
            try:
                async with aclosing(self._streamed(request, body)) as parts:
                    async for part in parts:
                        began = True
                        yield part
            except (InvalidRequestError, AuthenticationError) as refusal:
                if began:  # a second answer must not follow half of the first
                    raise
                self._ask_otherwise(refusal, request, body, stream=True)
            else:
                return

    async def complete(self, request: Request) -> tuple[str, Finish]:
        """Return a whole answer, asked for without a stream."""
        request = self._within(request)
        while True:
            body = self._body(request, stream=False)
            try:
                return await self._whole(request, body)
            except (InvalidRequestError, AuthenticationError) as refusal:
                self._ask_otherwise(refusal, request, body, stream=False)

    def _ask_otherwise(
        self, refusal: Refusal, request: Request, body: Mapping[str, Any], *, stream: bool
    ) -> None:
        """Return if the next round asks for something else; else raise the refusal."""
        self._learn(refusal, request, body)
        if self._body(request, stream=stream) == body:
            raise refusal

    async def _replied(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a body of the user's own, from any loop."""
        value = await self._asked(lambda: self.wire.json("POST", path, body))
        with of_form("a readable", self._what):
            return reply(value)

    def _turns_only(self, request: Request) -> None:
        """Refuse what a service that knows turns of text only would answer otherwise than asked."""
        if request.chat is False and isinstance(request.prompt, str):
            raise UnsupportedError(
                f"{self._what} speaks in turns only; it cannot go on from a plain text.",
                hint="Leave raw=True and chat=false out: the text is sent as the user's turn.",
            )
        if request.logprobs:
            raise UnsupportedError(
                f"{self._what} tells no probabilities of tokens.",
                hint="Models of transformers and llama-cpp do.",
            )
