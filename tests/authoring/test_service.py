"""Providers of services: two methods are written, everything else is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring.service import BaseProvider, served
from nbproviders.core.config import ProviderConfig
from nbproviders.core.params import GenerationParams
from tests.services.keys import fake
from tests.services.server import LocalServer

httpx = pytest.importorskip("httpx", reason="an author's provider uses it")


@pytest.fixture
def service() -> Iterator[LocalServer]:
    """A service that answers with what it was sent, in capitals."""
    with LocalServer() as made:
        made.answer("POST", "/completions", lambda seen: {"text": seen.body["prompt"].upper()})
        made.answer("GET", "/health", {})
        yield made


class Upper(BaseProvider):
    """As an author writes one, over httpx."""

    made = 0
    closed = 0

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config)
        Upper.made += 1
        self._client = httpx.AsyncClient(timeout=self.config.timeout, verify=False)

    async def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
        async def ask() -> str:
            answer = await self._client.post(
                f"{self.config.base_url}/completions",
                json={"prompt": prompt, "model": self.config.model, **(params or P()).given()},
                headers={"Authorization": f"Bearer {self.config.api_key}"},
            )
            if answer.status_code == 401:
                raise nbp.AuthenticationError("Invalid API key")
            if answer.status_code != 200:
                raise nbp.ServiceUnavailableError(f"API error: {answer.status_code}")
            return str(answer.json()["text"])

        return await self._retry_with_backoff(ask)

    async def health_check(self) -> bool:
        try:
            return (await self._client.get(f"{self.config.base_url}/health")).status_code == 200
        except httpx.HTTPError as error:
            self.logger.info("health check failed: %s", type(error).__name__)
            return False

    async def __aexit__(self, *_: object) -> None:
        Upper.closed += 1
        await self._client.aclose()


P = GenerationParams


class Speaking(BaseProvider):
    """Streams word by word, without a socket."""

    async def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
        return prompt

    async def stream(
        self, prompt: str, params: GenerationParams | None = None
    ) -> AsyncIterator[str]:
        for word in prompt.split():
            yield f"{word} "

    async def health_check(self) -> bool:
        return True


@pytest.fixture
def upper(service: LocalServer) -> nbp.ModelProvider:
    Upper.made = Upper.closed = 0
    nbp.register_provider("upper", Upper)
    return nbp.create_provider(
        "upper", api_key=fake("upper"), base_url=service.base_url, max_retries=2
    )


async def test_a_model_of_it_is_used_like_any(upper: Any, service: LocalServer) -> None:
    """Opened once and shared, asked with its own name and the given parameters, closed when freed."""
    async with upper.model("large") as m, upper.model("large") as again:
        assert await m.generate("hi", temperature=0.5, stop="\n") == "HI"
        assert await again.generate("ho") == "HO"
        assert "".join([c async for c in m.stream("hey")]) == "HEY"
        assert m.raw is again.raw
        assert m.spec == "upper:large"
    first = service.requests[0]
    assert first.body == {"prompt": "hi", "model": "large", "temperature": 0.5, "stop": ["\n"]}
    assert first.headers["Authorization"] == f"Bearer {fake('upper')}"
    made = Upper.made
    await asyncio.to_thread(nbp.unload_all)
    assert (made, Upper.closed) == (2, 1)  # the one that was created, and the model's


async def test_it_is_compared_with_others(upper: Any) -> None:
    """In one table with a model that runs here; a failing service costs only its own cells."""
    async with upper.model("large") as m:
        result = await nbp.compare([m, "echo:echo"], ["a b", "c"], progress=False)
    texts = result.frame.groupby("spec")["text"].apply(list).to_dict()
    assert texts == {"upper:large": ["A B", "C"], "echo:echo": ["a b", "c"]}


async def test_failures_are_ours_and_retried_as_configured(
    upper: Any, service: LocalServer
) -> None:
    """Three attempts for what may pass, one for a wrong key; the author's retries are the only ones."""
    async with upper.model("large") as m:
        service.fail_next(503, times=2)
        assert await m.generate("x") == "X"
        assert len(service.requests) == 3
        service.fail_next(503, times=9)
        with pytest.raises(nbp.ServiceUnavailableError):
            await m.generate("x")
        assert len(service.requests) == 6
        service.recover()
        service.fail_next(401)
        with pytest.raises(nbp.AuthenticationError):
            await m.generate("x")
        assert len(service.requests) == 7


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        ("ConnectError", nbp.ServiceUnavailableError),
        ("ReadTimeout", nbp.TimeoutError),
        ("RemoteProtocolError", nbp.ServiceUnavailableError),
        ("DecodingError", nbp.ProviderError),
    ],
)
async def test_errors_of_http_libraries_become_ours(error: str, ours: type[Exception]) -> None:
    """Whatever the author let through; none of its frames is kept."""

    class Breaking(Speaking):
        async def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
            raise getattr(httpx, error)("gone")

    model = served(Breaking(ProviderConfig(name="b", max_retries=0)))
    with pytest.raises(ours, match="gone") as told:
        await model.generate("x")
    assert type(told.value.__cause__).__name__ == "ForeignError"


async def test_streams_come_in_pieces(upper: Any) -> None:
    """An author's stream is a stream; leaving it early closes it."""
    nbp.register_provider("speaking", Speaking)
    async with nbp.model("speaking:any") as m:
        assert [c async for c in m.stream("a b c")] == ["a ", "b ", "c "]
        async for chunk in m.stream("a b c"):
            assert chunk == "a "
            break
        assert await m.generate("a b c") == "a b c"


async def test_an_instance_works_by_itself(service: LocalServer) -> None:
    """Direct calls are the author's own code, on the caller's loop."""
    config = ProviderConfig(name="upper", api_key="k", base_url=service.base_url, max_retries=0)
    async with Upper(config) as provider:
        assert await provider.generate("x", GenerationParams(temperature=0)) == "X"
        assert await provider.health_check()
        service.fail_next(503)
        with pytest.raises(nbp.ServiceUnavailableError):
            await provider.generate("x")
    async with Upper(config.model_copy(update={"base_url": "http://127.0.0.1:1"})) as nobody:
        assert not await nobody.health_check()


def test_providers_built_alike_share_and_others_do_not(service: LocalServer) -> None:
    """Another key is another resource, though no dump shows it."""
    nbp.register_provider("upper", Upper)
    one = nbp.create_provider("upper", api_key="k1", base_url=service.base_url)
    same = Upper(ProviderConfig(name="upper", api_key="k1", base_url=service.base_url))
    other = nbp.create_provider("upper", api_key="k2", base_url=service.base_url)
    assert one.resolve("m") == same.resolve("m") != other.resolve("m")
    assert "k1" not in str(one.resolve("m"))


def test_a_wrong_configuration_is_told(service: LocalServer) -> None:
    """By field, without the key."""
    nbp.register_provider("upper", Upper)
    with pytest.raises(nbp.ConfigurationError, match="max_retries=-1"):
        nbp.create_provider("upper", api_key="secret-key", max_retries=-1)
    with pytest.raises(nbp.ConfigurationError, match="unknown field 'tokn'"):
        nbp.create_provider("upper", tokn="secret-key")
    with pytest.raises(nbp.ConfigurationError, match="takes a ProviderConfig, not dict"):
        Upper({"name": "x"})  # type: ignore[arg-type]


async def test_messages_that_are_no_single_turn_are_refused() -> None:
    """It takes a text; what cannot be one is an error that says so."""
    nbp.register_provider("speaking", Speaking)
    async with nbp.model("speaking:any") as m:
        assert await m.generate([{"role": "user", "content": "a b"}]) == "a b"
        with pytest.raises(nbp.InvalidRequestError, match="takes a text, not 2 messages"):
            await m.chat("hi", system="Be brief.")
