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

from nbproviders.authoring.hosted import HostedProvider
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

FOLDER_VARIABLES = ("YANDEX_FOLDER_ID", "YC_FOLDER_ID")
_COMPLETION, _TOKENIZE, _MODELS = (
    "foundationModels/v1/completion",
    "foundationModels/v1/tokenize",
    "v1/models",
)
_CHEAPEST = "yandexgpt-lite"
_TEXT_MODELS = ("gpt://", "ds://")
_IAM = "t1."
_STATUS = "ALTERNATIVE_STATUS_"
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


class YandexGPTProvider(HostedProvider):
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

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask, and yield the text in pieces, then its end."""
        body = self._body(request)
        streamed = "stream" in body["completionOptions"]
        answer = _Answer(self._what)
        try:
            if streamed:
                async with aclosing(self.wire.lines("POST", _COMPLETION, body)) as lines:
                    async for value in lines:
                        if text := answer.take(value):
                            yield text
            elif text := answer.take(await self.wire.json("POST", _COMPLETION, body)):
                yield text
        except AuthenticationError:
            self._refused()
            raise
        if answer.reason is None:
            raise ServiceUnavailableError(
                f"{self._what}: the answer ended before the completion did.",
                hint="What came of it is incomplete; ask again.",
            )
        ignored = self._ignored(request)
        yield Finish(
            answer.reason,
            answer.usage,
            request.params.merged(**dict.fromkeys(ignored)),
            ttft_s=None if streamed else math.nan,
            chat=True,
            batch_invariant=False,
            ignored=ignored,
        )

    def _body(self, request: Request) -> dict[str, Any]:
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
        prompt = request.prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [{"role": turn["role"], "text": turn["content"]} for turn in turns]
        options = self._options(request)
        return {"modelUri": self._uri, "completionOptions": options, "messages": messages}

    def _options(self, request: Request) -> dict[str, Any]:
        params, reasoning = request.params, self.chosen["reasoning"]
        if params.temperature is not None and params.temperature > 1:
            raise InvalidRequestError(
                f"{self._what} cannot generate with temperature={params.temperature}.",
                hint="Yandex's models take 0 to 1.",
            )
        told: dict[str, Any] = {}
        if not request.whole or self.chosen["stream"]:
            told["stream"] = True
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
        model = self.config.model
        if not model:
            raise ConfigurationError(
                f"{self.config.name} was not told which model to ask.",
                hint=f"Write model=…, or {self.config.name}:yandexgpt-lite in a reference.",
            )
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

    @property
    def _what(self) -> str:
        return f"{self.config.name}:{self.config.model}"

    async def _list_models(self) -> list[str]:
        """Return the models that write text: a folder's own by their names, others by their URIs."""
        value = await self.wire.json("GET", _MODELS)
        rows = value.get("data") if isinstance(value, dict) else None
        if not isinstance(rows, list):
            raise ServiceUnavailableError(
                f"{self.config.name}: the list of models is of another form.",
                hint="Check base_url.",
            )
        uris = [str(row.get("id")) for row in rows if isinstance(row, dict)]
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
        """
        try:
            result = value.get("result", value)
            if "alternatives" not in result:
                raise self._told(result)
            first = result["alternatives"][0]
            text = first["message"].get("text") or ""
            status = str(first.get("status") or "").removeprefix(_STATUS)
            self.reason = _REASONS.get(status, "stop")
            self._count(result.get("usage") or {})
            return self._new(text)
        except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
            if isinstance(error, ProviderError):
                raise
            raise ServiceUnavailableError(
                f"{self.what}: the answer is not of YandexGPT's form ({type(error).__name__}).",
                hint="Check base_url: another service may answer there.",
            ) from None

    def _count(self, told: Mapping[str, Any]) -> None:
        if told:
            self.usage = Usage(
                int(told.get("inputTextTokens") or 0), int(told.get("completionTokens") or 0)
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
