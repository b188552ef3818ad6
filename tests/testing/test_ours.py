"""The contract over every provider of ours, services against their local servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core import engine
from nbproviders.testing import ProviderContract
from tests.providers.hosted import ANTHROPIC, GIGACHAT, OLLAMA, OPENAI, YANDEXGPT, Hosted
from tests.providers.serving import LINUX, command, end_kept, own_state
from tests.services.keys import FAKE
from tests.services.server import LocalServer, Recorded, Refused

REFUSED = "refuse this"
TOO_LONG = "a" * 5000


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a provider that is not available here, with its reason."""
    reason = nbp.list_available()[name].reason
    return pytest.mark.skipif(bool(reason), reason=reason)


class Ours(ProviderContract):
    """The contract of one of our providers, by its name."""

    name = ""

    def provider(self):
        return nbp.create_provider(self.name)


class TestEcho(Ours):
    name = "echo"
    model, other, missing = "echo", "echo?seed=7", "echo?fail_rate=2"
    refused = "word " * 5000


@needs("transformers")
class TestTransformers(Ours):
    name = "transformers"
    model, other, missing = "demo-xs", "demo-s", "/no/such/folder"
    prompt, refused = "12+30=", TOO_LONG
    params = {"temperature": 0, "max_tokens": 8}


@needs("optimized")
class TestOptimized(TestTransformers):
    name = "optimized"
    model, other = "demo-xs?compile=false", "demo-s?compile=false"


@needs("llama-cpp")
class TestLlamaCpp(Ours):
    name = "llama-cpp"
    model, other, missing = "demo-xs", "demo-xs?n_ctx=128", "/no/such/file.gguf"
    prompt, refused = "12+30=", TOO_LONG
    params = {"temperature": 0, "max_tokens": 8}


# Services, against their local servers


class ServiceContract(Ours):
    row: Hosted
    server: Any
    prompt, refused, secrets = "one two three", REFUSED, (FAKE,)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def served(cls) -> Iterator[None]:
        """One server for all clauses; some prompts it refuses."""
        with cls.row.serve() as server:
            refusing(server)
            cls.server = server
            yield

    def provider(self):
        return self.row.provider(self.server)


def refusing(server: LocalServer) -> None:
    real = server.check

    def check(seen: Recorded) -> None:
        real(seen)
        if REFUSED in json.dumps(seen.body):
            raise Refused(400, server.error_body(400, "not this prompt"))

    server.check = check  # type: ignore[method-assign]


def contract_of(row: Hosted) -> type[ServiceContract]:
    """Return the contract of one service; one that is given no time cannot be set up."""
    told = {
        "row": row,
        "name": row.name,
        "model": row.model,
        "other": f"{row.model}?timeout=5",
        "missing": f"{row.model}?timeout=0",
    }
    return type(f"Test{row.kind.__name__}", (ServiceContract,), told)


TestOpenAI = contract_of(OPENAI)
TestAnthropic = contract_of(ANTHROPIC)
TestOllama = contract_of(OLLAMA)
TestGigaChat = contract_of(GIGACHAT)
TestYandexGPT = contract_of(YANDEXGPT)


# Servers that are started as children


class ServerContract(Ours):
    missing, prompt = None, "12+30="

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def state(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """A folder for what runs, and nothing of it left at the end."""
        folder = tmp_path_factory.mktemp("state")
        with pytest.MonkeyPatch.context() as patch, own_state(folder, patch):
            yield
            engine.default().wait(end_kept)


@LINUX
class TestVLLM(ServerContract):
    """Against a stand-in, which starts at once: each clause starts and ends servers of its own."""

    name = "vllm"
    model, other, prompt = "org/model", "org/model?gpu=1", "one two three"

    def provider(self):
        return nbp.create_provider(self.name, command=command())


class KeptContract(ServerContract):
    """One start for all clauses: the server is kept, and adopted by each."""

    missing, refused = "/no/such/model", TOO_LONG


@LINUX
@needs("llama-server")
class TestLlamaServer(KeptContract):
    name = "llama-server"
    model, tells_usage = "demo-xs?keep=true", False  # its streams tell no tokens


@LINUX
@needs("transformers-serve")
class TestTransformersServe(KeptContract):
    name = "transformers-serve"
    model, missing = "demo-xs?keep=true", "/no/such/model"


@needs("unsloth")
class TestUnsloth(Ours):
    name = "unsloth"
    model = "demo-xs"


def test_every_provider_of_ours_is_proved():
    """A provider that the package brings has a contract here; several names of one class share it."""
    brought = {
        point.name: point.value
        for point in entry_points(group="nbproviders.providers")
        if point.dist is not None and point.dist.name == "nbproviders"
    }
    contracts = [c for c in globals().values() if isinstance(c, type) and issubclass(c, Ours)]
    assert {brought[c.name] for c in contracts if c.name} == set(brought.values())
