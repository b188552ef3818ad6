"""`anthropic`: Anthropic's messages API, and services that speak it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

from nbproviders.authoring.completing import CompletionProvider, Refusal
from nbproviders.authoring.options import Option
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.completion import Finish
from nbproviders.core.config import ProviderConfig
from nbproviders.core.params import Request
from nbproviders.errors import ConfigurationError, InvalidRequestError, UnsupportedError
from nbproviders.runtimes import anthropic_messages
from nbproviders.runtimes.anthropic_messages import Answer, Dialect
from nbproviders.runtimes.http import values

_MESSAGES, _MODELS = "v1/messages", "v1/models"
_MOST_TEMPERATURE = 1.0
_PAGE, _MOST_PAGES = 1000, 20
_THINKING_HINT = (
    "This model decides by itself how long it thinks. Leave thinking_tokens out; "
    'extra_body={"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}} steers it.'
)


class AnthropicProvider(CompletionProvider):
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
        **CompletionProvider.settings,
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
        self._dialects: dict[tuple[object, ...], Dialect] = {}
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

    @property
    def _dialect(self) -> Dialect:
        """What the service was found not to take with this model."""
        asked = self.base_url, self.config.model
        if asked not in self._dialects:
            self._dialects[asked] = Dialect()
        return self._dialects[asked]

    def _learn(self, refusal: Refusal, request: Request, body: Mapping[str, Any]) -> None:
        learnt = self._dialect.learn(refusal.message, body)
        if learnt and self._body(request, stream=bool(body.get("stream"))) != body:
            return
        if "thinking.type.enabled" in refusal.message:
            refusal.hint = _THINKING_HINT
        raise refusal

    def _within(self, request: Request) -> Request:
        self._turns_only(request)
        temperature = request.params.temperature
        if temperature is not None and temperature > _MOST_TEMPERATURE:
            raise InvalidRequestError(
                f"{self._what} cannot generate with temperature={temperature}.",
                hint="Anthropic's models take 0 to 1.",
            )
        return request

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        extra = dict(self.chosen["extra_body"] or {})
        told = anthropic_messages.body(request, self._named, max_tokens=self._max_tokens(request))
        budget = self.chosen["thinking_tokens"]
        if budget:
            told["thinking"] = {"type": "enabled", "budget_tokens": budget}
        if self.chosen["prompt_caching"]:
            told["cache_control"] = {"type": "ephemeral"}
        if stream:
            told["stream"] = True
        thinking = {**told, **extra}.get("thinking") or {}
        thinks = isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")
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

    async def _whole(self, request: Request, body: Mapping[str, Any]) -> tuple[str, Finish]:
        answer = Answer(self._what)
        text = answer.whole(await self.wire.json("POST", _MESSAGES, body))
        return text, self._end(request, body, answer, ttft_s=math.nan)

    async def _streamed(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        answer = Answer(self._what)
        async with aclosing(self.wire.events("POST", _MESSAGES, body)) as events:
            async for event in events:
                text = answer.event(values.event(event.data, self._what))
                if text:
                    yield text
                if answer.over:
                    break
        if not answer.over:
            raise values.cut_off(self._what)
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
        return await self._replied(_MESSAGES, told)

    async def _list_models(self) -> list[str]:
        names: set[str] = set()
        query = {"limit": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            page = await self.wire.json("GET", _MODELS, query=query)
            found = {row["id"] for row in values.rows(page, self.config.name)}
            more = isinstance(page, dict) and page.get("has_more") and page.get("last_id")
            if not more or found <= names:
                return sorted(names | found)
            names |= found
            query["after_id"] = str(more)
        return sorted(names)
