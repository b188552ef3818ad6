"""Anthropic's messages protocol: bodies to send, and what answers and events mean.

Pure functions over JSON values, without I/O; `nbproviders.providers.anthropic` sends and reads. The protocol
is that of https://docs.anthropic.com/en/api/messages, of the version 2023-06-01.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbproviders.core.completion import FinishReason, Usage
from nbproviders.core.params import Request
from nbproviders.errors import InvalidRequestError, UnsupportedError
from nbproviders.runtimes.http import values

VERSION = "2023-06-01"
_REASONS: dict[str, FinishReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "filtered",
}
_UNENDED = ("tool_use", "pause_turn")
_SPELLED = {"stop": "stop_sequences"}
_REFUSED = re.compile(
    r"(?i)\b(temperature|top_p|stop_sequences)[`'\"]?"
    r"(?: (?:is deprecated|is not supported|may only be set)|: extra inputs are not permitted)"
)
_EITHER = re.compile(r"(?i)\btemperature[`'\"]? and [`'\"]?top_p[`'\"]? cannot both")
_LEAST_TOP_P = 0.95  # with thinking


@dataclass(slots=True)
class Dialect:
    """Which parameters a model was found not to take.

    Attributes
    ----------
    refused
        Fields that the service refused for this model.
    either
        Whether it takes one of temperature and top_p only; the temperature is sent then.
    """

    refused: set[str] = field(default_factory=set)
    either: bool = False

    def learn(self, message: str, body: Mapping[str, Any]) -> bool:
        """Take from a refusal which field is not taken; whether there is another way to ask."""
        if _EITHER.search(message):
            self.either = True
            return "temperature" in body and "top_p" in body
        found = _REFUSED.search(message)
        name = found[1].lower() if found else ""
        if name not in body:
            return False
        self.refused.add(name)
        return True

    def fields(self, request: Request, *, thinks: bool) -> dict[str, Any]:
        """Return the parameters that were asked for, as the service spells them, but for max_tokens.

        Parameters
        ----------
        thinks
            Whether the model is asked to think: no temperature but 1 is taken with that.
        """
        params = request.params
        temperature, top_p = params.temperature, params.top_p
        if thinks:
            temperature = temperature if temperature == 1 else None
            top_p = top_p if top_p is not None and top_p >= _LEAST_TOP_P else None
        if self.either and temperature is not None:
            top_p = None
        named = {
            "temperature": temperature,
            "top_p": top_p,
            "stop_sequences": list(params.stop) or None,
        }
        return {
            name: value
            for name, value in named.items()
            if value is not None and name not in self.refused
        }


def ignored(request: Request, body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the parameters that were asked for and are not in a body."""
    return tuple(name for name in request.params.given() if _SPELLED.get(name, name) not in body)


def body(request: Request, model: str, *, max_tokens: int) -> dict[str, Any]:
    """Return what to send for a request, without its sampling parameters.

    The protocol has one system prompt, apart from the turns: all that there are become one.

    Parameters
    ----------
    max_tokens
        Most new tokens, thoughts among them; the protocol wants a number.

    Raises
    ------
    InvalidRequestError
        If there is nothing but a system prompt.
    """
    prompt = request.prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    messages = [dict(turn) for turn in turns if turn["role"] != "system"]
    if not messages:
        raise InvalidRequestError(
            "A system prompt alone has nothing to answer.",
            hint='Add a turn: {"role": "user", "content": "text"}.',
        )
    told: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "messages": messages}
    return {**told, "system": "\n\n".join(system)} if system else told


@dataclass(slots=True)
class Answer:
    """What an answer says, whole or event by event.

    Attributes
    ----------
    what
        Who answers, for errors.
    reason
        Why it ended; None while it has not been told.
    over
        Whether the mark of the stream's end has come.
    """

    what: str
    reason: FinishReason | None = None
    over: bool = False
    _thoughts: list[str] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def whole(self, message: Any) -> str:
        """Take a whole answer, and return its text.

        Raises
        ------
        ServiceUnavailableError
            If it is of another form.
        UnsupportedError
            If the turn is not over: the model wants a tool to be called.
        """
        with values.of_form("the messages", self.what):
            texts = [self._said(block) for block in message["content"]]
            self._ended(message)
            text = "".join(texts)
            if self.reason is None and not text:
                raise ValueError("it holds no completion")
            return text

    def event(self, event: Any) -> str:
        """Take an event of a stream, and return the text in it; those of unknown types say nothing.

        Raises
        ------
        ServiceUnavailableError
            If it is of another form.
        """
        with values.of_form("the messages", self.what):
            match event["type"]:
                case "message_start":
                    self._count(event["message"].get("usage"))
                case "content_block_start":
                    return self._said(event["content_block"])
                case "content_block_delta":
                    return self._said(event["delta"])
                case "message_delta":
                    self._ended({**event["delta"], "usage": event.get("usage")})
                case "message_stop":
                    self.over = True
            return ""

    @property
    def usage(self) -> Usage:
        """Its tokens: those that were read from a cache, or written into it, are the prompt's as well."""
        known = self._counts.get("cache_read_input_tokens", 0)
        prompt = self._counts.get("input_tokens", 0) + known + self.cache_written_tokens
        return Usage(prompt, self._counts.get("output_tokens", 0), known)

    @property
    def cache_written_tokens(self) -> int:
        """How many of the prompt's tokens were put into the cache, which costs more than reading them."""
        return self._counts.get("cache_creation_input_tokens", 0)

    @property
    def reasoning(self) -> str:
        """What the model thought, as far as the service shows it."""
        return "".join(self._thoughts)

    def _said(self, block: Mapping[str, Any]) -> str:
        """Return the text of a block, or of a piece of one; thoughts are kept apart."""
        kind = block["type"]
        if kind in ("thinking", "thinking_delta"):
            self._thoughts.append(values.text(block["thinking"]))
        return values.text(block["text"]) if kind in ("text", "text_delta") else ""

    def _ended(self, told: Mapping[str, Any]) -> None:
        reason = told.get("stop_reason")
        if reason in _UNENDED:
            raise UnsupportedError(
                f"{self.what}: the model's turn is not over ({reason}), and the text not the answer.",
                hint="For tools write: await m.messages.create(messages=…, tools=…).",
            )
        if reason:
            self.reason = _REASONS.get(reason, "stop")
        self._count(told.get("usage"))

    def _count(self, told: Mapping[str, Any] | None) -> None:
        """Take counts; each is of the whole request so far, and those not told have not changed."""
        for name, value in (told or {}).items():
            if name.endswith("_tokens") and value is not None:
                self._counts[name] = values.count(value)
