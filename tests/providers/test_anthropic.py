"""Promises of the messages provider, against a local server that judges by Anthropic's own types."""

from __future__ import annotations

import ast
import asyncio
import math
import re
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring import hosted
from nbproviders.catalog import keys
from nbproviders.core.completion import Cost, Usage
from nbproviders.core.config import Secret
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
    UnsupportedError,
)
from nbproviders.providers.anthropic import AnthropicProvider
from tests.scripted import BOUND_S, happened
from tests.services.anthropic import AnthropicServer
from tests.services.keys import FAKE, fake

EARLIER, NEWEST = "claude-3-haiku", "claude-opus-5"
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."


@pytest.fixture
def server() -> Iterator[AnthropicServer]:
    with AnthropicServer(key=FAKE) as running:
        yield running


def provider(server: AnthropicServer, **fields: Any) -> Any:
    told = {"api_key": FAKE, "base_url": server.base_url, "max_retries": 0, **fields}
    return nbp.create_provider("anthropic", **told)


def bodies(server: AnthropicServer) -> list[Any]:
    return [seen.body for seen in server.requests]


async def drained(stream: Any) -> list[str]:
    return [chunk async for chunk in stream]


async def test_an_answer(server: AnthropicServer) -> None:
    """Text, usage, reason, time and what was asked come back; a limit is always sent, and told."""
    async with provider(server).model(EARLIER) as m:
        got = await m.generate("one two three four", temperature=0, top_p=0.5, stop=" three")
    assert (got, got.finish, got.usage) == ("one two", "stop", Usage(4, 2))
    assert (got.spec, got.chat, got.ignored) == (f"anthropic:{EARLIER}", True, ())
    assert got.params.given() == {
        "temperature": 0,
        "top_p": 0.5,
        "stop": (" three",),
        "max_tokens": 4096,
    }
    assert 0 < got.ttft_s <= got.total_s
    assert not got.batch_invariant
    assert bodies(server) == [
        {
            "model": EARLIER,
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": "one two three four"}],
            "temperature": 0,
            "top_p": 0.5,
            "stop_sequences": [" three"],
            "stream": True,
        }
    ]
    assert server.requests[0].headers["anthropic-version"] == "2023-06-01"


async def test_nothing_is_sent_that_was_not_asked_for(server: AnthropicServer) -> None:
    """Parameters that nobody gave are left to the service, but for the limit."""
    async with provider(server, stream=False, max_tokens=3).model(EARLIER) as m:
        got = await m.generate("one two three four")
    assert (got, got.finish, got.params.given()) == ("one two three", "length", {"max_tokens": 3})
    assert set(bodies(server)[0]) == {"model", "messages", "max_tokens"}


@pytest.mark.parametrize("piece_bytes", [None, 1, 7])
async def test_a_stream(server: AnthropicServer, piece_bytes: int | None) -> None:
    """Chunks come as they are sent, however the bytes are cut; usage and reason at the end."""
    server.piece_bytes = piece_bytes
    async with provider(server).model(EARLIER) as m:
        stream = m.stream("wie grün, 日本 🦦 ok", max_tokens=4)
        assert await drained(stream) == ["wie", " grün,", " 日本", " 🦦"]
        got = stream.completion
    assert (got.finish, got.usage, got.spec) == ("length", Usage(5, 4), f"anthropic:{EARLIER}")
    assert 0 <= got.ttft_s <= got.total_s


async def test_stream_and_whole_agree(server: AnthropicServer) -> None:
    """With ``stream=false`` a whole answer comes as one, and the same; nobody knows when it began."""
    for option in ("", "?stream=false"):
        async with provider(server).model(f"think-{EARLIER}{option}") as m:
            got = await m.generate("a b c", max_tokens=8)
        assert (got, got.usage, got.finish) == ("a b c", Usage(3, 8), "stop")
        assert got.reasoning == "The user said 5 letters."
        assert math.isnan(got.ttft_s) is bool(option)
    assert [body.get("stream", False) for body in bodies(server)] == [True, False]


async def test_an_empty_answer(server: AnthropicServer) -> None:
    """A model that says nothing has answered."""
    server.reply = lambda body: ""
    for option in ("", "?stream=false"):
        async with provider(server).model(EARLIER + option) as m:
            got = await m.generate("hi")
        assert (got, got.finish) == ("", "stop")


async def test_turns_and_system_prompt(server: AnthropicServer) -> None:
    """The system prompt goes apart from the turns; turns of one role may follow each other."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "you"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now"},
    ]
    async with provider(server).model(EARLIER) as m:
        assert await m.chat(turns, system="be brief") == "and now"
    assert bodies(server)[0]["system"] == "be brief"
    assert bodies(server)[0]["messages"] == turns


@pytest.mark.parametrize("plain", ["raw", "?chat=false"])
async def test_plain_text_is_refused(server: AnthropicServer, plain: str) -> None:
    """The service knows turns only, and the error says so; nothing is sent."""
    async with provider(server).model(EARLIER + plain.removeprefix("raw")) as m:
        with pytest.raises(UnsupportedError, match="turns only"):
            await m.generate("one two", raw=plain == "raw")
    assert server.requests == []


async def test_probabilities_are_refused(server: AnthropicServer) -> None:
    """The service tells none: asking is an error, by a model and by the provider itself."""
    config = nbp.ProviderConfig(
        name="anthropic", api_key=FAKE, base_url=server.base_url, model=EARLIER
    )
    alone = AnthropicProvider(config)
    async with provider(server).model(EARLIER) as m:
        for asked in (m, alone):
            with pytest.raises(UnsupportedError, match="probabilit"):
                await asked.generate("one", logprobs=True)
    assert server.requests == []
    assert await alone.generate("one two") == "one two"
    await alone.aclose()


async def test_a_temperature_beyond_its_range(server: AnthropicServer) -> None:
    """Above 1 there is none: an error that says so, and nothing is sent."""
    async with provider(server).model(EARLIER) as m:
        with pytest.raises(InvalidRequestError, match=r"temperature=1\.5") as caught:
            await m.generate("one", temperature=1.5)
        assert "0 to 1" in caught.value.hint
        assert await m.generate("one", temperature=1) == "one"
    assert len(server.requests) == 1


async def test_a_seed_is_ignored_and_told(server: AnthropicServer) -> None:
    """The service takes none."""
    async with provider(server).model(EARLIER) as m:
        got = await m.generate("one", seed=3, temperature=0)
    assert (got.ignored, got.params.seed, got.params.temperature) == (("seed",), None, 0)


async def test_what_a_model_does_not_take_is_left_out_and_told(server: AnthropicServer) -> None:
    """The newest models take no sampling parameters: found once, for all requests of the model."""
    async with provider(server).model(NEWEST) as m:
        got = await asyncio.gather(
            *(m.generate("a b c", max_tokens=2, temperature=0, top_p=0.5) for _ in range(4))
        )
        assert {str(text) for text in got} == {"a b"}
        assert {one.ignored for one in got} == {("temperature", "top_p")}
        assert got[0].params.given() == {"max_tokens": 2}
        before = len(server.requests)
        stream = m.stream("a b c", temperature=0, stop="c")
        assert await drained(stream) == ["a", " b", " "]
        assert stream.completion.ignored == ("temperature",)
    assert len(server.requests) == before + 1
    assert set(bodies(server)[-1]) == {
        "model",
        "messages",
        "max_tokens",
        "stop_sequences",
        "stream",
    }


async def test_one_of_temperature_and_top_p(server: AnthropicServer) -> None:
    """Where both together are refused, the temperature goes, and the other is told as ignored."""
    server.fail_next(400, server.error_body(400, BOTH))
    async with provider(server).model(EARLIER) as m:
        for _ in range(2):
            got = await m.generate("a", temperature=0, top_p=0.5)
            assert (got.ignored, got.params.temperature) == (("top_p",), 0)
    assert len(server.requests) == 3


async def test_a_refusal_of_what_the_user_insists_on(server: AnthropicServer) -> None:
    """A refused field of `extra_body` is the service's error, told once."""
    async with provider(server, extra_body={"temperature": 0.5}).model(NEWEST) as m:
        with pytest.raises(InvalidRequestError, match="deprecated"):
            await asyncio.wait_for(m.generate("a", temperature=0), BOUND_S)
    assert len(server.requests) == 1


async def test_further_fields(server: AnthropicServer) -> None:
    """`extra_body` goes with each request; what the service does not know is its error."""
    async with provider(server, extra_body={"top_k": 5}).model(EARLIER) as m:
        await m.generate("a")
    assert bodies(server)[0]["top_k"] == 5
    async with provider(server).model(EARLIER + '?extra_body={"no_such":1}') as m:
        with pytest.raises(InvalidRequestError, match="no_such"):
            await m.generate("a")
    assert len(server.requests) == 2


async def test_a_value_that_the_service_refuses(server: AnthropicServer) -> None:
    """Its words are told, and the parameter is not taken for one that it does not know."""
    async with provider(server).model(EARLIER) as m:
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="must contain non-whitespace"):
                await m.generate("a", stop="\n")
    assert len(server.requests) == 2


@pytest.mark.parametrize("whole", [True, False])
async def test_thinking(server: AnthropicServer, whole: bool) -> None:
    """Thoughts stand beside the text; there is room for both, and no temperature is sent."""
    async with provider(server, thinking_tokens=1024).model(EARLIER) as m:
        if whole:
            got = await m.generate("one two", temperature=0)
        else:
            stream = m.stream("one two", temperature=0)
            assert await drained(stream) == ["one", " two"]
            got = stream.completion
    assert (got, got.reasoning) == ("one two", "The user said 7 letters.")
    assert got.usage == Usage(2, 7)
    assert (got.ignored, got.params.given()) == (("temperature",), {"max_tokens": 4096 + 1024})
    assert bodies(server)[0]["thinking"] == {"type": "enabled", "budget_tokens": 1024}


async def test_thinking_leaves_no_room(server: AnthropicServer) -> None:
    """A limit that the thoughts alone may fill is refused here, with both numbers."""
    async with provider(server).model(EARLIER + "?thinking_tokens=1024") as m:
        with pytest.raises(InvalidRequestError, match=r"max_tokens=256 .* thinking_tokens=1024"):
            await m.generate("one", max_tokens=256)
        assert server.requests == []
        assert await m.generate("one", max_tokens=1025) == "one"


async def test_models_that_think_as_they_like(server: AnthropicServer) -> None:
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


async def test_prompt_caching(server: AnthropicServer) -> None:
    """Cached tokens count as the prompt's; what writing them costs is not known for certain."""
    config = nbp.ProviderConfig(
        name="anthropic", api_key=FAKE, base_url=server.base_url, model=EARLIER
    )
    async with Priced(config, prompt_caching=True) as cached:
        turns = [{"role": "system", "content": "be very brief"}, {"role": "user", "content": "hi"}]
        wrote, read = [await cached.generate(turns) for _ in range(2)]
    assert bodies(server)[0]["cache_control"] == {"type": "ephemeral"}
    assert (wrote.usage, wrote.cost) == (Usage(4, 1, 0), Cost(0.5, "estimated"))
    assert (read.usage, read.cost) == (Usage(4, 1, 3), Cost(0.5, "known"))


async def test_the_protocol_itself(server: AnthropicServer) -> None:
    """`client.messages.create` takes the protocol's body and returns its answer."""
    async with provider(server).model(EARLIER) as client:
        answer = await client.messages.create(messages=[{"role": "user", "content": "Hello"}])
        assert (answer.content[0].text, answer.model) == ("Hello", EARLIER)
        assert answer["usage"]["input_tokens"] == answer.usage.input_tokens == 1
        with pytest.raises(UnsupportedError, match=r"m\.stream"):
            await client.messages.create(messages=[], stream=True)
        with pytest.raises(UnsupportedError, match="count_tokens"):
            await client.messages.count_tokens(messages=[])
    assert bodies(server)[0]["max_tokens"] == 4096


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_the_version_in_the_address(server: AnthropicServer, base: str) -> None:
    """The address may be given with the protocol's version, as for other services, or without."""
    async with provider(server, base_url=server.root_url + base).model(EARLIER) as m:
        assert await m.generate("hi") == "hi"
    assert server.requests[0].path == "/v1/messages"


# Keys


async def test_keys(server: AnthropicServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument, by setup, or by the environment with its address; never elsewhere."""
    async with provider(server, api_key=fake("wrong")).model(EARLIER, api_key=FAKE) as m:
        assert await m.generate("by setup") == "by setup"
    monkeypatch.setenv("ANTHROPIC_API_KEY", FAKE)
    reference = f"anthropic:{EARLIER}?max_retries=0"
    async with nbp.model(f"{reference}&base_url={server.base_url}") as m:
        with pytest.raises(AuthenticationError, match="x-api-key header is required"):
            await m.generate("elsewhere")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url)
    async with nbp.model(reference) as m:
        assert await m.generate("by the environment") == "by the environment"
    told = [seen.headers.get("x-api-key") for seen in server.requests]
    assert told == [FAKE, None, FAKE]
    assert all("Authorization" not in seen.headers for seen in server.requests)


async def test_a_key_that_was_found_and_refused_is_forgotten(
    server: AnthropicServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keyring or a prompt gave, and the service refused, is looked for anew."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url)
    monkeypatch.setattr(keys, "_known", {"ANTHROPIC_API_KEY": Secret(fake("old"))})
    async with nbp.model(f"anthropic:{EARLIER}?max_retries=0") as m:
        with pytest.raises(AuthenticationError, match="401"):
            await m.generate("hi")
        with pytest.raises(AuthenticationError, match="none was found"):
            await m.generate("hi")
    assert len(server.requests) == 1


async def test_a_missing_key() -> None:
    """It is told before anything is sent, with the variable's name."""
    with pytest.raises(AuthenticationError, match="Anthropic needs an API key") as caught:
        async with nbp.model(f"anthropic:{EARLIER}"):
            raise AssertionError("it was opened without a key")
    assert "ANTHROPIC_API_KEY" in caught.value.hint


async def test_no_key_is_shown(server: AnthropicServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by errors, with the values in their frames, nor by the log or any repr."""
    server.key = fake("another")
    made = provider(server)
    async with made.model(EARLIER) as m:
        with pytest.raises(AuthenticationError) as caught:
            await m.generate("one")
        shown = "".join(
            traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
        )
        raw: Any = m.raw
        shown += repr([made, m, vars(raw), vars(raw.wire), raw.config]) + caplog.text
    assert FAKE not in shown
    assert "invalid x-api-key" in shown


# Failures


async def asked(m: Any, how: str) -> Any:
    if how == "stream":
        return await drained(m.stream("a"))
    if how == "create":
        return await m.messages.create(messages=[{"role": "user", "content": "a"}])
    return await m.generate("a")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, InvalidRequestError),
        (413, InvalidRequestError),
        (429, RateLimitError),
        (500, ServiceUnavailableError),
        (529, ServiceUnavailableError),
    ],
)
@pytest.mark.parametrize("how", ["generate", "whole", "stream", "create"])
async def test_statuses(
    server: AnthropicServer, status: int, kind: type[ProviderError], how: str
) -> None:
    """Each status is its error, however it is asked; the key is not in it."""
    server.fail_next(status, headers={"Retry-After": "7"})
    async with provider(server).model(EARLIER + ("?stream=false" if how == "whole" else "")) as m:
        with pytest.raises(kind, match=f"HTTP {status}") as caught:
            await asked(m, how)
    assert type(caught.value) is kind
    assert FAKE not in str(caught.value)
    assert len(server.requests) == 1
    if kind is RateLimitError:
        assert caught.value.retry_after_s == 7


async def test_an_unknown_model(server: AnthropicServer) -> None:
    """The service's own words are told, and what to check."""
    server.models = ["a"]
    async with provider(server).model("b") as m:
        with pytest.raises(InvalidRequestError, match="model: b") as caught:
            await m.generate("hi")
    assert "name" in caught.value.hint


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("drop", ServiceUnavailableError, "broke"),
        ("cut", ServiceUnavailableError, "broke"),
        ("early_end", ServiceUnavailableError, "before the completion did"),
        ("no_end_mark", ServiceUnavailableError, "before the completion did"),
        ("error_in_stream", ServiceUnavailableError, "Overloaded"),
        ("stall", TimeoutError, "within"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_broken_streams(
    server: AnthropicServer, how: Any, kind: type[ProviderError], words: str, whole: bool
) -> None:
    """A stream that does not come to its end is an error, never a shorter answer."""
    server.break_next(how)
    async with provider(server, timeout=0.5).model(EARLIER) as m:
        asked = "one two three four five six"
        with pytest.raises(kind, match=words):
            await (m.generate(asked) if whole else drained(m.stream(asked)))
    assert len(server.requests) == 1


async def test_another_service(server: AnthropicServer) -> None:
    """What does not speak the protocol is told as such."""
    server.answer("POST", "/v1/messages", {"choices": []})
    for option, words in (("", "not a stream"), ("?stream=false", "not of the messages form")):
        async with provider(server).model(EARLIER + option) as m:
            with pytest.raises(ServiceUnavailableError, match=words):
                await m.generate("hi")


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_retries(server: AnthropicServer, retries: int) -> None:
    """`max_retries` counts the attempts after the first; none after the first chunk of a stream."""
    server.fail_next(429, headers={"Retry-After": "0"}, times=9)
    async with provider(server, max_retries=retries).model(EARLIER) as m:
        with pytest.raises(RateLimitError):
            await m.generate("a")
        assert len(server.requests) == retries + 1
        server.recover()
        server.break_next("cut", times=9)
        with pytest.raises(ServiceUnavailableError):
            await drained(m.stream("one two three four"))
    assert len(server.requests) == retries + 2


async def test_a_whole_answer_is_asked_for_again(server: AnthropicServer) -> None:
    """Nobody has seen the half of it, so that it may be, though it comes as a stream."""
    server.break_next("error_in_stream")
    async with provider(server, max_retries=1).model(EARLIER) as m:
        assert await m.generate("one two three four") == "one two three four"
    assert len(server.requests) == 2


async def test_leaving_a_stream_ends_the_request(server: AnthropicServer) -> None:
    """The service stops writing when nobody reads any more."""
    server.chunk_delay_s = 0.05
    async with provider(server).model(EARLIER) as m:
        async with m.stream("word " * 500) as stream:
            assert await anext(stream) == "word"
        await server.was_left()


async def test_stopping_a_call_ends_the_request(server: AnthropicServer) -> None:
    """A cancelled generation closes its connection."""
    server.delay_s = 30
    async with provider(server).model(EARLIER) as m:
        work = asyncio.create_task(m.generate("a"))
        await happened(server.reached)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await server.was_left()


# The provider


async def test_the_models_it_has(server: AnthropicServer) -> None:
    """`list_models` reads all pages, and health is whether there is such a list."""
    server.models = [f"m-{number:04}" for number in range(2300)]
    assert await provider(server).list_models() == server.models
    assert [seen.query.get("after_id") for seen in server.requests] == [None, "m-0999", "m-1999"]
    assert await provider(server).health_check()
    assert not await provider(server, api_key=fake("wrong")).health_check()
    server.answer("GET", "/v1/models", {"models": []})
    with pytest.raises(ServiceUnavailableError, match="another form"):
        await provider(server).list_models()


async def test_a_list_without_an_end(server: AnthropicServer) -> None:
    """A service that tells the same page again and again is not asked for ever."""
    page = {"data": [{"id": "a"}], "has_more": True, "last_id": "a"}
    server.answer("GET", "/v1/models", page)
    assert await asyncio.wait_for(provider(server).list_models(), BOUND_S) == ["a"]
    assert len(server.requests) == 2


async def test_health_is_told_in_time(
    server: AnthropicServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that does not answer is not healthy, and the log says why."""
    monkeypatch.setattr(hosted, "HEALTH_S", 0.2)
    server.delay_s = 30
    assert not await provider(server).health_check()
    assert "no answer in 0.2 s" in caplog.text


async def test_two_opens_one_instance(server: AnthropicServer) -> None:
    """The same reference is one instance, another option another; unloading closes it."""
    made = provider(server)
    async with made.model(EARLIER) as one, made.model(EARLIER) as two:
        assert one.raw is two.raw
        async with made.model(EARLIER + "?max_tokens=9") as other:
            assert other.raw is not one.raw
            assert (await other.generate("hi")).params.max_tokens == 9
        await one.generate("hi")
        raw: Any = one.raw
    nbp.unload_all()
    assert raw._wired is None


async def test_what_it_costs() -> None:
    """By the price list at the service's own address; nothing here; unpriced anywhere else."""
    usage = Usage(1000, 1000)

    def at(base_url: str | None) -> AnthropicProvider:
        config = nbp.ProviderConfig(name="anthropic", model="claude-sonnet-4-5", base_url=base_url)
        return AnthropicProvider(config)

    assert at(None).cost(usage).kind in ("known", "estimated")
    assert (at(None).cost(usage).usd or 0) > 0
    assert at("http://localhost:8000").cost(usage) == Cost(0.0, "free")
    assert at("https://example.org").cost(usage) == Cost(None, "unpriced")


@pytest.mark.parametrize("name", ["max_tokens", "thinking_tokens"])
def test_settings_are_checked(name: str) -> None:
    """A limit below 1 is refused when the provider is made."""
    with pytest.raises(ConfigurationError, match=f"{name}=0"):
        nbp.create_provider("anthropic", api_key=FAKE, **{name: 0})


async def test_no_model_is_named(server: AnthropicServer) -> None:
    """An instance without a model says how to name one."""
    alone = AnthropicProvider(nbp.ProviderConfig(name="anthropic", base_url=server.base_url))
    with pytest.raises(ConfigurationError, match="which model"):
        await alone.generate("hi")
