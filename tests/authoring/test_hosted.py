"""Promises of what all hosted services share: keys, sharing, loops, costs and ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

import nbproviders as nbp
from nbproviders.catalog import keys, prices
from nbproviders.core import engine
from nbproviders.core.completion import Usage
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    ServiceUnavailableError,
)
from nbproviders.providers.openai import OpenAIProvider
from nbproviders.routing.router import Router
from tests.services.keys import FAKE, fake
from tests.services.openai import OpenAIServer
from tests.services.server import LocalServer


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=FAKE) as running:
        yield running


def config(server: OpenAIServer, **fields: Any) -> nbp.ProviderConfig:
    told = {"name": "openai", "api_key": FAKE, "base_url": server.base_url, "model": "gpt-x"}
    return nbp.ProviderConfig(**{**told, "max_retries": 0, **fields})


# Keys


def sent(server: OpenAIServer) -> list[str | None]:
    return [seen.headers.get("Authorization") for seen in server.requests]


async def test_the_environment_key_goes_to_the_environments_address(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and address of the environment belong together; a corrected key counts at the next request."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", fake("wrong"))
    async with nbp.model("openai:gpt-x") as m:
        with pytest.raises(AuthenticationError):
            await m.generate("hi")
        monkeypatch.setenv("OPENAI_API_KEY", FAKE)
        assert await m.generate("hi") == "hi"


async def test_no_key_of_the_environment_goes_elsewhere(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that names another address gets none of the user's keys."""
    monkeypatch.setenv("OPENAI_API_KEY", FAKE)
    monkeypatch.setenv("GROQ_API_KEY", FAKE)
    for name in ("openai", "groq"):
        async with nbp.model(f"{name}:gpt-x?base_url={server.base_url}&max_retries=0") as m:
            with pytest.raises(AuthenticationError) as caught:
                await m.generate("hi")
        assert "api_key=" in caught.value.hint
    assert sent(server) == [None, None]


async def test_a_key_by_argument_or_setup(server: OpenAIServer) -> None:
    """Setup wins over the constructor; other keys are other resources."""
    provider = nbp.create_provider("openai", base_url=server.base_url, api_key=fake("wrong"))
    async with provider.model("gpt-x", api_key=FAKE) as m:
        assert await m.generate("hi") == "hi"
    handle = await provider.setup("gpt-x", api_key=FAKE)
    assert await handle.model.generate("hi") == "hi"
    await handle.teardown()
    async with provider.model("gpt-x", max_retries=0) as m:
        with pytest.raises(AuthenticationError):
            await m.generate("hi")
    assert FAKE not in repr(provider.resolve("gpt-x", api_key=FAKE))


async def test_a_missing_key_is_told_before_anything_is_sent() -> None:
    """The error names the variable, the argument and the page; nothing stays behind."""
    for reference, variable in (("openai:gpt-x", "OPENAI_API_KEY"), ("groq:x", "GROQ_API_KEY")):
        with pytest.raises(AuthenticationError, match="needs an API key") as caught:
            async with nbp.model(reference):
                raise AssertionError("it was opened without a key")
        assert variable in caught.value.hint
        assert "api_key=" in caught.value.hint
        assert str(caught.value).startswith("Failed to setup resource")
    assert not nbp.residents()


async def test_a_key_that_was_found_and_refused_is_forgotten(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keyring or a prompt gave, and the service refused, is looked for anew."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setattr(keys, "_known", {"OPENAI_API_KEY": nbp.core.config.Secret(fake("old"))})
    async with nbp.model("openai:gpt-x?max_retries=0") as m:
        with pytest.raises(AuthenticationError, match="401"):
            await m.generate("hi")
        with pytest.raises(AuthenticationError, match="none was found"):
            await m.generate("hi")
    assert len(server.requests) == 1


async def test_a_key_by_argument_stays_at_its_address(server: OpenAIServer) -> None:
    """A reference that leads elsewhere does not take the constructor's key along; its own goes."""
    with OpenAIServer(key=FAKE) as elsewhere:
        provider = nbp.create_provider("openai", base_url=server.base_url, api_key=FAKE)
        reference = f"gpt-x?base_url={elsewhere.base_url}&max_retries=0"
        async with provider.model(reference) as m:
            with pytest.raises(AuthenticationError):
                await m.generate("hi")
        assert sent(elsewhere) == [None]
        async with provider.model(reference, api_key=FAKE) as m:
            assert await m.generate("hi") == "hi"
        async with provider.model(f"gpt-x?base_url={server.root_url}/v1/") as m:
            assert await m.generate("hi") == "hi"


async def test_another_address_is_asked_from_then_on(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and address of the environment change together: no new key goes where the old one went."""
    with OpenAIServer(key=fake("new")) as other:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", FAKE)
        async with nbp.model("openai:gpt-x?max_retries=0") as m:
            assert await m.generate("hi") == "hi"
            monkeypatch.setenv("OPENAI_BASE_URL", other.base_url)
            monkeypatch.setenv("OPENAI_API_KEY", fake("new"))
            assert await m.generate("hi") == "hi"
    assert sent(server) == [f"Bearer {FAKE}"]
    assert sent(other) == [f"Bearer {fake('new')}"]


async def test_a_configuration_that_is_assigned_counts(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Address, model and key of an instance may be assigned between two requests."""
    monkeypatch.setenv("OPENAI_API_KEY", fake("home"))
    with OpenAIServer(key=fake("new")) as other:
        async with OpenAIProvider(config(server)) as instance:
            await instance.generate("hi")
            instance.config.base_url = other.base_url
            instance.config.api_key = fake("new")  # type: ignore[assignment]  # as S3 writes it
            instance.config.model = "gpt-y"
            assert (await instance.generate("hi")).spec == "openai:gpt-y"
        assert [seen.body["model"] for seen in other.requests] == ["gpt-y"]


async def test_a_configuration_that_is_assigned_is_another_resource(server: OpenAIServer) -> None:
    """Two providers built alike share; one that was changed since does not, also with itself before."""
    with OpenAIServer(key=FAKE) as other:
        one, two = (
            nbp.create_provider("openai", base_url=server.base_url, api_key=FAKE) for _ in range(2)
        )
        assert one.resolve("gpt-x") == two.resolve("gpt-x")
        async with one.model("gpt-x") as m, two.model("gpt-x") as n:
            assert m.raw is n.raw
        two.config.base_url = other.base_url  # type: ignore[attr-defined]
        async with two.model("gpt-x") as m:
            assert await m.generate("hi") == "hi"
    assert (len(server.requests), len(other.requests)) == (0, 1)


@pytest.mark.parametrize("call", ["list_models", "create"])
async def test_a_refused_key_is_forgotten_by_every_call(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Not only a completion tells that a key which was found is wrong."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setattr(keys, "_known", {"OPENAI_API_KEY": nbp.core.config.Secret(fake("old"))})
    async with nbp.model("openai:gpt-x?max_retries=0") as m:
        calls = {"create": lambda: m.chat.completions.create(messages=[])}
        asked = calls.get(call) or m.raw.list_models  # type: ignore[attr-defined]
        with pytest.raises(AuthenticationError):
            await asked()
    assert keys._known == {}


def test_no_repr_tells_a_key(server: OpenAIServer) -> None:
    """Neither provider, model, client, router nor their contents."""
    provider = nbp.create_provider("openai", api_key=FAKE, base_url=server.base_url)
    assert isinstance(provider, OpenAIProvider)
    router = Router()
    router.add_provider(OpenAIProvider(config(server)))
    with provider.model("gpt-x") as m:
        told = [provider, provider.config, vars(provider), provider.model("gpt-x"), m, m.raw]
        told += [router, vars(m.raw), provider.wire, provider.resolve("gpt-x")]
        assert FAKE not in " ".join(map(repr, told))


# Sharing and ends


async def test_two_opens_one_instance(server: OpenAIServer) -> None:
    """The same reference is one instance; other options are another; unloading closes it."""
    provider = nbp.create_provider("openai", api_key=FAKE, base_url=server.base_url)
    async with provider.model("gpt-x") as one, provider.model("gpt-x") as two:
        assert one.raw is two.raw
        async with provider.model("gpt-x?timeout=5") as other:
            assert other.raw is not one.raw
            assert other.raw.config.timeout == 5  # type: ignore[attr-defined]
        await one.generate("hi")
        raw: Any = one.raw
        assert raw._wired is not None
    nbp.unload_all()
    assert raw._wired is None
    with pytest.raises(ClosedError):
        await one.generate("hi")


def test_from_any_loop(server: OpenAIServer) -> None:
    """An instance answers whoever asks: other loops, threads, and a router on the engine."""
    instance = OpenAIProvider(config(server))
    said: list[str] = []

    def thread() -> None:
        said.append(asyncio.run(instance.generate("from a thread")))

    said.append(asyncio.run(instance.generate("from here")))
    runner = threading.Thread(target=thread)
    runner.start()
    runner.join()
    router = Router()
    router.add_provider(instance)
    said.append(router.route_sync("by a router"))
    assert said == ["from here", "from a thread", "by a router"]
    assert asyncio.run(streamed(instance)) == ["one", " two"]
    made = OpenAIProvider(config(server))  # whose first call is this one, on a loop that ends
    reply = asyncio.run(made.create(messages=[{"role": "user", "content": "by hand"}]))
    said = [reply.choices[0].message.content, asyncio.run(made.generate("and then"))]
    assert said == ["by hand", "and then"]
    engine.default().wait(made.aclose)
    engine.default().wait(instance.aclose)


async def streamed(instance: OpenAIProvider) -> list[str]:
    return [str(chunk) async for chunk in instance.stream("one two")]


async def test_as_a_context_manager(server: OpenAIServer) -> None:
    """Leaving it closes its connections; it works again when it is asked again."""
    async with OpenAIProvider(config(server)) as instance:
        assert await instance.generate("one") == "one"
    assert instance._wired is None
    assert await instance.generate("two") == "two"
    await instance.aclose()


async def test_direct_calls_are_tried_again(server: OpenAIServer) -> None:
    """An instance asked directly retries as its configuration says."""
    server.fail_next(503, headers={"Retry-After": "0"})
    async with OpenAIProvider(config(server, max_retries=1)) as instance:
        assert await instance.generate("one") == "one"
    assert len(server.requests) == 2


async def test_health_is_bounded(server: OpenAIServer, caplog: pytest.LogCaptureFixture) -> None:
    """A service that is silent or gone is not healthy, within five seconds, and the log says why."""
    server.delay_s = 30
    async with OpenAIProvider(config(server)) as instance:
        began_s = asyncio.get_running_loop().time()
        assert not await instance.health_check()
        assert asyncio.get_running_loop().time() - began_s < 6
    assert "no answer" in caplog.text
    assert FAKE not in caplog.text
    gone = OpenAIProvider(config(server, base_url="http://127.0.0.1:9"))
    assert not await gone.health_check()
    with pytest.raises(ServiceUnavailableError):
        await gone.list_models()


HOSTILE: list[Any] = [
    None,
    7,
    "text",
    [[]],
    {"data": {}},
    {"data": [None, 7, {"id": None}, {"id": ["x"]}, {"id": "good"}, {"id": "good"}]},
    {"data": [], "has_more": True, "last_id": {}},
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["openai", "anthropic", "yandexgpt", "ollama", "gigachat"])
async def test_a_hostile_list_of_models(name: str, value: Any) -> None:
    """Whatever stands in the place of the list: names, or one of our errors; and no end without one."""
    with LocalServer() as hostile:
        for path in ("/models", "/v1/models", "/api/tags"):
            hostile.answer("GET", path, lambda _: web.json_response(value))
        hostile.answer("POST", "/oauth", {"access_token": fake("token"), "expires_at": 9e9})
        own = {"auth_url": f"{hostile.root_url}/oauth"} if name == "gigachat" else {}
        provider = nbp.create_provider(name, api_key=FAKE, base_url=hostile.root_url, **own)
        with contextlib.suppress(ServiceUnavailableError):
            assert set(await provider.list_models()) <= {"good"}  # type: ignore[attr-defined]
        assert isinstance(await provider.health_check(), bool)  # type: ignore[attr-defined]
        await provider.aclose()  # type: ignore[attr-defined]


async def test_pages_without_end() -> None:
    """A list that always says there is more is left, with what came."""
    pages = itertools.count()
    with LocalServer() as endless:

        def page(_: Any) -> Any:
            number = str(next(pages))
            return {"data": [{"id": number}], "has_more": True, "last_id": number}

        endless.answer("GET", "/v1/models", page)
        provider = nbp.create_provider("anthropic", api_key=FAKE, base_url=endless.root_url)
        assert len(await provider.list_models()) == 20  # type: ignore[attr-defined]
        await provider.aclose()  # type: ignore[attr-defined]


async def test_the_price_list_is_read_before_the_first_answer() -> None:
    """Entering reads it, off the loop: no answer waits for it, and no other model's either."""
    prices._listing.cache_clear()
    told = nbp.ProviderConfig(name="openai", api_key=FAKE, model="gpt-4o")
    async with OpenAIProvider(told):
        assert prices._listing.cache_info().currsize == 1


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one of our errors, for whoever asks first, and does not show what may be a key."""
    monkeypatch.setenv("OPENAI_BASE_URL", FAKE)
    told = nbp.ProviderConfig(name="openai", api_key=FAKE, model="gpt-4o")
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL must be a URL") as caught:
        OpenAIProvider(told).cost(Usage(1, 1))
    assert FAKE not in str(caught.value)
    for port in ("99999", "x", "0"):
        with pytest.raises(ConfigurationError, match="base_url"):
            nbp.ProviderConfig(name="openai", base_url=f"http://localhost:{port}/v1")


def test_settings_are_checked(server: OpenAIServer) -> None:
    """An unknown or wrong setting is refused with what there is, in each place where it may stand."""
    for given in ({"no_such": 1}, {"parallel": "many"}, {"parallel": 0}, {"parallel": 513}):
        with pytest.raises(ConfigurationError):
            nbp.create_provider("openai", **given)
    provider = nbp.create_provider("openai", base_url=server.base_url, parallel=3)
    with pytest.raises(ConfigurationError, match="paralel") as caught:
        provider.model("gpt-x?paralel=3")
    assert "'parallel'" in caught.value.hint
    with provider.model("gpt-x") as m:
        assert m.info.parallel == 3
    with provider.model("gpt-x?parallel=5") as m:
        assert m.info.parallel == 5


async def test_no_more_at_once_than_it_says(server: OpenAIServer) -> None:
    """Many prompts wait for their turn here, not at the service."""
    server.delay_s = 0.05
    provider = nbp.create_provider("openai", api_key=FAKE, base_url=server.base_url, parallel=3)
    async with provider.model("gpt-x") as m:
        said = await m.generate_many([f"n{n}" for n in range(12)])
    assert said == [f"n{n}" for n in range(12)]
    assert server.most_at_once == 3


def test_a_script_ends_in_silence(server: OpenAIServer) -> None:
    """A provider that nobody closed leaves no warning when the interpreter ends."""
    code = f"""if True:
        import asyncio, nbproviders as nbp
        from nbproviders.providers.openai import OpenAIProvider
        told = nbp.ProviderConfig(name="openai", api_key="{FAKE}", base_url="{server.base_url}", model="m")
        instance = OpenAIProvider(told)
        print(asyncio.run(instance.generate("hello there")))
    """
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("hello there\n", "")
