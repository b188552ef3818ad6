"""`yandexgpt`: the models of Yandex AI Studio, by its text generation API.

The protocol is that of https://yandex.cloud/docs/ai-studio/text-generation/api-ref; a stream's lines each
hold the whole text so far.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from nbproviders.authoring.completing import CompletionProvider
from nbproviders.authoring.options import Option
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.completion import Finish, FinishReason, Usage
from nbproviders.core.params import Request
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
    UnsupportedError,
    scrub,
)
from nbproviders.runtimes.http import values

FOLDER_VARIABLES = ("YANDEX_FOLDER_ID", "YC_FOLDER_ID")
_COMPLETION, _TOKENIZE, _MODELS = (
    "foundationModels/v1/completion",
    "foundationModels/v1/tokenize",
    "v1/models",
)
_CHEAPEST = "yandexgpt-lite"
_TEXT_MODELS = ("gpt://", "ds://")
_IAM = "t1."
_STATUS, _CALLED = "ALTERNATIVE_STATUS_", "TOOL_CALLS"
_REASONS: dict[str, FinishReason | None] = {
    "TRUNCATED_FINAL": "length",
    "CONTENT_FILTER": "filtered",
    "PARTIAL": None,
    "UNSPECIFIED": None,
    "": None,
}
# https://grpc.io/docs/guides/status-codes
_CODES: dict[int, type[ProviderError]] = {
    3: InvalidRequestError,
    4: TimeoutError,
    5: InvalidRequestError,
    7: AuthenticationError,
    8: RateLimitError,
    9: InvalidRequestError,
    11: InvalidRequestError,
    16: AuthenticationError,
}


class YandexGPTProvider(CompletionProvider):
    """Completions of a folder's models: ``yandexgpt-lite``, ``yandexgpt/rc``, or a whole model URI.

    Parameters
    ----------
    config
        ``api_key`` is an API key or an IAM token; ``folder_id`` the folder, else the environment tells.
    **settings
        ``reasoning``, ``stream``, ``data_logging``, ``parallel``.
    """

    name = "yandexgpt"
    home: ClassVar[Service] = SERVICES["yandexgpt"]
    settings: ClassVar[Mapping[str, Option]] = {
        # As many generations at once as a folder may have unless it asked for more.
        "parallel": Option((int,), 10, "Requests at once, at most 512; the others wait here."),
        "reasoning": Option((bool,), help="Whether the model reasons first, hidden."),
        "stream": Option(
            (bool,),
            False,
            "Always ask for a stream, so that comparisons know the first token's time.",
        ),
        "data_logging": Option((bool,), help="Whether the service may keep what it is asked."),
    }
    takes: ClassVar[frozenset[str]] = frozenset({"temperature", "max_tokens"})

    async def _whole(self, request: Request, body: Mapping[str, Any]) -> tuple[str, Finish]:
        answer = _Answer(self._what)
        text = answer.take(await self.wire.json("POST", _COMPLETION, body))
        return text, self._end(request, answer, ttft_s=math.nan)

    async def _streamed(
        self, request: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Finish, None]:
        answer = _Answer(self._what)
        async with aclosing(self.wire.lines("POST", _COMPLETION, body)) as lines:
            async for value in lines:
                if text := answer.take(value):
                    yield text
        yield self._end(request, answer)

    def _end(self, request: Request, answer: _Answer, ttft_s: float | None = None) -> Finish:
        if answer.reason is None:
            raise values.cut_off(self._what)
        ignored = self._ignored(request)
        return Finish(
            answer.reason,
            answer.usage,
            request.params.merged(**dict.fromkeys(ignored)),
            ttft_s=ttft_s,
            chat=True,
            batch_invariant=False,
            ignored=ignored,
        )

    def _within(self, request: Request) -> Request:
        self._turns_only(request)
        temperature = request.params.temperature
        if temperature is not None and temperature > 1:
            raise InvalidRequestError(
                f"{self._what} cannot generate with temperature={temperature}.",
                hint="Yandex's models take 0 to 1.",
            )
        return request

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        prompt = request.prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [{"role": turn["role"], "text": turn["content"]} for turn in turns]
        options = self._options(request, stream=stream)
        return {"modelUri": self._uri, "completionOptions": options, "messages": messages}

    def _options(self, request: Request, *, stream: bool) -> dict[str, Any]:
        params, reasoning = request.params, self.chosen["reasoning"]
        told: dict[str, Any] = {"stream": True} if stream else {}
        if params.temperature is not None:
            told["temperature"] = params.temperature
        if params.max_tokens is not None:
            told["maxTokens"] = str(params.max_tokens)  # a number of 64 bits is a text
        if reasoning is not None:
            told["reasoningOptions"] = {"mode": "ENABLED_HIDDEN" if reasoning else "DISABLED"}
        return told

    # Who asks, and for what

    @property
    def _uri(self) -> str:
        model = self._named
        return model if "://" in model else f"gpt://{self._folder}/{model}"

    @property
    def _known_folder(self) -> str:
        """The folder's id: as configured, else of the environment, else of the model's URI; or empty."""
        rest = (self.config.model or "").partition("://")[2]
        named = rest.partition("/")[0] if "/" in rest else ""
        found = (os.environ.get(variable, "").strip() for variable in FOLDER_VARIABLES)
        return self.config.folder_id or next(filter(None, found), "") or named

    @property
    def _folder(self) -> str:
        folder = self._known_folder
        if not folder:
            raise ConfigurationError(
                f"{self.service.title} needs the id of a folder, and none was told.",
                hint=f"Set {FOLDER_VARIABLES[0]} in the environment, or pass it: "
                f'nbp.create_provider("{self.config.name}", folder_id="b1g…").',
            )
        return folder

    def _headers(self) -> Mapping[str, str]:
        """An API key is of a folder's service account; an IAM token has to be told its folder."""
        key, logging = self._secret(), self.chosen["data_logging"]
        told = {} if logging is None else {"x-data-logging-enabled": str(logging).lower()}
        if key is None:
            return told
        if key.startswith(_IAM):
            return {"Authorization": f"Bearer {key}", "x-folder-id": self._folder, **told}
        return {"Authorization": f"Api-Key {key}", **told}

    async def __aenter__(self) -> Self:
        """Check that there are a key and a folder, before anything is asked."""
        await super().__aenter__()
        _ = self._uri
        return self

    async def _list_models(self) -> list[str]:
        """Return the models that write text: a folder's own by their names, others by their URIs."""
        found = values.rows(await self.wire.json("GET", _MODELS), self.config.name)
        uris = [row["id"] for row in found]
        own = f"gpt://{self._known_folder}/"
        return sorted(uri.removeprefix(own) for uri in uris if uri.startswith(_TEXT_MODELS))

    async def _probe(self) -> None:
        """Have a word cut into tokens, which costs nothing and takes key and folder."""
        uri = f"gpt://{self._folder}/{_CHEAPEST}"
        await self.wire.json("POST", _TOKENIZE, {"modelUri": uri, "text": "1"})


@dataclass(slots=True)
class _Answer:
    """An answer while it comes: the text so far, and at its end the reason and usage."""

    what: str
    text: str = ""
    reason: FinishReason | None = None
    usage: Usage = Usage()  # noqa: RUF009  # it is frozen

    def take(self, value: Any) -> str:
        """Take in a line, or the whole, and return what is new of the text.

        Raises
        ------
        ServiceUnavailableError
            If it is of another form, or goes on with another text than it began with.
        UnsupportedError
            If the model wants a tool to be called.
        """
        with values.of_form("YandexGPT's", self.what):
            result = value.get("result", value)
            if "alternatives" not in result:
                raise self._told(result)
            first = result["alternatives"][0]
            text = values.text(first["message"].get("text"))
            status = str(first.get("status") or "").removeprefix(_STATUS)
            if status == _CALLED:
                raise UnsupportedError(
                    f"{self.what}: the model asks for a tool to be called, and gives no text."
                )
            self.reason = _REASONS.get(status, "stop")
            self._count(result.get("usage") or {})
            return self._new(text)

    def _count(self, told: Mapping[str, Any]) -> None:
        if told:
            self.usage = Usage(
                values.count(told.get("inputTextTokens")),
                values.count(told.get("completionTokens")),
            )

    def _new(self, text: str) -> str:
        if not text.startswith(self.text):
            if self.reason == "filtered":  # what was written is taken back; it was read already
                return ""
            raise ServiceUnavailableError(
                f"{self.what}: the stream went on with another text than it began with.",
                hint="What came of it is incomplete; ask again.",
            )
        new, self.text = text[len(self.text) :], text
        return new

    def _told(self, value: Mapping[str, Any]) -> ProviderError:
        """Return the error that stands in the place of an answer, in gRPC's form."""
        kind = _CODES.get(int(value["code"]), ServiceUnavailableError)
        return kind(f"{self.what}: {scrub(str(value['message'])[:500])}")
