"""A service that speaks OpenAI's protocol: chat completions, completions and the list of models.

Bodies are judged by the parameter types of OpenAI's own package, and answers are made of its response types.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import pytest
from pydantic import BaseModel

from tests.services.bodies import Fault, Judge
from tests.services.server import LocalServer, Recorded, Refused, Streamed, event
from tests.services.words import Said, alternatives, count, last_user, plain, say, split

CREATED = 1_700_000_000
FINGERPRINT = "fp_words"
REASONING = re.compile(r"(^|/)(o\d|gpt-5)")  # models that take no sampling parameters
KINDS = {
    "int": "an integer",
    "float": "a decimal",
    "string": "a string",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
}
GIVEN = {**KINDS, "str": "a string", "NoneType": "null"}


class OpenAIServer(LocalServer):
    """Says back what the user said last; see `reply`.

    A model with ``think`` in its name thinks first and tells its thoughts in `thought_field`. One named
    as OpenAI's reasoning models are (``o3``) refuses ``max_tokens``, stop sequences and sampling.

    Attributes
    ----------
    key
        The one key it lets in; None: anybody.
    models
        What it lists, and serves; None: it serves any name, and lists ``words``.
    reply, thought
        Make the text and the thought of an answer from a request's body.
    also
        Fields that it takes besides OpenAI's own, as compatible servers do.
    thought_field
        ``reasoning_content`` (DeepSeek, vLLM, llama.cpp) or ``reasoning`` (OpenRouter).
    tells_key
        Whether a refusal repeats the whole wrong key, as careless services do.
    """

    prefix = "/v1"

    def __init__(
        self,
        *,
        key: str | None = None,
        models: Iterable[str] | None = None,
        also: Iterable[str] = (),
        thought_field: str = "reasoning_content",
        tells_key: bool = False,
        **kwargs: Any,
    ) -> None:
        pytest.importorskip("openai", reason="its types judge what the local server is asked")
        super().__init__(**kwargs)
        self.key, self.also, self.tells_key = key, frozenset(also), tells_key
        self.models = None if models is None else list(models)
        self.thought_field = thought_field
        self.reply: Callable[[Any], str] = _echo
        self.thought: Callable[[Any], str] = lambda body: (
            f"The user said {len(_echo(body))} letters."
        )
        self.answer("POST", "/chat/completions", self._chat)
        self.answer("POST", "/completions", self._complete)
        self.answer("GET", "/models", self._list)
        self.answer("GET", "/models/{name}", self._show)

    def error_body(self, status: int, message: str) -> Any:
        kinds = {
            401: "invalid_request_error",
            429: "rate_limit_error",
            404: "invalid_request_error",
        }
        codes = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
        kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return _error(message, kind=kind, code=codes.get(status))

    def check(self, seen: Recorded) -> None:
        if self.key is None:
            return
        scheme, _, told = seen.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not told:
            message = "You didn't provide an API key. Provide it in an Authorization header."
            raise Refused(401, _error(message, code=None))
        if told != self.key:
            shown = told if self.tells_key else f"{told[:4]}{'*' * 12}{told[-4:]}"
            raise Refused(
                401, _error(f"Incorrect API key provided: {shown}.", code="invalid_api_key")
            )

    # Chat

    def _chat(self, seen: Recorded) -> Any:
        body = self._checked(seen.body, _chat_types()[_streams(seen.body)])
        thinks = "think" in body["model"] or body.get("reasoning_effort") == "high"
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        thought = self.thought(body) if thinks else ""
        said = say(self.reply(body), limit, body.get("stop"), thought)
        prompt = [plain(message.get("content")) for message in body["messages"]]
        usage = _usage(count(prompt), said)
        if body.get("stream"):
            return _events(self._chat_chunks(body, said, usage), self.error_body)
        return self._chat_whole(body, said, usage)

    def _chat_whole(self, body: Any, said: Said, usage: Any) -> Any:
        from openai.types.chat import ChatCompletion

        message = {"role": "assistant", "content": said.text, "refusal": None}
        if said.thought:
            message[self.thought_field] = said.thinking
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _finish(said),
            "logprobs": _logprobs(said.tokens, body.get("top_logprobs"))
            if body.get("logprobs")
            else None,
        }
        head = _head(body, "chatcmpl-words", "chat.completion")
        return _made(ChatCompletion, {**head, "choices": [choice], "usage": usage})

    def _chat_chunks(self, body: Any, said: Said, usage: Any) -> Iterator[Any]:
        from openai.types.chat import ChatCompletionChunk

        head = _head(body, "chatcmpl-words", "chat.completion.chunk")
        counts = (body.get("stream_options") or {}).get("include_usage")
        if counts:
            head["usage"] = None

        def chunk(delta: Any, finish: str | None = None, logprobs: Any = None) -> Any:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
            return _made(ChatCompletionChunk, {**head, "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        for token in said.thought:
            yield chunk({self.thought_field: token})
        for token in said.tokens:
            told = _logprobs([token], body.get("top_logprobs")) if body.get("logprobs") else None
            yield chunk({"content": token}, logprobs=told)
        yield chunk({}, _finish(said))
        if counts:
            yield _made(ChatCompletionChunk, {**head, "choices": [], "usage": usage})

    # Completions of a text, as they were before chats

    def _complete(self, seen: Recorded) -> Any:
        body = self._checked(seen.body, _text_types()[_streams(seen.body)])
        if not isinstance(body["prompt"], str):
            _refuse("This server completes one text at a time.", "prompt")
        most = 16 if body.get("max_tokens") is None else body["max_tokens"]
        said = say(self.reply(body), most, body.get("stop"))
        before = split(body["prompt"]) if body.get("echo") else ()
        usage = _usage(count([body["prompt"]]), said)
        if body.get("stream"):
            return _events(self._text_chunks(body, before, said, usage), self.error_body)
        return self._text(body, (*before, *said.tokens), _finish(said), usage)

    def _text(
        self, body: Any, tokens: tuple[str, ...], finish: str | None, usage: Any, at: int = 0
    ) -> Any:
        from openai.types import Completion

        first = 0 if body.get("echo") else None
        number = body.get("logprobs")
        told = None if number is None else _text_logprobs(tokens, number, at, first)
        choice = {"index": 0, "text": "".join(tokens), "finish_reason": finish, "logprobs": told}
        made = {**_head(body, "cmpl-words", "text_completion"), "choices": [choice]}
        if usage is not None:
            made["usage"] = usage
        # the service sends what its own types do not name: choices that go on, tokens without a value
        known = {**choice, "finish_reason": finish or "stop"}
        if told is not None and first == at:
            known["logprobs"] = {name: values[1:] for name, values in told.items() if values}
        _made(Completion, {**made, "choices": [known]})
        return made

    def _text_chunks(
        self, body: Any, before: tuple[str, ...], said: Said, usage: Any
    ) -> Iterator[Any]:
        at = 0
        for token in (*before, *said.tokens):
            yield self._text(body, (token,), None, None, at)
            at += len(token)
        yield self._text({**body, "logprobs": None}, (), _finish(said), None)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {**_head(body, "cmpl-words", "text_completion"), "choices": [], "usage": usage}

    # Models

    def _list(self, seen: Recorded) -> Any:
        names = ["words"] if self.models is None else self.models
        return {"object": "list", "data": [_model(name) for name in names]}

    def _show(self, seen: Recorded) -> Any:
        return _model(self._known(seen.path.removeprefix(f"{self.prefix}/models/")))

    def _known(self, name: str) -> str:
        if self.models is not None and name not in self.models:
            message = f"The model `{name}` does not exist or you do not have access to it."
            raise Refused(404, _error(message, code="model_not_found"))
        return name

    # What a body may hold

    def _checked(self, body: Any, judge: Judge) -> Any:
        if not isinstance(body, dict):
            _refuse("We could not parse the JSON body of your request.")
        own = {name: value for name, value in body.items() if name not in self.also}
        found = judge.fault(own)
        if found is not None:
            raise Refused(400, _worded(found, body))
        _check_ranges(body)
        if REASONING.search(body["model"]) and "messages" in body:
            _check_reasoning(body)
        self._known(body["model"])
        return body


def _echo(body: Any) -> str:
    return last_user(body["messages"]) if "messages" in body else str(body["prompt"])


def _streams(body: Any) -> bool:
    return isinstance(body, dict) and body.get("stream") is True


@functools.cache
def _chat_types() -> tuple[Judge, Judge]:
    from openai.types.chat import completion_create_params as params

    whole, streamed = (
        params.CompletionCreateParamsNonStreaming,
        params.CompletionCreateParamsStreaming,
    )
    return Judge(whole), Judge(streamed)


@functools.cache
def _text_types() -> tuple[Judge, Judge]:
    from openai.types import completion_create_params as params

    whole, streamed = (
        params.CompletionCreateParamsNonStreaming,
        params.CompletionCreateParamsStreaming,
    )
    return Judge(whole), Judge(streamed)


# Refusals


def _error(
    message: str,
    param: str | None = None,
    code: str | None = None,
    kind: str = "invalid_request_error",
) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _refuse(message: str, param: str | None = None, code: str | None = None) -> NoReturn:
    raise Refused(400, _error(message, param, code))


def _worded(found: Fault, body: Any) -> Any:
    name = re.sub(r"\.(\d+)", r"[\1]", found.field)
    if found.kind == "unknown" and "." not in found.field:
        return _error(f"Unrecognized request argument supplied: {name}")
    if found.kind == "unknown":
        return _error(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    if found.kind == "missing":
        return _error(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    if isinstance(found.expected, tuple):
        told = f"{found.given!r}. Supported values are: {', '.join(found.expected)}."
        return _error(f"Invalid value: {told}", name, "invalid_value")
    wanted = KINDS.get(found.expected)
    got = GIVEN.get(type(found.given).__name__, "something else")
    told = f"expected {wanted}, but got {got} instead" if wanted else found.message
    return _error(f"Invalid type for '{name}': {told}.", name, "invalid_type")


BOUNDS = {
    "temperature": (0, 2, "decimal"),
    "top_p": (0, 1, "decimal"),
    "frequency_penalty": (-2, 2, "decimal"),
    "presence_penalty": (-2, 2, "decimal"),
    "max_tokens": (1, math.inf, "integer"),
    "max_completion_tokens": (1, math.inf, "integer"),
    "top_logprobs": (0, 20, "integer"),
    "n": (1, 1, "integer"),
}


def _check_ranges(body: Any) -> None:
    text = "messages" not in body
    for name, (low, high, kind) in BOUNDS.items():
        value = body.get(name)
        low = 0 if text and name == "max_tokens" else low  # enough to score what is echoed
        if value is None or low <= value <= high:
            continue
        side, limit, word = ("below_min", low, ">=") if value < low else ("above_max", high, "<=")
        told = f"{kind} {side.replace('_', ' ')} value"
        wanted = f"Expected a value {word} {limit}, but got {value} instead."
        message = f"Invalid '{name}': {told}. {wanted}"
        _refuse(message, name, f"{kind}_{side}_value")
    if text and (body.get("logprobs") or 0) > 5:
        _refuse("Invalid 'logprobs': expected a value <= 5.", "logprobs", "integer_above_max_value")
    if isinstance(body.get("stop"), list) and len(body["stop"]) > 4:
        _refuse(
            "Invalid 'stop': expected an array with maximum length 4.",
            "stop",
            "array_above_max_length",
        )
    if body.get("stream_options") is not None and not body.get("stream"):
        _refuse(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
        )
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        _refuse(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            "top_logprobs",
        )
    if body.get("max_tokens") and body.get("max_completion_tokens"):
        _refuse(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        )
    if body.get("messages") == []:
        _refuse("Invalid 'messages': empty array.", "messages", "empty_array")


def _check_reasoning(body: Any) -> None:
    for name, hint in {
        "max_tokens": " Use 'max_completion_tokens' instead.",
        "stop": "",
        "logprobs": "",
        "top_p": "",
    }.items():
        if body.get(name) not in (None, False) and (name, body[name]) != ("top_p", 1):
            message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
            _refuse(message, name, "unsupported_parameter")
    if body.get("temperature") not in (None, 1):
        message = (
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. "
            "Only the default (1) value is supported."
        )
        _refuse(message, "temperature", "unsupported_value")


# Answers


def _made(kind: type[BaseModel], fields: Mapping[str, Any]) -> Any:
    """Return an answer as JSON, which is what the package's own response type reads."""
    return kind.model_validate(fields).model_dump(mode="json", exclude_unset=True)


def _head(body: Any, name: str, kind: str) -> dict[str, Any]:
    told = {"id": name, "object": kind, "created": CREATED, "model": body["model"]}
    return {**told, "system_fingerprint": FINGERPRINT}


def _finish(said: Said) -> str:
    return "length" if said.finish == "length" else "stop"


def _usage(prompt: int, said: Said) -> dict[str, Any]:
    written = len(said.tokens) + len(said.thought)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(said.thought)},
    }


def _logprobs(tokens: Iterable[str], top: int | None) -> Any:
    def one(token: str, share: float) -> dict[str, Any]:
        return {"token": token, "logprob": math.log(share), "bytes": list(token.encode())}

    told = []
    for token in tokens:
        found = alternatives(token, top or 1)
        others = [one(*each) for each in found] if top else []
        told.append({**one(*found[0]), "top_logprobs": others})
    return {"content": told, "refusal": None}


def _text_logprobs(tokens: tuple[str, ...], number: int, at: int, first: int | None) -> Any:
    """Return the form of old: one list for each thing; the prompt's first token has no probability."""
    shares = [alternatives(token, number) for token in tokens]
    values: list[float | None] = [math.log(found[0][1]) for found in shares]
    tops: list[Any] = [{token: math.log(share) for token, share in found} for found in shares]
    if first == at and tokens:
        values[0] = tops[0] = None
    offsets = [at + sum(map(len, tokens[:place])) for place in range(len(tokens))]
    told = {"tokens": list(tokens), "token_logprobs": values, "text_offset": offsets}
    return {**told, "top_logprobs": tops if number else None}


def _model(name: str) -> Any:
    from openai.types import Model

    fields = {"id": name, "object": "model", "created": CREATED, "owned_by": "words"}
    return _made(Model, fields)


def _events(chunks: Iterable[Any], error: Callable[[int, str], Any]) -> Streamed:
    failed = event(error(500, "the error that the test asked for"))
    return Streamed([event(chunk) for chunk in chunks], event("[DONE]"), failed)
