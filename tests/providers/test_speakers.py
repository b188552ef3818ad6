"""Promises of what speaks to our servers: what it says in each request, and what it makes of answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nbproviders.core.config import ProviderConfig
from nbproviders.errors import InvalidRequestError
from nbproviders.providers.speakers import LlamaSpeaker, Speaker, TransformersSpeaker
from tests.services.openai import OpenAIServer
from tests.services.server import Recorded, Refused, Streamed, event

LLAMA_FIELDS = ("top_k", "min_p", "repeat_penalty")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A service of the protocol that also takes the fields of our servers' own."""
    with OpenAIServer(also=(*LLAMA_FIELDS, "generation_config")) as running:
        yield running


def speaker(kind: type[Speaker], server: OpenAIServer, context_tokens: int | None = None) -> Any:
    made = kind(ProviderConfig(name="lab", base_url=server.base_url, model="words", max_retries=0))
    made.context_tokens = context_tokens
    return made


def sent(server: OpenAIServer) -> dict[str, Any]:
    """Return what was asked last, besides model and prompt."""
    body = server.requests[-1].body
    return {k: v for k, v in body.items() if k not in ("model", "messages", "prompt")}


async def test_plain_text_is_completed_to_its_end(server: OpenAIServer) -> None:
    """Where nobody gave a limit, there is none; the protocol's own would be 16 tokens."""
    made = speaker(Speaker, server)
    await made.generate("a b", raw=True)
    assert sent(server) == {"max_tokens": None}
    await made.generate("a b", raw=True, max_tokens=3)
    assert sent(server) == {"max_tokens": 3}
    await made.generate("a b")
    assert sent(server) == {}


async def test_llama_is_greedy_and_unfiltered_by_default(server: OpenAIServer) -> None:
    """Its own samplers are off; what was asked for stays, and the completion tells what was used."""
    made = speaker(LlamaSpeaker, server)
    off = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    got = await made.generate("a")
    assert (sent(server), got.params.temperature) == ({"temperature": 0, "top_p": 1.0, **off}, 0)
    got = await made.generate("a", temperature=0.7, top_p=0.5)
    assert sent(server) == {"temperature": 0.7, "top_p": 0.5, **off}
    assert (got.params.temperature, got.ignored) == (0.7, ())


async def test_a_server_that_knows_no_such_fields_is_not_asked_for_ever() -> None:
    """At an address of the user's, a refused field of ours is left out, once and for all."""
    with OpenAIServer() as other:
        made = speaker(LlamaSpeaker, other)
        assert await made.generate("a b") == "a b"
        assert len(other.requests) == 1 + len(LLAMA_FIELDS)
        got = await made.generate("c")
        assert (got, got.ignored) == ("c", ())
        assert len(other.requests) == 2 + len(LLAMA_FIELDS)


async def test_transformers_samples_if_asked(server: OpenAIServer) -> None:
    """A temperature above 0 switches sampling on, from all tokens and up to the same limit."""
    made = speaker(TransformersSpeaker, server)
    for asked, limit in (({}, 1024), ({"max_tokens": 5}, 5)):
        await made.generate("a", temperature=0.5, **asked)
        told = json.loads(sent(server)["generation_config"])
        assert told == {"do_sample": True, "top_k": 0, "max_new_tokens": limit}
    for greedy in ({}, {"temperature": 0}):
        await made.generate("a", **greedy)
        assert "generation_config" not in sent(server)


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        (["one ", "two ", "three"], ["two"], "one "),
        (["one ", "t", "wo ", "three"], ["two"], "one "),
        (["one ", "t", "en"], ["two"], "one ten"),
        (["one t"], ["two"], "one t"),
        (["one"], ["one"], ""),
        (["abc", "abd"], ["bd", "cab"], "ab"),
    ],
)
async def test_transformers_stops_before_the_stop_string(
    server: OpenAIServer, pieces: list[str], stop: list[str], text: str
) -> None:
    """The server tells the stop string too; here the text ends before it, however it comes."""

    def answer(seen: Recorded) -> Any:
        if not seen.body.get("stream"):
            return {"choices": [{"message": {"content": "".join(pieces)}, "finish_reason": "stop"}]}
        frames = [event({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
        frames.append(event({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
        return Streamed(frames, event("[DONE]"), event({"error": "none"}))

    server.answer("POST", "/chat/completions", answer)
    made = speaker(TransformersSpeaker, server)
    assert await made.generate("a", stop=stop) == text
    stream = made.stream("a", stop=stop)
    assert "".join([chunk async for chunk in stream]) == text
    assert (stream.completion, stream.completion.finish) == (text, "stop")


@pytest.mark.parametrize(
    ("kind", "whole", "asked"),
    [
        (Speaker, True, 1),
        (Speaker, False, 1),
        (LlamaSpeaker, True, 1),
        (LlamaSpeaker, False, 2),
        (TransformersSpeaker, True, 2),
        (TransformersSpeaker, False, 2),
    ],
)
async def test_what_may_be_too_long_is_counted_first(
    server: OpenAIServer, kind: type[Speaker], whole: bool, asked: int
) -> None:
    """Only where the server would not refuse it itself, and only what is near the limit."""
    made = speaker(kind, server, context_tokens=20)

    async def ask(text: str) -> str:
        if whole:
            return await made.generate(text)
        return "".join([chunk async for chunk in made.stream(text)])

    assert await ask("short") == "short"
    assert len(server.requests) == 1
    assert await ask("four words fill this") == "four words fill this"
    assert len(server.requests) == 1 + asked
    if asked == 1:
        return
    assert server.requests[-2].body["max_tokens"] == 1
    with pytest.raises(InvalidRequestError, match="has 20 tokens.*context of 20"):
        await ask("word " * 20)
    assert server.requests[-1].body["max_tokens"] == 1


async def test_refusals_of_a_length_keep_their_words(server: OpenAIServer) -> None:
    """What the server itself says of a prompt that is too long is what is raised."""

    def refuse(seen: Recorded) -> Any:
        raise Refused(400, {"error": {"message": "maximum context length is 20 tokens"}})

    server.answer("POST", "/chat/completions", refuse)
    made = speaker(LlamaSpeaker, server, context_tokens=20)
    with pytest.raises(InvalidRequestError, match="maximum context length is 20 tokens"):
        await anext(made.stream("word " * 20))
