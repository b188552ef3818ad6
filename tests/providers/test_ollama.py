"""Promises of the Ollama provider alone; for those of all services see `test_services`."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core import engine
from nbproviders.core.completion import FREE, UNPRICED, Usage
from nbproviders.core.config import ProviderConfig
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelAccessError,
    ServiceUnavailableError,
    UnsupportedError,
)
from nbproviders.providers.ollama import OllamaProvider
from nbproviders.residency.progress import Progress
from tests.providers.hosted import OLLAMA, drained, run_page
from tests.services.keys import FAKE
from tests.services.ollama import SIZE_BYTES, OllamaServer
from tests.services.server import LINES, Streamed, line

# A server of one's own lets in anybody.
provider = functools.partial(OLLAMA.provider, api_key=None)


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OLLAMA.serve(key=None) as running:
        yield running


def bodies(server: OllamaServer, path: str = "/api/chat") -> list[Any]:
    return [seen.body for seen in server.requests if seen.path == path]


# Generating


async def test_settings_go_with_each_request(server: OllamaServer) -> None:
    """The context's size beside the parameters, under Ollama's names; nothing that nobody gave."""
    for option in ("?num_ctx=2048&keep_alive=10m", ""):
        async with provider(server).model(f"words{option}") as m:
            await m.generate("one two three", max_tokens=2, temperature=0.5)
    with_settings, without = bodies(server)
    assert with_settings["options"] == {"num_ctx": 2048, "temperature": 0.5, "num_predict": 2}
    assert with_settings["keep_alive"] == "10m"
    assert without["options"] == {"temperature": 0.5, "num_predict": 2}
    assert "keep_alive" not in without
    assert bodies(server, "/api/generate")[1] == {"model": "words", "stream": False}


async def test_times(server: OllamaServer) -> None:
    """The wait for a model that Ollama has to load again is no part of the computation."""
    second = 1_000_000_000
    said = [{"message": {"role": "assistant", "content": "hi"}, "done": False}]
    told = {"total_duration": 5 * second, "load_duration": 3 * second, "eval_count": 4}
    end = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    async with provider(server).model("words") as m:
        for durations in (told, {}):
            frames = [line(each) for each in said]
            last = line({**end, **durations})
            server.answer("POST", "/api/chat", Streamed(frames, last, b"", LINES))
            got = await m.generate("hi")
            assert 0 <= got.ttft_s <= got.total_s
            if durations:
                assert (got.queue_s, got.total_s, got.tokens_per_s) == (3.0, 2.0, 2.0)
            else:
                assert got.queue_s == 0.0
                assert got.total_s < 2.0


async def test_plain_text(server: OllamaServer) -> None:
    """`raw=True` and `?chat=false` pass the model's template by; an empty text is refused."""
    async with provider(server).model("words?chat=false") as m:
        got = await m.generate("one two")
        assert (got, got.chat) == ("one two", False)
        with pytest.raises(InvalidRequestError, match="empty"):
            await m.generate("")
    assert bodies(server, "/api/generate")[1] == {
        "model": "words",
        "stream": True,
        "prompt": "one two",
        "raw": True,
    }


async def test_reasoning(server: OllamaServer) -> None:
    """What the model thinks stands beside the text, and can be switched off."""
    async with provider(server).model("think") as m:
        stream = m.stream("one two")
        assert await drained(stream) == ["one", " two"]
        assert stream.completion.reasoning == "The user said 7 letters."
        assert (await m.generate("one two")).reasoning == "The user said 7 letters."
    async with provider(server, think=False).model("think") as m:
        assert (await m.generate("one two")).reasoning == ""
    async with provider(server).model("think?think=high") as m:
        await m.generate("a")
    assert [body.get("think") for body in bodies(server)] == [None, None, False, "high"]
    async with provider(server).model("words?think=true") as m:
        with pytest.raises(InvalidRequestError, match="does not support thinking"):
            await m.generate("a")


async def test_probabilities(server: OllamaServer) -> None:
    """Each token of the answer with its probability; those of a thought are left out."""
    async with provider(server).model("words") as m:
        got = await m.generate("one two", logprobs=True)
    assert [token.text for token in got.tokens] == ["one", " two"]
    assert all(0 < token.probability <= 1 for token in got.tokens)
    pieces = [{"thinking": "hm"}, {"content": "yes"}]
    lines = [
        line({"message": {"role": "assistant", "content": "", **piece}, "done": False,
              "logprobs": [{"token": "x", "logprob": -0.5}]})
        for piece in pieces
    ]  # fmt: skip
    end = line({"message": {"role": "assistant", "content": ""}, "done": True})
    server.answer("POST", "/api/chat", Streamed(lines, end, b"", LINES))
    async with provider(server).model("think") as m:
        assert len((await m.generate("one two", logprobs=True)).tokens) == 1


@pytest.mark.parametrize(
    ("version", "able"), [("0.12.10", False), ("0.12.11-rc1", True), ("0.0.0", True)]
)
async def test_an_old_server_tells_no_probabilities(
    server: OllamaServer, version: str, able: bool
) -> None:
    """What the server cannot tell is an error, and not an answer without it."""
    server.answer("GET", "/api/version", {"version": version})
    async with provider(server).model("words") as m:
        assert ("logprobs" in m.info.can) is able
        if not able:
            with pytest.raises(UnsupportedError):
                await m.generate("one", logprobs=True)
            assert not bodies(server)
    frames = [line({"message": {"role": "assistant", "content": "a"}, "done": False})]
    end = line({"message": {"role": "assistant", "content": ""}, "done": True})
    server.answer("POST", "/api/chat", Streamed(frames, end, b"", LINES))
    config = ProviderConfig(name="ollama", base_url=server.base_url, model="words", max_retries=0)
    async with OllamaProvider(config) as alone:
        assert await alone.generate("a") == "a"
        with pytest.raises(UnsupportedError, match="no probabilities"):
            await alone.generate("a", logprobs=True)


# Opening and closing


async def test_opening_loads_the_model(server: OllamaServer) -> None:
    """The model is in memory, as it will be asked, before the first prompt; closing takes it out."""
    one = provider(server, num_ctx=1024, keep_alive="30m")
    async with one.model("words") as m:
        assert list(server.loaded) == ["words:latest"]
        assert bodies(server, "/api/generate") == [
            {"model": "words", "stream": False, "keep_alive": "30m", "options": {"num_ctx": 1024}}
        ]
        assert (m.info.context_tokens, m.info.parallel, m.info.memory_bytes) == (1024, 1, {})
    nbp.unload_all()
    assert not server.loaded
    with pytest.raises(ClosedError):
        await m.generate("hi")


async def test_what_was_loaded_before_stays(server: OllamaServer) -> None:
    """A model that somebody else has in use is left as it was."""
    server.loaded["words:latest"] = datetime(2300, 1, 1, tzinfo=UTC)
    async with provider(server).model("words") as m:
        assert await m.generate("hi") == "hi"
    nbp.unload_all()
    assert list(server.loaded) == ["words:latest"]


async def test_a_model_that_shall_not_stay_is_not_loaded_before(server: OllamaServer) -> None:
    """`keep_alive=0` would unload a model instead of loading it."""
    async with provider(server).model("words?keep_alive=0") as m:
        assert not bodies(server, "/api/generate")
        assert await m.generate("hi") == "hi"
    assert bodies(server)[0]["keep_alive"] == 0


async def test_a_pull_makes_no_other_instance(server: OllamaServer) -> None:
    """Whether a model may be pulled makes no other of it: it is loaded once."""
    one = provider(server)
    async with one.model("words") as a, one.model("words?pull=true") as b:
        assert a.raw is b.raw
        async with one.model("words?num_ctx=64") as other:
            assert other.raw is not a.raw
    assert len(bodies(server, "/api/show")) == 2


async def test_progress_of_loading(server: OllamaServer) -> None:
    """Whoever waits is told what for."""
    one = provider(server)
    progress = Progress()
    phases: list[str] = []
    server.answer(
        "POST", "/api/generate", lambda _: phases.append(progress.phase) or {"done": True}
    )

    async def opened_and_closed() -> None:
        await (await one.load(one.resolve("words"), progress)).aclose()

    await engine.default().call(opened_and_closed)
    assert phases == ["loading in Ollama", "loading in Ollama"]  # loaded, and unloaded


async def test_a_stopped_load_leaves_nothing(server: OllamaServer) -> None:
    """A load that is cancelled frees what Ollama had begun to load."""
    one = provider(server)
    server.delay_s = 0.2
    work = asyncio.ensure_future(one.model("words").open())
    while not bodies(server, "/api/generate"):
        await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    while len(bodies(server, "/api/generate")) < 2:
        await asyncio.sleep(0.01)
    assert bodies(server, "/api/generate")[1]["keep_alive"] == 0


async def test_closing_though_the_server_is_gone(
    server: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be freed is told in the log; nothing else fails for it."""
    async with provider(server).model("words") as m:
        await m.generate("hi")
    server.fail_next(500, path="/api/generate")
    nbp.unload_all()
    assert "may still be in Ollama's memory" in caplog.text


async def test_a_missing_model(server: OllamaServer) -> None:
    """The error tells what there is, what is near, and each way to get it."""
    with pytest.raises(ModelAccessError, match="no model 'wrods'; it has: think, words") as caught:
        await provider(server).model("wrods").open()
    for way in ("'words'", 'provider.pull("wrods")', "wrods?pull=true", "ollama pull wrods"):
        assert way in caught.value.hint
    assert not nbp.residents()
    async with provider(server).model("words") as m:
        server.models.clear()
        with pytest.raises(ModelAccessError, match="not found"):
            await m.generate("hi")


async def test_a_model_that_writes_no_text(server: OllamaServer) -> None:
    """An embedding model is refused when it is opened."""
    server.answer("POST", "/api/show", {"capabilities": ["embedding"], "model_info": {}})
    with pytest.raises(ModelAccessError, match="writes no text"):
        await provider(server).model("words").open()


async def test_no_server(server: OllamaServer) -> None:
    """A server that does not run is told as such, with the way to start it."""
    gone = provider(server, base_url="http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailableError, match="no connection") as caught:
        await gone.model("words").open()
    assert "ollama serve" in caught.value.hint
    assert not await gone.health_check()


async def test_too_large_a_model(server: OllamaServer) -> None:
    """A model that does not fit the server's machine is not asked for again and again."""
    said = "model requires more system memory (9.1 GiB) than is available (3.2 GiB)"
    server.fail_next(500, {"error": said}, path="/api/generate", times=9)
    with pytest.raises(InsufficientMemoryError, match="9.1 GiB") as caught:
        await provider(server, max_retries=2).model("words").open()
    assert "num_ctx" in caught.value.hint


async def test_another_service_there(server: OllamaServer) -> None:
    """Answers of another form are an error that says so."""
    server.answer("POST", "/api/show", ["no"])
    with pytest.raises(ServiceUnavailableError, match="not of Ollama's form"):
        await provider(server).model("words").open()
    server.answer("GET", "/api/tags", {"models": [1]})
    assert not await provider(server).health_check()
    config = ProviderConfig(name="ollama", base_url=server.base_url, model="words", max_retries=0)
    ends = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}
    async with OllamaProvider(config) as alone:
        for wrong in (ends, {"message": {"content": 7}}, 7):
            server.answer("POST", "/api/chat", Streamed([], line(wrong), b"", LINES))
            with pytest.raises(ServiceUnavailableError, match="not of Ollama's form"):
                await alone.generate("hi")


@pytest.mark.parametrize("settings", [{"num_ctx": 0}, {"think": "very"}, {"keep_alive": []}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    """A setting that cannot be meant is refused before anything is asked."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        nbp.create_provider("ollama", **settings)


def test_as_many_at_once_as_ollama_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request at once, or what the environment tells Ollama; a setting wins."""
    for named, wanted in (("", 1), ("4", 4), ("many", 1), ("0", 1), ("9999", 512)):
        monkeypatch.setenv("OLLAMA_NUM_PARALLEL", named)
        assert nbp.create_provider("ollama").parallel == wanted  # type: ignore[attr-defined]
    assert nbp.create_provider("ollama", parallel=7).parallel == 7  # type: ignore[attr-defined]


# What there is


async def test_what_there_is_and_what_is_loaded(server: OllamaServer) -> None:
    """Names as references take them; of what is in memory also its size and until when."""
    one = provider(server)
    assert await one.list_models() == ["think", "words"]
    assert await one.loaded() == []
    async with one.model("words?keep_alive=60"):
        (found,) = await one.loaded()
    assert (found.name, found.bytes, found.vram_bytes) == ("words", SIZE_BYTES, 0)
    assert found.context_tokens == 4096
    assert 0 < (found.expires - datetime.now(UTC)).total_seconds() <= 60


async def test_pulling(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull shows how far it is, and the model is there when it returns."""
    shown: list[str] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "write", shown.append)
    server.chunk_delay_s = 0.15
    one = provider(server)
    await one.pull("new")
    assert "new" in await one.list_models()
    text = "".join(shown)
    assert "Pulling new: downloading" in text
    assert " of 976.6 KiB" in text
    assert text.endswith("\r")  # the line is gone


async def test_pulling_when_a_model_is_opened(server: OllamaServer) -> None:
    """`pull=true` downloads what is not there, and nothing that is."""
    async with provider(server).model("new?pull=true") as m:
        assert await m.generate("hi") == "hi"
    async with provider(server, pull=True).model("words") as m:
        assert await m.generate("hi") == "hi"
    assert len(bodies(server, "/api/pull")) == 1
    assert bodies(server, "/api/pull") == [{"model": "new", "stream": True}]


async def test_pulling_what_nobody_has(server: OllamaServer) -> None:
    """The library's refusal is an error that names the model; a broken pull is one too."""
    with pytest.raises(ModelAccessError, match="no model 'nothing'"):
        await provider(server).pull("nothing")
    with pytest.raises(ModelAccessError, match="no model 'nothing'"):
        await provider(server).model("nothing?pull=true").open()
    server.break_next("early_end", path="/api/pull")
    with pytest.raises(ServiceUnavailableError, match="ended before"):
        await provider(server).pull("new")


async def test_stopping_a_pull(server: OllamaServer) -> None:
    """A pull that is cancelled ends its request, and with it Ollama's download."""
    server.chunk_delay_s = 30
    work = asyncio.ensure_future(provider(server).pull("new"))
    while not bodies(server, "/api/pull"):
        await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await server.was_left()


# Where, and with which key


async def test_where_the_environment_says(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`OLLAMA_HOST` is read as Ollama's own client reads it; a base URL wins, with or without /api."""
    port = server.base_url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f":{port}", f"0.0.0.0:{port}", f' "{server.base_url}/" '):
        monkeypatch.setenv("OLLAMA_HOST", host)
        one = OllamaProvider(ProviderConfig(name="ollama"))
        assert await one.list_models() == ["think", "words"], host
        await one.aclose()
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    assert await provider(server, base_url=f"{server.base_url}/api").health_check()
    monkeypatch.setenv("OLLAMA_HOST", f"me:{FAKE}@example.org")
    with pytest.raises(ConfigurationError, match="OLLAMA_HOST") as caught:
        OllamaProvider(ProviderConfig(name="ollama"))
    assert FAKE not in f"{caught.value} {caught.value.__cause__!r}"


async def test_the_cloud_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """ollama.com asks for a key of the environment; a server of one's own gets none of it."""
    with pytest.raises(AuthenticationError, match="none was found") as caught:
        await nbp.model("ollama:gpt-oss:120b?base_url=https://ollama.com").open()
    assert "OLLAMA_API_KEY" in caught.value.hint
    monkeypatch.setenv("OLLAMA_API_KEY", FAKE)
    cloud = OllamaProvider(ProviderConfig(name="ollama", base_url="https://ollama.com/api"))
    assert cloud._headers() == {"Authorization": f"Bearer {FAKE}"}
    for elsewhere in ("http://ollama.com", "https://ollama.com.example.org", "http://localhost"):
        config = ProviderConfig(name="ollama", base_url=elsewhere)
        assert OllamaProvider(config)._headers() == {}
    monkeypatch.setenv("OLLAMA_HOST", "https://ollama.com")
    moved = OllamaProvider(ProviderConfig(name="ollama"))
    assert FAKE in moved._headers()["Authorization"]
    monkeypatch.setenv("OLLAMA_HOST", "http://example.org")
    assert moved._headers() == {}


async def test_asking_the_cloud(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to load or free there, and nobody knows the price."""
    reference = OLLAMA.at_home(server, monkeypatch)
    monkeypatch.setenv("OLLAMA_API_KEY", FAKE)
    async with nbp.model(reference) as m:
        got = await m.generate("hi")
        assert (got, got.cost) == ("hi", UNPRICED)
    nbp.unload_all()
    assert {seen.path for seen in server.requests} == {"/api/show", "/api/chat"}


def test_what_it_costs() -> None:
    """Nothing on this machine; unpriced elsewhere, and in Ollama's cloud, wherever that is asked."""
    told = {
        ("http://localhost:11434", "llama3.2"): FREE,
        ("http://0.0.0.0:11434", "llama3.2"): FREE,
        ("http://gpu.example.org", "llama3.2"): UNPRICED,
        ("http://localhost:11434", "gpt-oss:120b-cloud"): UNPRICED,
        ("http://localhost:11434", "glm-5:cloud"): UNPRICED,
        ("https://ollama.com", "gpt-oss:120b"): UNPRICED,
    }
    for (url, model), cost in told.items():
        one = OllamaProvider(ProviderConfig(name="ollama", base_url=url, model=model))
        assert one.cost(Usage(10, 10)) == cost, (url, model)


async def test_a_model_of_the_cloud(server: OllamaServer) -> None:
    """A model that the server hands on to the cloud is neither loaded nor unloaded, nor free."""
    server.answer("POST", "/api/show", {"remote_host": "https://ollama.com:443",
                                        "model_info": {"x.context_length": 99}})  # fmt: skip
    async with provider(server).model("words") as m:
        got = await m.generate("hi")
        assert (got.cost, m.info.context_tokens) == (UNPRICED, 99)
    nbp.unload_all()
    assert not bodies(server, "/api/generate")


# The page


async def test_the_page(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page on Ollama runs, one block after another, against a server."""
    server.models += ["llama3.2:latest", "qwen3:latest"]
    server.library += ["llama3.2:1b"]
    monkeypatch.setenv("OLLAMA_HOST", server.base_url)
    await run_page("ollama", least=4)
