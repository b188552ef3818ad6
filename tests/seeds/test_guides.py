"""What the guides' remaining blocks promise, by their own code, and what is made of it here."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.abc import ModelHandle, ResourceHandle
from nbproviders.authoring.weights import WrappedWeights
from tests.seeds.documents import FOUND, block, run

pytest_plugins = ["pytester"]

PLUGIN, PATTERN, API = (
    "dotevals-create-a-plugin",
    "doteval-provider-pattern",
    "dotevals-providers-api",
)
MODELFORGE = "modelforge-custom-providers"


def needs(name: str) -> Any:
    return pytest.mark.skipif(
        name not in FOUND, reason=f"NBPROVIDERS_TEST_SEEDS names no folder with {name}"
    )


# Packages


@pytest.mark.parametrize(
    ("name", "words", "provider"),
    [
        pytest.param(PLUGIN, "my_model = ", "my_model", marks=needs(PLUGIN)),
        pytest.param(PATTERN, 'entry-points."doteval.model_', "myresource", marks=needs(PATTERN)),
        pytest.param(API, "anthropic = ", "openai", marks=needs(API)),
    ],
)
def test_entry_points_are_read(name: str, words: str, provider: str) -> None:
    """The group that each document registers under is one that is read, and its table is sound."""
    points = tomllib.loads(block(name, words))["project"]["entry-points"]
    [group] = [group for group in points if group in registry.GROUPS]
    assert provider in points[group]


@needs(PLUGIN)
def test_what_is_available_is_listed() -> None:
    """`list_available`, which the document asks a module for that is gone from dotevals, prints so."""
    assert "print(list_available())" in block(PLUGIN, "# Install in development mode")
    assert repr(nbp.list_available()) == repr(sorted(nbp.list_available()))


@needs(MODELFORGE)
def test_extras() -> None:
    """An author's extra is a table like any other."""
    extras = tomllib.loads(block(MODELFORGE, "custom-library>=1.0.0"))["project"]
    assert extras["optional-dependencies"] == {"custom": ["custom-library>=1.0.0"]}


# Classes


@needs(API)
def test_the_classes_it_defines() -> None:
    """The base and the handle that the document prints have the form of ours."""
    theirs = run(block(API, "from abc import ABC, abstractmethod"))["ModelProvider"]
    for method in ("setup", "teardown"):
        assert method in theirs.__abstractmethods__ & nbp.ModelProvider.__abstractmethods__
    handle = run(block(API, "class ModelHandle:"))["ModelHandle"]
    assert is_dataclass(handle)
    theirs_fields = list(handle.__dataclass_fields__)
    assert list(ModelHandle.__dataclass_fields__)[: len(theirs_fields)] == theirs_fields


def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


@needs(PATTERN)
async def test_the_class_without_a_base() -> None:
    """A class with setup and teardown alone is a provider; asked five times at once it starts one server."""

    class VLLMClient:
        def __init__(self, model: str) -> None:
            self.model = model

        def generate(self, prompt: str) -> str:
            return f"{self.model}: {prompt}"

    names = {"VLLMClient": VLLMClient, "ModelHandle": ModelHandle}
    given: type[Any] = run(block(PATTERN, "class VLLMProvider:"), **names)["VLLMProvider"]
    started: list[subprocess.Popen[bytes]] = []

    class Starting(given):  # what the document leaves to its reader
        async def _start_server(self, model: str, port: int, config: dict[str, Any]) -> None:
            await asyncio.sleep(0.01)
            started.append(child())
            self._servers[model], self._clients[model] = started[-1], VLLMClient(model)

    handle = await (alone := Starting()).setup("a")
    assert await alone.setup("a") is handle
    await handle.teardown()
    assert started.pop().wait(10) is not None

    nbp.register_provider("guide", Starting)
    try:
        provider = nbp.create_provider("guide", base_port=9100)

        async def used() -> str:
            async with provider.model("a") as m:
                return str(await m.generate("hi"))

        assert await asyncio.gather(*(used() for _ in range(5))) == ["a: hi"] * 5
        assert len(started) == 1
        await asyncio.to_thread(nbp.unload, "guide:a")
        assert started[0].wait(10) is not None
    finally:
        nbp.unregister_provider("guide")
        for process in started:
            process.kill()
            process.wait()


SERVER = """
import argparse, http.server, sys
parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--port", type=int)
given = parser.parse_args()
print("x" * 200_000, flush=True) if given.model == "chatty" else None

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = given.model.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", given.port), Answer).serve_forever()
"""


@needs(API)
async def test_a_server_for_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command starts one server a model, found again by the next, ended by the last."""
    folder = tmp_path / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(SERVER)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    given: type[Any] = run(block(API, '"""Provider for vLLM server instances."""'))["VLLMProvider"]

    class Waiting(given):  # its _wait_for_server has no body
        async def _wait_for_server(self, url: str, **_: Any) -> None:
            port = url.rpartition(":")[2]
            async with asyncio.timeout(30):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", int(port))
                    except OSError:
                        await asyncio.sleep(0.02)
                    else:
                        writer.close()
                        return

    provider = Waiting(base_port=free_port())
    handle = await provider.setup("small")
    async with handle.model.get("/") as answer:
        assert await answer.text() == "small"
    again = await provider.setup("small")
    assert again.model is handle.model
    process = provider.servers["small"]["process"]
    await handle.teardown()
    assert process.returncode is not None


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@needs(PATTERN)
async def test_caching() -> None:
    """What its cache promises, one client for equal arguments, it keeps; here the residency does the same."""
    made: list[dict[str, Any]] = []
    given: type[Any] = run(block(PATTERN, "class CachingManager:"), asyncio=asyncio)[
        "CachingManager"
    ]

    class Making(given):
        def _make_key(self, config: dict[str, Any]) -> str:
            return repr(sorted(config.items()))

        async def _create_client(self, **config: Any) -> object:
            made.append(config)
            await asyncio.sleep(0)
            return object()

    manager = Making()
    found = await asyncio.gather(*(manager.get_client(url="x") for _ in range(5)))
    assert len({id(one) for one in found}) == len(made) == 1
    assert await manager.get_client(url="y") is not found[0]

    provider = nbp.create_provider("echo")
    clients = await asyncio.gather(*(provider.model("shared").open() for _ in range(5)))
    other = await provider.model("shared?seed=2").open()
    assert len({id(one.raw) for one in clients}) == 1
    assert other.raw is not clients[0].raw
    for one in (*clients, other):
        one.close()
    await provider.teardown_all()


@needs(PATTERN)
def test_options_of_the_command_line(pytester: pytest.Pytester) -> None:
    """Its fixture reads the option that the command line gives, else its own default."""
    option = """
    class MyManager:
        def __init__(self, url):
            self.url = url

    def pytest_addoption(parser):
        parser.addoption("--api-url", default="http://localhost")
    """
    code = block(PATTERN, "def my_manager(request):")
    pytester.makeconftest("import pytest\n" + textwrap.dedent(option) + "\n" + code)
    pytester.makepyfile("def test_it(my_manager, request):\n    print('at', my_manager.url)\n")
    quiet = ("-s", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*quiet).stdout.fnmatch_lines(["*at http://localhost*"])
    given = pytester.runpytest_subprocess(*quiet, "--api-url", "http://other")
    given.stdout.fnmatch_lines(["*at http://other*"])


@needs(PATTERN)
async def test_failures_of_a_setup() -> None:
    """Its words for a failed setup are ours too, with the cause and what to do."""
    code = block(PATTERN, "async def setup(self, spec: str) -> ResourceHandle:")
    method = run(code, ResourceHandle=ResourceHandle)["setup"]

    class Failing:
        async def _create_resource(self, spec: str) -> None:
            raise OSError("nobody is there")

    with pytest.raises(RuntimeError, match="Failed to setup resource 'a': nobody is there"):
        await method(Failing(), "a")

    class FailingProvider(nbp.ModelProvider):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            raise OSError("nobody is there")

        async def teardown(self, resource_id: str) -> None:
            """There is nothing."""

    with pytest.raises(
        RuntimeError, match="Failed to setup resource 'failing:a': OSError: nobody is there"
    ):
        await FailingProvider().model("a").open()


@needs(PATTERN)
async def test_promises_in_words() -> None:
    """What it tells of a lifecycle, our base keeps: made on first request, reused, all cleaned up."""
    told = run(block(PATTERN, '"""Resource manager for X'))["MyManager"].__doc__
    for words in ("created on first request", "cached and reused", "clean up all resources"):
        assert words in told
    done: list[str] = []

    class LifeProvider(nbp.ModelProvider):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            done.append(f"made {resource_spec}")
            return ModelHandle(resource_spec, str.upper, self)

        async def teardown(self, resource_id: str) -> None:
            done.append(f"ended {resource_id}")

    provider = LifeProvider()
    contexts = [provider.model(name) for name in ("a", "b", "a")]
    assert done == []
    for context in contexts:
        async with context:
            pass
    assert done == ["made a", "made b"]
    await provider.teardown_all()
    assert sorted(done[2:]) == ["ended a", "ended b"]


@needs(PATTERN)
def test_one_pattern_and_not_three() -> None:
    """Both classes can be defined; the one with the single way in is the form of our base."""
    bad = run(block(PATTERN, "# Bad - confusing"))["Provider"]
    assert {"get_client", "setup", "create"} <= set(vars(bad))
    good = run(block(PATTERN, "# Good - one way"), ResourceHandle=ResourceHandle)["Provider"]
    assert asyncio.iscoroutinefunction(good.setup)
    assert ResourceHandle is ModelHandle


# ModelForge's smaller blocks


@needs(MODELFORGE)
def test_the_protocol() -> None:
    """The four methods of its protocol are those by which an object registers here."""
    from nbproviders.authoring.weights import WEIGHTS_METHODS

    protocol = run(block(MODELFORGE, "class ModelProvider(Protocol):"))["ModelProvider"]
    assert {name for name in vars(protocol) if name in WEIGHTS_METHODS} == set(WEIGHTS_METHODS)


@needs(MODELFORGE)
def test_the_table_of_providers() -> None:
    """Its table becomes registrations, after which the list of valid names is that of what is available."""
    pytest.importorskip("transformers")
    custom = run(block(MODELFORGE, "# ModelForge/providers/custom_provider.py"))["CustomProvider"]
    code = block(MODELFORGE, "PROVIDER_REGISTRY = {")
    stand_ins = dict.fromkeys(("CustomProvider", "HuggingFaceProvider", "UnslothProvider"), custom)
    stand_ins["Any"] = Any
    table = run(code, **stand_ins)["PROVIDER_REGISTRY"]
    valid = run(block(MODELFORGE, "VALID_PROVIDERS = ["))["VALID_PROVIDERS"]
    assert set(table) >= {"huggingface", "custom"}
    new = [name for name in table if name not in nbp.list_available()]
    for name in new:
        nbp.register_provider(name, table[name])
    try:
        assert set(valid) <= set(nbp.list_available())
        assert isinstance(nbp.create_provider("custom"), WrappedWeights)
    finally:
        for name in new:
            nbp.unregister_provider(name)


@needs(MODELFORGE)
def test_what_it_logs(caplog: pytest.LogCaptureFixture) -> None:
    """The logger for its readers is ours; what they log at DEBUG is there when asked for."""
    from nbproviders.abc import logger

    with caplog.at_level(logging.DEBUG, logger="nbproviders"):
        run(
            block(MODELFORGE, 'logger.debug(f"Loading with kwargs'),
            logger=logger,
            kwargs={"device_map": "auto"},
            quantization_config=None,
        )
    assert "device_map" in caplog.text
