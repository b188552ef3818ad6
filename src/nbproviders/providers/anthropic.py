"""`anthropic`: Anthropic's messages API, and services that speak it."""

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
from nbproviders.core.completion import Finish, finish_of
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Stream
from nbproviders.core.params import Request
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ServiceUnavailableError,
    UnsupportedError,
)
from nbproviders.runtimes import anthropic_messages
from nbproviders.runtimes.anthropic_messages import Answer, Dialect
from nbproviders.runtimes.chat_completions import reply

_MESSAGES, _MODELS = "v1/messages", "v1/models"
_MOST_TEMPERATURE = 1.0
_PAGE = 1000
_THINKING_HINT = (
    "This model decides by itself how long it thinks. Leave thinking_tokens out; "
    'extra_body={"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}} steers it.'
)


class AnthropicProvider(HostedProvider):
    """Messages, in turns; a plain text is one turn of the user's.

    Parameters
    ----------
    config
        ``base_url`` as Anthropic's own packages take it, without ``/v1``.
    **settings
        ``parallel``, ``stream``, ``max_tokens``, ``thinking_tokens``, ``prompt_caching``, ``extra_body``.
    """

    name = "anthropic"
    home: ClassVar[Service] = SERVICES["anthropic"]
    settings: ClassVar[Mapping[str, Option]] = {
        **HostedProvider.settings,
        "stream": Option(
            (bool,),
            True,
            "Ask for a stream even where only the whole answer is wanted: a long answer is no long silence, "
            "and the first token's time is known.",
        ),
        "max_tokens": Option(
            (int,),
            4096,
            "Most new tokens where a request does not say; the service wants a number.",
        ),
        "thinking_tokens": Option(
            (int,), help="Have the model think first, for so many tokens at most; 1024 or more."
        ),
        "prompt_caching": Option(
            (bool,), False, "Have the service keep the beginning of a prompt for the next one."
        ),
        "extra_body": Option(
            (dict,), help="Further fields of each request, as the service has them."
        ),
    }
    takes = frozenset({"temperature", "max_tokens", "top_p", "stop"})
    can = frozenset({"chat", "proxy"})
    calls: ClassVar[Mapping[str, str]] = {"messages.create": "create"}

    def __init__(self, config: ProviderConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        self._dialect = Dialect()
        for name in ("max_tokens", "thinking_tokens"):
            value = self.chosen[name]
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1.")

    @property
    def base_url(self) -> str:
        """Where it is; the protocol's version, if it was given with it, is left out."""
        return super().base_url.removesuffix("/v1")

    def _headers(self) -> Mapping[str, str]:
        key = self._secret()
        told = {"anthropic-version": anthropic_messages.VERSION}
        return told if key is None else {**told, "x-api-key": key}

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask; parameters that the model is told not to take are left out, and told."""
        if request.whole:
            text, end = await self.complete(request)
            yield text
            yield end
            return
        self._check(request)
        while True:  # each further round asks for one parameter less
            body = self._body(request)
            try:
                async with aclosing(self._streamed(request, body)) as parts:
                    async for part in parts:
                        yield part
            except (InvalidRequestError, AuthenticationError) as error:  # before the first piece
                self._learn(error, request, body)
            else:
                return

    async def complete(self, request: Request) -> tuple[str, Finish]:
        """Return a whole answer; that of a stream which breaks may be asked for again."""
        self._check(request)
        while True:
            body = self._body(request)
            try:
                if body.get("stream"):
                    return await self._gathered(request, body)
                answer = Answer(self._what)
                text = answer.whole(await self.wire.json("POST", _MESSAGES, body))
                return text, self._end(request, body, answer, ttft_s=math.nan)
            except (InvalidRequestError, AuthenticationError) as error:
                self._learn(error, request, body)

    def _learn(
        self,
        error: InvalidRequestError | AuthenticationError,
        request: Request,
        body: Mapping[str, Any],
    ) -> None:
        """Return if there is another way to ask; else the error is the caller's to know."""
        if isinstance(error, AuthenticationError):
            self._refused()
        elif self._dialect.learn(error.message, body) and self._body(request) != body:
            return
        elif "thinking.type.enabled" in error.message:
            error.hint = _THINKING_HINT
        raise error

    def _check(self, request: Request) -> None:
        """Refuse what the service could only answer otherwise than it was asked."""
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
        temperature = request.params.temperature
        if temperature is not None and temperature > _MOST_TEMPERATURE:
            raise InvalidRequestError(
                f"{self._what} cannot generate with temperature={temperature}.",
                hint="Anthropic's models take 0 to 1.",
            )

    def _body(self, request: Request) -> dict[str, Any]:
        model = self.config.model
        if not model:
            raise ConfigurationError(
                f"{self.config.name} was not told which model to ask.",
                hint=f"Write model=…, or {self.config.name}:model in a reference.",
            )
        extra = dict(self.chosen["extra_body"] or {})
        told = anthropic_messages.body(request, model, max_tokens=self._max_tokens(request))
        budget = self.chosen["thinking_tokens"]
        if budget:
            told["thinking"] = {"type": "enabled", "budget_tokens": budget}
        if self.chosen["prompt_caching"]:
            told["cache_control"] = {"type": "ephemeral"}
        if not request.whole or self.chosen["stream"]:
            told["stream"] = True
        thinking = {**told, **extra}.get("thinking") or {}
        thinks = thinking.get("type") in ("enabled", "adaptive")
        return {**told, **self._dialect.fields(request, thinks=thinks), **extra}

    def _max_tokens(self, request: Request) -> int:
        """Return the limit to send: by default there is room for the text beside the thoughts."""
        asked, budget = request.params.max_tokens, self.chosen["thinking_tokens"] or 0
        if asked is None:
            return int(self.chosen["max_tokens"]) + budget
        if budget and asked <= budget:
            raise InvalidRequestError(
                f"max_tokens={asked} leaves no room for a text beside thinking_tokens={budget}: "
                "the limit counts both.",
                hint=f"Ask for more than {budget} tokens, or give thinking less.",
            )
        return asked

    async def _gathered(self, request: Request, body: Mapping[str, Any]) -> tuple[str, Finish]:
        """Return a streamed answer as a whole; the stream tells when its first piece came."""
        async with Stream(self._streamed(request, body), request, self._what) as stream:
            async for _ in stream:
                pass
            return stream.text, finish_of(stream.completion)

    async def _streamed(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        answer = Answer(self._what)
        async with aclosing(self.wire.events("POST", _MESSAGES, body)) as events:
            async for event in events:
                text = answer.event(self._parsed(event.data))
                if text:
                    yield text
                if answer.over:
                    break
        if not answer.over:
            raise ServiceUnavailableError(
                f"{self._what}: the stream ended before the completion did.",
                hint="What came of it is incomplete; ask again.",
            )
        yield self._end(request, body, answer)

    def _end(
        self, request: Request, body: Mapping[str, Any], answer: Answer, ttft_s: float | None = None
    ) -> Finish:
        ignored = anthropic_messages.ignored(request, body)
        used = {**dict.fromkeys(ignored), "max_tokens": body["max_tokens"]}
        cost = self.cost(answer.usage)
        if answer.cache_written_tokens and cost.kind == "known":
            cost = replace(cost, kind="estimated")  # they cost more, by how long they are kept
        return Finish(
            answer.reason or "stop",
            answer.usage,
            request.params.merged(**used),
            ttft_s=ttft_s,
            chat=True,
            batch_invariant=False,
            reasoning=answer.reasoning,
            cost=cost,
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
        """Return the answer to a body of the protocol, as ``m.messages.create(…)`` hands it on.

        Parameters
        ----------
        **body
            ``messages``, and what else the service takes; ``model`` and ``max_tokens`` are this one's if
            not given.

        Raises
        ------
        UnsupportedError
            For ``stream=True``.
        """
        if body.get("stream"):
            raise UnsupportedError(
                "messages.create gives whole answers only.",
                hint="For a stream write: async for chunk in m.stream(prompt).",
            )
        told = {"model": self.config.model, "max_tokens": self.chosen["max_tokens"], **body}
        return reply(await self.wire.json("POST", _MESSAGES, told))

    async def _list_models(self) -> list[str]:
        names: set[str] = set()
        query = {"limit": str(_PAGE)}
        while True:
            page = await self.wire.json("GET", _MODELS, query=query)
            rows = page.get("data") if isinstance(page, dict) else None
            if not isinstance(rows, list):
                raise ServiceUnavailableError(
                    f"{self.config.name}: the list of models is of another form.",
                    hint="Check base_url.",
                )
            found = {str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row}
            last = page.get("last_id")
            if not page.get("has_more") or not last or found <= names:
                return sorted(names | found)
            names |= found
            query["after_id"] = str(last)
