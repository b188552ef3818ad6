"""Promises of GigaChat: tokens that are fetched and renewed by themselves, and its own chat completions."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring import hosted
from nbproviders.authoring.hosted import on_engine
from nbproviders.core.completion import Cost, Usage
from nbproviders.core.params import as_request
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
    UnsupportedError,
)
from nbproviders.providers import gigachat
from nbproviders.providers.gigachat import GigaChatProvider
from tests.runtimes.http.faults import answers, self_signed, served
from tests.scripted import happened
from tests.services.gigachat import OAUTH, GigaChatServer
from tests.services.keys import FAKE, fake
from tests.services.server import Recorded, Streamed, event

CHAT = "/chat/completions"


@pytest.fixture
def server() -> Iterator[GigaChatServer]:
    with GigaChatServer(key=FAKE) as running:
        yield running


@pytest.fixture
def home(server: GigaChatServer, monkeypatch: pytest.MonkeyPatch) -> GigaChatServer:
    """The local server, as the environment names it."""
    monkeypatch.setenv("GIGACHAT_BASE_URL", server.base_url)
    monkeypatch.setenv("GIGACHAT_AUTH_URL", server.auth_url)
    return server


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GIGACHAT_AUTH_URL", "GIGACHAT_SCOPE"):
        monkeypatch.delenv(variable, raising=False)


def provider(server: GigaChatServer, **fields: Any) -> Any:
    told = {"api_key": FAKE, "base_url": server.base_url, "auth_url": server.auth_url}
    return nbp.create_provider("gigachat", **{**told, "max_retries": 0, **fields})


def chats(server: GigaChatServer) -> list[Recorded]:
    return [seen for seen in server.requests if seen.path.endswith(CHAT)]


def grants(server: GigaChatServer) -> list[Recorded]:
    """What was asked where tokens are given."""
    return [seen for seen in server.requests if seen.path == OAUTH]


async def drained(stream: Any) -> list[str]:
    return [chunk async for chunk in stream]


async def failed(*work: Any) -> list[BaseException]:
    return [one for one in await asyncio.gather(*work, return_exceptions=True) if one]


# Tokens


async def test_one_token_for_many(server: GigaChatServer) -> None:
    """It is fetched once, however many wait for it, as the service wants it asked for."""
    server.delay_s = 0.05
    async with provider(server).model("GigaChat") as m:
        got = await asyncio.gather(*(m.generate(f"hi {number}") for number in range(8)))
        stream = m.stream("and you")
        assert await drained(stream) == ["and", " you"]
    assert got == [f"hi {number}" for number in range(8)]
    (asked,) = grants(server)
    assert asked.body == {"scope": "GIGACHAT_API_PERS"}
    assert asked.headers["Authorization"] == f"Basic {FAKE}"
    token = fake("token-1")
    assert {seen.headers["Authorization"] for seen in chats(server)} == {f"Bearer {token}"}
    assert not any("RqUID" in seen.headers for seen in chats(server))


async def test_a_new_token_before_the_old_one_ends(
    server: GigaChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute before its end it is not used any more; each request for one has a number of its own."""
    server.lifetime_s = 600
    async with provider(server).model("GigaChat") as m:
        for margin_s, tokens in ((590, 1), (590, 1), (610, 2)):
            monkeypatch.setattr(gigachat, "MARGIN_S", margin_s)
            await m.generate("hi")
            assert server.tokens == tokens
    assert {seen.headers["RqUID"] for seen in grants(server)} != {
        grants(server)[0].headers["RqUID"]
    }
    assert len(chats(server)) == 3  # none was refused


def test_the_margin() -> None:
    """It is longer than any request takes to be sent."""
    assert gigachat.MARGIN_S == 60


@pytest.mark.parametrize("whole", [True, False])
async def test_a_refused_token_is_replaced(server: GigaChatServer, whole: bool) -> None:
    """The service may end a token at any time: all who are refused get one new one between them."""
    async with provider(server).model("GigaChat") as m:

        async def ask() -> str:
            return await m.generate("a b") if whole else "".join(await drained(m.stream("a b")))

        await ask()
        server.expire()
        assert await asyncio.gather(*(ask() for _ in range(8))) == ["a b"] * 8
    assert server.tokens == 2


@pytest.mark.parametrize("whole", [True, False])
async def test_tokens_that_are_always_refused(server: GigaChatServer, whole: bool) -> None:
    """One new token is tried, then it is an error."""
    server.fail_next(401, times=9, path=CHAT)
    async with provider(server, max_retries=3).model("GigaChat") as m:
        with pytest.raises(AuthenticationError, match="HTTP 401"):
            await (m.generate("hi") if whole else drained(m.stream("hi")))
    assert (len(chats(server)), server.tokens) == (2, 2)


async def test_an_error_in_a_stream_asks_for_no_token(server: GigaChatServer) -> None:
    """What has been read is not asked for again."""
    frames = [b'data: {"choices":[{"delta":{"content":"a"},"index":0}]}\n\n']
    failure = b'data: {"error":{"type":"authentication_error","message":"ended"}}\n\n'
    server.answer("POST", CHAT, lambda seen: Streamed([*frames, failure], b"", b""))
    async with provider(server).model("GigaChat") as m:
        with pytest.raises(AuthenticationError, match="ended"):
            await drained(m.stream("hi"))
    assert (len(chats(server)), server.tokens) == (1, 1)


async def test_a_time_in_seconds(server: GigaChatServer) -> None:
    """The end of a token may be told in seconds, as the service's reference shows it."""
    given: list[str] = []

    def give(seen: Recorded) -> Any:
        told = server._give_token(seen)
        given.append(told["access_token"])
        return {**told, "expires_at": told["expires_at"] // 1000}

    server._answers["POST", OAUTH] = give
    async with provider(server).model("GigaChat") as m:
        await m.generate("hi")
        await m.generate("hi")
    assert len(given) == 1


@pytest.mark.parametrize("scope", ["GIGACHAT_API_B2B", "GIGACHAT_API_CORP"])
async def test_the_scope(server: GigaChatServer, scope: str) -> None:
    """It is the configuration's; the wrong one is an error that tells those there are."""
    server.scope = scope
    async with provider(server).model(f"GigaChat?scope={scope}") as m:
        assert await m.generate("hi") == "hi"
    async with provider(server).model("GigaChat") as m:
        with pytest.raises(InvalidRequestError, match="not fully includes") as caught:
            await m.generate("hi")
    assert scope in caught.value.hint


async def test_a_wrong_key(server: GigaChatServer) -> None:
    """The error says what the key is; nothing is asked without a token."""
    async with provider(server, api_key=fake("wrong")).model("GigaChat") as m:
        with pytest.raises(AuthenticationError, match="credentials") as caught:
            await m.generate("hi")
    assert "authorization key" in caught.value.hint
    assert chats(server) == []


async def test_a_key_that_is_none(server: GigaChatServer) -> None:
    """What the service cannot read as a key is a wrong key, though it answers as to a wrong request."""
    server.fail_next(400, {"code": 4, "message": "Can't decode 'Authorization' header"}, path=OAUTH)
    async with provider(server).model("GigaChat") as m:
        with pytest.raises(AuthenticationError, match="decode") as caught:
            await m.generate("hi")
    assert "Base64" in caught.value.hint


@pytest.mark.parametrize(
    "told", [{}, [], {"access_token": "a"}, {"access_token": "a", "expires_at": ""}]
)
async def test_no_token_in_the_answer(server: GigaChatServer, told: Any) -> None:
    """Another service at the tokens' address is told as such."""
    server._answers["POST", OAUTH] = lambda seen: told
    async with provider(server).model("GigaChat") as m:
        with pytest.raises(ServiceUnavailableError, match="no access token"):
            await m.generate("hi")


async def test_tokens_that_cannot_be_had(server: GigaChatServer) -> None:
    """All who wait learn of one failure, each by an error of its own; the next one tries anew."""
    server.delay_s = 0.05
    server.fail_next(503, path=OAUTH)
    async with provider(server).model("GigaChat") as m:
        raw: Any = m.raw
        request = as_request("hi", whole=True)
        errors = await on_engine(lambda: failed(*(raw.complete(request) for _ in range(8))))
        assert {type(error) for error in errors} == {ServiceUnavailableError}
        assert len({id(error) for error in errors}) == len(errors) == 8
        assert (len(grants(server)), chats(server)) == (1, [])
        assert await m.generate("hi") == "hi"


async def test_tokens_are_asked_for_again(server: GigaChatServer) -> None:
    """`max_retries` counts for them as well."""
    server.fail_next(429, headers={"Retry-After": "0"}, times=2, path=OAUTH)
    async with provider(server, max_retries=2).model("GigaChat") as m:
        assert await m.generate("hi") == "hi"
    assert len(grants(server)) == 3


async def test_who_leaves_does_not_end_the_others_wait(server: GigaChatServer) -> None:
    """The first one's stop does not take the token from those who wait as well."""
    server.delay_s = 0.2
    async with provider(server).model("GigaChat") as m:
        first = asyncio.create_task(m.generate("first"))
        await happened(server.reached)
        second = asyncio.create_task(m.generate("second"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == "second"
    assert len(grants(server)) == 1


async def test_closing_ends_the_wait(server: GigaChatServer) -> None:
    """A provider that is closed while a token is under way leaves nobody waiting."""
    server.delay_s = 30
    alone = GigaChatProvider(config(server), auth_url=server.auth_url)
    work = asyncio.create_task(alone.generate("hi"))
    await happened(server.reached)
    await alone.aclose()
    with pytest.raises(ClosedError, match="closed meanwhile"):
        await work
    await server.was_left()


# Keys


def config(server: GigaChatServer, **fields: Any) -> nbp.ProviderConfig:
    told = {"name": "gigachat", "api_key": FAKE, "base_url": server.base_url, "model": "GigaChat"}
    return nbp.ProviderConfig(**{**told, "max_retries": 0, **fields})


async def test_a_key_of_the_environment(
    home: GigaChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes where the environment says; a corrected one counts at once, with a token of its own."""
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", fake("wrong"))
    async with nbp.model("gigachat:GigaChat?max_retries=0") as m:
        with pytest.raises(AuthenticationError):
            await m.generate("hi")
        monkeypatch.setenv("GIGACHAT_CREDENTIALS", FAKE)
        assert await m.generate("hi") == "hi"
        home.key, home.scope = fake("another"), "GIGACHAT_API_CORP"
        monkeypatch.setenv("GIGACHAT_SCOPE", "GIGACHAT_API_CORP")
        monkeypatch.setenv("GIGACHAT_CREDENTIALS", fake("another"))
        assert await m.generate("hi") == "hi"
    assert home.tokens == 2


@pytest.mark.parametrize("place", ["base_url", "auth_url"])
async def test_no_key_of_the_environment_goes_elsewhere(
    home: GigaChatServer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A reference that names another address, for either, gets neither the user's key nor a token."""
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", FAKE)
    with GigaChatServer() as other:
        url = getattr(other, place)
        async with nbp.model(f"gigachat:GigaChat?max_retries=0&{place}={url}") as m:
            with pytest.raises(AuthenticationError, match="401"):
                await m.generate("hi")
        seen = [*home.requests, *other.requests]
    assert [one.headers.get("Authorization") for one in seen] == [None]


async def test_a_missing_key() -> None:
    """It is told before anything is sent, with the variable's name."""
    with pytest.raises(AuthenticationError, match="GigaChat needs an API key") as caught:
        async with nbp.model("gigachat:GigaChat"):
            raise AssertionError("it was opened without a key")
    assert "GIGACHAT_CREDENTIALS" in caught.value.hint


async def test_a_key_by_setup(server: GigaChatServer) -> None:
    """Setup wins over the constructor."""
    handle = await provider(server, api_key=fake("wrong")).setup("GigaChat", api_key=FAKE)
    assert await handle.model.generate("hi") == "hi"
    await handle.teardown()


async def test_no_key_is_shown(server: GigaChatServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither key nor token: not by errors, with the values in their frames, nor by the log or any repr."""
    made = provider(server)
    async with made.model("GigaChat") as m:
        server.fail_next(403, path=OAUTH)
        server.fail_next(403, times=2, path=CHAT)
        raw: Any = m.raw
        request = as_request("one", whole=True)

        async def ask() -> list[BaseException]:
            return [*await failed(raw.complete(request)), *await failed(raw.complete(request))]

        errors = await on_engine(ask)  # where they still have the engine's frames
        assert {type(error) for error in errors} == {AuthenticationError}
        shown = caplog.text
        for error in errors:
            told = traceback.TracebackException.from_exception(error, capture_locals=True)
            shown += "".join(told.format())
        assert "in _asked" in shown
        tokens = raw.wire._tokens
        assert tokens._token.text == fake("token-2")
        shown += repr([made, m, vars(raw), vars(raw.wire), vars(tokens), tokens._token, raw.config])
    assert FAKE not in shown
    assert "****" in shown


async def test_a_service_that_says_keys_back(server: GigaChatServer) -> None:
    """What it was sent is cut out of its words."""
    server.fail_next(403, {"message": f"no {FAKE}"}, path=OAUTH)
    server.fail_next(403, {"message": f"no {fake('token-1')}"}, path=CHAT)
    server.fail_next(403, {"message": f"no {fake('token-2')}"}, path=CHAT)
    async with provider(server).model("GigaChat") as m:
        for _ in range(2):
            with pytest.raises(AuthenticationError, match=r"no \*\*\*\*") as caught:
                await m.generate("one")
            assert FAKE not in str(caught.value)


def test_a_key_in_the_wrong_place() -> None:
    """What is no URL is refused without being shown."""
    with pytest.raises(ConfigurationError, match="auth_url must be a URL") as caught:
        nbp.create_provider("gigachat", api_key=FAKE, auth_url=FAKE)
    assert FAKE not in str(caught.value)


@pytest.mark.parametrize("place", ["auth_url", "base_url"])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_certificate_that_nobody_vouches_for(
    server: GigaChatServer, tmp_path: Path, place: str, whole: bool
) -> None:
    """The error says where the authority's certificate is, and how to name it; asking again is no use."""
    async with served(answers({}), self_signed(tmp_path)) as secure:
        async with provider(server, max_retries=3, **{place: secure.url}).model("GigaChat") as m:
            with pytest.raises(ServiceUnavailableError, match="no trusted connection") as caught:
                await (m.generate("hi") if whole else drained(m.stream("hi")))
        assert secure.seen == []
    for words in ("gosuslugi.ru/crt", "SSL_CERT_FILE=", "verify_ssl=False"):
        assert words in caught.value.hint
    assert caught.value.final


# Chat


async def test_a_whole_answer(server: GigaChatServer) -> None:
    """Text, usage and reason come back; seed and stop are not sent, and told."""
    async with provider(server).model("GigaChat") as m:
        got = await m.generate(
            "one two three", max_tokens=2, temperature=0.5, top_p=0.9, seed=7, stop="three"
        )
    assert (got, got.finish, got.usage) == ("one two", "length", Usage(3, 2))
    assert (got.spec, got.chat, got.ignored) == ("gigachat:GigaChat", True, ("stop", "seed"))
    assert got.params.given() == {"max_tokens": 2, "temperature": 0.5, "top_p": 0.9}
    assert chats(server)[0].body == {
        "model": "GigaChat",
        "messages": [{"role": "user", "content": "one two three"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 2,
    }


@pytest.mark.parametrize("piece_bytes", [None, 1, 7])
async def test_a_stream(server: GigaChatServer, piece_bytes: int | None) -> None:
    """Chunks come as they are sent, with usage and reason at the end; nothing asks for the usage."""
    server.piece_bytes = piece_bytes
    async with provider(server).model("GigaChat") as m:
        stream = m.stream("раз, два, три")
        assert await drained(stream) == ["раз,", " два,", " три"]
        got = stream.completion
    assert (got.finish, got.usage) == ("stop", Usage(3, 3))
    assert set(chats(server)[0].body) == {"model", "messages", "stream"}


@pytest.mark.parametrize("temperature", [0, 0.00001])
@pytest.mark.parametrize("whole", [True, False])
async def test_greedy(server: GigaChatServer, temperature: float, whole: bool) -> None:
    """The service refuses 0: it is sent the least that makes it deterministic, and that is told."""
    async with provider(server).model("GigaChat") as m:
        got = await completed(m, whole=whole, temperature=temperature)
    assert 0 < chats(server)[0].body["temperature"] <= 0.001
    assert got.params.temperature == chats(server)[0].body["temperature"]
    assert got.ignored == ()


@pytest.mark.parametrize("whole", [True, False])
async def test_cached_tokens(server: GigaChatServer, whole: bool) -> None:
    """The service tells them apart from the prompt's; here they are part of it, as everywhere."""
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 4,
        "total_tokens": 5,
        "precached_prompt_tokens": 37,
    }
    answered(server, "stop", usage)
    async with provider(server).model("GigaChat") as m:
        assert (await completed(m, whole=whole)).usage == Usage(38, 4, 37)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_withheld_answer(server: GigaChatServer, whole: bool) -> None:
    """What the service does not talk about is filtered."""
    answered(server, "blacklist")
    async with provider(server).model("GigaChat") as m:
        got = await completed(m, whole=whole)
    assert (got, got.finish) == ("no", "filtered")


def answered(server: GigaChatServer, reason: str, usage: Any = None) -> None:
    """Have the server answer ``no``, for this reason."""

    def answer(seen: Recorded) -> Any:
        said = "delta" if seen.body.get("stream") else "message"
        choice = {said: {"role": "assistant", "content": "no"}, "index": 0, "finish_reason": reason}
        told = {"choices": [choice], "usage": usage}
        return told if said == "message" else Streamed([event(told)], event("[DONE]"), b"")

    server.answer("POST", CHAT, answer)


async def completed(m: Any, *, whole: bool, **params: Any) -> nbp.Completion:
    if whole:
        made: nbp.Completion = await m.generate("hi", **params)
        return made
    stream = m.stream("hi", **params)
    await drained(stream)
    completion: nbp.Completion = stream.completion
    return completion


async def test_turns_and_system_prompts(server: GigaChatServer) -> None:
    """The service wants one system prompt, and first: wherever they stand, they are joined there."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now"},
    ]
    async with provider(server).model("GigaChat") as m:
        assert await m.chat(turns, system="be brief") == "and now"
        late = [*turns[:2], {"role": "system", "content": "be kind"}, turns[2]]
        assert await m.generate([{"role": "system", "content": "be brief"}, *late]) == "and now"
    first, second = [seen.body["messages"] for seen in chats(server)]
    assert first == [{"role": "system", "content": "be brief"}, *turns]
    assert second == [{"role": "system", "content": "be brief\n\nbe kind"}, *turns]


@pytest.mark.parametrize("whole", [True, False])
async def test_reasoning_is_no_answer(server: GigaChatServer, whole: bool) -> None:
    """What the model thinks stands beside the text; what asks for it goes by `extra_body`."""
    options = {"extra_body": {"reasoning_effort": "low"}}
    async with provider(server).model("GigaChat", **options) as m:
        got = await completed(m, whole=whole)
    assert (got, got.reasoning) == ("hi", "The user said 2 letters.")


async def test_what_it_cannot(server: GigaChatServer) -> None:
    """Neither plain text nor probabilities; nothing is sent."""
    async with provider(server).model("GigaChat") as m:
        with pytest.raises(UnsupportedError, match="turns only"):
            await m.generate("hi", raw=True)
        with pytest.raises(UnsupportedError, match="probabilit"):
            await m.generate("hi", logprobs=True)
    alone = GigaChatProvider(config(server), auth_url=server.auth_url)
    with pytest.raises(UnsupportedError, match="probabilit"):
        await alone.generate("hi", logprobs=True)
    assert server.requests == []


async def test_the_protocol_itself(server: GigaChatServer) -> None:
    """`client.chat.completions.create` takes the protocol's body, with a token like any request."""
    async with provider(server).model("GigaChat") as client:
        messages = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(messages=messages, repetition_penalty=1.1)
    assert answer.choices[0].message.content == "Hello"


# Failures


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (400, InvalidRequestError, 1),
        (401, AuthenticationError, 2),
        (403, AuthenticationError, 2),
        (404, InvalidRequestError, 1),
        (422, InvalidRequestError, 1),
        (429, RateLimitError, 1),
        (500, ServiceUnavailableError, 1),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_statuses(
    server: GigaChatServer, status: int, kind: type[ProviderError], attempts: int, whole: bool
) -> None:
    """Each status is its error, for streams as well."""
    server.fail_next(status, headers={"Retry-After": "7"}, times=9, path=CHAT)
    async with provider(server).model("GigaChat") as m:
        with pytest.raises(kind, match=f"HTTP {status}") as caught:
            await (m.generate("a") if whole else drained(m.stream("a")))
    assert type(caught.value) is kind
    assert len(chats(server)) == attempts
    if kind is RateLimitError:
        assert caught.value.retry_after_s == 7


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
async def test_broken_streams(server: GigaChatServer, how: Any, kind: type[ProviderError]) -> None:
    """A stream that does not come to its end is an error, never a shorter answer."""
    server.break_next(how, path=CHAT)
    async with provider(server, timeout=0.5).model("GigaChat") as m:
        with pytest.raises(kind):
            await drained(m.stream("one two three four five six"))


@pytest.mark.parametrize("retries", [0, 2])
async def test_retries(server: GigaChatServer, retries: int) -> None:
    """`max_retries` counts the attempts after the first; the token serves all of them."""
    server.fail_next(429, headers={"Retry-After": "0"}, times=9, path=CHAT)
    async with provider(server, max_retries=retries).model("GigaChat") as m:
        with pytest.raises(RateLimitError):
            await m.generate("a")
    assert (len(chats(server)), server.tokens) == (retries + 1, 1)


async def test_leaving_a_stream_ends_the_request(server: GigaChatServer) -> None:
    """The service stops writing when nobody reads any more."""
    server.chunk_delay_s = 0.05
    async with provider(server).model("GigaChat") as m:
        async with m.stream("word " * 500) as stream:
            assert await anext(stream) == "word"
        await server.was_left()


# The provider


async def test_the_models_it_has(server: GigaChatServer) -> None:
    """`list_models` tells their names, and health is whether key, token and service are in order."""
    server.models = ["GigaChat-2", "GigaChat"]
    assert await provider(server).list_models() == ["GigaChat", "GigaChat-2"]
    assert await provider(server).health_check()
    assert not await provider(server, api_key=fake("wrong")).health_check()


async def test_health_is_told_in_time(
    server: GigaChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens that do not come are no health, and the log says why."""
    monkeypatch.setattr(hosted, "HEALTH_S", 0.2)
    server.delay_s = 30
    made = provider(server)
    assert not await made.health_check()
    assert "no answer in 0.2 s" in caplog.text
    await made.aclose()
    await server.was_left()


async def test_two_opens_one_instance(server: GigaChatServer) -> None:
    """The same reference is one instance and one token; unloading closes it."""
    made = provider(server)
    async with made.model("GigaChat") as one, made.model("GigaChat") as two:
        assert one.raw is two.raw
        assert one.info.parallel == 1
        async with made.model("GigaChat?parallel=10") as other:
            assert other.raw is not one.raw
            assert other.info.parallel == 10
        assert await one.generate("hi") == await two.generate("hi")
        raw: Any = one.raw
    assert server.tokens == 1
    nbp.unload_all()
    assert raw._wired is None


def test_what_it_costs(server: GigaChatServer) -> None:
    """Nothing here; at home it is not in the price list."""
    usage = Usage(1000, 1000)
    assert GigaChatProvider(config(server)).cost(usage) == Cost(0.0, "free")
    assert GigaChatProvider(config(server, base_url=None)).cost(usage) == Cost(None, "unpriced")
