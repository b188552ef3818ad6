"""`openai`: OpenAI's API, and every service or server that speaks its chat-completions protocol."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

from nbproviders.authoring.hosted import HostedProvider
from nbproviders.authoring.options import Option
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.completion import Finish, Usage
from nbproviders.core.config import ProviderConfig
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
        while True:  # each further round asks for one field less
            body = self._body(request)
            sent = {*self._dialect.fields(request), "stream_options"} & body.keys()
            try:
                parts = (
                    self._streamed(request, body)
                    if "stream" in body
                    else self._whole(request, body)
                )
                async with aclosing(parts):
                    async for part in parts:
                        yield part
            except InvalidRequestError as error:  # told before the first piece, if at all
                if not self._dialect.learn(error.message, sent):
                    raise
            except AuthenticationError:
                self._refused()
                raise
            else:
                return

    def _body(self, request: Request) -> dict[str, Any]:
        model = self.config.model
        if not model:
            raise ConfigurationError(
                f"{self.config.name} was not told which model to ask.",
                hint=f"Write model=…, or {self.config.name}:model in a reference.",
            )
        chat = request.chat is not False or not isinstance(request.prompt, str)
        stream = not request.whole or bool(self.chosen["stream"])
        told = chat_completions.body(request, model, self._dialect, chat=chat, stream=stream)
        return {**told, **(self.chosen["extra_body"] or {})}

    async def _whole(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        chat = "messages" in body
        value = await self.wire.json("POST", _CHAT if chat else _PLAIN, body)
        piece = chat_completions.read(value, self._what)
        if piece.reason is None and not piece.text:
            raise ServiceUnavailableError(
                f"{self._what}: the answer holds no completion.",
                hint="Check base_url and the model.",
            )
        if piece.text:
            yield piece.text
        yield replace(self._end(request, piece, chat=chat), ttft_s=math.nan)

    async def _streamed(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        whole, tokens, reasoning, over = Piece(), list[Token](), list[str](), False
        chat = "messages" in body
        async with aclosing(self.wire.events("POST", _CHAT if chat else _PLAIN, body)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    over = True
                    break
                piece = chat_completions.read(self._parsed(event.data), self._what)
                tokens += piece.tokens
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
        yield self._end(request, whole, chat=chat)

    def _end(self, request: Request, piece: Piece, *, chat: bool) -> Finish:
        ignored = self._dialect.ignored(request)
        used = request.params.merged(**dict.fromkeys(ignored))
        return Finish(
            piece.reason or "stop",
            piece.usage or Usage(),
            used,
            chat=chat,
            batch_invariant=False,
            reasoning=piece.reasoning,
            tokens=piece.tokens,
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
