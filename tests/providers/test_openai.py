"""Promises of the chat-completions provider alone; for those of all services see `test_services`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.catalog.services import SERVICES
from nbproviders.core.completion import Usage
from tests.providers.hosted import OPENAI, ask
from tests.services.keys import FAKE


@pytest.fixture
def server() -> Iterator[Any]:
    with OPENAI.serve() as running:
        yield running


@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_plain_text(server: Any, way: str) -> None:
    """`raw=True` and `?chat=false` go to the older completions, whose probabilities are told as well."""
    async with OPENAI.provider(server).model("gpt-x?chat=false") as m:
        got = await ask(m, way, "one two three", max_tokens=2, logprobs=True)
    assert (got, got.chat, got.usage) == ("one two", False, Usage(3, 2))
    assert [token.text for token in got.tokens] == ["one", " two"]
    assert server.requests[0].path.endswith("/v1/completions")


@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_reasoning_by_another_name(server: Any, way: str) -> None:
    """What the model thinks stands beside the text, whatever the service calls it."""
    server.thought_field = "reasoning"
    async with OPENAI.provider(server).model("thinker") as m:
        got = await ask(m, way, "one two")
    assert (got, got.reasoning) == ("one two", "The user said 7 letters.")


def test_every_row_of_the_protocol_is_registered() -> None:
    """Each service that speaks it is a provider of its own name, at its own address, with its own key."""
    listed = nbp.list_available()
    for name, row in SERVICES.items():
        assert listed[name].available, name
        if row.protocol == "chat-completions":
            made = nbp.create_provider(name, api_key=FAKE)
            assert (made.name, made.base_url) == (name, row.base_url)  # type: ignore[attr-defined]


async def test_a_service_in_its_own_dialect(server: Any) -> None:
    """Mistral spells the seed its own way; a service that takes none is told as ignoring it."""
    mistral, deepseek = (
        nbp.create_provider(name, api_key=FAKE, base_url=server.base_url, max_retries=0)
        for name in ("mistral", "deepseek")
    )
    server.also = frozenset({"random_seed"})
    async with mistral.model("m") as m:
        assert (await m.generate("a", seed=3)).ignored == ()
        await ask(m, "stream")
    first, second = OPENAI.bodies(server)
    assert first["random_seed"] == 3
    assert "stream_options" not in second
    async with deepseek.model("m") as m:
        got = await m.generate("a", seed=3)
    assert (got.ignored, got.params.seed) == (("seed",), None)
