"""Promises of echo: the prompt comes back word by word, the same each time."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

import nbproviders as nbp
from nbproviders.core.completion import Usage
from nbproviders.core.params import as_request
from nbproviders.errors import ConfigurationError, InvalidRequestError, ServiceUnavailableError
from nbproviders.providers.echo import CONTEXT_TOKENS, EchoModel, EchoProvider
from tests.scripted import VirtualLoop, in_virtual_time


def say(prompt: str, **overrides: object) -> nbp.Completion:
    import asyncio

    async def ask() -> nbp.Completion:
        return await EchoModel(0.0, 0.0, 0).generate(prompt, **overrides)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(ask())


@given(prompt=st.text(max_size=60))
def test_every_text_comes_back(prompt: str) -> None:
    """Blanks, lines and odd characters included."""
    got = say(prompt)
    assert got == prompt
    assert got.finish == "stop"


def test_the_empty_prompt_is_legal() -> None:
    """It is answered with nothing."""
    got = say("")
    assert (got, got.usage) == ("", Usage(0, 0))


async def test_the_last_turn_of_a_chat_comes_back() -> None:
    """System prompt and earlier turns are not repeated."""
    async with nbp.model("echo:echo") as m:
        assert await m.chat("hello you", system="be brief") == "hello you"
        assert (await m.chat("hello")).chat


async def test_a_word_is_a_chunk_and_a_token() -> None:
    """Streaming writes word by word, and counts them."""
    async with nbp.model("echo:any-name") as m:
        stream = m.stream("one two three")
        assert [chunk async for chunk in stream] == ["one", " two", " three"]
        assert stream.completion.usage == Usage(3, 3)
        assert stream.completion.spec == "echo:any-name"


def test_max_tokens_cuts() -> None:
    """The limit is told as the reason; a text that just fits ends by itself."""
    got = say("one two three", max_tokens=2)
    assert (got, got.finish, got.usage) == ("one two", "length", Usage(3, 2))
    assert say("one two", max_tokens=2).finish == "stop"


@given(prompt=st.text("ab ", max_size=20), stop=st.text("ab ", min_size=1, max_size=3))
def test_a_stop_string_is_cut_off(prompt: str, stop: str) -> None:
    """The text ends before the first stop string, wherever it begins and ends."""
    assert say(prompt, stop=stop) == prompt.partition(stop)[0]


def test_the_first_of_several_stop_strings() -> None:
    """Of several the earliest counts."""
    got = say("one two three", stop=["three", "tw"])
    assert (got, got.finish) == ("one ", "stop")


def test_what_was_used_is_told() -> None:
    """Defaults are filled in: greedy, up to the context."""
    assert say("x", seed=3).params.given() == {
        "temperature": 0.0,
        "max_tokens": CONTEXT_TOKENS,
        "seed": 3,
    }


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    """Never cut in silence: the error has both numbers."""
    with pytest.raises(InvalidRequestError) as caught:
        say("w " * (CONTEXT_TOKENS + 10) + "w")
    assert str(CONTEXT_TOKENS) in caught.value.message
    assert str(CONTEXT_TOKENS + 11) in caught.value.message


@in_virtual_time
async def test_delay_is_before_each_word() -> None:
    """delay_s makes a slow model to watch."""
    import asyncio

    loop = asyncio.get_running_loop()
    times = [loop.time() async for _ in EchoModel(0.5, 0.0, 0).stream("a b c")]
    assert times == [0.5, 1.0, 1.5]


@in_virtual_time
async def test_fail_rate_fails_the_same_prompts() -> None:
    """About that share fails, always the same ones; another seed fails others."""

    async def failing(seed: int) -> set[int]:
        model, failed = EchoModel(0.0, 0.3, seed), set()
        for number in range(200):
            try:
                await model.generate(f"prompt {number}")
            except ServiceUnavailableError:
                failed.add(number)
        return failed

    first = await failing(0)
    assert first == await failing(0) != await failing(1)
    assert 30 < len(first) < 90


@pytest.mark.parametrize("options", [{"delay_s": -1}, {"fail_rate": 2}, {"fail_rate": -0.1}])
async def test_options_out_of_bounds(options: dict[str, float]) -> None:
    """They are refused with their values when the model is opened."""
    with pytest.raises(ConfigurationError, match="echo cannot use") as caught:
        async with EchoProvider().model("echo", **options):
            pass
    assert str(next(iter(options.values()))) in caught.value.message


@pytest.mark.parametrize("reference", ["echo:echo?dealy_s=1", "echo:echo?delay_s=slow"])
def test_misspelt_options(reference: str) -> None:
    """A misspelt option, or a value of a wrong kind, is told before anything loads."""
    with pytest.raises(ConfigurationError, match="dealy_s|delay_s='slow'"):
        nbp.model(reference)


async def test_spellings_of_one_value_are_one_model() -> None:
    """echo, echo?delay_s=0 and echo?delay_s=0.0 load once."""
    key = nbp.create_provider("echo").resolve
    assert key("echo") == key("echo?delay_s=0.0") == key("echo?delay_s=0")


def test_a_request_is_taken_as_it_is() -> None:
    """Plain text can be asked for, and is told."""
    assert not say(as_request("x", raw=True)).chat  # type: ignore[arg-type]
    assert say("x").chat
