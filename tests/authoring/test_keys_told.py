"""Promises of the error for a refused key: which key that was, or that none was sent, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.catalog import keys
from nbproviders.core.config import Secret
from nbproviders.errors import AuthenticationError
from tests.services.anthropic import AnthropicServer
from tests.services.keys import FAKE, fake
from tests.services.openai import OpenAIServer

UNSENT = "(No key was sent.)"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=FAKE) as running:
        yield running


@pytest.fixture(autouse=True)
def made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers that references made before do not know this test's environment."""
    monkeypatch.setattr(registry, "_made", {})
    monkeypatch.setattr(keys, "_known", {})


async def refused(reference: str, **options: Any) -> AuthenticationError:
    """Ask, and return the error, which must show no key."""
    async with nbp.model(reference, max_retries=0, **options) as m:
        with pytest.raises(AuthenticationError, match="HTTP 40[13]") as caught:
            await m.generate("hi")
    assert FAKE not in str(caught.value)
    return caught.value


async def test_a_key_that_was_withheld(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's key goes to its service only: the error says that, and both ways out."""
    monkeypatch.setenv("OPENAI_API_KEY", FAKE)
    error = await refused(f"openai:gpt-x?base_url={server.base_url}")
    assert error.message.endswith(UNSENT)
    assert "OPENAI_API_KEY is sent to OpenAI itself only, or where OPENAI_BASE_URL" in error.hint
    assert 'nbp.model("openai:…", api_key=…), or set OPENAI_BASE_URL' in error.hint
    assert "Authorization" not in server.requests[-1].headers
    # Both ways lead out.
    async with nbp.model(f"openai:gpt-x?base_url={server.base_url}", api_key=FAKE) as m:
        assert await m.generate("hi") == "hi"
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    async with nbp.model("openai:gpt-x") as m:
        assert await m.generate("hi") == "hi"


async def test_a_service_whose_address_has_no_variable(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variable is named that there is not."""
    monkeypatch.setenv("GROQ_API_KEY", FAKE)
    error = await refused(f"groq:gpt-x?base_url={server.base_url}")
    assert error.message.endswith(UNSENT)
    assert "GROQ_API_KEY is sent to Groq itself only." in error.hint
    assert "BASE_URL" not in error.hint


async def test_another_protocol_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once for all services, with each one's own names."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", FAKE)
    with AnthropicServer(key=FAKE) as server:
        error = await refused(f"anthropic:claude-3-haiku?base_url={server.base_url}")
    assert error.message.endswith(UNSENT)
    assert "ANTHROPIC_API_KEY is sent to Anthropic itself only, or where ANTHROPIC_BASE_URL" in (
        error.hint
    )


async def test_a_service_that_takes_no_key(server: OpenAIServer) -> None:
    """A server of one's own that asks for a key after all: no variable is named, for there is none."""
    error = await refused(f"lmstudio:words?base_url={server.base_url}")
    assert error.message.endswith(UNSENT)
    assert error.hint.startswith("LM Studio by itself needs no key.")
    assert "api_key=…" in error.hint


async def test_a_server_under_another_name(server: OpenAIServer) -> None:
    """A provider that only speaks OpenAI's protocol is not told of OpenAI's key."""
    error = await refused_plainly(nbp.create_provider("vllm", base_url=server.base_url))
    assert error.message.endswith(UNSENT)
    assert "OPENAI" not in error.hint
    assert 'nbp.model("vllm:…", api_key=…)' in error.hint


async def refused_plainly(provider: Any, model: str = "words", **options: Any) -> Any:
    async with provider.model(model, **options) as m:
        with pytest.raises(AuthenticationError, match="HTTP 401") as caught:
            await m.generate("hi")
    return caught.value


async def test_a_key_of_the_provider_that_was_withheld(server: OpenAIServer) -> None:
    """A reference that leads elsewhere does not take the provider's key along, and the error says so."""
    made = nbp.create_provider("openai", api_key=FAKE, base_url="http://127.0.0.1:9/v1")
    error = await refused_plainly(made, "gpt-x", base_url=server.base_url)
    assert error.message.endswith(UNSENT)
    assert error.hint.startswith("The provider's own api_key goes to its own base_url only.")


async def test_a_wrong_key_of_the_environment(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that it came from is named, of several the right one."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", fake("wrong"))
    error = await refused("openai:gpt-x")
    assert "environment's OPENAI_API_KEY was refused" in error.hint
    assert UNSENT not in error.message


async def test_a_wrong_key_that_was_given(server: OpenAIServer) -> None:
    """It is the argument that is wrong, and no variable would help."""
    error = await refused(f"openai:gpt-x?base_url={server.base_url}", api_key=fake("wrong"))
    assert error.hint.startswith("The key given as api_key=… was refused.")
    assert UNSENT not in error.message
    server.fail_next(403)
    error = await refused(f"openai:gpt-x?base_url={server.base_url}", api_key=FAKE)
    assert "what it may be used for" in error.hint


async def test_a_wrong_key_that_was_entered(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is forgotten, and opening the model again asks: for all requests that carried it."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    answers = [fake("mistyped"), FAKE]

    def prompted(*_: object) -> dict[str, Secret]:
        return {"OPENAI_API_KEY": Secret(answers.pop(0))}

    monkeypatch.setattr(keys, "_prompted", prompted)  # somebody sits there
    server.delay_s = 0.2  # both are on their way before the first is refused
    async with nbp.model("openai:gpt-x?max_retries=0") as m:
        asked = [m.generate("a"), m.generate("b")]
        errors = await asyncio.gather(*asked, return_exceptions=True)
    for error in errors:
        assert isinstance(error, AuthenticationError)
        assert UNSENT not in error.message
        assert "Run the cell that opens the model again, and you will be asked." in error.hint
        assert "keyring set nbproviders OPENAI_API_KEY" in error.hint
    async with nbp.model("openai:gpt-x?max_retries=0") as m:  # as it says
        assert await m.generate("hi") == "hi"
    assert answers == []


async def test_what_the_provider_knows_better_stays(server: OpenAIServer) -> None:
    """A missing key is told before anything is sent, in its own words."""
    with pytest.raises(AuthenticationError, match="none was found") as caught:
        async with nbp.model("openai:gpt-x"):
            raise AssertionError("it was opened without a key")
    assert caught.value.hint.startswith("Set OPENAI_API_KEY")


@pytest.mark.parametrize("call", ["stream", "create", "list_models"])
async def test_every_call_says_it(server: OpenAIServer, call: str) -> None:
    """Whichever way the service was asked."""
    async with nbp.model(f"openai:gpt-x?base_url={server.base_url}&max_retries=0") as m:
        raw: Any = m.raw
        calls: dict[str, Any] = {
            "stream": lambda: anext(m.stream("hi")),
            "create": lambda: m.chat.completions.create(messages=[]),
            "list_models": raw.list_models,
        }
        with pytest.raises(AuthenticationError) as caught:
            await calls[call]()
    assert caught.value.message.count(UNSENT) == 1
    assert "OPENAI_API_KEY is sent to OpenAI itself only" in caught.value.hint
