"""The hosted services that one contract binds: of each a row, with its server here and its own spellings.

`test_services` asks all of them for the same; what only one of them promises is in its own test module.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.authoring.hosted import HostedProvider
from nbproviders.providers import ollama
from nbproviders.providers.anthropic import AnthropicProvider
from nbproviders.providers.gigachat import AUTH_URL_VARIABLE, GigaChatProvider
from nbproviders.providers.ollama import OllamaProvider
from nbproviders.providers.openai import OpenAIProvider
from nbproviders.providers.yandexgpt import YandexGPTProvider
from tests.services.anthropic import AnthropicServer
from tests.services.gigachat import GigaChatServer
from tests.services.keys import FAKE
from tests.services.ollama import OllamaServer
from tests.services.openai import OpenAIServer
from tests.services.server import Recorded
from tests.services.yandexgpt import YandexGPTServer

DOCS = Path(__file__).parents[2] / "docs" / "providers"
PROMPT = "one two three four"
GIVEN: dict[str, Any] = {
    "temperature": 0.5,
    "max_tokens": 2,
    "top_p": 0.9,
    "stop": ("zzz",),
    "seed": 7,
}
FOLDER = "b1gwords"
EARLIER = "claude-3-haiku"
# Of a service that may be asked for a whole answer as one, or for a stream that is read to its end.
BOTH = {"whole": "", "gathered": "?stream=true"}


@dataclass(frozen=True)
class Hosted:
    """One service as the contract sees it.

    Attributes
    ----------
    kind, serves
        Its provider, and its local server, which is made with a key and not begun yet.
    model
        A name under which the server says back what it was told.
    path
        How the address ends to which completions are asked for.
    bare
        The body that asks for `PROMPT`, whole, with no parameter given.
    given, streamed
        What `GIVEN`, and a stream, add to it.
    ignored
        Those of `GIVEN` that the service does not take.
    defaults
        Parameters that are sent, and so told, though nobody gave them.
    turns
        Returns a body's messages in our own form, the system prompt among them.
    ways
        How a whole answer may be asked for: the options of a reference, by ``whole`` or ``gathered``.
    said, counted
        Returns the text of an answer to the protocol's own call, if the provider hands that through; and
        what the protocol calls the number of the prompt's tokens.
    chats_only
        Whether it takes turns only, and no plain text.
    thinker
        A name under which the server thinks first and tells its thoughts.
    picky
        A name under which it refuses parameters, such parameters, and the fields that are left of a body.
    further
        A field of its own that ``extra_body`` may hold.
    coldest, hottest
        The least temperature that is sent, and the most that it takes.
    marked
        Whether a stream without the mark of its end is a broken one.
    midway
        Words of the error for an error that the service tells in the place of an answer, or of its rest.
    form
        Words of the error for an answer that is another service's: a whole one, and a streamed.
    priced
        A model of the price list.
    at_home_costs
        The kinds of cost that it may have at its own address.
    listing
        Where it lists them.
    unknown
        The error for a model that is not there, words of it, and words of its hint.
    parallel
        Requests at once, by itself.
    addresses, environment
        Options, and variables, that tell where it is, and what of its server they tell.
    own
        What its provider needs besides address and key.
    """

    kind: type[HostedProvider]
    serves: Callable[..., Any]
    model: str
    path: str
    bare: Mapping[str, Any]
    given: Mapping[str, Any]
    streamed: Mapping[str, Any]
    turns: Callable[[Any], list[Any]]
    form: tuple[str, str]
    listing: str
    unknown: tuple[type[nbp.ProviderError], str, str]
    midway: str = "the error that the test asked for"
    ways: Mapping[str, str] = field(default_factory=lambda: BOTH)
    ignored: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    said: Callable[[Any], str] | None = None
    counted: str = "prompt_tokens"
    chats_only: bool = True
    thinker: str | None = None
    picky: tuple[str, Mapping[str, Any], frozenset[str]] | None = None
    further: Mapping[str, Any] | None = None
    coldest: float = 0.0
    hottest: float = 2.0
    marked: bool = True
    priced: str | None = None
    at_home_costs: Sequence[str] = ("unpriced",)
    parallel: int = 32
    addresses: Mapping[str, str] = field(default_factory=lambda: {"base_url": "base_url"})
    environment: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def key_variables(self) -> tuple[str, ...]:
        return self.kind.home.key_variables or ollama.CLOUD.key_variables

    @property
    def call(self) -> str | None:
        """The protocol's own call, as users of its package write it."""
        return next(iter(self.kind.calls), None)

    def serve(self, **options: Any) -> Any:
        """Return its server, to be begun by ``with``."""
        return self.serves(**{"key": FAKE, **options})

    def address(self, server: Any) -> dict[str, Any]:
        """Return the options that lead to a server."""
        return {option: getattr(server, place) for option, place in self.addresses.items()}

    def provider(self, server: Any, **fields: Any) -> Any:
        """Return its provider, with its key, which asks once."""
        told = {"api_key": FAKE, "max_retries": 0, **self.address(server), **self.own, **fields}
        return nbp.create_provider(self.name, **told)

    def alone(self, server: Any, **fields: Any) -> Any:
        """Return an instance that is used by itself, for one model."""
        told = {"api_key": FAKE, "max_retries": 0, "model": self.model, **self.own}
        told = {**told, **self.address(server), **fields}
        known = {
            name: told.pop(name) for name in list(told) if name in nbp.ProviderConfig.model_fields
        }
        return self.kind(nbp.ProviderConfig(name=self.name, **known), **told)

    def reference(self, way: str = "stream") -> str:
        """Return what names the model, and has it asked this way."""
        return self.model + self.ways.get(way, "")

    def at_home(self, server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
        """Have a server stand where the service is, and return what refers to it."""
        monkeypatch.setattr(registry, "_made", {})  # what is made of references knows where it is
        for variable, place in self.environment.items():
            monkeypatch.setenv(variable, getattr(server, place))
        if self.kind is OllamaProvider:
            monkeypatch.setattr(ollama, "CLOUD", replace(ollama.CLOUD, base_url=server.base_url))
        elif not self.environment:
            moved = replace(self.kind.home, base_url=server.base_url)
            monkeypatch.setattr(self.kind, "home", moved)
        further = "".join(f"&{name}={value}" for name, value in self.own.items())
        return f"{self.name}:{self.model}?max_retries=0{further}"

    def create(self, m: Any) -> Any:
        """Return the protocol's own call, by a model's client."""
        assert self.call is not None
        return functools.reduce(getattr, self.call.split("."), m)

    def asked(self, server: Any) -> list[Recorded]:
        """Return the requests for a completion that came."""
        return [seen for seen in server.requests if seen.path.endswith(self.path)]

    def bodies(self, server: Any) -> list[Any]:
        return [seen.body for seen in self.asked(server)]

    def body(self, way: str, *, temperature: float | None = None) -> dict[str, Any]:
        """Return the body that asks for `PROMPT` this way; with a temperature, and the others of `GIVEN`."""
        given = {} if temperature is None else self.given
        made: dict[str, Any] = {}
        for part in (self.bare, given, {} if way == "whole" else self.streamed):
            for name, value in part.items():
                made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
        for place in (made, *made.values()):
            if isinstance(place, dict) and "temperature" in place:
                place["temperature"] = temperature
        return made


# How they spell it


def as_they_are(body: Any) -> list[Any]:
    return list(body["messages"])


def system_apart(body: Any) -> list[Any]:
    return [{"role": "system", "content": body["system"]}, *body["messages"]]


def texts(body: Any) -> list[Any]:
    names = {"text": "content"}
    return [
        {names.get(name, name): told for name, told in turn.items()} for turn in body["messages"]
    ]


def with_version(**options: Any) -> OllamaServer:
    server = OllamaServer(**options)
    server.answer("GET", "/api/version", {"version": "0.13.1"})
    return server


def with_models(**options: Any) -> YandexGPTServer:
    """Return a server that answers what the provider asks besides completions."""
    server = YandexGPTServer(**options)
    ids = [f"gpt://{FOLDER}/yandexgpt/latest", f"emb://{FOLDER}/text-search-doc/latest",
           "gpt://b1gother/tuned", f"ds://{FOLDER}/mine"]  # fmt: skip
    server.answer("GET", "/v1/models", {"object": "list", "data": [{"id": one} for one in ids]})

    def tokenize(seen: Recorded) -> Any:
        assert set(seen.body) == {"modelUri", "text"}
        return {"tokens": [{"id": "1", "text": "1", "special": False}], "modelVersion": "x"}

    server.answer("POST", "/foundationModels/v1/tokenize", tokenize)
    return server


ASKED = [{"role": "user", "content": PROMPT}]
OPENAI = Hosted(
    kind=OpenAIProvider,
    serves=OpenAIServer,
    model="gpt-x",
    path="/chat/completions",
    bare={"model": "gpt-x", "messages": ASKED},
    given={"temperature": 0.5, "max_tokens": 2, "top_p": 0.9, "stop": ["zzz"], "seed": 7},
    streamed={"stream": True, "stream_options": {"include_usage": True}},
    turns=as_they_are,
    said=lambda answer: answer.choices[0].message.content,
    chats_only=False,
    thinker="thinker",
    picky=(
        "o3-mini",
        {"temperature": 0, "stop": "z"},
        frozenset({"model", "messages", "max_completion_tokens"}),
    ),
    further={"user": "me"},
    marked=False,
    form=("no completion", "not a stream"),
    listing="/models",
    unknown=(nbp.InvalidRequestError, "`b` does not exist", "name"),
    priced="gpt-4o",
    at_home_costs=("known", "estimated"),
    environment={"OPENAI_BASE_URL": "base_url"},
)
ANTHROPIC = Hosted(
    kind=AnthropicProvider,
    serves=AnthropicServer,
    model=EARLIER,
    path="/v1/messages",
    bare={"model": EARLIER, "max_tokens": 4096, "messages": ASKED},
    given={"temperature": 0.5, "max_tokens": 2, "top_p": 0.9, "stop_sequences": ["zzz"]},
    streamed={"stream": True},
    turns=system_apart,
    ways={"whole": "?stream=false", "gathered": ""},
    ignored=("seed",),
    defaults={"max_tokens": 4096},
    said=lambda answer: answer.content[0].text,
    thinker=f"think-{EARLIER}",
    picky=(
        "claude-opus-5",
        {"temperature": 0, "top_p": 0.5},
        frozenset({"model", "messages", "max_tokens"}),
    ),
    further={"top_k": 5},
    counted="input_tokens",
    midway="Overloaded|the error that the test asked for",
    hottest=1.0,
    form=("not of the messages form", "not a stream"),
    listing="/v1/models",
    unknown=(nbp.InvalidRequestError, "model: b", "name"),
    priced="claude-sonnet-4-5",
    at_home_costs=("known", "estimated"),
    environment={"ANTHROPIC_BASE_URL": "base_url"},
)
GIGACHAT = Hosted(
    kind=GigaChatProvider,
    serves=GigaChatServer,
    model="GigaChat",
    path="/chat/completions",
    bare={"model": "GigaChat", "messages": ASKED},
    given={"temperature": 0.5, "max_tokens": 2, "top_p": 0.9},
    streamed={"stream": True},
    turns=as_they_are,
    ignored=("stop", "seed"),
    said=lambda answer: answer.choices[0].message.content,
    thinker="GigaChat-think",
    further={"repetition_penalty": 1.1},
    coldest=0.0001,
    marked=False,
    midway="no completion|before the completion did",
    form=("no completion", "not a stream"),
    listing="/models",
    unknown=(nbp.InvalidRequestError, "No such model", "name"),
    parallel=1,
    addresses={"base_url": "base_url", "auth_url": "auth_url"},
    environment={"GIGACHAT_BASE_URL": "base_url", AUTH_URL_VARIABLE: "auth_url"},
)
OLLAMA = Hosted(
    kind=OllamaProvider,
    serves=with_version,
    model="words",
    path="/api/chat",
    bare={"model": "words", "stream": True, "messages": ASKED},
    given={
        "options": {
            "temperature": 0.5,
            "num_predict": 2,
            "top_p": 0.9,
            "stop": ["zzz"],
            "seed": 7,
        }
    },
    streamed={},
    turns=as_they_are,
    ways={"gathered": ""},
    chats_only=False,
    thinker="think",
    form=("", "not of Ollama's form"),
    listing="/api/tags",
    unknown=(nbp.ModelAccessError, "no model 'b'", "ollama pull b"),
    at_home_costs=("free",),
    parallel=1,
    environment={"OLLAMA_HOST": "base_url"},
)
YANDEXGPT = Hosted(
    kind=YandexGPTProvider,
    serves=with_models,
    model="yandexgpt-lite",
    path="/foundationModels/v1/completion",
    bare={
        "modelUri": f"gpt://{FOLDER}/yandexgpt-lite",
        "completionOptions": {},
        "messages": [{"role": "user", "text": PROMPT}],
    },
    given={"completionOptions": {"temperature": 0.5, "maxTokens": "2"}},
    streamed={"completionOptions": {"stream": True}},
    turns=texts,
    ignored=("top_p", "stop", "seed"),
    hottest=1.0,
    form=("not of YandexGPT's form", "not of YandexGPT's form"),
    listing="/v1/models",
    unknown=(nbp.InvalidRequestError, "Model 'b' is not found", "name"),
    parallel=10,
    own={"folder_id": FOLDER},
)
HOSTED = [OPENAI, ANTHROPIC, GIGACHAT, OLLAMA, YANDEXGPT]


# Asking


async def drained(stream: Any) -> list[str]:
    return [str(chunk) async for chunk in stream]


async def ask(m: Any, way: str, prompt: str = "a", **params: Any) -> Any:
    """Ask a client for a completion: its text as it is written, or all of it; or by the protocol's call."""
    if "." in way:
        create = functools.reduce(getattr, way.split("."), m)
        return await create(messages=[{"role": "user", "content": prompt}])
    if way != "stream":
        return await m.generate(prompt, **params)
    stream = m.stream(prompt, **params)
    pieces = await drained(stream)
    assert all(pieces)
    assert "".join(pieces) == stream.completion
    return stream.completion


async def run_page(name: str, *, least: int) -> None:
    """Run the code of a provider's page, one block after another, as cells do."""
    path = DOCS / f"{name}.md"
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```py\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= least
    for block in blocks:
        code = compile(block, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)
        if inspect.isawaitable(value):
            await value
