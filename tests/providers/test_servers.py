"""Promises of all providers that start servers, against a stand-in that speaks the protocol."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import cli, session
from nbproviders.core import engine
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    ServiceUnavailableError,
    TimeoutError,
)
from nbproviders.providers.server_model import ServerModel
from nbproviders.residency import residency
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import state
from nbproviders.runtimes.process.keeping import answers, kept
from tests.providers.serving import (
    Kernel,
    arguments,
    command,
    end_kept,
    own_state,
    pids,
    records,
    starts,
)
from tests.runtimes.process.servers import BOUND_S, files, left, soon
from tests.services.keys import FAKE
from tests.services.openai import OpenAIServer
from tests.timing import at_best_awaited

if sys.platform != "linux":
    pytest.skip("what is left of processes is looked for in /proc", allow_module_level=True)

PROVIDERS = {"llama-server": "demo-m", "transformers-serve": "demo-m", "vllm": "some-model"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's servers are written down; nothing is left of them."""
    with own_state(tmp_path, monkeypatch) as path:
        yield path


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where a stand-in tells that it was started."""
    return tmp_path / "starts"


def provider(*arguments: object, name: str = "llama-server", **options: Any) -> Any:
    return nbp.create_provider(name, command=command(*arguments), **options)


def served(m: Any) -> ServerModel:
    """Return what stands behind a client."""
    models = [entry.model for entry in residency.default().entries()]
    (found,) = [one for one in models if isinstance(one, ServerModel)]
    assert m.raw is found.raw
    return found


async def read(stream: Any) -> list[str]:
    return [str(chunk) async for chunk in stream]


async def refusal(m: Any, prompt: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await m.generate(prompt)
    return caught.value


# Sharing


@pytest.mark.parametrize("name", PROVIDERS)
async def test_it_answers(name: str, note: Path) -> None:
    """A server is started, told its model and an address of this machine alone, and answers."""
    async with provider("--note", note, name=name).model(PROVIDERS[name]) as m:
        assert await m.generate("one two three", max_tokens=2) == "one two"
        assert [str(chunk) async for chunk in m.stream("one two")] == ["one", " two"]
        assert await m.generate("one two", raw=True) == "one two"
        assert (await m.generate("one")).cost.kind == "free"
        answer = await m.chat.completions.create(messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content == "hello"
    (start,) = starts(note)
    argv = start["argv"]
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert any("demo-m" in one or one == "some-model" for one in argv)


async def test_two_opens_are_one_server(note: Path) -> None:
    """Who opens the same model gets the same server, from an equal provider too."""
    async with provider("--note", note).model("demo-m") as one:
        async with provider("--note", note).model("demo-m") as two:
            assert await one.generate("a b") == await two.generate("a b") == "a b"
        assert await one.generate("c") == "c"
    assert len(starts(note)) == len(records()) == 1


async def test_five_at_once_are_one_server(note: Path) -> None:
    """Five that ask for one model in the same moment start it once."""
    made = provider("--note", note)

    async def ask(number: int) -> str:
        async with made.model("demo-m") as m:
            return str(await m.generate(f"number {number}"))

    assert await asyncio.gather(*map(ask, range(5))) == [f"number {n}" for n in range(5)]
    assert len(starts(note)) == 1


async def test_other_options_are_another_server(note: Path) -> None:
    """What decides what is loaded makes another server; how long to wait for it does not."""
    made = provider("--note", note)
    async with (
        made.model("demo-m"),
        made.model("demo-m", n_ctx=512),
        made.model("demo-m", start_timeout_s=60, timeout_s=5),
    ):
        assert len(records()) == 2
    assert len(starts(note)) == 2


# Keys


@pytest.mark.parametrize("name", PROVIDERS)
async def test_the_key_is_needed_and_hidden(name: str, folder: Path) -> None:
    """Without the key nothing is answered; it is in no argument, repr or error, whatever the server says."""
    async with provider(name=name).model(PROVIDERS[name]) as m:
        server = served(m).server
        root = server.base_url
        assert await answers(root, server.key, "/v1/models")
        for wrong in ("", "wrong", server.key[:-1]):
            assert not await answers(root, wrong, "/v1/models")
        argv = [arguments(pid) for pid in left(folder)]
        assert len(argv) == 2
        shown = [repr(one) for one in (m, m.raw, m.raw.config, server, served(m).info, server.key)]
        key = str.__str__(server.key)
        assert len(key) > 30
        assert not any(key.encode() in one for one in argv)
        error = await refusal(m, "die now")
        tail = server.tail()
        assert ("****" in tail) is (name != "transformers-serve")  # that one is told no key
        assert not [text for text in (*shown, str(error), repr(error), tail) if key in text]


async def test_an_address_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `base_url` none is started; no key but the one given for it is sent there, or shown."""
    monkeypatch.setenv("OPENAI_API_KEY", FAKE)
    with OpenAIServer() as server:
        async with nbp.model("llama-server:words", base_url=server.base_url) as m:
            assert await m.generate("one two") == "one two"
            assert m.model == "words"
        assert "Authorization" not in server.requests[-1].headers
        made = nbp.create_provider("vllm", base_url=server.base_url, api_key=FAKE)
        assert FAKE not in repr(made.resolve("words"))
        async with made.model("words") as m:
            assert await m.generate("three") == "three"
        assert server.requests[-1].headers["Authorization"] == f"Bearer {FAKE}"
    assert records() == []


# Starting


async def test_progress_is_told() -> None:
    """While it starts, it tells what the server said last, without its key."""
    made, progress, seen = provider("--load-s", 0.6), Progress(), set()
    key = made.resolve("demo-m")
    loading = asyncio.ensure_future(engine.default().call(lambda: made.load(key, progress)))
    while not loading.done():
        seen.add(progress.phase)
        await asyncio.sleep(0.02)
    model = await loading
    assert any(one.endswith("demo-m-F16.gguf: loading shard 1 of 2 ****") for one in seen), seen
    await engine.default().call(model.aclose)


async def test_a_start_that_takes_too_long(folder: Path) -> None:
    """When its time is over the server is killed, and the error has its last lines."""
    with pytest.raises(TimeoutError, match=r"within 0\.7 s") as caught:
        async with provider("--load-s", 60, start_timeout_s=0.7).model("demo-m"):
            pass
    told = caught.value.message.splitlines()
    assert told[0].endswith("llama-server:demo-m was not ready within 0.7 s. It said at last:")
    assert told[1:] == ["loading shard 1 of 2 ****"]
    assert caught.value.hint == "If it was still loading, give it longer: start_timeout_s=…"
    assert left(folder) == []


async def test_a_start_that_ends_early(folder: Path, note: Path) -> None:
    """One that ends before it is ready is told with its status and last lines; the next ask starts anew."""
    made = provider("--note", note, "--end", 3)
    for number in (1, 2):
        with pytest.raises(ProviderError, match="exit status 3") as caught:
            async with made.model("demo-m"):
                pass
        assert "no such model" in str(caught.value)
        assert "demo-m-F16.gguf ****" in str(caught.value)
        assert len(starts(note)) == number
    assert (left(folder), files(folder)) == ([], [])


async def test_a_flood_of_output() -> None:
    """A server that says 50 MB before it is ready starts all the same, and its log stays small."""
    async with provider("--flood", 50).model("demo-m") as m:
        assert await m.generate("a") == "a"
        assert served(m).server.log_path.stat().st_size <= 5_000_100


async def test_a_server_that_only_refuses() -> None:
    """What it answers while it should be ready is told once, without the paths of its command."""
    broken = "import http.server as h, sys\nclass H(h.BaseHTTPRequestHandler):\n"
    broken += "    def do_POST(self): self.send_error(500, 'No CUDA')\n    log_message = print\n"
    broken += "h.HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), H).serve_forever()"
    made = nbp.create_provider("llama-server", command=[sys.executable, "-c", broken])
    with pytest.raises(TimeoutError) as caught:
        await made.model("demo-m", start_timeout_s=3).open()
    told = caught.value.message.splitlines()[0]
    assert re.search(r"within 3 s\. When asked, it failed: HTTP 500 from POST http://\S+: .+", told)
    assert told.count("llama-server:") == 2  # of which one is the reference that failed
    assert ".gguf" not in told


async def test_stop_during_a_start(folder: Path, note: Path) -> None:
    """Who gives up a start ends it, and is free at once; nothing of it is left."""

    async def stopped() -> float:
        before = len(starts(note))
        opening = asyncio.ensure_future(
            provider("--note", note, "--load-s", 60).model("demo-m").open()
        )
        while len(starts(note)) == before:
            await asyncio.sleep(0.01)
        began_s = time.monotonic()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        took_s = time.monotonic() - began_s
        soon(lambda: not left(folder) and not files(folder))
        return took_s

    assert await at_best_awaited(stopped, 0.5) < 0.5


async def test_unload_ends_it(folder: Path) -> None:
    """When a model is unloaded, no process and no file of its server is left; the handle starts it again."""
    m = await provider().model("demo-m").open()
    assert len(left(folder)) == 2
    session.unload_all(timeout_s=BOUND_S)
    assert (left(folder), files(folder)) == ([], [])
    assert await m.generate("again") == "again"
    m.close()


async def test_ports_begin_where_asked(note: Path) -> None:
    """With `base_port` servers get the ports from there on."""
    made = provider("--note", note, base_port=23_450)
    async with made.model("demo-m"), made.model("demo-m?n_ctx=512"):
        ports = [start["port"] for start in starts(note)]
    assert 23_450 <= ports[0] < ports[1] < 23_550


# Ending by itself


async def test_one_that_died_is_started_again_once(
    note: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that died between two calls is started again, once for five callers at once; that is logged."""
    async with provider("--note", note).model("demo-m") as m:
        assert await m.generate("before") == "before"
        server = served(m).server
        os.kill(server.pid, 9)
        soon(lambda: not server.alive)
        with caplog.at_level(logging.WARNING, "nbproviders"):
            got = await asyncio.gather(*(m.generate(f"call {n}") for n in range(5)))
        assert got == [f"call {n}" for n in range(5)]
        assert len(starts(note)) == 2
        (told,) = [one.getMessage() for one in caplog.records if "started again" in one.message]
        assert "loading shard 1 of 2 ****" in told


async def test_a_restart_outlives_who_asked_first(note: Path) -> None:
    """A start that several calls wait for goes on though the first of them is stopped."""
    async with provider("--note", note, "--load-s", 0.5).model("demo-m") as m:
        model = served(m)
        os.kill(model.server.pid, 9)
        soon(lambda: not model.server.alive)
        first, *others = [asyncio.ensure_future(m.generate(f"call {n}")) for n in range(4)]
        while len(starts(note)) < 2:
            await asyncio.sleep(0.01)
        first.cancel()
        assert await asyncio.gather(*others) == ["call 1", "call 2", "call 3"]
        assert first.cancelled()
        assert len(starts(note)) == 2


@pytest.mark.parametrize("whole", [True, False])
async def test_death_in_mid_call(whole: bool, note: Path) -> None:
    """A call that the server's end breaks off fails with its last lines; the next call works."""
    async with provider("--note", note).model("demo-m") as m:
        with pytest.raises(ServiceUnavailableError, match="CUDA error: out of memory") as caught:
            await (m.generate("die now") if whole else read(m.stream("die now")))
        assert "the server ended while it answered" in str(caught.value)
        assert await m.generate("after") == "after"
    assert len(starts(note)) == 2


async def test_an_end_during_a_restart(note: Path) -> None:
    """A model that is unloaded while its server is being started again leaves none."""
    async with provider("--note", note, "--load-s", 0.5).model("demo-m") as m:
        model = served(m)
        os.kill(model.server.pid, 9)
        soon(lambda: not model.server.alive)
        asking = asyncio.ensure_future(m.generate("a"))
        while len(starts(note)) < 2:
            await asyncio.sleep(0.01)
        await engine.default().call(model.aclose)
        with pytest.raises(ClosedError):
            await asking
        with pytest.raises(ClosedError, match="was closed"):
            await engine.default().call(lambda: model.generate("b"))
    assert len(starts(note)) == 2


async def test_giving_up_closes_the_request() -> None:
    """Who leaves a stream early ends its request; the server writes no further."""
    async with provider().model("demo-m") as m:
        async with m.stream("slow " * 200) as stream:
            async for _ in stream:
                break
        server = served(m).server
        soon(lambda: "the client went away" in server.tail())
        assert await m.generate("next") == "next"


async def test_a_refusal_is_no_death(note: Path) -> None:
    """What the server refuses keeps its kind; the server goes on."""
    async with provider("--note", note, "--context", 3).model("demo-m") as m:
        with pytest.raises(InvalidRequestError, match="maximum context length is 3"):
            await m.generate("one two three four")
        assert await m.generate("one two") == "one two"
    assert len(starts(note)) == 1


# Kept servers


@pytest.mark.parametrize("name", ["llama-server", "transformers-serve"])
async def test_a_kept_server_is_adopted(
    name: str, note: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """With `keep` it outlives a killed kernel, is listed, and answers the next kernel without loading."""
    told = json.dumps(command("--note", note, "--load-s", 1.5), separators=(",", ":"))
    reference = f"{name}:demo-m?keep=true&command={told}"
    first = Kernel(reference)
    first.kill()
    soon(lambda: [one.owners for one in kept()] == [0])
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    second = Kernel(reference)
    try:
        cold, found = first.told[name], second.told[name]
        print(f"{name}: first token {cold['first_s']:.2f} s, adopted {found['first_s']:.2f} s")
        assert found["pid"] == cold["pid"]
        assert cold["first_s"] > 1.5 > 1.0 > found["first_s"]
        assert len(starts(note)) == 1
        assert "Servers that are kept running" in listed
        assert f"process {cold['pid']}  no owner, ends in" in listed
        assert [one.owners for one in kept()] == [1]
    finally:
        second.kill()
        await end_kept()


async def test_one_that_is_not_kept_ends_with_its_kernel(note: Path, folder: Path) -> None:
    """Without `keep` a server ends with the kernel that started it, however that ends."""
    told = json.dumps(command("--note", note), separators=(",", ":"))
    kernel = Kernel(f"llama-server:demo-m?command={told}")
    pid = kernel.told["llama-server"]["pid"]
    assert state.process_started(pid)
    kernel.kill()
    assert soon(lambda: not state.process_started(pid)) < 2


async def test_how_long_it_is_kept_makes_no_other_server(note: Path) -> None:
    """Another `keep_s` finds the same server, in this kernel and after it; the longest counts, and shows."""
    made = provider("--note", note, keep=True)
    async with made.model("demo-m", keep_s=60) as one, made.model("demo-m?keep_s=900") as two:
        assert await one.generate("a") == await two.generate("a") == "a"
    session.unload_all(timeout_s=BOUND_S)
    async with made.model("demo-m", keep_s=5):
        assert len(starts(note)) == len(records()) == 1
    session.unload_all(timeout_s=BOUND_S)
    soon(lambda: kept()[0].left_s is not None)
    (told,) = kept()
    assert told.left_s is not None
    assert 800 < told.left_s <= 900
    assert told.reference == "llama-server:demo-m?keep_s=900"
    assert told.what == "llama-server:demo-m"
    await end_kept()


async def test_closing_starts_the_clock_of_a_kept_one() -> None:
    """A kept server that is unloaded goes on without an owner, for as long as was said."""
    made = provider(keep=True, keep_s=1)
    async with made.model("demo-m"):
        (pid,) = pids().values()
    session.unload_all(timeout_s=BOUND_S)
    assert kept()[0].owners == 0
    async with made.model("demo-m") as m:  # the same, found again
        assert pids() == {"llama-server": pid}
        assert await m.generate("found") == "found"
    session.unload_all(timeout_s=BOUND_S)
    assert 0.5 < soon(lambda: not state.process_started(pid)) < 3


# What is wrong


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("vllm", {"gpu_memory": 1.5}, "gpu_memory=1.5 must be above 0 and at most 1"),
        ("vllm", {"gpu_memory": 0}, "gpu_memory=0.0 must be above 0"),
        ("vllm", {"gpu": -1}, "gpu=-1 must be 0 or more"),
        ("vllm", {"policy": "wait"}, "'wait' is not one of queue, refuse, evict"),
        ("vllm", {"max_model_len": "long"}, "max_model_len='long'"),
        ("llama-server", {"keep_s": 0}, "keep_s=0.0 must be above 0 seconds"),
        ("llama-server", {"start_timeout_s": -1}, "start_timeout_s=-1.0"),
        ("llama-server", {"timeout_s": 0}, "timeout_s=0.0"),
        ("llama-server", {"n_ctx": 0}, "n_ctx=0 must be at least 1"),
        ("llama-server", {"n_ctx": 1000}, "Choose n_ctx=1024"),
        ("llama-server", {"args": "--verbose"}, "must be list, not str"),
        ("llama-server", {"n_ctz": 5}, "Did you mean 'n_ctx'?"),
        ("transformers-serve", {"quantization": "nf4"}, "bnb-4bit, bnb-8bit"),
    ],
)
async def test_wrong_values(name: str, options: dict[str, Any], told: str, note: Path) -> None:
    """A value that cannot be is told before anything is started, however it was given."""

    def given_to_the_model() -> Any:
        return provider("--note", note, name=name).model(PROVIDERS[name], **options)

    def given_to_the_provider() -> Any:
        return provider("--note", note, name=name, **options).model(PROVIDERS[name])

    for opening in (given_to_the_model, given_to_the_provider):
        with pytest.raises(ConfigurationError) as caught:
            await opening().open()
        assert told in str(caught.value)
    assert starts(note) == []


async def test_packages_that_are_missing_here() -> None:
    """What this interpreter lacks is told in a sentence with the command that brings it."""
    if nbp.list_available()["vllm"].available:
        pytest.skip("vllm is installed")
    assert "vllm not installed: pip install" in nbp.list_available()["vllm"].reason
    with pytest.raises(ConfigurationError) as caught:
        async with nbp.create_provider("vllm").model("some-model"):
            pass
    assert 'vllm not installed here: pip install "nbproviders[vllm]"' in str(caught.value)


def test_packages_that_another_interpreter_lacks(tmp_path: Path) -> None:
    """What `python=` lacks is told with the command for that one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    python = str(tmp_path / "other" / "bin" / "python")
    for name, needed in (
        ("llama-server", "llama-cpp-python[server]"),
        ("transformers-serve", "transformers[serving]"),
        ("vllm", "vllm"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            nbp.create_provider(name, python=python).model(PROVIDERS[name]).open_sync()
        first = str(caught.value).splitlines()[0]
        assert f'not installed in {python}: {python} -m pip install "{needed}"' in first
    for wrong in ("/bin/false", str(tmp_path)):
        with pytest.raises(ConfigurationError, match="cannot be asked"):
            nbp.create_provider("vllm", python=wrong).model("some-model").open_sync()


async def test_a_command_that_is_not_there() -> None:
    """A command that cannot be run is told by its name."""
    made = nbp.create_provider("vllm", command=["no-such-program", "serve"])
    with pytest.raises(ConfigurationError, match="no-such-program"):
        async with made.model("some-model"):
            pass
