"""Promises of providers that send a body for each completion: when they ask again, and when not."""

from __future__ import annotations

from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core.params import Request
from nbproviders.errors import (
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    ServiceUnavailableError,
    UnsupportedError,
)
from nbproviders.providers.openai import OpenAIProvider
from tests.services.keys import FAKE
from tests.services.server import LocalServer, Streamed, event

SEED = "Unrecognized request argument supplied: seed"
TOP_P = "top_p is not supported"


def said(text: str, **fields: Any) -> Any:
    return {"choices": [{"index": 0, "delta": {"content": text}, **fields}]}


def refusal(message: str) -> Any:
    told = {"type": "invalid_request_error", "message": message}
    return {"type": "error", "error": told}


def anthropic_delta(text: str) -> Any:
    delta = {"type": "text_delta", "text": text}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


STREAMS = {
    "openai": ("/chat/completions", said("half "), SEED),
    "anthropic": ("/v1/messages", anthropic_delta("half "), TOP_P),
}


def provider(name: str, server: LocalServer, **settings: Any) -> Any:
    told = {"api_key": FAKE, "base_url": server.root_url, "max_retries": 2, **settings}
    return nbp.create_provider(name, **told)


def events(*values: Any, end: bytes = b"data: [DONE]\n\n") -> Any:
    frames = [event(value) for value in values]
    return lambda _: Streamed(frames, end, b"")


@pytest.mark.parametrize("name", sorted(STREAMS))
async def test_a_refusal_in_the_midst_is_not_asked_around(name: str) -> None:
    """A stream that begins and then refuses a parameter fails; no second answer follows the half one."""
    path, first, message = STREAMS[name]
    with LocalServer() as server:
        server.answer("POST", path, events(first, refusal(message), end=b""))
        async with provider(name, server).model("m") as m:
            stream = m.stream("hi", seed=1, top_p=0.5)
            with pytest.raises(InvalidRequestError):
                async for _ in stream:
                    pass
            assert stream.text == "half "
        assert len(server.requests) == 1


class Insisting(OpenAIProvider):
    """Sends a seed whatever it has learned."""

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        return {**super()._body(request, stream=stream), "seed": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_body_is_not_sent_again(stream: bool) -> None:
    """An author's class that puts the refused parameter back gets the refusal, not a round without end."""
    with LocalServer() as server:
        refused = {"error": {"message": SEED, "type": "invalid_request_error", "param": "seed"}}
        server.fail_next(400, refused, times=5)
        url = server.root_url
        config = nbp.ProviderConfig(name="openai", api_key=FAKE, base_url=url, model="m")
        async with Insisting(config).model("m") as m:
            with pytest.raises(InvalidRequestError, match="seed"):
                await (anext(m.stream("hi")) if stream else m.generate("hi"))
        assert len(server.requests) == 1


async def ended(values: list[Any], *, stream: bool, name: str = "openai") -> Any:
    """Return the completion of a stream, or of a whole answer of its single value."""
    path = STREAMS[name][0]
    with LocalServer() as server:
        whole = values[0] if values else {}
        server.answer("POST", path, events(*values) if stream else whole)
        async with provider(name, server, max_retries=0).model("m") as m:
            if not stream:
                return await m.generate("hi")
            reading = m.stream("hi")
            async for _ in reading:
                pass
            return reading.completion


async def test_only_the_first_of_several_choices() -> None:
    """Choices that come mixed are not put together into one text."""
    values = [
        said("one"),
        {"choices": [{"index": 1, "delta": {"content": "TWO"}}]},
        said(" more", finish_reason="stop"),
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
    ]
    got = await ended(values, stream=True)
    assert (got, got.finish) == ("one more", "stop")


async def test_a_refusal_to_answer_is_filtered() -> None:
    """A model that declines is told apart from one that ended, streamed too, where the end says stop."""
    values = [
        {"choices": [{"index": 0, "delta": {"refusal": "I will"}}]},
        {"choices": [{"index": 0, "delta": {"refusal": " not."}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    got = await ended(values, stream=True)
    assert (got, got.finish) == ("I will not.", "filtered")
    message = {"content": None, "refusal": "No."}
    got = await ended([{"choices": [{"message": message, "finish_reason": "stop"}]}], stream=False)
    assert (got, got.finish) == ("No.", "filtered")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
async def test_an_answer_that_failed_in_the_midst(reason: str, stream: bool) -> None:
    """What a service broke off by itself is not taken for an answer."""
    field = "delta" if stream else "message"
    choice = {"index": 0, field: {"content": "half"}, "finish_reason": reason}
    with pytest.raises(ServiceUnavailableError, match=reason):
        await ended([{"choices": [choice]}], stream=stream)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_of_a_tool_is_no_empty_answer(stream: bool) -> None:
    """It says what to write instead."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"content": None, "tool_calls": [call]}
    field = "delta" if stream else "message"
    choice = {"index": 0, field: said, "finish_reason": "tool_calls"}
    with pytest.raises(UnsupportedError, match="tool") as caught:
        await ended([{"choices": [choice]}], stream=stream)
    assert "chat.completions.create" in caught.value.hint


@pytest.mark.parametrize("name", sorted(STREAMS))
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_anything(name: str, stream: bool) -> None:
    """Neither a bare end of a stream nor an empty object is an empty text."""
    with pytest.raises(ServiceUnavailableError):
        await ended([{"choices": []}] if name == "openai" else [], stream=stream, name=name)


async def test_content_in_parts() -> None:
    """A content that is a list of parts is read: texts are the answer, thoughts stand apart."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [thinking, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    value = {"choices": [{"message": {"content": parts}, "finish_reason": "model_length"}]}
    got = await ended([value], stream=False)
    assert (got, got.reasoning, got.finish) == ("ab", "hm", "length")


@pytest.mark.parametrize("name", sorted(STREAMS))
@pytest.mark.parametrize("field", ["model", "messages", "stream", "n"])
def test_what_a_request_says_by_itself(name: str, field: str) -> None:
    """`extra_body` cannot replace it: the answer would be to another question."""
    with pytest.raises(ConfigurationError, match=field):
        nbp.create_provider(name, api_key=FAKE, extra_body={field: 2})


async def test_a_half_of_a_character_is_replaced() -> None:
    """JSON may hold half a surrogate pair, which no file, screen or request could take."""
    with LocalServer() as server:
        body = b'{"choices":[{"message":{"content":"a\\ud83d \\ud83d\\ude00"},"finish_reason":"stop"}]}'
        server.answer("POST", "/chat/completions", lambda _: _json(body))
        async with provider("openai", server).model("m") as m:
            got = await m.generate("hi")
    assert got.encode()
    assert got == "a\ufffd \U0001f600"


def _json(body: bytes) -> Any:
    from aiohttp import web

    return web.Response(body=body, content_type="application/json")


async def test_counts_beyond_all_measure() -> None:
    """An answer that counts more tokens than there are is one of our errors, here and in a table."""
    choice = {"message": {"content": "a"}, "finish_reason": "stop"}
    for count in (10**400, -1, "many", [1]):
        value = {"choices": [choice], "usage": {"completion_tokens": count}}
        with pytest.raises(ProviderError, match="form"):
            await ended([value], stream=False)
