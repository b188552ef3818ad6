"""Promises of the provider llama-server, against llama-cpp-python's own server on a shipped model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbproviders as nbp
from nbproviders import demo, session
from nbproviders.errors import InvalidRequestError, ModelAccessError
from nbproviders.runtimes.process.keeping import answers
from tests.providers.serving import arguments, logs, own_state, records
from tests.runtimes.process.servers import BOUND_S, files, left
from tests.services.openai import OpenAIServer

if sys.platform != "linux":
    pytest.skip("what is left of processes is looked for in /proc", allow_module_level=True)
REASON = nbp.list_available()["llama-server"].reason
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

PROMPTS = ["12+30=", "reverse otter:", "upper river:", "capital of Peru?"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's servers are written down; nothing is left of them."""
    with own_state(tmp_path, monkeypatch) as path:
        yield path


async def test_same_text_as_without_a_server() -> None:
    """A model writes the same behind the server as in this process: chat, plain, streamed, by default."""
    async with nbp.model("llama-server:demo-m") as there, nbp.model("llama-cpp:demo-m") as here:
        assert await there.generate("12+30=") == "42"
        for prompt in PROMPTS:
            expected = await here.generate(prompt, temperature=0, max_tokens=20)
            assert await there.generate(prompt, temperature=0, max_tokens=20) == expected
            assert await there.generate(prompt) == expected
            stream = there.stream(prompt, max_tokens=20)
            assert "".join([chunk async for chunk in stream]) == expected
            plain = await here.generate(prompt, raw=True)
            got = await there.generate(prompt, raw=True)  # not cut after the protocol's 16 tokens
            assert (got, got.finish, got.chat) == (plain, plain.finish, False)
        got = await there.generate("reverse otter:", max_tokens=3)
        assert (got, got.finish, got.params.temperature) == ("ret", "length", 0)
        assert await there.generate("12+30=", stop="2") == "4"
        assert there.info.context_tokens == here.info.context_tokens == 256


async def test_samplers_are_off_unless_asked_for() -> None:
    """With a temperature it samples from the whole vocabulary, repeatably by its seed."""
    async with nbp.model("llama-server:demo-m") as m:
        texts = [await m.generate("reverse otter:", temperature=2, seed=n) for n in range(6)]
        assert len(set(texts)) > 1
        again = [await m.generate("reverse otter:", temperature=2, seed=n) for n in range(6)]
        assert again == texts


@pytest.mark.parametrize("n_ctx", [None, 512])
async def test_a_prompt_that_is_too_long(n_ctx: int | None) -> None:
    """It is refused with both numbers, also in a stream; up to there none is cut, and the server goes on."""
    most = n_ctx or 256
    async with nbp.model("llama-server:demo-m", n_ctx=n_ctx) as m:
        assert m.info.context_tokens == most
        for raw, more in ((False, 4), (True, 1)):  # the template's tokens, and the beginning
            for letters in (most - more, most, most + 5000):
                told = rf"{most} tokens.*\D{letters + more} in"
                with pytest.raises(InvalidRequestError, match=told):
                    await m.generate("a" * letters, raw=raw, max_tokens=1)
                with pytest.raises(InvalidRequestError, match=told):
                    await anext(m.stream("a" * letters, raw=raw))
            got = await m.generate("a" * (most - more - 1), raw=raw)
            assert (got.finish, got.usage.prompt_tokens, len(got)) == ("length", most - 1, 1)


async def test_a_longer_context_than_trained_for() -> None:
    """An `n_ctx` that was asked for holds, as with llama-cpp."""
    async with nbp.model("llama-server:demo-m?n_ctx=512") as m:
        assert m.info.context_tokens == 512
        assert (await m.generate("a" * 300, max_tokens=2)).usage.prompt_tokens > 300


async def test_the_key_is_in_no_place(folder: Path) -> None:
    """The real server asks for its key, tells it in no log, and has it in no argument."""
    async with nbp.model("llama-server:demo-m") as m:
        key = str.__str__(m.raw.config.api_key)
        root = m.raw.config.base_url.removesuffix("/v1")
        assert await answers(root, key, "/v1/models")
        assert not await answers(root, "wrong", "/v1/models")
        logged = logs(folder)
        assert b"Uvicorn running" in logged
        assert key.encode() not in logged
        for pid in left(folder):
            assert key.encode() not in arguments(pid)


async def test_the_environment_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST, PORT and CONFIG_FILE, which it would obey before its arguments, are not the environment's."""
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("CONFIG_FILE", "/no/such/file.json")
    async with nbp.model("llama-server:demo-m") as m:
        assert await m.generate("12+30=") == "42"
        address = m.raw.config.base_url.removeprefix("http://").removesuffix("/v1")
        port = int(address.rpartition(":")[2])
    assert listening(port) == {"0100007F"}  # 127.0.0.1, as the kernel's table has it
    session.unload_all(timeout_s=BOUND_S)


def listening(port: int) -> set[str]:
    """Return the addresses at which somebody listens on a port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    lines += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    places = [row[1].split(":") for row in lines if row[3] == "0A"]
    return {address for address, number in places if int(number, 16) == port}


async def test_names_of_one_file_are_one_server() -> None:
    """A short name, a folder and a path of the same file share a server; another quantization has its own."""
    place = demo.gguf_path("demo-m")
    async with (
        nbp.model("llama-server:demo-m?quant=Q8_0") as m,
        nbp.model(f"llama-server:{place}:Q8_0"),
        nbp.model(f"llama-server:{place / 'demo-m-Q8_0.gguf'}"),
    ):
        assert await m.generate("12+30=") == "42"
        assert len(records()) == 1
        async with nbp.model("llama-server:demo-m?quant=Q4_0"):
            assert len(records()) == 2


async def test_a_damaged_file_starts_nothing(tmp_path: Path, folder: Path) -> None:
    """A file is checked before any server is started for it."""
    damaged = tmp_path / "some.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    for reference in (f"llama-server:{damaged}", "llama-server:/no/such.gguf"):
        with pytest.raises(ModelAccessError):
            await nbp.load(reference)
    assert (left(folder), files(folder)) == ([], [])


async def test_probabilities_are_refused() -> None:
    """It tells no probabilities, and says so instead of leaving them out."""
    async with nbp.model("llama-server:demo-m") as m:
        with pytest.raises(nbp.UnsupportedError, match="probability"):
            await m.generate("12+30=", logprobs=True)


async def test_what_the_server_refuses_is_told() -> None:
    """An argument that it does not know ends it, and is told in its own words."""
    with pytest.raises(nbp.ProviderError, match="unrecognized arguments: --no-such"):
        await nbp.load("llama-server:demo-m", args=["--no-such"])


async def test_compared_with_others_in_one_table() -> None:
    """A server, a service, a model in this process and a router stand in one comparison."""
    with OpenAIServer(also=("top_k",)) as server:
        service = nbp.create_provider("openai", base_url=server.base_url, api_key="none-needed")
        router = nbp.Router("first-available")
        router.add_provider("llama-server:demo-m")
        router.add_provider("transformers:demo-m")
        async with service.model("words") as words:
            result = await nbp.compare(
                ["transformers:demo-m", "llama-server:demo-m", words, router],
                ["12+30=", "reverse otter:"],
                progress=False,
            )
    rows = result.frame
    assert not rows["error"].notna().any()
    texts = rows.groupby("spec", sort=False)["text"].apply(list).to_dict()
    both = ["42", "retto"]
    assert texts == {
        "transformers:demo-m": both,
        "llama-server:demo-m": both,
        "openai:words": ["12+30=", "reverse otter:"],
        "router:first-available": both,
    }


async def test_many_prompts_at_once() -> None:
    """Prompts that are asked together are all answered; none ends another."""
    async with nbp.model("llama-server:demo-m") as m:
        prompts = [f"{n}+{n}=" for n in range(10, 18)]
        one_by_one = [await m.generate(prompt) for prompt in prompts]
        at_once = await asyncio.gather(*(m.generate(prompt) for prompt in prompts))
        streams = await asyncio.gather(*(joined(m.stream(prompt)) for prompt in prompts))
    assert at_once == streams == one_by_one


async def joined(stream: object) -> str:
    return "".join([chunk async for chunk in stream])  # type: ignore[attr-defined]
