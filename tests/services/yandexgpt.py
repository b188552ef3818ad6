"""A service that speaks YandexGPT's protocol: text completion, whole or as lines of JSON.

Bodies are judged by models of its published reference: there is no package of its own among the tests'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, Field

from tests.services.bodies import Judge
from tests.services.server import LocalServer, Recorded, Refused, Streamed, line
from tests.services.words import Said, count, say

VERSION = "01.01.2026"
# grpc's code and the name of the HTTP status, by status
CODES = {
    400: (3, "Bad Request"),
    401: (16, "Unauthorized"),
    403: (7, "Forbidden"),
    404: (5, "Not Found"),
    429: (8, "Too Many Requests"),
    500: (13, "Internal Server Error"),
    503: (14, "Service Unavailable"),
    504: (4, "Gateway Timeout"),
}


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str | None = None
    toolCallList: dict[str, Any] | None = None
    toolResultList: dict[str, Any] | None = None


class ReasoningOptions(BaseModel):
    """Whether the model reasons, hidden."""

    mode: Literal["REASONING_MODE_UNSPECIFIED", "DISABLED", "ENABLED_HIDDEN"]


class CompletionOptions(BaseModel):
    """How it answers; the service knows neither stop sequences, nor a seed, nor ``top_p``."""

    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    # protocol buffers' JSON: int64 may come as a number or as a text
    maxTokens: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[1-9]\d*$")] | None = (
        None
    )
    reasoningOptions: ReasoningOptions | None = None


class CompletionRequest(BaseModel):
    """The body of a completion."""

    modelUri: str
    completionOptions: CompletionOptions | None = None
    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    jsonObject: bool | None = None
    jsonSchema: dict[str, Any] | None = None
    parallelToolCalls: bool | None = None
    toolChoice: dict[str, Any] | None = None


class YandexGPTServer(LocalServer):
    """Says back what the user said last; see `reply`.

    Attributes
    ----------
    key
        The one API key, or IAM token, that it lets in; None: anybody.
    folder
        The key's folder: a model's address, and the header if it is sent, must name it; with an IAM token
        the header must be sent.
    models
        What it serves; None: any name.
    reply
        Makes the text of an answer from a request's body.
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        folder: str = "b1gwords",
        models: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.key, self.folder = key, folder
        self.models = None if models is None else list(models)
        self.reply: Callable[[Any], str] = _last_user
        self._judge = Judge(CompletionRequest)
        self.answer("POST", "/foundationModels/v1/completion", self._complete)

    def error_body(self, status: int, message: str) -> Any:
        grpc, name = CODES.get(status, (2, "Unknown"))
        told = {"grpcCode": grpc, "httpCode": status, "message": message, "httpStatus": name}
        return {"error": {**told, "details": []}}

    def check(self, seen: Recorded) -> None:
        folder = seen.headers.get("x-folder-id")
        scheme, _, told = seen.headers.get("Authorization", "").partition(" ")
        if self.key is not None:
            if scheme not in ("Api-Key", "Bearer") or not told:
                self._refuse(401, "IAM token or API key has to be passed in request")
            if told != self.key:
                what = "api key" if scheme == "Api-Key" else "token"
                self._refuse(401, f"Unknown {what} '{told[:4]}{'*' * 8}{told[-4:]}'")
        if scheme == "Bearer" and folder is None:
            self._refuse(400, "Folder ID is empty")
        if folder not in (None, self.folder):
            self._refuse_folder(folder)

    def _refuse(self, status: int, message: str) -> NoReturn:
        raise Refused(status, self.error_body(status, message))

    def _refuse_folder(self, folder: str | None) -> NoReturn:
        told = f"Specified folder ID '{folder}' does not match with service account folder ID"
        self._refuse(400, f"{told} '{self.folder}'")

    def _complete(self, seen: Recorded) -> Any:
        body = self._checked(seen.body)
        options = body.get("completionOptions") or {}
        limit = options.get("maxTokens")
        said = say(self.reply(body), None if limit is None else int(limit))
        asked = count(message.get("text") or "" for message in body["messages"])
        if not options.get("stream"):
            return _result(said, asked)
        # each line has the whole text so far
        lines = [line(_result(said, asked, place + 1)) for place in range(len(said.tokens))]
        failed = line(self.error_body(500, "the error that the test asked for"))
        return Streamed(lines, line(_result(said, asked)), failed, "application/json")

    def _checked(self, body: Any) -> Any:
        if not isinstance(body, dict):
            self._refuse(400, "Failed to parse the body as JSON")
        found = self._judge.fault(body)
        if found is not None:
            self._refuse(400, f"{found.field}: {found.message}")
        scheme, _, rest = body["modelUri"].partition("://")
        folder, _, name = rest.partition("/")
        if scheme != "gpt" or not folder or not name:
            self._refuse(400, "invalid model_uri")
        if folder != self.folder:
            self._refuse_folder(folder)
        if self.models is not None and name.partition("/")[0] not in self.models:
            self._refuse(404, f"Model '{name}' is not found")
        for message in body["messages"]:
            given = [each for each in ("text", "toolCallList", "toolResultList") if each in message]
            if len(given) != 1:
                self._refuse(400, "messages: exactly one of text, toolCallList, toolResultList")
        return body


def _last_user(body: Any) -> str:
    told = [message.get("text") for message in body["messages"] if message["role"] == "user"]
    return told[-1] or "" if told else ""


def _result(said: Said, asked: int, place: int | None = None) -> Any:
    """Return the answer, or what there is of it after some tokens."""
    tokens = said.tokens if place is None else said.tokens[:place]
    final = {"length": "ALTERNATIVE_STATUS_TRUNCATED_FINAL"}.get(
        said.finish, "ALTERNATIVE_STATUS_FINAL"
    )
    status = final if place is None else "ALTERNATIVE_STATUS_PARTIAL"
    message = {"role": "assistant", "text": "".join(tokens)}
    usage = {
        "inputTextTokens": str(asked),
        "completionTokens": str(len(tokens)),
        "totalTokens": str(asked + len(tokens)),
        "completionTokensDetails": {"reasoningTokens": "0"},
    }
    told = {"alternatives": [{"message": message, "status": status}], "usage": usage}
    return {"result": {**told, "modelVersion": VERSION}}
