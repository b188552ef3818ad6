"""Promises for evaluations of dotevals: the right live model for each, and no failure unseen."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.pytest_plugin.projects import COUNTING, Log, until
from tests.seeds import documents as seeds

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dotevals") is None, reason="dotevals is not installed"
)
AUTO = ("--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
STORED = ("--experiment", "e", "--storage", "json://results")


def responses(pytester: pytest.Pytester) -> dict[str, list[str | None]]:
    """Return what dotevals recorded as answers, by the name of the evaluation."""
    found = {}
    for path in sorted((pytester.path / "results" / "e").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        found[lines[0]["evaluation_name"]] = [line["model_response"] for line in lines[1:]]
    return found


OURS = """
    import pytest
    import nbproviders as nbp
    from dotevals import Result, batch, foreach

    rows = [("hi", "a says hi"), ("ho", "a says ho")]
    both = pytest.mark.parametrize("model_client", ["counting:a", "counting:b"], indirect=True)
    contains = nbp.as_evaluator(nbp.contains)

    @pytest.fixture(autouse=True)
    def something():
        yield 1

    @both
    @foreach("prompt,expected", rows)
    async def eval_async(prompt, expected, model_client):
        assert isinstance(model_client, nbp.Client)
        response = await model_client.generate(prompt)
        return Result(contains(response, expected), model_response=response, prompt=prompt)

    @both
    @foreach("prompt,expected", rows)
    def eval_plain(prompt, expected, model_client):
        assert isinstance(model_client, nbp.SyncClient)
        response = model_client.generate(prompt)
        return Result(nbp.exact_match(response, expected), response)

    @both
    @batch("prompt,expected", rows)
    def eval_batch(prompt, expected, model_client):
        texts = model_client.generate_many(prompt)
        return [Result(contains(t, e), model_response=t) for t, e in zip(texts, expected)]

    @pytest.mark.parametrize("name", ["A", "B"])
    @foreach("prompt,expected", rows)
    def eval_direct(prompt, expected, name):
        return Result(True, name)

    def test_beside(model_providers):
        assert "counting" in model_providers
"""


def test_each_its_own_model(pytester: pytest.Pytester, log: Log) -> None:
    """Each parameter's evaluation talks to its own live model, loaded once; results are stored as ever."""
    pytester.makepyfile(eval_it=OURS)
    ran = pytester.runpytest_subprocess(*AUTO, *STORED, "-C")
    ran.assert_outcomes(passed=9)
    ran.stdout.fnmatch_lines(["nbproviders: -C has no effect*"])
    said = {name: [f"{name} says hi", f"{name} says ho"] for name in "ab"}
    asked = {
        f"eval_{kind}[None-None-counting:{name}]": said[name]
        for kind in ("async", "plain", "batch")
        for name in "ab"
    }
    direct = {f"eval_direct[None-None-{name}]": [name, name] for name in "AB"}
    assert responses(pytester) == asked | direct
    assert log.count("setup") == {"a": 1, "b": 1}
    assert log.left_over() == []


ON_ITS_LOOP = """
    import asyncio
    import pytest
    from dotevals import foreach

    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.fixture
    async def bound({backend}):
        yield asyncio.get_running_loop()

    @foreach("prompt", ["x"])
    async def eval_it(prompt, bound):
        return asyncio.get_running_loop() is bound

    @foreach("prompt", ["x"])
    async def eval_after(prompt):
        await asyncio.sleep(0)
        return True
"""
LOOPS = {
    "asyncio": ("", ("-p", "no:anyio", *AUTO)),
    "anyio": ("anyio_backend", ("-p", "no:asyncio")),
}


@pytest.mark.parametrize("plugin", LOOPS)
def test_the_loop_of_its_fixtures(pytester: pytest.Pytester, plugin: str) -> None:
    """An evaluation runs on the loop on which its async fixtures were set up: their clients work there."""
    backend, options = LOOPS[plugin]
    pytester.makepyfile(eval_it=ON_ITS_LOOP.format(backend=backend))
    ran = pytester.runpytest_subprocess(*options, *STORED, "-W", "error")
    ran.assert_outcomes(passed=2)
    stored = "".join(path.read_text() for path in pytester.path.glob("results/e/*.jsonl"))
    assert stored.count('"value": true') == 2
    assert stored.count('"value": false') == 0


FAILING = """
    import pytest
    from dotevals import Result, foreach

    models = pytest.mark.parametrize("model_client", ["counting:a"], indirect=True)

    @models
    @foreach("prompt", ["fine", "broken", "fine"])
    def eval_row(prompt, model_client):
        model_client.generate(prompt)
        return 1 / len(prompt.removeprefix("broken")) > 0

    @models
    @foreach("prompt", ["x"])
    async def eval_invalid(prompt, model_client):
        return Result(3)

    @models
    @foreach("prompt", ["x"])
    def eval_wrong_but_answered(prompt, model_client):
        return model_client.generate(prompt) == "something else"

    @pytest.mark.xfail(strict=True, reason="as it is known to")
    @foreach("prompt", ["x"])
    def eval_expected_to_fail(prompt):
        raise ValueError(prompt)

    @pytest.mark.skip(reason="not now")
    @foreach("prompt", ["x"])
    def eval_skipped(prompt):
        raise ValueError(prompt)
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_failing_row_fails_the_run(
    pytester: pytest.Pytester,
    log: Log,
    workers: tuple[str, ...],
) -> None:
    """A row that raises fails its evaluation and the run, and says why; a wrong answer is a score."""
    pytester.makepyfile(eval_it=FAILING)
    ran = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio", *workers)
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.assert_outcomes(failed=2, passed=1, xfailed=1, skipped=1)
    told = ran.stdout.str()
    assert "1 of 3 rows failed:" in told
    assert "row 1 (prompt='broken'): ZeroDivisionError: division by zero" in told
    assert "row 0 (prompt='x'): InvalidResultError" in told
    assert log.left_over() == []


def test_a_version_that_is_not_known(
    pytester: pytest.Pytester,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another dotevals is left as it is, and that is said once."""
    told = pytester.path / "site" / "dotevals-0.29.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: dotevals\nVersion: 0.29.0\n")
    monkeypatch.setenv("PYTHONPATH", str(told.parent), prepend=os.pathsep)
    pytester.makepyfile(eval_it=FAILING)
    ran = pytester.runpytest_subprocess("-k", "eval_row", *AUTO)
    ran.assert_outcomes(passed=1, deselected=4)
    assert ran.stdout.str().count("dotevals 0.29.0 is left as it is") == 1


def test_one_that_nobody_installed(pytester: pytest.Pytester, log: Log) -> None:
    """A dotevals that runs from a folder, of a version that nobody can tell, is left as it is too."""
    pytester.makepyfile(
        uninstalled="""
        from importlib import metadata

        real = metadata.version

        def version(name):
            if name == "dotevals":
                raise metadata.PackageNotFoundError(name)
            return real(name)

        metadata.version = version
        """
    )
    pytester.makepyfile(eval_it=FAILING)
    ran = pytester.runpytest_subprocess("-p", "uninstalled", "-k", "eval_row", *AUTO)
    ran.assert_outcomes(passed=1, deselected=4)
    assert "dotevals of an unknown version is left as it is" in ran.stdout.str()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to another process")
def test_ctrl_c(pytester: pytest.Pytester, log: Log) -> None:
    """Ctrl-C ends a plain evaluation in the row that it is at, and nothing is left."""
    pytester.makepyfile(
        eval_it="""
        import pytest
        from dotevals import foreach

        @pytest.mark.parametrize("model_client", ["counting:a"], indirect=True)
        @foreach("prompt", ["slowly", "slowly"])
        def eval_it(prompt, model_client):
            return model_client.generate(prompt) == ""
        """
    )
    command = (sys.executable, "-m", "pytest", "-p", "no:asyncio")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=pytester.path, **pipes) as child:
        try:
            until(lambda: log.count("asked")["a"] == 1)
            child.send_signal(signal.SIGINT)
            told, _ = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == pytest.ExitCode.INTERRUPTED, told.decode()
    assert log.count("asked") == {"a": 1}
    assert log.left_over() == []


# The documents


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        name not in seeds.FOUND, reason=f"NBPROVIDERS_TEST_SEEDS names no folder with {name}"
    )


def write(pytester: pytest.Pytester, path: str, *texts: str) -> None:
    place = pytester.path / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("\n".join(textwrap.dedent(text) for text in texts))


@needs("dotevals-create-a-plugin")
def test_create_a_plugin(pytester: pytest.Pytester, log: Log) -> None:
    """The fixtures of "How to Create a Model Provider Plugin", step 3, serve its evaluation."""
    guide = "dotevals-create-a-plugin"
    # What it leaves out: the logic of the provider, and a client whose generate is a plain call.
    write(
        pytester,
        "provider.py",
        seeds.block(guide, "class MyModelProvider(ModelProvider):"),
        """
        from conftest import log

        class Client:
            def __init__(self, name):
                self.name = name

            def generate(self, prompt):
                return f"{self.name} says {prompt}"

        class MyModelProvider(MyModelProvider):
            async def setup(self, resource_spec, **kwargs):
                log("setup", resource_spec)
                return ModelHandle(resource_spec, Client(resource_spec), self)

            async def teardown(self, resource_id):
                log("teardown", resource_id)
        """,
    )
    write(pytester, "conftest.py", COUNTING, seeds.block(guide, "def my_model_provider():"))
    write(
        pytester,
        "eval_it.py",
        'test_data = [("hi", "model-v1 says hi")]',
        seeds.block(guide, "def eval_with_my_provider("),
    )
    ran = pytester.runpytest_subprocess(*AUTO, *STORED, "-p", "no:anyio")
    ran.assert_outcomes(passed=2)
    results = pytester.path / "results" / "e"
    shown = {path.name: path.read_text() for path in results.glob("*.jsonl")}
    for name in ("model-v1", "model-v2"):
        assert f'"{name} says hi"' in shown[f"eval_with_my_provider[None-None-{name}].jsonl"]
    assert log.count("setup") == log.count("teardown") == {"model-v1": 1, "model-v2": 1}


PATTERN_CLIENT = """
from conftest import log


class MyClient:
    def __init__(self, spec, **kwargs):
        self.name, self.closed = spec, False
        log("setup", spec)

    async def generate(self, prompt):
        assert not self.closed
        return f"{self.name} says {prompt}"

    async def close(self):
        self.closed = True
        log("teardown", self.name)


config = {}
"""


@needs("doteval-provider-pattern")
def test_provider_pattern(
    pytester: pytest.Pytester,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The provider, fixtures, registration and evaluations of the pattern's guide work together."""
    guide = "doteval-provider-pattern"
    write(pytester, "conftest.py", COUNTING)
    write(
        pytester,
        "mypackage.py",
        "import asyncio, pytest",
        PATTERN_CLIENT,
        seeds.block(guide, "class MyModelProvider(ModelProvider):"),
        seeds.block(guide, "# Session-scoped provider"),
    )
    # "Via Entry Points": one names the fixture, the other is pytest's own.
    write(
        pytester,
        "mypackage-1.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: mypackage\nVersion: 1\n",
    )
    write(
        pytester,
        "mypackage-1.dist-info/entry_points.txt",
        "[doteval.model_providers]\nmyresource = mypackage:my_model_provider\n",
    )
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    names = {name: f"counting:{name}" for name in ("gpt-4", "claude-3", "llama-7b", "mistral-7b")}
    write(pytester, "models.json", json.dumps({"models": names}))
    discovery = seeds.block(guide, "def eval_with_discovery(model_providers):")
    write(
        pytester,
        "eval_it.py",
        """
        import pytest
        from dotevals import Result, foreach
        from mypackage import *

        dataset = [("hi",)]
        tasks = [("sort",)]

        @pytest.fixture(scope="session")
        def vllm_provider(model_providers):
            return model_providers["counting"]

        @pytest.mark.parametrize("client", ["gpt-4"], indirect=True)
        @foreach("prompt", dataset)
        async def eval_pattern(prompt, client):
            return Result(await client.generate(prompt))
        """,
        seeds.block(guide, "async def client(request, model_providers):"),
        seeds.block(guide, "async def eval_models(prompt, model_client):"),
        seeds.block(guide, "async def eval_with_control("),
        seeds.block(guide, "def application(request, vllm_provider):"),
        # It awaits in a plain function, and its try is empty.
        discovery.replace("def eval_", "async def test_").replace(
            "# Use handle.model", 'assert (await handle.model.generate("hi")).endswith("hi")'
        ),
    )
    ran = pytester.runpytest_subprocess(
        *AUTO, *STORED, "-p", "no:anyio", "--nbp-config=models.json"
    )
    ran.assert_outcomes(passed=7)
    assert responses(pytester) == {
        "eval_pattern[None-gpt-4]": ["gpt-4 says hi"],
        "eval_models[None-gpt-4]": ["gpt-4 says hi"],
        "eval_models[None-claude-3]": ["claude-3 says hi"],
        "eval_with_control[None-None]": ["gpt-4 says Hello", "claude-3 says World"],
        # A short name that we know, for the provider to look up.
        "eval_application[None-llama-7b]": ["huggyllama/llama-7b says sort"],
        "eval_application[None-mistral-7b]": ["mistral-7b says sort"],
    }
    # Twice: ours, kept from fixture to fixture, and the document's own, which closes it each time.
    assert log.count("setup")["gpt-4"] == 2
    assert log.left_over() == []


OPENAI_CLIENT = """
from types import SimpleNamespace as Namespace

class AsyncOpenAI:
    def __init__(self, api_key=None):
        self.chat = Namespace(completions=Namespace(create=self.create))

    async def create(self, model, messages):
        text = f"{model} says {messages[-1]['content']}"
        return Namespace(choices=[Namespace(message=Namespace(content=text))])
"""


@needs("dotevals-providers-api")
def test_providers_api(pytester: pytest.Pytester, log: Log) -> None:
    """The reference's provider, fixed and parametrised fixtures serve both its evaluations."""
    guide = "dotevals-providers-api"
    write(pytester, "openai.py", OPENAI_CLIENT)
    write(
        pytester,
        "provider.py",
        seeds.block(guide, '"""Provider for OpenAI models."""'),
        # Its evaluations ask the client for its model, which the SDK's does not know.
        """
        class OpenAIProvider(OpenAIProvider):
            async def setup(self, model_name, **config):
                handle = await super().setup(model_name, **config)
                handle.model.model = model_name
                return handle
        """,
    )
    write(pytester, "conftest.py", seeds.block(guide, "def openai_provider():"))
    write(
        pytester,
        "eval_it.py",
        """
        import pytest
        from dotevals import Result
        dataset = [("hi", "gpt-4 says hi"), ("ho", "never")]
        prompts = [("hi",)]
        """,
        seeds.block(guide, "async def eval_gpt4("),
        seeds.block(guide, "async def eval_models(prompt, model_client):"),
    )
    ran = pytester.runpytest_subprocess(*AUTO, *STORED, "-p", "no:anyio")
    ran.assert_outcomes(passed=3)
    found = responses(pytester)
    assert found["eval_models[None-gpt-4]"] == ["gpt-4 says hi"]
    assert found["eval_models[None-gpt-3.5-turbo]"] == ["gpt-3.5-turbo says hi"]
    stored = (pytester.path / "results" / "e" / "eval_gpt4[None-None].jsonl").read_text()
    assert stored.count('"value": true') == stored.count('"value": false') == 1
