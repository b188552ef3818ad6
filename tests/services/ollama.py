"""A service that speaks Ollama's own protocol: chat, generate, what there is, what is loaded, pulls.

Bodies are judged by the request types of Ollama's own package, and answers are made of its response types.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest

from tests.services.bodies import Judge
from tests.services.server import LINES, LocalServer, Recorded, Refused, Streamed, line
from tests.services.words import Said, alternatives, count, last_user, say

STARTED = "2026-01-01T00:00:00Z"
SIZE_BYTES = 1_000_000
CONTEXT_TOKENS = 4096
FOREVER = datetime(2300, 1, 1, tzinfo=UTC)
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
MORE_OPTIONS = {"min_p"}  # documented; the package's type does not name it
VERSION = "0.12.6"


class OllamaServer(LocalServer):
    """Says back what the user said last; see `reply`. A model with ``think`` in its name can think.

    Attributes
    ----------
    key
        The one key it lets in, as ollama.com has them; None: anybody, as a local one does.
    models
        What is there; names without a tag mean ``latest``.
    library
        What can be pulled.
    reply, thought
        Make the text and the thought of an answer from a request's body.
    loaded
        What is in memory, by name, and until when.
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        models: Iterable[str] = ("words", "think"),
        library: Iterable[str] = ("new",),
        **kwargs: Any,
    ) -> None:
        pytest.importorskip("ollama", reason="its types judge what the local server is asked")
        super().__init__(**kwargs)
        self.key = key
        self.models = [_tagged(name) for name in models]
        self.library = [_tagged(name) for name in library]
        self.loaded: dict[str, datetime] = {}
        self.reply: Callable[[Any], str] = _echo
        self.thought: Callable[[Any], str] = lambda body: (
            f"The user said {len(_echo(body))} letters."
        )
        for path, made in {"chat": self._chat, "generate": self._generate, "show": self._show,
                           "pull": self._pull}.items():  # fmt: skip
            self.answer("POST", f"/api/{path}", made)
        self.answer("DELETE", "/api/delete", self._delete)
        self.answer("GET", "/api/tags", lambda _: _listed(self.models))
        self.answer("GET", "/api/ps", lambda _: self._running())
        self.answer("GET", "/api/version", {"version": VERSION})

    def error_body(self, status: int, message: str) -> Any:
        return {"error": message}

    def check(self, seen: Recorded) -> None:
        if self.key is not None and seen.headers.get("Authorization") != f"Bearer {self.key}":
            raise Refused(401, self.error_body(401, "unauthorized"))

    def _refuse(self, message: str, status: int = 400) -> NoReturn:
        raise Refused(status, self.error_body(status, message))

    # Chat and generate

    def _chat(self, seen: Recorded) -> Any:
        return self._reply_to(self._checked(seen.body, "chat"), bool(seen.body.get("messages")))

    def _generate(self, seen: Recorded) -> Any:
        return self._reply_to(self._checked(seen.body, "generate"), bool(seen.body.get("prompt")))

    def _reply_to(self, body: Any, asked: bool) -> Any:
        keep_s = self._keep_s(body.get("keep_alive"))
        self._keep(_tagged(body["model"]), keep_s)
        if not asked:
            why = "unload" if keep_s == 0 else "load"
            return _dumped(body, **_piece(body, ""), done=True, done_reason=why)
        options = body.get("options") or {}
        limit = options.get("num_predict")
        thought = self.thought(body) if self._thinks(body) else ""
        said = say(
            self.reply(body),
            limit if limit is not None and limit >= 0 else None,
            options.get("stop"),
            thought,
        )
        if body.get("stream") is False:
            return _dumped(body, **_whole(body, said), **_end(body, said))
        lines = [line(_dumped(body, **piece, done=False)) for piece in _pieces(body, said)]
        last = line(_dumped(body, **_piece(body, ""), **_end(body, said)))
        failed = line(self.error_body(500, "the error that the test asked for"))
        return Streamed(lines, last, failed, LINES)

    def _thinks(self, body: Any) -> bool:
        asked, can = body.get("think"), "think" in body["model"]
        if asked and not can:
            self._refuse(f'"{body["model"]}" does not support thinking')
        return can if asked is None else bool(asked)

    # What is there, and what is in memory

    def _keep_s(self, told: Any) -> float:
        """Return for how long a model is kept; negative: for ever."""
        if told is None:
            return 300.0
        if not isinstance(told, str):
            return float(told)
        if re.fullmatch(r"-?[\d.]+", told) and told != "0":
            self._refuse(f'time: missing unit in duration "{told}"')
        if not re.fullmatch(r"-?(\d+(\.\d+)?(h|ms|m|s|us|µs|ns))+|0", told):
            self._refuse(f'time: invalid duration "{told}"')
        parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)", told)
        total = sum(float(number) * UNITS[unit] for number, unit in parts)
        return -total if told.startswith("-") else total

    def _keep(self, name: str, keep_s: float) -> None:
        if keep_s == 0:
            self.loaded.pop(name, None)
        else:
            until = FOREVER if keep_s < 0 else datetime.now(UTC) + timedelta(seconds=keep_s)
            self.loaded[name] = until

    def _running(self) -> Any:
        from ollama import ProcessResponse

        now = datetime.now(UTC)
        self.loaded = {name: until for name, until in self.loaded.items() if until > now}
        told = [
            {
                **_described(name),
                "expires_at": until,
                "size_vram": 0,
                "context_length": CONTEXT_TOKENS,
            }
            for name, until in self.loaded.items()
        ]
        return _json(ProcessResponse(models=told))  # type: ignore[arg-type]

    def _show(self, seen: Recorded) -> Any:
        from ollama import ShowResponse

        body = self._checked(seen.body, "show")
        can = ["completion", *(["thinking"] if "think" in body["model"] else [])]
        told = {
            "modelfile": f"FROM {body['model']}",
            "parameters": "temperature 0.7",
            "template": "{{ .Prompt }}",
            "details": _described(body["model"])["details"],
            "model_info": {"general.architecture": "words", "words.context_length": CONTEXT_TOKENS},
            "capabilities": can,
            "modified_at": STARTED,
        }
        return _json(ShowResponse.model_validate(told))

    def _delete(self, seen: Recorded) -> Any:
        body = self._checked(seen.body, "delete")
        self.models.remove(_tagged(body["model"]))
        return {}

    def _pull(self, seen: Recorded) -> Any:
        body = self._judged(seen.body, "pull")
        name = _tagged(body["model"])
        missing = self.error_body(500, "pull model manifest: file does not exist")
        known = name in self.library or name in self.models
        if body.get("stream") is False:
            if not known:
                raise Refused(500, missing)
            self._pulled(name)
            return {"status": "success"}
        failed = line(missing)
        if not known:
            return Streamed([line({"status": "pulling manifest"})], failed, failed, LINES)
        lines = [line(each) for each in _progress(name)]
        last = line({"status": "success"})
        return Streamed(lines, last, failed, LINES, lambda: self._pulled(name))

    def _pulled(self, name: str) -> None:
        if name not in self.models:
            self.models.append(name)

    # What a body may hold

    def _judged(self, body: Any, kind: str) -> Any:
        if not isinstance(body, dict):
            self._refuse("missing request body")
        plain = {name: value for name, value in body.items() if name != "images"}
        found = _types()[kind].fault(plain)
        where = "" if found is None else found.field
        options = {
            name: value
            for name, value in (body.get("options") or {}).items()
            if name not in MORE_OPTIONS
        }
        if found is None and options:
            found, where = _types()["options"].fault(options), "options."
            where += "" if found is None else found.field
        for place, message in enumerate(body.get("messages") or () if found is None else ()):
            bare = {name: value for name, value in message.items() if name != "images"}
            found = found or _types()["message"].fault(bare)
            where = where if found is None else f"messages.{place}.{found.field}"
        if found is not None:
            self._refuse(f"{where}: {found.message}")
        return body

    def _checked(self, body: Any, kind: str) -> Any:
        self._judged(body, kind)
        if _tagged(body["model"]) not in self.models:
            self._refuse(f"model '{body['model']}' not found", 404)
        if not 0 <= (body.get("top_logprobs") or 0) <= 20:
            self._refuse("top_logprobs must be between 0 and 20")
        return body


@functools.cache
def _types() -> dict[str, Judge]:
    from ollama import _types as types

    return {
        "chat": Judge(types.ChatRequest),
        "generate": Judge(types.GenerateRequest),
        "show": Judge(types.ShowRequest),
        "pull": Judge(types.PullRequest),
        "delete": Judge(types.DeleteRequest),
        "message": Judge(types.Message),
        "options": Judge(types.Options),
    }


def _echo(body: Any) -> str:
    return last_user(body["messages"]) if "messages" in body else str(body["prompt"])


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


# Answers


def _json(made: Any) -> Any:
    return made.model_dump(mode="json", exclude_unset=True, by_alias=True)


def _dumped(body: Any, **fields: Any) -> Any:
    from ollama import ChatResponse, GenerateResponse

    kind = ChatResponse if "message" in fields else GenerateResponse
    return _json(kind(model=body["model"], created_at=STARTED, **fields))


def _piece(body: Any, text: str, thinking: str | None = None) -> dict[str, Any]:
    """Return text or thought in the form that the endpoint has for it."""
    thought = {} if thinking is None else {"thinking": thinking}
    if "prompt" in body or "messages" not in body:
        return {"response": text, **thought}
    return {"message": {"role": "assistant", "content": text, **thought}}


def _logprobs(body: Any, tokens: Iterable[str]) -> dict[str, Any]:
    if not body.get("logprobs"):
        return {}
    told = []
    for token in tokens:
        found = alternatives(token, body.get("top_logprobs") or 1)
        each = [{"token": word, "logprob": math.log(share)} for word, share in found]
        told.append({**each[0], "top_logprobs": each} if body.get("top_logprobs") else each[0])
    return {"logprobs": told}


def _whole(body: Any, said: Said) -> dict[str, Any]:
    thinking = said.thinking if said.thought else None
    return {**_piece(body, said.text, thinking), **_logprobs(body, said.tokens)}


def _pieces(body: Any, said: Said) -> Iterator[dict[str, Any]]:
    for token in said.thought:
        yield _piece(body, "", token)
    for token in said.tokens:
        yield {**_piece(body, token), **_logprobs(body, [token])}


def _end(body: Any, said: Said) -> dict[str, Any]:
    if "messages" in body:
        asked = count(message.get("content") or "" for message in body["messages"])
    else:
        asked = count([body.get("system") or "", body["prompt"]])
    written = len(said.tokens) + len(said.thought)
    return {
        "done": True,
        "done_reason": "length" if said.finish == "length" else "stop",
        "total_duration": 3_000_000 + written * 1_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": asked,
        "prompt_eval_duration": 2_000_000,
        "eval_count": written,
        "eval_duration": written * 1_000_000,
    }


def _described(name: str) -> dict[str, Any]:
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "words",
        "families": ["words"],
        "parameter_size": "1M",
        "quantization_level": "Q4_0",
    }
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "size": SIZE_BYTES, "digest": digest, "details": details}


def _listed(names: Iterable[str]) -> Any:
    from ollama import ListResponse

    told = [{**_described(name), "modified_at": STARTED} for name in names]
    # the package's type leaves out the name, which is the same as the model
    made = _json(ListResponse(models=told))  # type: ignore[arg-type]
    return {"models": [{"name": each["model"], **each} for each in made["models"]]}


def _progress(name: str) -> Iterator[dict[str, Any]]:
    digest = f"sha256:{_described(name)['digest']}"
    yield {"status": "pulling manifest"}
    for quarter in range(5):
        told = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": SIZE_BYTES}
        # the first line of a layer has no `completed`
        yield {**told, "completed": SIZE_BYTES * quarter // 4} if quarter else told
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
