"""The request style of Multi-LLM Orchestrator's guide to custom providers: its own code, imports changed."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core import engine
from tests.services.server import LocalServer, Recorded

pytest.importorskip("httpx", reason="the document's provider uses it")

REPOSITORY = Path(__file__).parents[2]
SEEDS = Path(os.environ.get("NBPROVIDERS_TEST_SEEDS") or REPOSITORY.parent / "shared" / "seeds")
FOUND = sorted(SEEDS.glob("orchestrator-custom-provider*"))

pytestmark = pytest.mark.skipif(
    not FOUND, reason="NBPROVIDERS_TEST_SEEDS names no folder with the document"
)

# Where the document's imports point here; the provider's own module is `your_provider`.
IMPORTS = {
    r"from \.base import": "from nbproviders import",
    r"from \.your_provider import": "from your_provider import",
    r"from orchestrator import Router": "from nbproviders import Router",
    r"from orchestrator\.providers\.base import": "from nbproviders import",
    r"from orchestrator\.providers import ProviderConfig, YourProvider": (
        "from nbproviders import ProviderConfig\nfrom your_provider import YourProvider"
    ),
}

TEXT = FOUND[0].read_text(encoding="utf-8") if FOUND else ""


def blocks() -> list[tuple[str, str]]:
    """Return all code blocks of the document: language and text, as they stand."""
    return re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def block(words: str) -> str:
    """Return the one Python block that holds these words, with its imports pointed here."""
    [found] = [text for language, text in blocks() if language == "python" and words in text]
    for old, new in IMPORTS.items():
        found = re.sub(old, new, found)
    return found


async def run(code: str, **names: Any) -> dict[str, Any]:
    """Execute a block, awaits included, with the names it takes for granted; return what it defines."""
    namespace: dict[str, Any] = {"__name__": "document", **names}
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compiled = compile(code, str(FOUND[0]), "exec", flags=flags, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await eval(compiled, namespace)
    else:
        exec(compiled, namespace)
    return namespace


@pytest.fixture
def service() -> Iterator[LocalServer]:
    """What the document's provider asks for: ``/completions`` and ``/health``."""
    with LocalServer(keep_alive=False) as made:  # the document leaves its clients open
        told = "You said: {}".format
        made.answer("POST", "/completions", lambda seen: {"text": told(seen.body["prompt"])})
        made.answer("GET", "/health", {})
        yield made


def asked(service: LocalServer) -> list[Recorded]:
    """Return the completions that were asked for, without the looks at its health."""
    return [seen for seen in service.requests if seen.method == "POST"]


@pytest.fixture
async def provider(service: LocalServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The document's class, as the module `your_provider`; its API is the local server."""
    module = ModuleType("your_provider")
    vars(module).update(await run(block("class YourProvider(BaseProvider):")))
    monkeypatch.setitem(sys.modules, "your_provider", module)
    module.YourProvider.DEFAULT_BASE_URL = service.base_url  # type: ignore[attr-defined]
    return module.YourProvider  # type: ignore[attr-defined]


def config(**fields: Any) -> nbp.ProviderConfig:
    return nbp.ProviderConfig(
        **{"name": "your-provider", "api_key": "k", "max_retries": 0, **fields}
    )


async def test_the_provider_answers(provider: Any, service: LocalServer) -> None:
    """The class as it stands: its payload, its defaults, its parameters, and its closing."""
    async with provider(config(model="large")) as made:
        assert await made.generate("Hello") == "You said: Hello"
        params = nbp.GenerationParams(temperature=0.5, max_tokens=7)
        await made.generate("Hello", params)
        assert await made.health_check()
    plain, tuned = asked(service)
    assert (plain.path, plain.headers["Authorization"]) == ("/completions", "Bearer k")
    assert plain.body == {"prompt": "Hello", "model": "large"}
    assert (tuned.body["temperature"], tuned.body["max_tokens"]) == (0.5, 7)
    async with provider(config()) as made:
        await made.generate("Hello")
    assert asked(service)[-1].body["model"] == "your-model"


async def test_its_registration_names_it(provider: Any) -> None:
    """Step 2; here a provider is also registered by name, without editing the package."""
    module = await run(block("from .your_provider import YourProvider"))
    assert module["__all__"] == ["YourProvider"]
    assert module["YourProvider"] is provider
    nbp.register_provider("yours", provider)
    async with nbp.create_provider("yours", api_key="k").model("large") as m:
        assert await m.generate("Hello") == "You said: Hello"
        assert m.spec == "yours:large"


async def test_the_router_routes(provider: Any, service: LocalServer) -> None:
    """Step 3, awaited as in a notebook's cell."""
    told = await run(block('router = Router(strategy="round-robin")'))
    response = told["response"]
    assert response == "You said: Hello, world!"
    assert isinstance(response, str)
    assert response.spec == "your-provider:your-model"
    assert asked(service)[0].headers["Authorization"] == "Bearer your_api_key"
    assert told["router"].history()["outcome"].tolist() == ["answered"]
    assert "your_api_key" not in repr(told["config"])


async def test_the_router_falls_back(provider: Any, service: LocalServer) -> None:
    """From one that is refused for a while to the next; a wrong key is told instead."""
    router = nbp.Router(strategy="first-available")
    for name in ("one", "two"):
        router.add_provider(provider(config(name=name)))
    service.fail_next(429)
    assert (await router.route("Hello")).spec == "two:default"
    service.fail_next(429, times=2)
    with pytest.raises(nbp.RateLimitError, match=r"(?s)(?=.*one:default)(?=.*two:default)"):
        await router.route("Hello")
    service.fail_next(401)
    with pytest.raises(nbp.AuthenticationError):
        await router.route("Hello")
    assert len(asked(service)) == 5


CONFTEST = """
import os
import your_provider
your_provider.YourProvider.DEFAULT_BASE_URL = os.environ["TEST_BASE_URL"]
"""


async def test_its_tests_pass(service: LocalServer, tmp_path: Path) -> None:
    """Step 4, the unit and the integration test, by pytest as it would be run.

    The last two show no imports: they have those of step 4, and `os`.
    """
    tests = block("async def test_generate_success():")
    more = [block("async def test_generate_with_mock():"), block("async def test_generate_real():")]
    (tmp_path / "your_provider.py").write_text(block("class YourProvider(BaseProvider):"))
    (tmp_path / "test_your_provider.py").write_text("\n\n".join(["import os", tests, *more]))
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    integration: asks a real API\n")
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=prepend"],
        cwd=tmp_path,
        env={**os.environ, "TEST_BASE_URL": service.base_url, "TEST_API_KEY": "real-key"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "4 passed" in ran.stdout
    keys = [seen.headers["Authorization"] for seen in asked(service)]
    assert keys == ["Bearer test_key", "Bearer real-key"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, nbp.AuthenticationError),
        (429, nbp.RateLimitError),
        (400, nbp.InvalidRequestError),
        (500, nbp.ProviderError),
    ],
)
async def test_errors_are_mapped_as_it_says(
    provider: Any, service: LocalServer, status: int, kind: type[nbp.ProviderError]
) -> None:
    """By the provider, directly and by a client; and by the fragment of its first best practice."""
    async with provider(config()) as made:
        service.fail_next(status)
        with pytest.raises(kind) as told:
            await made.generate("Hello")
        assert type(told.value) is kind
    fragment = block('raise AuthenticationError("Invalid credentials")')
    names = {name: getattr(nbp, name) for name in ("AuthenticationError", "RateLimitError")}
    response = type("Response", (), {"status_code": status})
    if status in (401, 429):
        with pytest.raises(kind):
            await run(fragment, response=response, **names)
    else:
        await run(fragment, response=response, **names)


async def test_a_rate_limit_is_retried_and_no_more_than_configured(
    provider: Any, service: LocalServer
) -> None:
    """By its `_retry_with_backoff` alone: the client around it does not multiply the attempts."""
    service.fail_next(429)
    async with provider(config(max_retries=1)) as made:
        assert await made.generate("Hello") == "You said: Hello"
    assert len(asked(service)) == 2
    nbp.register_provider("yours", provider)
    service.fail_next(429, times=9)
    async with nbp.create_provider("yours", api_key="k", max_retries=1).model("large") as m:
        with pytest.raises(nbp.RateLimitError):
            await m.generate("Hello")
    assert len(asked(service)) == 4
    service.recover()
    service.fail_next(401, times=9)
    async with provider(config(max_retries=3)) as made:
        with pytest.raises(nbp.AuthenticationError):
            await made.generate("Hello")
    assert len(asked(service)) == 5


async def test_what_it_forgets_to_map_is_mapped(provider: Any) -> None:
    """It never maps its library's timeouts and refused connections: ours come out all the same."""
    nowhere = config(base_url="http://127.0.0.1:1")
    async with provider(nowhere) as made:
        with pytest.raises(nbp.ServiceUnavailableError):
            await made.generate("Hello")


async def test_health_is_told_and_never_raised(
    provider: Any, service: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An unhealthy service, and one that is not there, are False; the reason is logged."""
    async with provider(config()) as made:
        assert await made.health_check() is True
        service.fail_next(503, path="/health")
        assert await made.health_check() is False
    with caplog.at_level(logging.WARNING, logger="nbproviders"):
        async with provider(config(base_url="http://127.0.0.1:1")) as made:
            assert await made.health_check() is False
    assert [record.name for record in caplog.records] == ["nbproviders.your-provider"]
    assert "Health check failed" in caplog.text


async def test_its_retry_logic(provider: Any) -> None:
    """Best practice 2, with a request that does nothing."""
    async with provider(config()) as made:
        told = await run(block("result = await self._retry_with_backoff(make_request)"), self=made)
    assert told["result"] is None


async def test_its_logging(provider: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Best practice 3: the provider's own logger, with no handler of ours."""
    async with provider(config()) as made:
        with caplog.at_level(logging.INFO, logger="nbproviders"):
            await run(block('self.logger.info("Making request to API")'), self=made)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "ERROR"]
    assert made.logger.handlers == []


async def test_its_configuration() -> None:
    """Best practice 4: its good lines work, and its bad line does not, as it says."""
    good, bad, line = block("config.custom_field").partition("# Bad")
    told = await run(good, ProviderConfig=nbp.ProviderConfig)
    assert (told["config"].timeout, told["config"].max_retries) == (60, 5)
    with pytest.raises(nbp.ConfigurationError, match="unknown field 'custom_field'"):
        await run(bad + line, config=told["config"])


async def test_its_type_hints() -> None:
    """Best practice 5: the signature is the one that is asked for."""
    told = await run(block(") -> str:\n    ..."), GenerationParams=nbp.GenerationParams)
    assert inspect.signature(told["generate"]) == inspect.Signature(
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("prompt", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str),
            inspect.Parameter(
                "params",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None,
                annotation=nbp.GenerationParams | None,
            ),
        ],
        return_annotation=str,
    )


async def test_it_is_used_from_any_loop(provider: Any, service: LocalServer) -> None:
    """Its client would be bound to the loop of its first call; by the router that is the engine's."""
    router = nbp.Router()
    made = provider(config())
    router.add_provider(made)
    assert await router.route("a") == "You said: a"
    assert await asyncio.to_thread(lambda: asyncio.run(router.route("b"))) == "You said: b"
    assert await asyncio.to_thread(router.route_sync, "c") == "You said: c"
    result = await nbp.compare([router, "echo:echo"], ["d"], progress=False)
    assert result.frame["text"].tolist() == ["You said: d", "d"]
    await engine.default().call(lambda: made.__aexit__(None, None, None))
