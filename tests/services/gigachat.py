"""A service that speaks GigaChat's protocol: access tokens for half an hour, chat completions, models.

Bodies are judged by models of its published reference: there is no package of its own among the tests'.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, Field

from tests.services.bodies import Judge
from tests.services.keys import fake
from tests.services.server import LocalServer, Recorded, Refused, Streamed, event
from tests.services.words import Said, count, last_user, say

CREATED = 1_700_000_000
SCOPES = ("GIGACHAT_API_PERS", "GIGACHAT_API_B2B", "GIGACHAT_API_CORP")
OAUTH = "/api/v2/oauth"


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "function"]
    content: str
    name: str | None = None
    function_call: dict[str, Any] | None = None
    functions_state_id: str | None = None
    attachments: list[str] | None = None


class ChatRequest(BaseModel):
    """The body of a chat completion; the service knows neither stop sequences nor a seed."""

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(None, gt=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0)
    stream: bool | None = None
    update_interval: float | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=4)
    profanity_check: bool | None = None
    function_call: Literal["auto", "none"] | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    reasoning_effort: Literal["low", "medium", "high"] | None = None


class GigaChatServer(LocalServer):
    """Says back what the user said last; see `reply`. A model with ``think`` in its name thinks first.

    Attributes
    ----------
    key
        The one authorization key for which it gives tokens; None: any.
    scope
        What the key may ask for.
    lifetime_s
        How long a token lives, from when it is given.
    tokens
        How many tokens it has given.
    models
        What it lists, and serves; None: it serves any name, and lists ``GigaChat``.
    reply, thought
        Make the text and the thought of an answer from a request's body.
    """

    prefix = "/api/v1"

    def __init__(
        self,
        *,
        key: str | None = None,
        scope: str = SCOPES[0],
        models: Iterable[str] | None = None,
        lifetime_s: float = 1800.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.key, self.scope, self.lifetime_s = key, scope, lifetime_s
        self.models = None if models is None else list(models)
        self.reply: Callable[[Any], str] = lambda body: last_user(body["messages"])
        self.thought: Callable[[Any], str] = lambda body: (
            f"The user said {len(last_user(body['messages']))} letters."
        )
        self.tokens = 0
        self._ends_s: dict[str, float] = {}
        self._judge = Judge(ChatRequest)
        self._answers["POST", OAUTH] = self._give_token
        self.answer("POST", "/chat/completions", self._chat)
        self.answer("GET", "/models", self._list)
        self.answer("GET", "/models/{name}", self._show)

    @property
    def auth_url(self) -> str:
        """Where tokens are given."""
        return self.root_url + OAUTH

    def expire(self) -> None:
        """Let all tokens that were given so far be of the past, whatever was told with them."""
        for token in list(self._ends_s):
            self._ends_s[token] = 0.0

    def error_body(self, status: int, message: str) -> Any:
        return {"status": status, "message": message}

    def check(self, seen: Recorded) -> None:
        if seen.path == OAUTH:
            return
        scheme, _, token = seen.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self._ends_s:
            raise Refused(401, self.error_body(401, "Unauthorized"))
        if self._ends_s[token] <= time.time():
            raise Refused(401, self.error_body(401, "Token has expired"))

    # Tokens

    def _give_token(self, seen: Recorded) -> Any:
        scheme, _, told = seen.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic" or not told:
            raise Refused(400, {"code": 4, "message": "Can't decode 'Authorization' header"})
        if self.key is not None and told != self.key:
            raise Refused(401, {"code": 6, "message": "credentials doesn't match db data"})
        if not _is_uuid4(seen.headers.get("RqUID", "")):
            raise Refused(400, {"code": 3, "message": "RqUID is missing or not valid"})
        form = seen.body if isinstance(seen.body, dict) else {}
        if not form.get("scope"):
            raise Refused(400, {"code": 5, "message": "scope is empty"})
        if form["scope"] not in SCOPES:
            raise Refused(400, {"code": 1, "message": "scope data format invalid"})
        if form["scope"] != self.scope:
            message = "scope from db not fully includes consumed scope"
            raise Refused(400, {"code": 7, "message": message})
        self.tokens += 1
        token, ends_s = fake(f"token-{self.tokens}"), time.time() + self.lifetime_s
        self._ends_s[token] = ends_s
        return {"access_token": token, "expires_at": int(ends_s * 1000)}

    # Chat

    def _chat(self, seen: Recorded) -> Any:
        body = self._checked(seen.body)
        thinks = "think" in body["model"] or body.get("reasoning_effort") is not None
        thought = self.thought(body) if thinks else ""
        said = say(self.reply(body), body.get("max_tokens"), thought=thought)
        written = len(said.tokens) + len(said.thought)
        asked = count(message["content"] for message in body["messages"])
        usage = {
            "prompt_tokens": asked,
            "completion_tokens": written,
            "total_tokens": asked + written,
            "precached_prompt_tokens": 0,
        }
        if body.get("stream"):
            frames = [event(chunk) for chunk in _chunks(body, said, usage)]
            failed = event(self.error_body(500, "the error that the test asked for"))
            return Streamed(frames, event("[DONE]"), failed)
        message = {"role": "assistant", "content": said.text}
        if said.thought:
            message["reasoning_content"] = said.thinking
        choice = {"message": message, "index": 0, "finish_reason": _finish(said)}
        return {"choices": [choice], **_head(body), "usage": usage}

    def _checked(self, body: Any) -> Any:
        if not isinstance(body, dict):
            raise Refused(400, self.error_body(400, "Bad request: the body is no JSON object"))
        found = self._judge.fault(body)
        if found is not None:
            self._refuse(f"Invalid params: {found.field}: {found.message}")
        if any(message["role"] == "system" for message in body["messages"][1:]):
            self._refuse("system message must be the first message")
        self._known(body["model"])
        return body

    def _refuse(self, message: str) -> NoReturn:
        raise Refused(422, self.error_body(422, message))

    # Models

    def _list(self, seen: Recorded) -> Any:
        names = ["GigaChat"] if self.models is None else self.models
        return {"object": "list", "data": [_model(name) for name in names]}

    def _show(self, seen: Recorded) -> Any:
        return _model(self._known(seen.path.removeprefix(f"{self.prefix}/models/")))

    def _known(self, name: str) -> str:
        if self.models is not None and name not in self.models:
            raise Refused(404, self.error_body(404, "No such model"))
        return name


def _is_uuid4(text: str) -> bool:
    try:
        return uuid.UUID(text).version == 4
    except ValueError:
        return False


def _finish(said: Said) -> str:
    return "length" if said.finish == "length" else "stop"


def _head(body: Any) -> dict[str, Any]:
    # the object is named the same in streams
    return {"created": CREATED, "model": f"{body['model']}:1.0", "object": "chat.completion"}


def _chunks(body: Any, said: Said, usage: Any) -> Iterator[Any]:
    deltas = [{"reasoning_content": token} for token in said.thought]
    deltas += [{"content": token} for token in said.tokens]
    for place, delta in enumerate(deltas):
        told = {**delta, "role": "assistant"} if place == 0 else delta
        yield {"choices": [{"delta": told, "index": 0}], **_head(body)}
    last = {"delta": {"content": ""}, "index": 0, "finish_reason": _finish(said)}
    yield {"choices": [last], **_head(body), "usage": usage}


def _model(name: str) -> Any:
    return {"id": name, "object": "model", "owned_by": "salutedevices", "type": "chat"}
