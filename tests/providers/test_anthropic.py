"""Promises of the messages provider alone; for those of all services see `test_services`."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core.completion import Cost, Usage
from nbproviders.errors import ConfigurationError, InvalidRequestError, UnsupportedError
from nbproviders.providers.anthropic import AnthropicProvider
from tests.providers.hosted import ANTHROPIC, EARLIER, ask
from tests.scripted import BOUND_S
from tests.services.keys import FAKE

NEWEST = "claude-opus-5"
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
provider, bodies = ANTHROPIC.provider, ANTHROPIC.bodies


@pytest.fixture
def server() -> Iterator[Any]:
    with ANTHROPIC.serve() as running:
        yield running


async def test_headers(server: Any) -> None:
    """The protocol's version is told, and the key in the header that it has for it, and no other."""
    async with provider(server).model(EARLIER) as m:
        await m.generate("hi")
    (seen,) = server.requests
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert seen.headers["x-api-key"] == FAKE
    assert "Authorization" not in seen.headers


@pytest.mark.parametrize("model", [EARLIER, NEWEST])
async def test_a_stop_string(server: Any, model: str) -> None:
    """It ends the text, also where the model takes no temperature beside it."""
    async with provider(server).model(model) as m:
        got = await ask(m, "stream", "one two three four", temperature=0, stop=" three")
    assert (got, got.finish, got.usage) == ("one two", "stop", Usage(4, 2))
    assert got.params.stop == (" three",)
    assert got.ignored == (() if model == EARLIER else ("temperature",))
    assert bodies(server)[-1]["stop_sequences"] == [" three"]


async def test_a_limit_of_the_provider(server: Any) -> None:
    """Its own counts where a request has none, and a reference's wins; the service wants one."""
    made = provider(server, max_tokens=3)
    for option, text in (("", "one two three"), ("?max_tokens=2", "one two")):
        async with made.model(EARLIER + option) as m:
            got = await m.generate("one two three four")
        assert (got, got.finish) == (text, "length")
        assert got.params.given() == {"max_tokens": len(text.split())}


async def test_one_of_temperature_and_top_p(server: Any) -> None:
    """Where both together are refused, the temperature goes, and the other is told as ignored."""
    server.fail_next(400, server.error_body(400, BOTH))
    async with provider(server).model(EARLIER) as m:
        for _ in range(2):
            got = await m.generate("a", temperature=0, top_p=0.5)
            assert (got.ignored, got.params.temperature) == (("top_p",), 0)
    assert len(server.requests) == 3


async def test_a_refusal_of_what_the_user_insists_on(server: Any) -> None:
    """A refused field of `extra_body` is the service's error, told once."""
    async with provider(server, extra_body={"temperature": 0.5}).model(NEWEST) as m:
        with pytest.raises(InvalidRequestError, match="deprecated"):
            await asyncio.wait_for(m.generate("a", temperature=0), BOUND_S)
    assert len(server.requests) == 1


async def test_a_value_that_the_service_refuses(server: Any) -> None:
    """Its words are told, and the parameter is not taken for one that it does not know."""
    async with provider(server).model(EARLIER) as m:
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="must contain non-whitespace"):
                await m.generate("a", stop="\n")
    assert len(server.requests) == 2


@pytest.mark.parametrize("way", ["gathered", "stream"])
async def test_thinking(server: Any, way: str) -> None:
    """Thoughts stand beside the text; there is room for both, and no temperature is sent."""
    async with provider(server, thinking_tokens=1024).model(EARLIER) as m:
        got = await ask(m, way, "one two", temperature=0)
    assert (got, got.reasoning) == ("one two", "The user said 7 letters.")
    assert got.usage == Usage(2, 7)
    assert (got.ignored, got.params.given()) == (("temperature",), {"max_tokens": 4096 + 1024})
    assert bodies(server)[0]["thinking"] == {"type": "enabled", "budget_tokens": 1024}


async def test_thinking_leaves_no_room(server: Any) -> None:
    """A limit that the thoughts alone may fill is refused here, with both numbers."""
    async with provider(server).model(EARLIER + "?thinking_tokens=1024") as m:
        with pytest.raises(InvalidRequestError, match=r"max_tokens=256 .* thinking_tokens=1024"):
            await m.generate("one", max_tokens=256)
        assert server.requests == []
        assert await m.generate("one", max_tokens=1025) == "one"


async def test_models_that_think_as_they_like(server: Any) -> None:
    """The newest take no budget: the error tells what they take, and that works."""
    async with provider(server, thinking_tokens=1024).model(NEWEST) as m:
        with pytest.raises(InvalidRequestError, match=r"thinking\.type\.enabled") as caught:
            await m.generate("one two")
    (told,) = re.findall(r"extra_body=(\{.*\}\})", caught.value.hint)
    async with provider(server, extra_body=ast.literal_eval(told)).model(NEWEST) as m:
        got = await m.generate("one two", temperature=0)
    assert (got, got.reasoning) == ("one two", "The user said 7 letters.")
    assert got.ignored == ("temperature",)


class Priced(AnthropicProvider):
    """As if the price list knew the model."""

    def cost(self, usage: Usage) -> Cost:
        return Cost(0.5, "known")


async def test_prompt_caching(server: Any) -> None:
    """Cached tokens count as the prompt's; what writing them costs is not known for certain."""
    config = ANTHROPIC.alone(server).config
    async with Priced(config, prompt_caching=True) as cached:
        turns = [{"role": "system", "content": "be very brief"}, {"role": "user", "content": "hi"}]
        wrote, read = [await cached.generate(turns) for _ in range(2)]
    assert bodies(server)[0]["cache_control"] == {"type": "ephemeral"}
    assert (wrote.usage, wrote.cost) == (Usage(4, 1, 0), Cost(0.5, "estimated"))
    assert (read.usage, read.cost) == (Usage(4, 1, 3), Cost(0.5, "known"))


async def test_the_protocols_other_calls(server: Any) -> None:
    """Beside `messages.create`, which is sent a limit, there is none."""
    async with provider(server).model(EARLIER) as client:
        await ask(client, "messages.create")
        with pytest.raises(UnsupportedError, match="count_tokens"):
            await client.messages.count_tokens(messages=[])
    assert bodies(server)[0]["max_tokens"] == 4096


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_the_version_in_the_address(server: Any, base: str) -> None:
    """The address may be given with the protocol's version, as for other services, or without."""
    async with provider(server, base_url=server.root_url + base).model(EARLIER) as m:
        assert await m.generate("hi") == "hi"
    assert server.requests[0].path == "/v1/messages"


async def test_pages_of_models(server: Any) -> None:
    """`list_models` reads all pages."""
    server.models = [f"m-{number:04}" for number in range(2300)]
    assert await provider(server).list_models() == server.models
    assert [seen.query.get("after_id") for seen in server.requests] == [None, "m-0999", "m-1999"]


async def test_a_list_without_an_end(server: Any) -> None:
    """A service that tells the same page again and again is not asked for ever."""
    page = {"data": [{"id": "a"}], "has_more": True, "last_id": "a"}
    server.answer("GET", "/v1/models", page)
    assert await asyncio.wait_for(provider(server).list_models(), BOUND_S) == ["a"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["max_tokens", "thinking_tokens"])
def test_settings_are_checked(name: str) -> None:
    """A limit below 1 is refused when the provider is made."""
    with pytest.raises(ConfigurationError, match=f"{name}=0"):
        nbp.create_provider("anthropic", api_key=FAKE, **{name: 0})
