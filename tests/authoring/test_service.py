"""Providers of services: two methods are written, everything else is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring.service import BaseProvider, served
from nbproviders.core.config import ProviderConfig
from nbproviders.core.params import GenerationParams

httpx = pytest.importorskip("httpx", reason="an author's provider uses it")


class Service:
    """A local HTTP server that answers with what it was sent, or with the statuses it was told."""

    def __init__(self) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        service = self
        self.statuses: list[int] = []
        self.seen: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import json

                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.seen.append({**body, "key": self.headers["Authorization"]})
                status = service.statuses.pop(0) if service.statuses else 200
                self._send(status, json.dumps({"text": body["prompt"].upper()}))

            def do_GET(self) -> None:
                self._send(200, "{}")

            def _send(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


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
def upper(service: Service) -> nbp.ModelProvider:
    Upper.made = Upper.closed = 0
    nbp.register_provider("upper", Upper)
    return nbp.create_provider("upper", api_key="k-123", base_url=service.url, max_retries=2)


async def test_a_model_of_it_is_used_like_any(upper: Any, service: Service) -> None:
    """Opened once and shared, asked with its own name and the given parameters, closed when freed."""
    async with upper.model("large") as m, upper.model("large") as again:
        assert await m.generate("hi", temperature=0.5, stop="\n") == "HI"
        assert await again.generate("ho") == "HO"
        assert "".join([c async for c in m.stream("hey")]) == "HEY"
        assert m.raw is again.raw
        assert m.spec == "upper:large"
    assert service.seen[0] == {
        "prompt": "hi",
        "model": "large",
        "temperature": 0.5,
        "stop": ["\n"],
        "key": "Bearer k-123",
    }
    made = Upper.made
    await asyncio.to_thread(nbp.unload_all)
    assert (made, Upper.closed) == (2, 1)  # the one that was created, and the model's


async def test_it_is_compared_with_others(upper: Any) -> None:
    """In one table with a model that runs here; a failing service costs only its own cells."""
    async with upper.model("large") as m:
        result = await nbp.compare([m, "echo:echo"], ["a b", "c"], progress=False)
    texts = result.frame.groupby("spec")["text"].apply(list).to_dict()
    assert texts == {"upper:large": ["A B", "C"], "echo:echo": ["a b", "c"]}


async def test_failures_are_ours_and_retried_as_configured(upper: Any, service: Service) -> None:
    """Three attempts for what may pass, one for a wrong key; the author's retries are the only ones."""
    async with upper.model("large") as m:
        service.statuses = [503, 503]
        assert await m.generate("x") == "X"
        assert len(service.seen) == 3
        service.statuses = [503] * 9
        with pytest.raises(nbp.ServiceUnavailableError):
            await m.generate("x")
        assert len(service.seen) == 6
        service.statuses = [401]
        with pytest.raises(nbp.AuthenticationError):
            await m.generate("x")
        assert len(service.seen) == 7


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


async def test_an_instance_works_by_itself(service: Service) -> None:
    """Direct calls are the author's own code, on the caller's loop."""
    config = ProviderConfig(name="upper", api_key="k", base_url=service.url, max_retries=0)
    async with Upper(config) as provider:
        assert await provider.generate("x", GenerationParams(temperature=0)) == "X"
        assert await provider.health_check()
        service.statuses = [503]
        with pytest.raises(nbp.ServiceUnavailableError):
            await provider.generate("x")
    async with Upper(config.model_copy(update={"base_url": "http://127.0.0.1:1"})) as nobody:
        assert not await nobody.health_check()


def test_providers_built_alike_share_and_others_do_not(service: Service) -> None:
    """Another key is another resource, though no dump shows it."""
    nbp.register_provider("upper", Upper)
    one = nbp.create_provider("upper", api_key="k1", base_url=service.url)
    same = Upper(ProviderConfig(name="upper", api_key="k1", base_url=service.url))
    other = nbp.create_provider("upper", api_key="k2", base_url=service.url)
    assert one.resolve("m") == same.resolve("m") != other.resolve("m")
    assert "k1" not in str(one.resolve("m"))


def test_a_wrong_configuration_is_told(service: Service) -> None:
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
