"""`openai`: OpenAI's API, and every service or server that speaks its chat-completions protocol."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from nbproviders.authoring.completing import CompletionProvider, Refusal
from nbproviders.authoring.options import Option
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.completion import UNPRICED, Finish, Usage
from nbproviders.core.config import ProviderConfig
from nbproviders.core.params import Request
from nbproviders.core.tokens import Token
from nbproviders.errors import ServiceUnavailableError, UnsupportedError
from nbproviders.runtimes import chat_completions
from nbproviders.runtimes.chat_completions import Dialect, Piece
from nbproviders.runtimes.http import values

_CHAT, _PLAIN = "chat/completions", "completions"
_NEEDED = frozenset({"model", "messages", "prompt", "stream", "logprobs"})


def _path(body: Mapping[str, Any]) -> str:
    return _CHAT if "messages" in body else _PLAIN


class OpenAIProvider(CompletionProvider):
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
        **CompletionProvider.settings,
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
        self._dialects: dict[tuple[object, ...], Dialect] = {}

    def _row(self, name: str) -> Service:
        row = SERVICES.get(name)
        return row if row is not None and row.protocol == self.home.protocol else self.home

    @property
    def _dialect(self) -> Dialect:
        """How the service is spoken to, and what it was found not to take, with this model."""
        asked = self.base_url, self.config.model
        if asked not in self._dialects:
            self._dialects[asked] = self._spoken()
        return self._dialects[asked]

    def _spoken(self) -> Dialect:
        row = self.service
        # What is at another address may not know OpenAI's newest spelling; all know the old one.
        most = row.max_tokens if self._at_home else "max_tokens"
        return Dialect(most, row.seed, row.stream_usage)

    def _learn(self, refusal: Refusal, request: Request, body: Mapping[str, Any]) -> None:
        fixed = _NEEDED | (self.chosen["extra_body"] or {}).keys()
        if not self._dialect.learn(refusal.message, body.keys() - fixed):
            raise refusal

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        chat = request.chat is not False or not isinstance(request.prompt, str)
        told = chat_completions.body(request, self._named, self._dialect, chat=chat, stream=stream)
        further = self.chosen["extra_body"]
        return {**told, **further} if further else told

    async def _whole(self, request: Request, body: Mapping[str, Any]) -> tuple[str, Finish]:
        value = await self.wire.json("POST", _path(body), body)
        piece = chat_completions.read(value, self._what)
        if piece.reason is None and not piece.text:
            raise self._empty()
        return piece.text, self._end(request, piece, body, ttft_s=math.nan)

    async def _streamed(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        whole, tokens, reasoning, over = Piece(), list[Token](), list[str](), False
        async with aclosing(self.wire.events("POST", _path(body), body)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    over = True
                    break
                piece = chat_completions.read(values.event(event.data, self._what), self._what)
                tokens += piece.tokens
                reasoning.append(piece.reasoning)
                whole.reason = piece.reason or whole.reason
                whole.usage = piece.usage or whole.usage
                whole.refused |= piece.refused
                if piece.text:
                    whole.text = piece.text
                    yield piece.text
        if not over and whole.reason is None:
            raise values.cut_off(self._what)
        if whole.reason is None and not whole.text:
            raise self._empty()
        whole.tokens, whole.reasoning = tuple(tokens), "".join(reasoning)
        yield self._end(request, whole, body)

    def _empty(self) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"{self._what}: the answer holds no completion.", hint="Check base_url and the model."
        )

    def _end(
        self, request: Request, piece: Piece, body: Mapping[str, Any], ttft_s: float | None = None
    ) -> Finish:
        ignored = self._dialect.ignored(request, body)
        params = request.params.merged(**dict.fromkeys(ignored)) if ignored else request.params
        usage = piece.usage or Usage()
        return Finish(
            "filtered" if piece.refused else piece.reason or "stop",
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
        return await self._replied(_CHAT, told)

    async def _list_models(self) -> list[str]:
        found = values.rows(await self.wire.json("GET", "models"), self.config.name)
        return sorted({row["id"] for row in found})
