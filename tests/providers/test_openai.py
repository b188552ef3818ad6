"""Promises of the chat-completions provider, against a local server that judges by OpenAI's own types."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.catalog.services import SERVICES
from nbproviders.core.completion import Cost, Usage
from nbproviders.errors import (
    AuthenticationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
    UnsupportedError,
)
from nbproviders.providers.openai import OpenAIProvider
from tests.services.keys import FAKE, fake
from tests.services.openai import OpenAIServer


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=FAKE) as running:
        yield running


def provider(server: OpenAIServer, name: str = "openai", **fields: Any) -> Any:
    told = {"api_key": FAKE, "base_url": server.base_url, "max_retries": 0, **fields}
    return nbp.create_provider(name, **told)


def bodies(server: OpenAIServer) -> list[Any]:
    return [seen.body for seen in server.requests]


async def test_a_whole_answer(server: OpenAIServer) -> None:
    """One request without stream; text, usage, reason and what was asked come back."""
    async with provider(server).model("gpt-x") as m:
        got = await m.generate(
            "one two three four", max_tokens=2, temperature=0, seed=7, stop="zzz"
        )
    assert (got, got.finish, got.usage) == ("one two", "length", Usage(4, 2))
    assert (got.spec, got.chat, got.params.seed, got.ignored) == ("openai:gpt-x", True, 7, ())
    assert math.isnan(got.ttft_s)
    assert bodies(server) == [
        {
            "model": "gpt-x",
            "messages": [{"role": "user", "content": "one two three four"}],
            "temperature": 0,
            "max_tokens": 2,
            "stop": ["zzz"],
            "seed": 7,
        }
    ]


async def test_nothing_is_sent_that_was_not_asked_for(server: OpenAIServer) -> None:
    """Parameters that nobody gave are left to the service."""
    async with provider(server).model("gpt-x") as m:
        await m.generate("one")
    assert set(bodies(server)[0]) == {"model", "messages"}


@pytest.mark.parametrize("piece_bytes", [None, 1, 7])
async def test_a_stream(server: OpenAIServer, piece_bytes: int | None) -> None:
    """Chunks come as they are sent, however the bytes are cut; usage and reason at the end."""
    server.piece_bytes = piece_bytes
    async with provider(server).model("gpt-x") as m:
        stream = m.stream("wie grün, 日本 🦦 ok")
        assert [chunk async for chunk in stream] == ["wie", " grün,", " 日本", " 🦦", " ok"]
        got = stream.completion
    assert (got.finish, got.usage, got.spec) == ("stop", Usage(5, 5), "openai:gpt-x")
    assert 0 <= got.ttft_s <= got.total_s
    assert bodies(server)[0]["stream_options"] == {"include_usage": True}


async def test_stream_and_whole_agree(server: OpenAIServer) -> None:
    """`stream=True` asks for a stream where only the whole answer is wanted, and gives the same."""
    for option in ("", "?stream=true"):
        async with provider(server).model(f"gpt-x{option}") as m:
            got = await m.generate("a b c", max_tokens=2)
        assert (got, got.usage, got.finish) == ("a b", Usage(3, 2), "length")
        assert math.isnan(got.ttft_s) is not bool(option)
    assert [body.get("stream", False) for body in bodies(server)] == [False, True]


async def test_turns_and_system_prompt(server: OpenAIServer) -> None:
    """Messages go as they are."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now"},
    ]
    async with provider(server).model("gpt-x") as m:
        assert await m.chat(turns, system="be brief") == "and now"
    assert bodies(server)[0]["messages"] == [{"role": "system", "content": "be brief"}, *turns]


async def test_the_protocol_itself(server: OpenAIServer) -> None:
    """`client.chat.completions.create` takes the protocol's body and returns its answer."""
    async with provider(server).model("gpt-x") as client:
        answer = await client.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": "Hello"}], n=1
        )
        assert answer.choices[0].message.content == "Hello"
        assert answer["usage"]["total_tokens"] == answer.usage.total_tokens == 2
        with pytest.raises(UnsupportedError, match="m.stream"):
            await client.chat.completions.create(messages=[], stream=True)
        with pytest.raises(UnsupportedError, match="embeddings"):
            await client.embeddings.create(input="x")
        with pytest.raises(AttributeError, match="no_such"):
            _ = answer.no_such
    assert bodies(server)[0]["model"] == "gpt-4"


def test_the_protocol_from_a_script(server: OpenAIServer) -> None:
    """The same, blocking, with the model's own name if none is given."""
    with provider(server).model("gpt-x") as client:
        assert client.model == "gpt-x"
        answer = client.chat.completions.create(messages=[{"role": "user", "content": "Hello"}])
    assert answer.model == "gpt-x"


@pytest.mark.parametrize("whole", [True, False])
async def test_plain_text(server: OpenAIServer, whole: bool) -> None:
    """`raw=True` and `?chat=false` go to the older completions, and the completion says so."""
    async with provider(server).model("gpt-x?chat=false") as m:
        if whole:
            got = await m.generate("one two three", max_tokens=2, logprobs=True)
        else:
            stream = m.stream("one two three", max_tokens=2, logprobs=True)
            assert [str(chunk) async for chunk in stream] == ["one", " two"]
            got = stream.completion
    assert (got, got.chat, got.usage) == ("one two", False, Usage(3, 2))
    assert [token.text for token in got.tokens] == ["one", " two"]
    assert server.requests[0].path.endswith("/v1/completions")


@pytest.mark.parametrize("whole", [True, False])
async def test_probabilities(server: OpenAIServer, whole: bool) -> None:
    """Each token of the answer with its probability, if asked for."""
    async with provider(server).model("gpt-x") as m:
        if whole:
            got = await m.generate("one two", logprobs=True)
        else:
            stream = m.stream("one two", logprobs=True)
            assert "".join([chunk async for chunk in stream]) == "one two"
            got = stream.completion
    assert [token.text for token in got.tokens] == ["one", " two"]
    assert all(0 < token.probability <= 1 for token in got.tokens)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("whole", [True, False])
async def test_reasoning_is_no_answer(field: str, whole: bool) -> None:
    """What the model thinks stands beside the text, whatever the service calls it."""
    with OpenAIServer(thought_field=field) as server:
        async with provider(server).model("thinker") as m:
            if whole:
                got = await m.generate("one two")
            else:
                stream = m.stream("one two")
                assert "".join([chunk async for chunk in stream]) == "one two"
                got = stream.completion
    assert got == "one two"
    assert got.reasoning == "The user said 7 letters."


async def test_what_a_model_does_not_take_is_left_out_and_told(server: OpenAIServer) -> None:
    """A refused parameter is spelled otherwise or left out, once for all requests of the model."""
    async with provider(server, parallel=4).model("o3-mini") as m:
        got = await asyncio.gather(
            *(m.generate("a b c", max_tokens=2, temperature=0, stop="z") for _ in range(4))
        )
        assert {str(text) for text in got} == {"a b"}
        assert {one.ignored for one in got} == {("temperature", "stop")}
        assert got[0].params.given() == {"max_tokens": 2}
        before = len(server.requests)
        await m.generate("a b c", max_tokens=2, temperature=0, stop="z")
    assert len(server.requests) == before + 1
    assert set(bodies(server)[-1]) == {"model", "messages", "max_completion_tokens"}


async def test_further_fields(server: OpenAIServer) -> None:
    """`extra_body` goes with each request; what the service does not know is its error."""
    async with provider(server, extra_body={"user": "me"}).model("gpt-x") as m:
        await m.generate("a")
    assert bodies(server)[0]["user"] == "me"
    async with provider(server).model('gpt-x?extra_body={"no_such":1}') as m:
        with pytest.raises(InvalidRequestError, match="no_such"):
            await m.generate("a")
    assert len(server.requests) == 2


async def test_the_models_it_has() -> None:
    """`list_models` tells their names, and health is whether it tells them."""
    with OpenAIServer(key=FAKE, models=["b", "a"]) as server:
        assert await provider(server).list_models() == ["a", "b"]
        assert await provider(server).health_check()
        assert not await provider(server, api_key=fake("wrong")).health_check()
    assert not await provider(server).health_check()


async def test_an_unknown_model(server: OpenAIServer) -> None:
    """The service's own words are told, and what to check."""
    server.models = ["a"]
    async with provider(server).model("b") as m:
        with pytest.raises(InvalidRequestError, match="`b` does not exist") as caught:
            await m.generate("hi")
    assert "name" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, InvalidRequestError),
        (422, InvalidRequestError),
        (429, RateLimitError),
        (500, ServiceUnavailableError),
        (503, ServiceUnavailableError),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_statuses(
    server: OpenAIServer, status: int, kind: type[ProviderError], whole: bool
) -> None:
    """Each status is its error, for streams as well; the key is not in it."""
    server.fail_next(status, headers={"Retry-After": "7"})
    async with provider(server).model("gpt-x") as m:
        with pytest.raises(kind, match=f"HTTP {status}") as caught:
            await (m.generate("a") if whole else drained(m.stream("a")))
    assert type(caught.value) is kind
    assert FAKE not in str(caught.value)
    if kind is RateLimitError:
        assert caught.value.retry_after_s == 7


async def drained(stream: Any) -> list[str]:
    return [chunk async for chunk in stream]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("drop", ServiceUnavailableError),
        ("cut", ServiceUnavailableError),
        ("early_end", ServiceUnavailableError),
        ("error_in_stream", ServiceUnavailableError),
        ("stall", TimeoutError),
    ],
)
async def test_broken_streams(server: OpenAIServer, how: Any, kind: type[ProviderError]) -> None:
    """A stream that does not come to its end is an error, never a shorter answer."""
    server.break_next(how)
    async with provider(server, timeout=0.5).model("gpt-x") as m:
        with pytest.raises(kind):
            await drained(m.stream("one two three four five six"))


async def test_a_stream_without_its_mark(server: OpenAIServer) -> None:
    """A stream that told its reason has ended, though no mark of the end came."""
    server.break_next("no_end_mark")
    async with provider(server).model("gpt-x") as m:
        assert "".join(await drained(m.stream("one two"))) == "one two"


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_retries(server: OpenAIServer, retries: int) -> None:
    """`max_retries` counts the attempts after the first; none after the first chunk of a stream."""
    server.fail_next(429, headers={"Retry-After": "0"}, times=9)
    async with provider(server, max_retries=retries).model("gpt-x") as m:
        with pytest.raises(RateLimitError):
            await m.generate("a")
        assert len(server.requests) == retries + 1
        server.recover()
        server.break_next("cut", times=9)
        with pytest.raises(ServiceUnavailableError):
            await drained(m.stream("one two three four"))
    assert len(server.requests) == retries + 2


async def test_leaving_a_stream_ends_the_request(server: OpenAIServer) -> None:
    """The service stops writing when nobody reads any more."""
    server.chunk_delay_s = 0.05
    async with provider(server).model("gpt-x") as m:
        async with m.stream("word " * 500) as stream:
            assert await anext(stream) == "word"
        await server.was_left()


async def test_stopping_a_call_ends_the_request(server: OpenAIServer) -> None:
    """A cancelled generation closes its connection."""
    server.delay_s = 30
    async with provider(server).model("gpt-x") as m:
        work = asyncio.create_task(m.generate("a"))
        while not server.requests:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await server.was_left()


async def test_no_model_is_named(server: OpenAIServer) -> None:
    """An instance without a model says how to name one."""
    alone = OpenAIProvider(nbp.ProviderConfig(name="openai", base_url=server.base_url))
    with pytest.raises(nbp.errors.ConfigurationError, match="which model"):
        await alone.generate("hi")


def test_every_row_of_the_protocol_is_registered() -> None:
    """Each service that speaks it is a provider of its own name, at its own address, with its own key."""
    listed = nbp.list_available()
    for name, row in SERVICES.items():
        assert listed[name].available, name
        if row.protocol == "chat-completions":
            made = nbp.create_provider(name, api_key=FAKE)
            assert (made.name, made.base_url) == (name, row.base_url)  # type: ignore[attr-defined]


async def test_a_service_in_its_own_dialect(server: OpenAIServer) -> None:
    """Mistral spells the seed its own way; a service that takes none is told as ignoring it."""
    server.also = frozenset({"random_seed"})
    async with provider(server, "mistral").model("m") as m:
        assert (await m.generate("a", seed=3)).ignored == ()
        await drained(m.stream("a"))
    assert bodies(server)[0]["random_seed"] == 3
    assert "stream_options" not in bodies(server)[1]
    async with provider(server, "deepseek").model("m") as m:
        got = await m.generate("a", seed=3)
    assert (got.ignored, got.params.seed) == (("seed",), None)


async def test_what_it_costs() -> None:
    """By the price list at the service's own address; nothing here; unpriced anywhere else."""
    usage = Usage(1000, 1000)
    at_home = OpenAIProvider(nbp.ProviderConfig(name="openai", model="gpt-4o", api_key=FAKE))
    assert at_home.cost(usage).kind in ("known", "estimated")
    assert (at_home.cost(usage).usd or 0) > 0
    here = nbp.ProviderConfig(name="openai", model="gpt-4o", base_url="http://localhost:8000/v1")
    assert OpenAIProvider(here).cost(usage) == Cost(0.0, "free")
    away = nbp.ProviderConfig(name="openai", model="gpt-4o", base_url="https://example.org/v1")
    assert OpenAIProvider(away).cost(usage) == Cost(None, "unpriced")
