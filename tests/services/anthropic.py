"""A service that speaks Anthropic's protocol: messages, the count of their tokens, and the list of models.

Bodies are judged by the parameter types of Anthropic's own package, and answers are made of its response
types. These are the types of the newest version of the API, which has no sampling parameters; the version
before takes them, but for its newest models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import pytest

from tests.services.bodies import Fault, Judge
from tests.services.server import LocalServer, Recorded, Refused, Streamed, event
from tests.services.words import Said, count, last_user, plain, say

SIGNATURE = "c2lnbmVk"
REQUEST = "req_words"
EARLIER_VERSION, VERSION = VERSIONS = ("2023-06-01", "2026-10-21")
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
SAMPLING = {"temperature": (0, 1), "top_p": (0, 1), "top_k": (0, 10**9)}
# models that take sampling parameters in the earlier version: those until Claude 4.6, and other makers'
EARLIER = re.compile(r"^(?!claude-)|^claude-(2|3|instant|(opus|sonnet|haiku)-4(-[0-6])?(-\d{8})?$)")
ENDS = {"stop": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence"}


class AnthropicServer(LocalServer):
    """Says back what the user said last; see `reply`.

    It thinks first if it is asked to, or if the model's name has ``think`` in it.

    Attributes
    ----------
    key
        The one key it lets in; None: anybody.
    models
        What it lists, and serves; None: it serves any name, and lists ``words``.
    reply, thought
        Make the text and the thought of an answer from a request's body.
    """

    def __init__(
        self, *, key: str | None = None, models: Iterable[str] | None = None, **kwargs: Any
    ) -> None:
        pytest.importorskip("anthropic", reason="its types judge what the local server is asked")
        super().__init__(**kwargs)
        self.key = key
        self.models = None if models is None else list(models)
        self.reply: Callable[[Any], str] = lambda body: last_user(body["messages"])
        self.thought: Callable[[Any], str] = lambda body: (
            f"The user said {len(last_user(body['messages']))} letters."
        )
        self._cached: set[str] = set()
        self.answer("POST", "/v1/messages", self._message)
        self.answer("POST", "/v1/messages/count_tokens", self._count)
        self.answer("GET", "/v1/models", self._list)
        self.answer("GET", "/v1/models/{name}", self._show)

    def error_body(self, status: int, message: str) -> Any:
        kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        told = {"type": kind, "message": message}
        return {"type": "error", "error": told, "request_id": REQUEST}

    def check(self, seen: Recorded) -> None:
        version = seen.headers.get("anthropic-version")
        if version is None:
            self._refuse("anthropic-version: header is required")
        if version not in VERSIONS:
            self._refuse(f'anthropic-version: "{version}" is not a valid version')
        if self.key is None:
            return
        bearer = seen.headers.get("Authorization", "").removeprefix("Bearer ")
        told = seen.headers.get("x-api-key", bearer)  # the first counts, if both are sent
        if not told:
            raise Refused(401, self.error_body(401, "x-api-key header is required"))
        if told != self.key:
            raise Refused(401, self.error_body(401, "invalid x-api-key"))

    def _refuse(self, message: str) -> NoReturn:
        raise Refused(400, self.error_body(400, message))

    # Messages

    def _message(self, seen: Recorded) -> Any:
        streams = isinstance(seen.body, dict) and seen.body.get("stream") is True
        body = self._checked(seen, _types()[streams])
        thinking = body.get("thinking") or {}
        thinks = thinking.get("type", "think" in body["model"]) not in ("disabled", False)
        thought = self.thought(body) if thinks else ""
        said = say(self.reply(body), body["max_tokens"], body.get("stop_sequences"), thought)
        shown = "" if thinking.get("display") == "omitted" else said.thinking
        usage = self._usage(body, said)
        if not streams:
            return _whole(body, said, shown, usage)
        frames = [event(told, told["type"]) for told in _events(body, said, shown, usage)]
        failed = event(self.error_body(529, "Overloaded"), "error")
        return Streamed(frames[:-1], frames[-1], failed)

    def _usage(self, body: Any, said: Said) -> Any:
        """Count words; a system prompt that is to be cached is read from there when it comes again."""
        messages = count(plain(message["content"]) for message in body["messages"])
        system = plain(body.get("system"))
        cached = "cache_control" in body or (
            isinstance(body.get("system"), list)
            and any("cache_control" in block for block in body["system"])
        )
        known = cached and system in self._cached
        if cached:
            self._cached.add(system)
        size = count([system])
        return {
            "input_tokens": messages + (0 if cached else size),
            "cache_creation_input_tokens": size if cached and not known else 0,
            "cache_read_input_tokens": size if known else 0,
            "output_tokens": len(said.tokens) + len(said.thought),
            "service_tier": "standard",
        }

    def _count(self, seen: Recorded) -> Any:
        from anthropic.types import MessageTokensCount

        body = self._checked(seen, _types()[2])
        texts = [plain(body.get("system")), *(plain(each["content"]) for each in body["messages"])]
        return MessageTokensCount(input_tokens=count(texts)).model_dump(mode="json")

    # Models

    def _list(self, seen: Recorded) -> Any:
        names = ["words"] if self.models is None else self.models
        limit = int(seen.query.get("limit", 20))
        if not 1 <= limit <= 1000:
            self._refuse("limit: Input should be between 1 and 1000")
        after = seen.query.get("after_id")
        start = names.index(after) + 1 if after is not None else 0
        page = names[start : start + limit]
        return {
            "data": [_model(name) for name in page],
            "has_more": start + limit < len(names),
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def _show(self, seen: Recorded) -> Any:
        return _model(self._known(seen.path.removeprefix("/v1/models/")))

    def _known(self, name: str) -> str:
        if self.models is not None and name not in self.models:
            raise Refused(404, self.error_body(404, f"model: {name}"))
        return name

    # What a body may hold

    def _checked(self, seen: Recorded, judge: Judge) -> Any:
        body = seen.body
        if not isinstance(body, dict):
            self._refuse("The request body is not valid JSON: it should be an object")
        apart = SAMPLING if seen.headers["anthropic-version"] == EARLIER_VERSION else {}
        found = judge.fault({name: value for name, value in body.items() if name not in apart})
        if found is not None:
            self._refuse(_worded(found))
        self._known(body["model"])
        self._check_sampling(body)
        self._check_values(body)
        return body

    def _check_sampling(self, body: Any) -> None:
        for name, (low, high) in SAMPLING.items():
            value = body.get(name)
            if name not in body:
                continue
            if EARLIER.search(body["model"]) is None:
                self._refuse(f"`{name}` is deprecated for this model.")
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._refuse(f"{name}: Input should be a valid number")
            if not low <= value <= high:
                self._refuse(f"{name}: range: {low}..{high}")

    def _check_values(self, body: Any) -> None:
        if not body["messages"]:
            self._refuse("messages: at least one message is required")
        for message in body["messages"]:
            if not plain(message["content"]) and message["role"] == "user":
                self._refuse("messages: text content blocks must be non-empty")
        if body.get("max_tokens", 1) < 1:
            self._refuse("max_tokens: must be greater than or equal to 1")
        if any(not stop.strip() for stop in body.get("stop_sequences", ())):
            self._refuse("stop_sequences: each stop sequence must contain non-whitespace")
        thinking = body.get("thinking") or {}
        if thinking.get("type") == "enabled":
            if EARLIER.search(body["model"]) is None:
                self._refuse('"thinking.type.enabled" is not supported for this model.')
            if thinking["budget_tokens"] < 1024:
                self._refuse(
                    "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
                )
            if thinking["budget_tokens"] >= body.get("max_tokens", 10**9):
                self._refuse("`max_tokens` must be greater than `thinking.budget_tokens`.")
        if thinking.get("type") in ("enabled", "adaptive") and body.get("temperature", 1) != 1:
            self._refuse("`temperature` may only be set to 1 when thinking is enabled.")


@functools.cache
def _types() -> tuple[Judge, Judge, Judge]:
    from anthropic.types import message_count_tokens_params, message_create_params

    return (
        Judge(message_create_params.MessageCreateParamsNonStreaming),
        Judge(message_create_params.MessageCreateParamsStreaming),
        Judge(message_count_tokens_params.MessageCountTokensParams),
    )


def _worded(found: Fault) -> str:
    if found.kind == "missing":
        return f"{found.field}: Field required"
    return f"{found.field}: {found.message}"


# Answers


def _dumped(made: Any) -> Any:
    return made.model_dump(mode="json", exclude_unset=True)


def _whole(body: Any, said: Said, thought: str, usage: Any) -> Any:
    from anthropic.types import Message

    content: list[Any] = [{"type": "text", "text": said.text}] if said.tokens else []
    if said.thought:
        content.insert(0, {"type": "thinking", "thinking": thought, "signature": SIGNATURE})
    made = {**_head(body), "content": content, "usage": usage, **_end(said)}
    return _dumped(Message.model_validate(made))


def _head(body: Any) -> dict[str, Any]:
    told = {"id": "msg_words", "type": "message", "role": "assistant", "model": body["model"]}
    return {**told, "content": [], "stop_reason": None, "stop_sequence": None}


def _end(said: Said) -> dict[str, Any]:
    stopped_by = said.stopped_by if said.finish == "stop_sequence" else None
    return {"stop_reason": ENDS[said.finish], "stop_sequence": stopped_by}


def _events(body: Any, said: Said, thought: str, usage: Any) -> Iterator[Any]:
    """Yield all events in order; the first and the last block's deltas are of different kinds."""
    from anthropic.types import RawMessageStreamEvent
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

    def made(kind: str, **fields: Any) -> Any:
        return _dumped(adapter.validate_python({"type": kind, **fields}))

    message = {**_head(body), "usage": {**usage, "output_tokens": 1}}
    yield made("message_start", message=message)
    yield {"type": "ping"}
    blocks = []
    if said.thought:
        shown = said.thought if thought else ()
        deltas = [{"type": "thinking_delta", "thinking": token} for token in shown]
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        blocks.append((empty, [*deltas, signed]))
    if said.tokens:
        deltas = [{"type": "text_delta", "text": token} for token in said.tokens]
        blocks.append(({"type": "text", "text": ""}, deltas))
    yield from _blocks(blocks, made)
    told = {name: value for name, value in usage.items() if name != "service_tier"}
    yield made("message_delta", delta=_end(said), usage=told)
    yield made("message_stop")


def _blocks(blocks: Sequence[Any], made: Callable[..., Any]) -> Iterator[Any]:
    for index, (empty, deltas) in enumerate(blocks):
        yield made("content_block_start", index=index, content_block=empty)
        for delta in deltas:
            yield made("content_block_delta", index=index, delta=delta)
        yield made("content_block_stop", index=index)


def _model(name: str) -> Any:
    from anthropic.types import ModelInfo

    fields = {
        "id": name,
        "type": "model",
        "display_name": name.title(),
        "created_at": "2024-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }
    return _dumped(ModelInfo.model_validate(fields))
