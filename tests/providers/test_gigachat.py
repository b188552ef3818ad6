"""Promises of GigaChat alone: tokens that are fetched and renewed by themselves, and its own habits.

For the promises of all services see `test_services`.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring.hosted import on_engine
from nbproviders.core.completion import Usage
from nbproviders.core.params import as_request
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    InvalidRequestError,
    RateLimitError,
    ServiceUnavailableError,
)
from nbproviders.providers import gigachat
from tests.providers.hosted import GIGACHAT, ask, drained
from tests.runtimes.http.faults import answers, self_signed, served
from tests.scripted import happened
from tests.services.gigachat import OAUTH, GigaChatServer
from tests.services.keys import FAKE, fake
from tests.services.server import Recorded, Streamed, event

CHAT = GIGACHAT.path
WAYS = pytest.mark.parametrize("way", ["whole", "stream"])
provider, chats = GIGACHAT.provider, GIGACHAT.asked


@pytest.fixture
def server() -> Iterator[GigaChatServer]:
    with GIGACHAT.serve() as running:
        yield running


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GIGACHAT_AUTH_URL", "GIGACHAT_SCOPE"):
        monkeypatch.delenv(variable, raising=False)


def grants(server: GigaChatServer) -> list[Recorded]:
    """What was asked where tokens are given."""
    return [seen for seen in server.requests if seen.path == OAUTH]


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


async def test_one_token_for_all_attempts(server: GigaChatServer) -> None:
    """Neither asking again nor opening again takes another."""
    made = provider(server, max_retries=2)
    async with made.model("GigaChat") as one, made.model("GigaChat") as two:
        assert await one.generate("hi") == await two.generate("hi")
        server.fail_next(429, headers={"Retry-After": "0"}, times=9, path=CHAT)
        with pytest.raises(RateLimitError):
            await one.generate("a")
    assert (len(chats(server)), server.tokens) == (5, 1)


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


@WAYS
async def test_a_refused_token_is_replaced(server: GigaChatServer, way: str) -> None:
    """The service may end a token at any time: all who are refused get one new one between them."""
    async with provider(server).model("GigaChat") as m:
        await ask(m, way)
        server.expire()
        assert await asyncio.gather(*(ask(m, way, "a b") for _ in range(8))) == ["a b"] * 8
    assert server.tokens == 2


@WAYS
async def test_tokens_that_are_always_refused(server: GigaChatServer, way: str) -> None:
    """One new token is tried, then it is an error."""
    server.fail_next(401, times=9, path=CHAT)
    async with provider(server, max_retries=3).model("GigaChat") as m:
        with pytest.raises(AuthenticationError, match="HTTP 401"):
            await ask(m, way)
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
    alone = GIGACHAT.alone(server)
    work = asyncio.create_task(alone.generate("hi"))
    await happened(server.reached)
    await alone.aclose()
    with pytest.raises(ClosedError, match="closed meanwhile"):
        await work
    await server.was_left()


# Keys


async def test_another_key_and_scope(
    server: GigaChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the environment count at the next request, with a token of their own."""
    reference = GIGACHAT.at_home(server, monkeypatch)
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", FAKE)
    async with nbp.model(reference) as m:
        assert await m.generate("hi") == "hi"
        server.key, server.scope = fake("another"), "GIGACHAT_API_CORP"
        monkeypatch.setenv("GIGACHAT_SCOPE", "GIGACHAT_API_CORP")
        monkeypatch.setenv("GIGACHAT_CREDENTIALS", fake("another"))
        assert await m.generate("hi") == "hi"
    assert server.tokens == 2


@pytest.mark.parametrize("place", ["base_url", "auth_url"])
async def test_no_key_of_the_environment_goes_elsewhere(
    server: GigaChatServer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A reference that names another address, for either, gets neither the user's key nor a token."""
    reference = GIGACHAT.at_home(server, monkeypatch)
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", FAKE)
    with GigaChatServer() as other:
        async with nbp.model(f"{reference}&{place}={getattr(other, place)}") as m:
            with pytest.raises(AuthenticationError, match="401"):
                await m.generate("hi")
        seen = [*server.requests, *other.requests]
    assert [one.headers.get("Authorization") for one in seen] == [None]


async def test_no_key_is_shown(server: GigaChatServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither key nor token: not by errors, with the values in their frames, nor by the log or any repr."""
    made = provider(server)
    async with made.model("GigaChat") as m:
        server.fail_next(403, path=OAUTH)
        server.fail_next(403, times=2, path=CHAT)
        raw: Any = m.raw
        request = as_request("one", whole=True)

        async def twice() -> list[BaseException]:
            return [*await failed(raw.complete(request)), *await failed(raw.complete(request))]

        errors = await on_engine(twice)  # where they still have the engine's frames
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
@WAYS
async def test_a_certificate_that_nobody_vouches_for(
    server: GigaChatServer, tmp_path: Path, place: str, way: str
) -> None:
    """The error says where the authority's certificate is, and how to name it; asking again is no use."""
    async with served(answers({}), self_signed(tmp_path)) as secure:
        async with provider(server, max_retries=3, **{place: secure.url}).model("GigaChat") as m:
            with pytest.raises(ServiceUnavailableError, match="no trusted connection") as caught:
                await ask(m, way)
        assert secure.seen == []
    for words in ("gosuslugi.ru/crt", "SSL_CERT_FILE=", "verify_ssl=False"):
        assert words in caught.value.hint
    assert caught.value.final


# Chat


@pytest.mark.parametrize("temperature", [0, 0.00001])
@WAYS
async def test_greedy(server: GigaChatServer, temperature: float, way: str) -> None:
    """The service refuses 0: it is sent the least that makes it deterministic, and that is told."""
    async with provider(server).model("GigaChat") as m:
        got = await ask(m, way, temperature=temperature)
    assert 0 < chats(server)[0].body["temperature"] <= 0.001
    assert got.params.temperature == chats(server)[0].body["temperature"]
    assert got.ignored == ()


@WAYS
async def test_cached_tokens(server: GigaChatServer, way: str) -> None:
    """The service tells them apart from the prompt's; here they are part of it, as everywhere."""
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 4,
        "total_tokens": 5,
        "precached_prompt_tokens": 37,
    }
    answered(server, "stop", usage)
    async with provider(server).model("GigaChat") as m:
        assert (await ask(m, way)).usage == Usage(38, 4, 37)


@WAYS
async def test_a_withheld_answer(server: GigaChatServer, way: str) -> None:
    """What the service does not talk about is filtered."""
    answered(server, "blacklist")
    async with provider(server).model("GigaChat") as m:
        got = await ask(m, way)
    assert (got, got.finish) == ("no", "filtered")


def answered(server: GigaChatServer, reason: str, usage: Any = None) -> None:
    """Have the server answer ``no``, for this reason."""

    def answer(seen: Recorded) -> Any:
        said = "delta" if seen.body.get("stream") else "message"
        choice = {said: {"role": "assistant", "content": "no"}, "index": 0, "finish_reason": reason}
        told = {"choices": [choice], "usage": usage}
        return told if said == "message" else Streamed([event(told)], event("[DONE]"), b"")

    server.answer("POST", CHAT, answer)


async def test_system_prompts(server: GigaChatServer) -> None:
    """The service wants one system prompt, and first: wherever they stand, they are joined there."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now"},
    ]
    late = [*turns[:2], {"role": "system", "content": "be kind"}, turns[2]]
    async with provider(server).model("GigaChat") as m:
        assert await m.generate([{"role": "system", "content": "be brief"}, *late]) == "and now"
    (body,) = GIGACHAT.bodies(server)
    assert body["messages"] == [{"role": "system", "content": "be brief\n\nbe kind"}, *turns]


@WAYS
async def test_reasoning_is_asked_for(server: GigaChatServer, way: str) -> None:
    """What asks for it goes by `extra_body`."""
    options = {"extra_body": {"reasoning_effort": "low"}}
    async with provider(server).model("GigaChat", **options) as m:
        got = await ask(m, way, "hi")
    assert (got, got.reasoning) == ("hi", "The user said 2 letters.")
