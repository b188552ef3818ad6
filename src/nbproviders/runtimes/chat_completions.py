"""The chat-completions protocol (and its older completions): bodies to send, and what answers mean.

Pure functions over JSON values, without I/O; `nbproviders.providers.openai` sends and reads. The protocol is
OpenAI's (https://platform.openai.com/docs/api-reference/chat); what other services do otherwise is read as
well: ``reasoning_content`` (DeepSeek, vLLM, llama.cpp), ``reasoning`` (OpenRouter, Groq), counts of cached
tokens at other places.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from nbproviders.core.completion import FinishReason, Usage
from nbproviders.core.params import Request
from nbproviders.core.tokens import Token
from nbproviders.errors import ServiceUnavailableError, UnsupportedError
from nbproviders.runtimes.http import values

_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "model_length": "length",  # Mistral: the context is full
    "content_filter": "filtered",
    "blacklist": "filtered",  # GigaChat
}
# It ended in the midst: OpenRouter and GigaChat; vLLM; DeepSeek.
_BROKEN = frozenset({"error", "abort", "insufficient_system_resource"})
_CALLED = frozenset({"tool_calls", "function_call"})
_REFUSED = re.compile(
    r"(?i)unsupported (?:parameter|value)s?:? '(\w+)'|(?:unrecognized|unsupported|unknown) (?:request )?"
    r"(?:argument|parameter)s?(?: supplied)?:? '?(\w+)"
)
_LIMITS = ("max_completion_tokens", "max_tokens")


@dataclass(slots=True)
class Dialect:
    """How a service spells parameters, and which it was found not to take.

    Attributes
    ----------
    max_tokens, seed
        The names of these fields; empty: not taken.
    stream_usage
        Whether a stream has to be asked for its usage.
    refused
        Fields that the service refused for this model.
    """

    max_tokens: str = "max_tokens"
    seed: str = "seed"
    stream_usage: bool = True
    refused: set[str] = field(default_factory=set)

    def learn(self, message: str, sent: Collection[str]) -> bool:
        """Take from a refusal which field is not taken; whether there is another way to ask.

        Parameters
        ----------
        message
            What the service said.
        sent
            Those fields of the refused body that can be left out or spelled otherwise.
        """
        found = _REFUSED.search(message)
        name = next((group for group in found.groups() if group), "") if found else ""
        if name not in sent:
            return False
        self.refused.add(name)  # others that were under way may have told already
        if name == "stream_options":
            self.stream_usage = False
        elif name == self.max_tokens:
            other = _LIMITS[1 - _LIMITS.index(name)] if name in _LIMITS else ""
            self.max_tokens = "" if other in self.refused else other
        return True

    def fields(self, request: Request) -> dict[str, Any]:
        """Return the parameters that were asked for, as the service spells them."""
        params = request.params
        named = {
            "temperature": params.temperature,
            self.max_tokens: params.max_tokens,
            "top_p": params.top_p,
            "stop": list(params.stop) or None,
            self.seed: params.seed,
        }
        return {
            name: value
            for name, value in named.items()
            if name and value is not None and name not in self.refused
        }

    def ignored(self, request: Request, sent: Collection[str]) -> tuple[str, ...]:
        """Return the names of the parameters that were asked for and are not among the fields sent."""
        spelled = {"max_tokens": self.max_tokens, "seed": self.seed}
        given = request.params.given()
        return tuple(name for name in given if spelled.get(name, name) not in sent)


def body(
    request: Request, model: str, dialect: Dialect, *, chat: bool, stream: bool
) -> dict[str, Any]:
    """Return what to send for a request.

    Parameters
    ----------
    chat
        By chat completions; else by the older completions, which take plain text.
    stream
        Whether to ask for events.
    """
    told: dict[str, Any] = {"model": model}
    if chat:
        prompt = request.prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        told["messages"] = turns
    else:
        told["prompt"] = request.prompt
    told |= dialect.fields(request)
    if request.logprobs:
        # The older protocol counts alternatives; 0 tells the chosen tokens alone.
        told["logprobs"] = True if chat else 0
    if stream:
        told["stream"] = True
        if dialect.stream_usage:
            told["stream_options"] = {"include_usage": True}
    return told


@dataclass(slots=True)
class Piece:
    """What an answer, or one event of a stream, says.

    Attributes
    ----------
    refused
        Whether the text is a refusal to answer, which a stream tells before its end.
    """

    text: str = ""
    refused: bool = False
    reasoning: str = ""
    reason: FinishReason | None = None
    usage: Usage | None = None
    tokens: tuple[Token, ...] = ()


def read(value: Any, what: str) -> Piece:
    """Return what an answer or an event says.

    Parameters
    ----------
    value
        The parsed JSON.
    what
        Who answered, for the error.

    Raises
    ------
    ServiceUnavailableError
        If it is of another form, or the service says that it failed in the midst.
    UnsupportedError
        If the model wants a tool to be called, and no text is the answer.
    """
    with values.of_form("the chat-completions", what):
        piece = Piece(usage=_usage(value.get("usage")))
        # With n > 1, which a body of one's own may ask for, the events of all come mixed: the first counts.
        for choice in value.get("choices") or ():
            if not choice.get("index"):
                break
        else:
            return piece
        said = choice.get("message") or choice.get("delta") or {}
        refusal = values.text(said.get("refusal"))
        thought, text = _parts(said.get("content"))
        piece.text = text or refusal or values.text(choice.get("text"))
        piece.refused = bool(refusal)
        told = said.get("reasoning_content") or said.get("reasoning")
        piece.reasoning = values.text(told) or thought
        piece.reason = _reason(choice.get("finish_reason"), what)
        piece.tokens = tuple(_tokens(choice.get("logprobs")))
    return piece


def _parts(content: Any) -> tuple[str, str]:
    """Return thoughts and text of a content: a text, or parts as Mistral's reasoning models have it."""
    if not isinstance(content, list):
        return "", values.text(content)
    thought = ""
    text = ""
    for part in content:
        if part["type"] == "thinking":
            thought += "".join(_parts(part["thinking"]))
        elif part["type"] == "text":
            text += values.text(part["text"])
    return thought, text


def _reason(told: Any, what: str) -> FinishReason | None:
    if not told:
        return None
    if told in _BROKEN:
        raise ServiceUnavailableError(
            f"{what}: the service failed in the midst of its answer ({told}).",
            hint="What came of it is incomplete; ask again.",
        )
    if told in _CALLED:
        raise UnsupportedError(
            f"{what}: the model asks for a tool to be called, and gives no text.",
            hint="For tools write: await m.chat.completions.create(messages=…, tools=…).",
        )
    return _REASONS.get(told, "stop")


def _usage(told: Any) -> Usage | None:
    if not told:
        return None
    details = told.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0
    apart = told.get("precached_prompt_tokens") or 0  # GigaChat's prompt_tokens are those without
    return Usage(
        values.count(told.get("prompt_tokens")) + values.count(apart),
        values.count(told.get("completion_tokens")),
        values.count(cached) + values.count(apart),
    )


def _tokens(told: Any) -> Iterable[Token]:
    """Yield the tokens of either protocol's ``logprobs``."""
    if not told:
        return
    if "tokens" in told:
        for text, logprob in zip(told["tokens"], told["token_logprobs"], strict=True):
            yield Token(
                values.text(text), -1, math.nan if logprob is None else values.logprob(logprob)
            )
        return
    for one in told.get("content") or ():
        number = values.count(one["id"]) if one.get("id") is not None else -1
        yield Token(values.text(one["token"]), number, values.logprob(one["logprob"]))


class Reply(dict[str, Any]):
    """An answer whose fields are attributes as well: ``reply.choices[0].message.content``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this answer has no field {name!r}") from None

    def model_dump(self) -> dict[str, Any]:
        """Return it as plain objects, as that method of the client of OpenAI does."""
        return {name: _plain(value) for name, value in self.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Reply):
        return value.model_dump()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def reply(value: Any) -> Any:
    """Return a JSON value with its objects as `Reply`."""
    if isinstance(value, dict):
        return Reply({name: reply(one) for name, one in value.items()})
    if isinstance(value, list):
        return [reply(one) for one in value]
    return value
