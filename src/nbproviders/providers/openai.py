"""`openai`: OpenAI's API, and every service or server that speaks its chat-completions protocol."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from nbproviders.authoring.hosted import HostedProvider
from nbproviders.authoring.options import Option
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.completion import UNPRICED, Finish, Usage, finish_of
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Stream
from nbproviders.core.params import Request
from nbproviders.core.tokens import Token
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ServiceUnavailableError,
    UnsupportedError,
)
from nbproviders.runtimes import chat_completions
from nbproviders.runtimes.chat_completions import Dialect, Piece

_CHAT, _PLAIN = "chat/completions", "completions"
_NEEDED = frozenset({"model", "messages", "prompt", "stream", "logprobs"})


def _path(body: dict[str, Any]) -> str:
    return _CHAT if "messages" in body else _PLAIN


class OpenAIProvider(HostedProvider):
    """Chat completions, and for plain text (``raw=True``, ``?chat=false``) the older completions.

    Registered under the name of each service in the table that speaks the protocol: ``openrouter``,
    ``groq``, ``mistral`` and others; under any name it reaches what ``base_url`` says.

    Parameters
    ----------
    config
        ``base_url`` ends as the service's documentation has it, mostly with ``/v1``.
    **settings
        ``parallel``, ``stream``, ``extra_body``.
    """

    name = "openai"
    home: ClassVar[Service] = SERVICES["openai"]
    settings: ClassVar[Mapping[str, Option]] = {
        **HostedProvider.settings,
        "stream": Option(
            (bool,),
            False,
            "Always ask for a stream, so that comparisons know the first token's time.",
        ),
        "extra_body": Option(
            (dict,), help="Further fields of each request, as the service has them."
        ),
    }
    can = frozenset({"chat", "logprobs", "proxy"})
    calls: ClassVar[Mapping[str, str]] = {"chat.completions.create": "create"}

    def __init__(self, config: ProviderConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        row = self.service
        # What is at another address may not know OpenAI's newest spelling; all know the old one.
        most = row.max_tokens if self._at_home else "max_tokens"
        self._dialect = Dialect(most, row.seed, row.stream_usage)

    def _row(self, name: str) -> Service:
        row = SERVICES.get(name)
        return row if row is not None and row.protocol == self.home.protocol else self.home

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask; fields that the service says it does not take are left out, and told."""
        if request.whole and not self.chosen["stream"]:
            text, end = await self.complete(request)
            yield text
            yield end
            return
        while True:  # each further round asks for one field less
            body = self._body(request, stream=True)
            try:
                async with aclosing(self._streamed(request, body)) as parts:
                    async for part in parts:
                        yield part
            except (InvalidRequestError, AuthenticationError) as error:  # before the first piece
                self._learn(error, body)
            else:
                return

    async def complete(self, request: Request) -> tuple[str, Finish]:
        """Return a whole answer."""
        if self.chosen["stream"]:
            return await self._gathered(request)
        while True:
            body = self._body(request, stream=False)
            try:
                value = await self.wire.json("POST", _path(body), body)
            except (InvalidRequestError, AuthenticationError) as error:
                self._learn(error, body)
                continue
            piece = chat_completions.read(value, self._what)
            if piece.reason is None and not piece.text:
                raise ServiceUnavailableError(
                    f"{self._what}: the answer holds no completion.",
                    hint="Check base_url and the model.",
                )
            return piece.text, self._end(request, piece, body, ttft_s=math.nan)

    async def _gathered(self, request: Request) -> tuple[str, Finish]:
        """Return a streamed answer as a whole; the stream tells when its first piece came."""
        async with Stream(self.answer(request), request, self._what) as stream:
            async for _ in stream:
                pass
            return stream.text, finish_of(stream.completion)

    def _learn(
        self, error: InvalidRequestError | AuthenticationError, body: dict[str, Any]
    ) -> None:
        """Return if there is another way to ask; else the error is the caller's to know."""
        if isinstance(error, AuthenticationError):
            self._refused()
        fixed = _NEEDED | (self.chosen["extra_body"] or {}).keys()
        if self._dialect.learn(error.message, body.keys() - fixed):
            return
        raise error

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        model = self.config.model
        if not model:
            raise ConfigurationError(
                f"{self.config.name} was not told which model to ask.",
                hint=f"Write model=…, or {self.config.name}:model in a reference.",
            )
        chat = request.chat is not False or not isinstance(request.prompt, str)
        told = chat_completions.body(request, model, self._dialect, chat=chat, stream=stream)
        further = self.chosen["extra_body"]
        return {**told, **further} if further else told

    async def _streamed(
        self, request: Request, body: dict[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        whole, tokens, reasoning, over = Piece(), list[Token](), list[str](), False
        async with aclosing(self.wire.events("POST", _path(body), body)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    over = True
                    break
                piece = chat_completions.read(self._parsed(event.data), self._what)
                if piece.tokens:
                    tokens += piece.tokens
                if piece.reasoning:
                    reasoning.append(piece.reasoning)
                whole.reason = piece.reason or whole.reason
                whole.usage = piece.usage or whole.usage
                if piece.text:
                    yield piece.text
        if not over and whole.reason is None:
            raise ServiceUnavailableError(
                f"{self._what}: the stream ended before the completion did.",
                hint="What came of it is incomplete; ask again.",
            )
        whole.tokens, whole.reasoning = tuple(tokens), "".join(reasoning)
        yield self._end(request, whole, body)

    def _end(
        self, request: Request, piece: Piece, body: dict[str, Any], ttft_s: float | None = None
    ) -> Finish:
        ignored = self._dialect.ignored(request, body)
        params = request.params.merged(**dict.fromkeys(ignored)) if ignored else request.params
        usage = piece.usage or Usage()
        return Finish(
            piece.reason or "stop",
            usage,
            params,
            ttft_s=ttft_s,
            chat="messages" in body,
            batch_invariant=False,
            reasoning=piece.reasoning,
            tokens=piece.tokens,
            cost=self.cost(usage) if usage.total_tokens else UNPRICED,
            ignored=ignored,
        )

    def _parsed(self, data: str) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ServiceUnavailableError(
                f"{self._what}: an event of the stream is not JSON; it begins {data[:40]!r}.",
                hint="What came of it is incomplete; ask again.",
            ) from None

    @property
    def _what(self) -> str:
        return f"{self.config.name}:{self.config.model}"

    async def create(self, **body: Any) -> Any:
        """Return the answer to a body of the protocol, as ``m.chat.completions.create(…)`` hands it on.

        Parameters
        ----------
        **body
            ``messages``, and what else the service takes; ``model`` is this one if not given.

        Raises
        ------
        UnsupportedError
            For ``stream=True``.
        """
        if body.get("stream"):
            raise UnsupportedError(
                "chat.completions.create gives whole answers only.",
                hint="For a stream write: async for chunk in m.stream(prompt).",
            )
        told = {"model": self.config.model, **body}
        return chat_completions.reply(await self.wire.json("POST", _CHAT, told))

    async def _list_models(self) -> list[str]:
        value = await self.wire.json("GET", "models")
        rows = value.get("data") if isinstance(value, dict) else value
        if not isinstance(rows, list):
            raise ServiceUnavailableError(
                f"{self.config.name}: the list of models is of another form.",
                hint="Check base_url.",
            )
        return sorted(str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row)
