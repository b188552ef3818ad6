"""The local servers are what the services' own packages take them for, and refuse what these never send."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from tests.services.anthropic import AnthropicServer
from tests.services.bodies import Judge
from tests.services.gigachat import GigaChatServer
from tests.services.keys import FAKE, fake
from tests.services.ollama import OllamaServer
from tests.services.openai import OpenAIServer
from tests.services.server import Break, LocalServer, Recorded, Refused, Streamed, line
from tests.services.words import say, split
from tests.services.yandexgpt import YandexGPTServer

openai = pytest.importorskip("openai", reason="it judges the local server")
anthropic = pytest.importorskip("anthropic", reason="it judges the local server")
ollama = pytest.importorskip("ollama", reason="it judges the local server")

SAID: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one two three"},
]
USER: Any = SAID[1:]
EARLIER = {"anthropic-version": "2023-06-01"}


@pytest.fixture
def plain() -> Iterator[LocalServer]:
    with LocalServer() as server:
        server.answer("POST", "/echo", lambda seen: {"told": seen.body})
        server.answer("GET", "/items/{name}", lambda seen: {"path": seen.path})
        words = [f"{word}\n".encode() for word in ("añb", "b", "c", "d")]
        server.answer("GET", "/stream", Streamed(words, b"end\n", b"oh\n", "text/plain"))
        yield server


async def ask(server: LocalServer, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
    """Return a request's status, and its answer's JSON or text."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.base_url + path, **kwargs) as response,
    ):
        text = await response.text()
        is_json = response.content_type == "application/json"
        return response.status, json.loads(text) if is_json else text


# The base


async def test_a_request_is_recorded_as_it_came(plain: LocalServer) -> None:
    """Method, path, query, headers and body; the headers, which hold keys, are in no repr."""
    headers = {"Authorization": f"Bearer {FAKE}"}
    told = await ask(plain, "POST", "/echo?a=1", json={"b": 2}, headers=headers)
    assert told == (200, {"told": {"b": 2}})
    [seen] = plain.requests
    assert (seen.method, seen.path, seen.query) == ("POST", "/echo", {"a": "1"})
    assert seen.headers["authorization"] == f"Bearer {FAKE}"
    assert seen.body == {"b": 2}
    assert FAKE not in repr(plain.requests)
    assert plain.reached.is_set()


async def test_paths_are_matched_by_their_parts(plain: LocalServer) -> None:
    """A name in braces is one part, at the end the rest; another path or method is refused."""
    assert (await ask(plain, "GET", "/items/a/b"))[1] == {"path": "/items/a/b"}
    assert (await ask(plain, "GET", "/items"))[0] == 404
    assert (await ask(plain, "GET", "/echo"))[0] == 405


async def test_failures_come_in_order_and_then_no_more(plain: LocalServer) -> None:
    """By path if one is given, with body and headers; what has not come yet can be called off."""
    plain.fail_next(503, times=2)
    plain.fail_next(429, "slow down", {"Retry-After": "7"}, path="/stream")
    statuses = [(await ask(plain, "POST", "/echo", json={}))[0] for _ in range(3)]
    assert statuses == [503, 503, 200]
    async with aiohttp.ClientSession() as session, session.get(f"{plain.base_url}/stream") as told:
        assert (told.status, told.headers["Retry-After"]) == (429, "7")
        assert await told.text() == "slow down"
    plain.fail_next(500, times=9)
    plain.recover()
    assert (await ask(plain, "POST", "/echo", json={}))[0] == 200


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("early_end", "añb\nb\n"),
        ("error_in_stream", "añb\nb\noh\n"),
        ("no_end_mark", "añb\nb\nc\nd\n"),
        (None, "añb\nb\nc\nd\nend\n"),
    ],
)
async def test_a_stream_ends_as_it_is_told(
    plain: LocalServer, how: Break | None, text: str
) -> None:
    """Halfway, with an error, without its mark, or whole; each time once."""
    if how is not None:
        plain.break_next(how)
    assert (await ask(plain, "GET", "/stream"))[1] == text
    assert (await ask(plain, "GET", "/stream"))[1].endswith("end\n")


@pytest.mark.parametrize(("path", "method"), [("/stream", "GET"), ("/echo", "POST")])
async def test_connections_break(plain: LocalServer, path: str, method: str) -> None:
    """Before any answer, and in the middle of one; the next answer is whole."""
    plain.break_next("drop", times=9)  # the client tries a GET once more
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await ask(plain, method, path, json={})
    plain.recover()
    plain.break_next("cut")
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        await ask(plain, method, path, json={})
    assert (await ask(plain, method, path, json={}))[0] == 200


async def test_a_stalled_stream_says_half_and_sees_the_client_go(plain: LocalServer) -> None:
    """It does not end by itself; a client that leaves is noticed."""
    plain.break_next("stall")
    async with aiohttp.ClientSession() as session, session.get(f"{plain.base_url}/stream") as told:
        assert await told.content.readline() == "añb\n".encode()
        assert await told.content.readline() == b"b\n"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await told.content.readline()
    await plain.was_left()


async def test_a_server_stops_while_a_client_waits() -> None:
    """What hangs on it does not keep it."""
    server = LocalServer()
    with server:
        server.answer("GET", "/x", {})
        server.break_next("stall")
        waiting = asyncio.ensure_future(ask(server, "GET", "/x"))
        await asyncio.to_thread(server.reached.wait, 5)
    with pytest.raises(aiohttp.ClientError):
        await waiting


async def test_pieces_need_not_be_frames(plain: LocalServer) -> None:
    """Streams are sent in pieces of the size that is asked for, which split characters too."""
    plain.piece_bytes = 2
    assert (await ask(plain, "GET", "/stream"))[1] == "añb\nb\nc\nd\nend\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(plain.root_url.split(":")[-1]))
    writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    first, second = "añ".encode()[:2], "añb".encode()[2:]
    assert b"\r\n2\r\n" + first + b"\r\n2\r\n" + second in raw


async def test_connections_last_unless_they_must_not() -> None:
    """A client can use one again, or finds it closed."""
    for keep_alive in (True, False):
        with LocalServer(keep_alive=keep_alive) as server:
            server.answer("GET", "/x", {})
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{server.base_url}/x") as told:
                    await told.read()
                assert bool(session.connector._conns) is keep_alive  # type: ignore[union-attr]


async def test_it_takes_its_time(plain: LocalServer) -> None:
    """Before it answers, and between pieces; and counts what it answers at the same time."""
    plain.delay_s = 0.05
    began_s = time.perf_counter()
    await asyncio.gather(*(ask(plain, "POST", "/echo", json={}) for _ in range(3)))
    assert time.perf_counter() - began_s >= 0.05
    assert plain.most_at_once == 3
    plain.delay_s, plain.chunk_delay_s = 0, 0.02
    began_s = time.perf_counter()
    await ask(plain, "GET", "/stream")
    assert time.perf_counter() - began_s >= 4 * 0.02


async def test_a_mistake_of_the_test_is_told_to_the_test() -> None:
    """An answer that raises is no failure of the service: the block ends with its error."""

    def wrong(seen: Recorded) -> Any:
        raise KeyError("no such thing")

    server = LocalServer()
    with pytest.raises(KeyError, match="no such thing"), server:  # noqa: PT012
        server.answer("GET", "/x", wrong)
        assert (await ask(server, "GET", "/x"))[0] == 500


async def test_a_refusal_is_an_answer() -> None:
    """An answer may raise `Refused`, which the block does not see."""

    def refuse(seen: Recorded) -> Any:
        raise Refused(418, {"error": "tea"})

    with LocalServer() as server:
        server.answer("GET", "/x", refuse)
        assert await ask(server, "GET", "/x") == (418, {"error": "tea"})


# Words, and the judge


def test_tokens_are_the_text() -> None:
    """Joined they are the text again, blanks and ends of lines included."""
    for text in ("a b", "  a\n\nb  ", "", " "):
        assert "".join(split(text)) == text


def test_an_answer_ends_where_it_must() -> None:
    """At its first stop sequence, or at the limit, which thoughts use up as well."""
    assert say("a b c").finish == "stop"
    assert say("a b STOP c", stop=["STOP"]).text == "a b "
    assert say("a b STOP c", stop="STOP").stopped_by == "STOP"
    assert say("a X b Y", stop=["Y", "X"]).stopped_by == "X"
    assert (say("a b c", 2).text, say("a b c", 2).finish) == ("a b", "length")
    assert say("a b", 2).finish == "stop"
    cut = say("a b", 1, thought="x y")
    assert (cut.thinking, cut.text, cut.finish) == ("x", "", "length")


@pytest.mark.parametrize(
    ("body", "field", "kind"),
    [
        ({"foo": 1}, "foo", "unknown"),
        ({"max_tokens": "3"}, "max_tokens", "wrong"),
        ({"stop": ["a", 1]}, "stop.1", "wrong"),
        ({"messages": "text"}, "messages", "wrong"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages.0.role", "wrong"),
        ({"messages": [{"role": "user", "content": "x", "to": 1}]}, "messages.0.to", "unknown"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages.0.content.0.text",
            "wrong",
        ),
    ],
)
def test_the_judge_names_the_field(body: Any, field: str, kind: str) -> None:
    """At any depth, also within lists that the packages type as iterables."""
    from openai.types.chat import completion_create_params as params

    judge = Judge(params.CompletionCreateParamsNonStreaming)
    assert judge.fault({"model": "m", "messages": USER, "stop": ["a"]}) is None
    found = judge.fault({"model": "m", "messages": USER, **body})
    assert found is not None
    assert (found.field, found.kind) == (field, kind)


# OpenAI


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=FAKE) as server:
        yield server


def openai_client(server: OpenAIServer, key: str = FAKE) -> Any:
    return openai.AsyncOpenAI(base_url=server.base_url, api_key=key, max_retries=0)


async def test_openai_answers_whole_and_streamed(openai_server: OpenAIServer) -> None:
    """The same text, end, usage and probabilities, by OpenAI's own client."""
    asked = {"model": "m", "messages": SAID, "logprobs": True, "top_logprobs": 2}
    async with openai_client(openai_server) as client:
        whole = await client.chat.completions.create(**asked, max_tokens=2)
        options = {"include_usage": True}
        stream = await client.chat.completions.create(
            **asked, max_tokens=2, stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    [choice] = whole.choices
    assert (choice.message.content, choice.finish_reason) == ("one two", "length")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 2)
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert [delta.delta.content for delta in deltas] == ["", "one", " two", None]
    assert deltas[-1].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    streamed = [delta.logprobs.content[0] for delta in deltas if delta.logprobs]
    assert streamed == choice.logprobs.content
    for token in streamed:
        best, second = token.top_logprobs
        assert (best.token, best.logprob) == (token.token, token.logprob)
        assert second.logprob < best.logprob < 0


async def test_openai_thinks_in_the_field_that_is_set(openai_server: OpenAIServer) -> None:
    """Before the text, in a field of its own; counted as reasoning."""
    async with openai_client(openai_server) as client:
        for name in ("reasoning_content", "reasoning"):
            openai_server.thought_field = name
            whole = await client.chat.completions.create(model="think", messages=USER)
            stream = await client.chat.completions.create(model="think", messages=USER, stream=True)
            deltas = [chunk.choices[0].delta async for chunk in stream]
            thought = "".join(getattr(delta, name, None) or "" for delta in deltas)
            assert thought == getattr(whole.choices[0].message, name) != ""
            assert "".join(delta.content or "" for delta in deltas) == "one two three"
            details = whole.usage.completion_tokens_details
            assert details.reasoning_tokens == len(split(thought))


async def test_openai_completes_texts_as_of_old(openai_server: OpenAIServer) -> None:
    """With the prompt before them if asked, whose first token has no probability; streamed too."""
    asked: Any = {"model": "m", "prompt": "one two", "logprobs": 2}
    async with openai_client(openai_server) as client:
        scored = await client.completions.create(**asked, echo=True, max_tokens=0)
        stream = await client.completions.create(**asked, max_tokens=1, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    told = scored.choices[0].logprobs
    assert (told.tokens, told.text_offset) == (["one", " two"], [0, 3])
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1] == told.top_logprobs[1][" two"] < 0
    assert len(told.top_logprobs[1]) == 2
    assert [chunk.text for chunk in chunks] == ["one", ""]
    assert chunks[0].logprobs.tokens == ["one"]
    assert [chunk.finish_reason for chunk in chunks] == [None, "length"]


@pytest.mark.parametrize(
    ("asked", "param", "code", "words"),
    [
        ({"extra_body": {"top_k": 1}}, None, None, "Unrecognized request argument supplied: top_k"),
        (
            {"max_tokens": "3"},
            "max_tokens",
            "invalid_type",
            "expected an integer, but got a string instead.",
        ),
        (
            {"messages": [{"role": "usr", "content": "x"}]},
            "messages[0].role",
            "invalid_value",
            "Invalid value: 'usr'. Supported values are: 'developer', 'system', 'user'",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "to": 1}]},
            "messages[0].to",
            "unknown_parameter",
            "Unknown parameter: 'messages[0].to'.",
        ),
        ({"temperature": 3}, "temperature", "decimal_above_max_value", "<= 2"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", ">= 1"),
        ({"stop": list("abcde")}, "stop", "array_above_max_length", "maximum length 4"),
        ({"top_logprobs": 2}, "top_logprobs", None, "only allowed when 'logprobs'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "only allowed when"),
        (
            {"model": "o3", "max_tokens": 3},
            "max_tokens",
            "unsupported_parameter",
            "Use 'max_completion_tokens' instead.",
        ),
        (
            {"model": "openai/o3", "temperature": 0},
            "temperature",
            "unsupported_value",
            "'temperature' does not support 0 with this model.",
        ),
        ({"model": "gpt-5", "stop": "x"}, "stop", "unsupported_parameter", "'stop'"),
    ],
)
async def test_openai_refuses_in_its_own_words(
    openai_server: OpenAIServer, asked: Any, param: str | None, code: str | None, words: str
) -> None:
    """With the field and the code in OpenAI's form of an error, which its client reads."""
    async with openai_client(openai_server) as client:
        with pytest.raises(openai.BadRequestError) as told:
            await client.chat.completions.create(**{"model": "m", "messages": USER, **asked})
    assert (told.value.param, told.value.code) == (param, code)
    assert words in told.value.body["message"]


async def test_openai_takes_of_reasoning_models_what_they_take(
    openai_server: OpenAIServer,
) -> None:
    """The newer limit, and the temperature that they have anyway."""
    async with openai_client(openai_server) as client:
        told = await client.chat.completions.create(
            model="o3", messages=USER, max_completion_tokens=1, temperature=1
        )
    assert told.choices[0].message.content == "one"


async def test_openai_knows_its_models_fields_and_key() -> None:
    """Those it was given; a wrong key is told by its ends, or wholly if it is to be careless."""
    with OpenAIServer(key=FAKE, models=["a", "b/c"], also={"top_k"}) as server:
        async with openai_client(server) as client:
            assert [model.id async for model in client.models.list()] == ["a", "b/c"]
            assert (await client.models.retrieve("b/c")).id == "b/c"
            await client.chat.completions.create(model="a", messages=USER, extra_body={"top_k": 1})
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="x", messages=USER)
            assert missing.value.code == "model_not_found"
        async with openai_client(server, fake("other")) as client:
            with pytest.raises(openai.AuthenticationError) as told:
                await client.models.list()
            assert FAKE not in str(told.value)
            server.tells_key = True
            with pytest.raises(openai.AuthenticationError, match=fake("other")):
                await client.models.list()
        assert (await ask(server, "GET", "/models"))[0] == 401


async def test_openai_fails_as_its_client_knows_it(openai_server: OpenAIServer) -> None:
    """A status is the client's class of error; an error within a stream is one too."""
    async with openai_client(openai_server) as client:
        openai_server.fail_next(429, headers={"Retry-After": "1"})
        with pytest.raises(openai.RateLimitError) as told:
            await client.chat.completions.create(model="m", messages=USER)
        assert told.value.response.headers["Retry-After"] == "1"
        openai_server.break_next("error_in_stream")
        stream = await client.chat.completions.create(model="m", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="as the test asked|that the test asked"):
            async for _ in stream:
                pass


# Anthropic


@pytest.fixture
def anthropic_server() -> Iterator[AnthropicServer]:
    with AnthropicServer(key=FAKE, models=["claude-a", "claude-3-b", "think", "words"]) as server:
        yield server


def anthropic_client(server: AnthropicServer, key: str = FAKE) -> Any:
    return anthropic.AsyncAnthropic(base_url=server.base_url, api_key=key, max_retries=0)


async def test_anthropic_answers_whole_and_streamed(anthropic_server: AnthropicServer) -> None:
    """The same message, by Anthropic's own client, which puts the events together."""
    asked: Any = {"model": "claude-a", "messages": USER, "max_tokens": 2, "system": "Be brief."}
    async with anthropic_client(anthropic_server) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            texts = [text async for text in stream.text_stream]
            last = await stream.get_final_message()
        raw = await client.messages.create(**asked, stream=True)
        kinds = [event.type async for event in raw]
    assert whole.content[0].text == last.content[0].text == "one two"
    assert texts == ["one", " two"]
    assert whole.stop_reason == last.stop_reason == "max_tokens"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (5, 2)
    assert last.usage.output_tokens == 2
    assert whole.usage.cache_read_input_tokens == 0
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert anthropic_server.requests[0].body["system"] == "Be brief."
    path = f"{anthropic_server.base_url}/v1/messages"
    headers = {"x-api-key": FAKE, **EARLIER}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(path, json={**asked, "stream": True}) as response,
    ):
        assert "event: ping" in await response.text()  # the client does not show them


async def test_anthropic_tells_what_stopped_it(anthropic_server: AnthropicServer) -> None:
    """The sequence itself, and the end of a turn otherwise."""
    async with anthropic_client(anthropic_server) as client:
        asked: Any = {"model": "claude-a", "messages": USER, "max_tokens": 9}
        told = await client.messages.create(**asked, stop_sequences=["x", "two"])
        assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", "two")
        assert told.content[0].text == "one "
        told = await client.messages.create(**asked)
        assert (told.stop_reason, told.stop_sequence) == ("end_turn", None)


async def test_anthropic_thinks_in_blocks(anthropic_server: AnthropicServer) -> None:
    """Before the text, signed; by its name or by request, and not shown if it is to be omitted."""
    asked: Any = {"messages": USER, "max_tokens": 99}
    async with anthropic_client(anthropic_server) as client:
        async with client.messages.stream(model="think", **asked) as stream:
            kinds = [event.type async for event in stream]
            last = await stream.get_final_message()
        whole = await client.messages.create(model="think", **asked)
        adaptive: Any = {"type": "adaptive", "display": "omitted"}
        hidden = await client.messages.create(model="claude-a", thinking=adaptive, **asked)
    assert "thinking" in kinds
    assert "signature" in kinds
    assert [block.type for block in last.content] == ["thinking", "text"]
    assert last.content[0] == whole.content[0]
    assert whole.content[0].thinking == "The user said 13 letters."
    assert hidden.content[0].thinking == ""
    assert hidden.content[0].signature


async def test_anthropic_reads_from_its_cache_the_second_time(
    anthropic_server: AnthropicServer,
) -> None:
    """What is marked to be cached is counted apart: first as written, then as read."""
    system: Any = [{"type": "text", "text": "a b c d", "cache_control": {"type": "ephemeral"}}]
    async with anthropic_client(anthropic_server) as client:
        told = [
            (
                await client.messages.create(
                    model="claude-a", max_tokens=9, messages=USER, system=system
                )
            ).usage
            for _ in range(2)
        ]
    assert [each.cache_creation_input_tokens for each in told] == [4, 0]
    assert [each.cache_read_input_tokens for each in told] == [0, 4]
    assert [each.input_tokens for each in told] == [3, 3]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"extra_body": {"seed": 1}}, "seed: Extra inputs are not permitted"),
        ({"extra_body": {"max_tokens": None}}, "max_tokens: Input should be a valid integer"),
        ({"extra_body": {"stop": ["a"]}}, "stop: Extra inputs are not permitted"),
        ({"extra_body": {"temperature": 1}}, "temperature: Extra inputs are not permitted"),
        (
            {"extra_body": {"temperature": 0}, "extra_headers": EARLIER},
            "`temperature` is deprecated for this model.",
        ),
        (
            {"model": "words", "extra_body": {"top_p": 1.5}, "extra_headers": EARLIER},
            "top_p: range: 0..1",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "must be non-empty"),
        ({"stop_sequences": [" "]}, "must contain non-whitespace"),
        (
            {"model": "claude-3-b", "thinking": {"type": "enabled", "budget_tokens": 9}},
            "greater than or equal to 1024",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "not supported for this model"),
    ],
)
async def test_anthropic_refuses_in_its_own_words(
    anthropic_server: AnthropicServer, asked: Any, words: str
) -> None:
    """In Anthropic's form of an error, which its client reads."""
    async with anthropic_client(anthropic_server) as client:
        with pytest.raises(anthropic.BadRequestError) as told:
            await client.messages.create(
                **{"model": "claude-a", "messages": USER, "max_tokens": 9, **asked}
            )
    assert told.value.body["type"] == "error"
    assert told.value.body["error"]["type"] == "invalid_request_error"
    assert words in told.value.body["error"]["message"]


async def test_anthropic_takes_sampling_where_it_still_does(
    anthropic_server: AnthropicServer,
) -> None:
    """In the version before, of models before the newest, and of names that are not Anthropic's."""
    asked: Any = {"messages": USER, "max_tokens": 9, "extra_body": {"temperature": 0}}
    async with anthropic_client(anthropic_server) as client:
        for model in ("claude-3-b", "words"):
            told = await client.messages.create(model=model, **asked, extra_headers=EARLIER)
            assert told.content[0].text == "one two three"


async def test_anthropic_knows_its_models_version_and_key(
    anthropic_server: AnthropicServer,
) -> None:
    """Models come in pages; a wrong key, no key and no version are refused."""
    async with anthropic_client(anthropic_server) as client:
        names = [model.id async for model in client.models.list(limit=3)]
        assert names == anthropic_server.models
        pages = [seen.query for seen in anthropic_server.requests]
        assert pages == [{"limit": "3"}, {"limit": "3", "after_id": "think"}]
        assert (await client.models.retrieve("words")).display_name == "Words"
        counted = await client.messages.count_tokens(model="words", messages=USER)
        assert counted.input_tokens == 3
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="x", messages=USER, max_tokens=9)
    async with anthropic_client(anthropic_server, fake("other")) as client:
        with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
            await client.models.list()
    for headers, expected in [
        ({"x-api-key": FAKE, **EARLIER}, 200),
        ({"Authorization": f"Bearer {FAKE}", **EARLIER}, 200),
        ({"Authorization": f"Bearer {FAKE}", "x-api-key": "other", **EARLIER}, 401),
        (EARLIER, 401),
        ({"x-api-key": FAKE, "anthropic-version": "2024-01-01"}, 400),
        ({"x-api-key": FAKE}, 400),
    ]:
        assert (await ask(anthropic_server, "GET", "/v1/models", headers=headers))[0] == expected


async def test_anthropic_fails_as_its_client_knows_it(anthropic_server: AnthropicServer) -> None:
    """Overload is a status, or an event within a stream that began well."""
    async with anthropic_client(anthropic_server) as client:
        anthropic_server.fail_next(529)
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            await client.messages.create(model="words", messages=USER, max_tokens=9)
        anthropic_server.break_next("error_in_stream")
        stream = await client.messages.create(
            model="words", messages=USER, max_tokens=9, stream=True
        )
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            async for _ in stream:
                pass


# Ollama


@pytest.fixture
def ollama_server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


async def test_ollama_answers_whole_and_streamed(ollama_server: OllamaServer) -> None:
    """Chat and generate, by Ollama's own client; the last line has the counts."""
    client = ollama.AsyncClient(ollama_server.base_url)
    options = {"num_predict": 2, "min_p": 0.1}
    whole = await client.chat("words", SAID, options=options)
    assert (whole.message.content, whole.done_reason) == ("one two", "length")
    assert (whole.prompt_eval_count, whole.eval_count) == (5, 2)
    parts = [part async for part in await client.chat("words", SAID, options=options, stream=True)]
    assert [part.message.content for part in parts] == ["one", " two", ""]
    assert [part.done for part in parts] == [False, False, True]
    assert parts[-1].eval_count == 2
    assert parts[0].eval_count is None
    told = await client.generate("words", "a b c", options={"stop": ["c"]})
    assert (told.response, told.done_reason) == ("a b ", "stop")
    parts = [part async for part in await client.generate("words", "a b", stream=True)]
    assert [part.response for part in parts] == ["a", " b", ""]
    await client.close()


async def test_ollama_streams_unless_it_is_told_not_to(ollama_server: OllamaServer) -> None:
    """A body that does not say is answered by lines."""
    body = {"model": "words", "messages": USER}
    _, told = await ask(ollama_server, "POST", "/api/chat", json=body)
    assert [json.loads(each)["done"] for each in told.splitlines()] == [False, False, False, True]


async def test_ollama_thinks_and_tells_probabilities(ollama_server: OllamaServer) -> None:
    """Thoughts apart from the text, unless they are unwanted; probabilities with alternatives."""
    client = ollama.AsyncClient(ollama_server.base_url)
    told = await client.chat("think", USER, think=True, logprobs=True, top_logprobs=2)
    assert told.message.thinking == "The user said 13 letters."
    assert [each.token for each in told.logprobs] == ["one", " two", " three"]
    assert all(len(each.top_logprobs) == 2 for each in told.logprobs)
    assert (await client.chat("think", USER, think=False)).message.thinking is None
    with pytest.raises(ollama.ResponseError, match='"words" does not support thinking'):
        await client.chat("words", USER, think=True)
    await client.close()


async def test_ollama_keeps_models_as_it_is_asked(ollama_server: OllamaServer) -> None:
    """Loaded by an empty request, for as long as is said; unloaded by a time of zero."""
    client = ollama.AsyncClient(ollama_server.base_url)
    assert (await client.ps()).models == []
    assert (await client.generate("words", keep_alive=-1)).done_reason == "load"
    assert (await client.chat("think", keep_alive="1h30m")).done_reason == "load"
    words, think = (await client.ps()).models
    assert (words.model, words.expires_at.year) == ("words:latest", 2300)
    left_s = think.expires_at.timestamp() - time.time()
    assert 5390 < left_s <= 5400
    assert (await client.generate("words", keep_alive=0)).done_reason == "unload"
    await client.generate("think", "a", keep_alive=1e-9)
    assert (await client.ps()).models == []
    with pytest.raises(ollama.ResponseError, match='missing unit in duration "5"'):
        await client.generate("words", keep_alive="5")
    await client.close()


async def test_ollama_lists_shows_and_pulls(ollama_server: OllamaServer) -> None:
    """A model is there when its pull has ended, and no earlier; progress is told in bytes."""
    client = ollama.AsyncClient(ollama_server.base_url)
    ollama_server.break_next("early_end")
    async for _ in await client.pull("new", stream=True):
        pass
    assert [model.model for model in (await client.list()).models] == [
        "words:latest", "think:latest"
    ]  # fmt: skip
    parts = [part async for part in await client.pull("new", stream=True)]
    done = [(part.completed or 0) / part.total for part in parts if part.total]
    assert done == [0, 0.25, 0.5, 0.75, 1]
    assert parts[-1].status == "success"
    assert "new:latest" in [model.model for model in (await client.list()).models]
    with pytest.raises(ollama.ResponseError, match="file does not exist"):
        async for _ in await client.pull("nowhere", stream=True):
            pass
    with pytest.raises(ollama.ResponseError, match="file does not exist"):
        await client.pull("nowhere")
    shown = await client.show("think")
    assert shown.capabilities == ["completion", "thinking"]
    assert shown.modelinfo["words.context_length"] == 4096
    await client.delete("new")
    assert len((await client.list()).models) == 2
    assert "version" in (await ask(ollama_server, "GET", "/api/version"))[1]
    await client.close()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"max_tokens": 1}, 400, "max_tokens: Extra"),
        ({"options": {"max_tokens": 1}}, 400, "options.max_tokens: Extra"),
        ({"options": {"num_predict": "1"}}, 400, "options.num_predict"),
        ({"messages": [{"role": "user", "text": "x"}]}, 400, "messages.0.text: Extra"),
        ({"model": "nowhere"}, 404, "model 'nowhere' not found"),
        ({"keep_alive": "soon"}, 400, "invalid duration"),
    ],
)
async def test_ollama_refuses_in_its_own_words(
    ollama_server: OllamaServer, body: Any, status: int, words: str
) -> None:
    """With an ``error``; fields of other protocols are named."""
    asked = {"model": "words", "messages": USER, **body}
    told = await ask(ollama_server, "POST", "/api/chat", json=asked)
    assert told[0] == status
    assert words in told[1]["error"]


async def test_ollama_fails_as_its_client_knows_it() -> None:
    """A wrong key, and an error within a stream."""
    with OllamaServer(key=FAKE) as server:
        client = ollama.AsyncClient(server.base_url, headers={"Authorization": f"Bearer {FAKE}"})
        server.break_next("error_in_stream")
        with pytest.raises(ollama.ResponseError, match="that the test asked"):
            async for _ in await client.chat("words", USER, stream=True):
                pass
        await client.close()
        assert await ask(server, "GET", "/api/tags") == (401, {"error": "unauthorized"})


# GigaChat and YandexGPT, which have no package here: by hand, as their references tell


@pytest.fixture
def gigachat_server() -> Iterator[GigaChatServer]:
    with GigaChatServer(key=fake("basic")) as server:
        yield server


async def token(server: GigaChatServer, **changed: Any) -> tuple[int, Any]:
    """Ask for a token, as the service wants to be asked but for the changes."""
    headers = {"Authorization": f"Basic {fake('basic')}", "RqUID": str(uuid.uuid4())}
    headers = {**headers, **changed.pop("headers", {})}
    form = {"scope": "GIGACHAT_API_PERS", **changed}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.auth_url, data=form, headers=headers) as response,
    ):
        return response.status, await response.json()


async def test_gigachat_gives_tokens_that_end(gigachat_server: GigaChatServer) -> None:
    """For half an hour, in milliseconds since 1970; what ended is told as such, and can be renewed."""
    status, given = await token(gigachat_server)
    assert status == 200
    assert given["expires_at"] / 1000 - time.time() == pytest.approx(1800, abs=5)
    headers = {"Authorization": f"Bearer {given['access_token']}"}
    assert FAKE in given["access_token"]
    assert (await ask(gigachat_server, "GET", "/models", headers=headers))[0] == 200
    gigachat_server.expire()
    told = await ask(gigachat_server, "GET", "/models", headers=headers)
    assert told == (401, {"status": 401, "message": "Token has expired"})
    _, again = await token(gigachat_server)
    headers = {"Authorization": f"Bearer {again['access_token']}"}
    assert (await ask(gigachat_server, "GET", "/models", headers=headers))[0] == 200
    assert gigachat_server.tokens == 2
    unknown = {"Authorization": f"Bearer {FAKE}"}
    assert (await ask(gigachat_server, "GET", "/models", headers=unknown))[0] == 401


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"headers": {"Authorization": f"Basic {FAKE}"}}, 401, 6),
        ({"headers": {"Authorization": f"Bearer {fake('basic')}"}}, 400, 4),
        ({"headers": {"RqUID": "1"}}, 400, 3),
        ({"scope": ""}, 400, 5),
        ({"scope": "GIGACHAT_API_CORP"}, 400, 7),
        ({"scope": "all"}, 400, 1),
    ],
)
async def test_gigachat_gives_no_token_otherwise(
    gigachat_server: GigaChatServer, changed: Any, status: int, code: int
) -> None:
    """Each with the code that its reference has for it."""
    told = await token(gigachat_server, **changed)
    assert (told[0], told[1]["code"]) == (status, code)
    assert gigachat_server.tokens == 0


async def gigachat(server: GigaChatServer, **body: Any) -> tuple[int, Any]:
    _, given = await token(server)
    headers = {"Authorization": f"Bearer {given['access_token']}"}
    asked = {"model": "GigaChat", "messages": SAID, **body}
    return await ask(server, "POST", "/chat/completions", json=asked, headers=headers)


async def test_gigachat_answers_whole_and_streamed(gigachat_server: GigaChatServer) -> None:
    """The same text, end and usage; a stream ends with its mark."""
    _, whole = await gigachat(gigachat_server, max_tokens=2)
    [choice] = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two"}
    assert choice["finish_reason"] == "length"
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["total_tokens"]) == (5, 7)
    _, text = await gigachat(gigachat_server, max_tokens=2, stream=True)
    *events, end = [each.removeprefix("data: ") for each in text.split("\n\n") if each]
    chunks = [json.loads(each) for each in events]
    assert end == "[DONE]"
    contents = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert contents == ["one", " two", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"] == whole["usage"]
    _, thinks = await gigachat(gigachat_server, model="think")
    message = thinks["choices"][0]["message"]
    assert message["reasoning_content"] == "The user said 13 letters."


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"stop": ["a"]}, 422, "stop: Extra"),
        ({"seed": 1}, 422, "seed: Extra"),
        ({"temperature": 0}, 422, "temperature: Input should be greater than 0"),
        ({"messages": [*USER, SAID[0]]}, 422, "system message must be the first message"),
        ({"messages": [{"role": "user", "content": "x", "to": 1}]}, 422, "messages.0.to: Extra"),
        ({"model": 1}, 422, "model: "),
    ],
)
async def test_gigachat_refuses_in_its_own_form(
    gigachat_server: GigaChatServer, body: Any, status: int, words: str
) -> None:
    """Status and message; fields of other protocols are named."""
    told = await gigachat(gigachat_server, **body)
    assert (told[0], told[1]["status"]) == (status, status)
    assert words in told[1]["message"]


@pytest.fixture
def yandex_server() -> Iterator[YandexGPTServer]:
    with YandexGPTServer(key=FAKE, folder="b1g") as server:
        yield server


async def yandex(
    server: YandexGPTServer, headers: dict[str, str] | None = None, **body: Any
) -> tuple[int, Any]:
    asked = {
        "modelUri": "gpt://b1g/yandexgpt-lite/latest",
        "messages": [{"role": "user", "text": "one two three"}],
        **body,
    }
    given = {"Authorization": f"Api-Key {FAKE}"} if headers is None else headers
    return await ask(server, "POST", "/foundationModels/v1/completion", json=asked, headers=given)


async def test_yandexgpt_answers_whole_and_streamed(yandex_server: YandexGPTServer) -> None:
    """Each line has the whole text so far; numbers are texts, and may be sent so."""
    for limit in ("2", 2):
        options = {"maxTokens": limit, "temperature": 0}
        _, whole = await yandex(yandex_server, completionOptions=options)
        result = whole["result"]
        [found] = result["alternatives"]
        assert found["message"] == {"role": "assistant", "text": "one two"}
        assert found["status"] == "ALTERNATIVE_STATUS_TRUNCATED_FINAL"
        assert result["usage"]["totalTokens"] == "5"
    options = {"stream": True}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Api-Key {FAKE}"}) as session,
        session.post(
            f"{yandex_server.base_url}/foundationModels/v1/completion",
            json={**yandex_server.requests[-1].body, "completionOptions": options},
        ) as response,
    ):
        lines = [json.loads(each)["result"] async for each in response.content]
    texts = [each["alternatives"][0]["message"]["text"] for each in lines]
    assert texts == ["one", "one two", "one two three", "one two three"]
    statuses = [each["alternatives"][0]["status"].split("_")[-1] for each in lines]
    assert statuses == ["PARTIAL", "PARTIAL", "PARTIAL", "FINAL"]


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({}, {}, 401, "has to be passed"),
        ({"Authorization": f"Api-Key {fake('x')}"}, {}, 401, "Unknown api key"),
        ({"Authorization": f"Bearer {FAKE}"}, {}, 400, "Folder ID is empty"),
        (None, {"modelUri": "yandexgpt"}, 400, "invalid model_uri"),
        (None, {"modelUri": "gpt://other/yandexgpt"}, 400, "'other' does not match"),
        (None, {"seed": 1}, 400, "seed: Extra"),
        (None, {"completionOptions": {"stop": ["a"]}}, 400, "completionOptions.stop: Extra"),
        (None, {"completionOptions": {"temperature": 1.5}}, 400, "completionOptions.temperature"),
        (None, {"completionOptions": {"maxTokens": "0"}}, 400, "completionOptions.maxTokens"),
        (None, {"messages": [{"role": "user", "content": "x"}]}, 400, "messages.0.content: Extra"),
    ],
)
async def test_yandexgpt_refuses_in_its_own_form(
    yandex_server: YandexGPTServer,
    headers: dict[str, str] | None,
    body: Any,
    status: int,
    words: str,
) -> None:
    """An error with both codes; fields of other protocols are named."""
    told = await yandex(yandex_server, headers, **body)
    assert (told[0], told[1]["error"]["httpCode"]) == (status, status)
    assert words in told[1]["error"]["message"]
    assert FAKE not in json.dumps(told[1])


async def test_yandexgpt_takes_a_token_with_its_folder(yandex_server: YandexGPTServer) -> None:
    """An IAM token goes with a header."""
    headers = {"Authorization": f"Bearer {FAKE}", "x-folder-id": "b1g"}
    assert (await yandex(yandex_server, headers))[0] == 200


# All of them

KINDS: list[Callable[[], LocalServer]] = [
    OpenAIServer, AnthropicServer, OllamaServer, GigaChatServer, YandexGPTServer
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_on_demand_are_in_the_services_form(kind: Callable[[], LocalServer]) -> None:
    """A status without a body gets the one that the service would send."""
    with kind() as server:
        server.fail_next(500)
        told = await ask(server, "GET", "/nowhere")
        assert told == (500, server.error_body(500, "status 500, as the test asked"))


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_there_but_what_the_service_has(
    kind: Callable[[], LocalServer],
) -> None:
    """A wrong path is told in the service's form, with status 404."""
    with kind() as server:
        headers = dict(EARLIER)
        if isinstance(server, GigaChatServer):
            _, given = await token(server)
            headers["Authorization"] = f"Bearer {given['access_token']}"
        status, told = await ask(server, "GET", "/nowhere", headers=headers)
        assert status == 404
        assert told == server.error_body(404, f"Not Found: GET {server.prefix}/nowhere")


def test_keys_are_found_by_one_text() -> None:
    """Different for different names, encoded or not as the protocol has it; all hold the same text."""
    assert len({fake(), fake("a"), fake("b")}) == 3
    assert all("nbp-fake-key" in key for key in (FAKE, fake(), fake("a")))
    assert line({"key": FAKE}).decode().count(FAKE) == 1
    assert base64.b64encode(FAKE.encode()).decode() not in FAKE
