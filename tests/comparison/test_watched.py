"""Promises of a model whose answers are noted."""

from __future__ import annotations

from typing import Any

import nbproviders as nbp
from nbproviders.comparison.watched import Watched


async def test_generate_and_stream_are_noted() -> None:
    """Each request is noted with its completion once it has ended, and told once."""
    async with nbp.model("echo:a?delay_s=0.02") as m:  # a quicker one may be done before it is left
        watched = Watched(m.waist)
        client = nbp.Client(watched, lambda: None)
        await client.generate("one")
        async for _ in client.stream("two words", temperature=0.5):
            pass
        async for _ in client.stream("word " * 200):
            break
        taken = watched.taken()
        assert [(request.prompt, str(text)) for request, text in taken] == [
            ("one", "one"),
            ("two words", "two words"),
        ]
        assert taken[1][1].usage == nbp.Usage(2, 2)
        assert taken[1][0].params.temperature == 0.5
        assert watched.taken() == []
        assert watched.info.spec == "echo:a?delay_s=0.02"
        assert watched.cost(nbp.Usage(1, 1)).kind == "free"
        assert client.raw is m.raw
        await watched.aclose()
        assert await m.generate("still open") == "still open"


async def test_it_can_what_the_model_can() -> None:
    """Probabilities of tokens come from the model; one that cannot tell says so in its own words."""
    async with nbp.model("transformers:demo-xs") as m:
        client = nbp.Client(Watched(m.waist), lambda: None)
        told = await client.next_tokens("12+30=", 3)
        assert list(told["id"]) == list((await m.next_tokens("12+30=", 3))["id"])
        assert (await client.score("12+30=", "42")).total == (await m.score("12+30=", "42")).total


class Resource:
    def greet(self, name: str) -> str:
        return f"hello {name}"


class ResourceProvider(nbp.ModelProvider):
    async def setup(self, resource_spec: str, **config: Any) -> nbp.ModelHandle:
        return nbp.ModelHandle(resource_spec, Resource(), self)

    async def teardown(self, resource_id: str) -> None:
        pass


async def test_other_resources_are_handed_through() -> None:
    """A resource that is no model is called as before."""
    async with ResourceProvider().model("x") as m:
        client: Any = nbp.Client(Watched(m.waist), lambda: None)
        assert await client.greet("you") == "hello you"
