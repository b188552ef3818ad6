"""Promises of the pytest plugin, kept in projects of their own, each in a pytest of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import nbproviders as nbp
from tests.pytest_plugin.projects import COUNTING, Log, until

pytest_plugins = ["pytester"]

NO_ASYNC = ("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:dotevals")


SYNC = ("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:dotevals")


SYNC = """
    import pytest
    import nbproviders as nbp
    from nbproviders.abc import ModelHandle

    @pytest.mark.parametrize("model_client", ["echo:a", "echo/b"], indirect=True)
    def test_parametrised(model_client):
        assert isinstance(model_client, nbp.SyncClient)
        assert model_client.generate("hello") == "hello"

    seen = []

    def test_given(model_client):
        seen.append(model_client.spec)

    def test_given_were_all():
        assert seen == ["counting:a", "echo:b"]

    def test_handle(model_handle, model_providers):
        assert model_handle.is_active
        assert model_handle.manager is model_providers[model_handle.model.spec.partition(":")[0]]
        assert "hi" in model_handle.model.generate("hi")

    def test_fixed(gpt4, small):
        assert gpt4.spec == "echo:gpt-4?seed=3"
        assert small.generate("x") == "x"

    def test_providers(model_providers):
        assert "echo" in model_providers and "ECHO" in model_providers
        assert "nothing" not in model_providers and model_providers.get("nothing") is None
        assert list(model_providers) == [n for n, i in nbp.list_available().items() if i.available]
        assert len(model_providers) == len(list(model_providers))
        with pytest.raises(KeyError, match="Unknown provider: nothing"):
            model_providers["nothing"]

    def test_names_of_the_file(model_providers):
        with model_providers.context("small") as m:
            assert m.spec == "echo:from-file"
"""


def test_plain_tests(pytester: pytest.Pytester, log: Log) -> None:
    """Without any plugin for async tests, plain ones get models in all ways there are."""
    lines = """
from nbproviders.pytest_plugin import client_fixture
fixture = client_fixture("echo:gpt-4", name="gpt4", seed=3)
small = client_fixture("small")
"""
    pytester.makeconftest(COUNTING + lines)
    pytester.makepyfile(SYNC)
    pytester.makefile(".json", models='{"models": {"small": "echo:from-file"}}')
    pytester.makeini("[pytest]\nnbp_config = models.json\nnbp_models = counting:a\n  echo:b")
    ran = pytester.runpytest_subprocess(*NO_ASYNC)
    ran.assert_outcomes(passed=10)
    ran.stdout.fnmatch_lines([f"nbproviders {nbp.__version__}: *echo*"])
    assert sum(line.startswith("nbproviders ") for line in ran.outlines) == 1
    assert log.count("setup") == {"a": 1}
    assert log.left_over() == []


ASYNC = """
    import asyncio
    import pytest
    import nbproviders as nbp

    mark = {mark}

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(request):
        return request.param

    loops = set()

    @mark
    @pytest.mark.parametrize("model_client", ["counting:a", "counting:b"], indirect=True)
    async def test_parametrised(model_client):
        loops.add(id(asyncio.get_running_loop()))
        assert isinstance(model_client, nbp.Client)
        assert await model_client.generate("hi") == model_client.model + " says hi"

    @mark
    async def test_handle(model_providers):
        handle = await model_providers.setup("counting/a")
        assert isinstance(handle, nbp.ModelHandle)
        assert await handle.model.generate("hi") == "a says hi"
        await handle.teardown()
        await handle.teardown()
        assert not handle.is_active and handle.model.closed

    @pytest.mark.parametrize("model_client", ["counting:a"], indirect=True)
    def test_plain(model_client):
        assert model_client.generate("hi") == "a says hi"

    @mark
    @pytest.mark.parametrize("model_handle", ["counting:b"], indirect=True)
    async def test_given_back(model_handle):
        await model_handle.teardown()
"""
# How pytest is called, and the mark of an async test.
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")
PLUGINS = {
    "asyncio strict": (("-p", "no:anyio", "--asyncio-mode=strict", *SCOPE), "pytest.mark.asyncio"),
    "asyncio auto": (("-p", "no:anyio", "--asyncio-mode=auto", *SCOPE), "lambda test: test"),
    "anyio": (("-p", "no:asyncio"), "pytest.mark.anyio"),
    "both": (("--asyncio-mode=strict", *SCOPE), "pytest.mark.anyio"),
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_async_tests(pytester: pytest.Pytester, log: Log, plugin: str) -> None:
    """Under each plugin for async tests, they get clients to await, and share what was loaded."""
    options, mark = PLUGINS[plugin]
    pytester.makepyfile(ASYNC.format(mark=mark))
    ran = pytester.runpytest_subprocess("-p", "no:dotevals", "-W", "error", *options)
    ran.assert_outcomes(passed=5)
    assert log.count("setup") == {"a": 1, "b": 1}
    assert log.left_over() == []


FAILING = """
    import pytest
    import nbproviders as nbp

    @pytest.fixture(scope="session")
    def own(model_providers):
        import asyncio
        return asyncio.run(model_providers["counting"].setup("own"))

    @pytest.mark.parametrize("model_client", ["counting:a"], indirect=True)
    def test_fails(model_client, own):
        assert model_client.generate("hi") == "something else"

    def test_untold(model_client):
        pass

    class Other(type(nbp.create_provider("counting"))):
        pass

    def test_by_itself():
        nbp.register_provider("other", Other)
        assert not nbp.load_sync("other:itself").closed

    @pytest.mark.parametrize("model_client", ["nothing:a", "gpt-4"], indirect=True)
    def test_unknown(model_client):
        pass
"""


def test_failures_leave_nothing(pytester: pytest.Pytester, log: Log) -> None:
    """After failures all is torn down, what tests set up themselves as well; errors say what to write."""
    pytester.makepyfile(FAILING)
    ran = pytester.runpytest_subprocess(*NO_ASYNC)
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.assert_outcomes(failed=1, errors=3, passed=1)
    told = ran.stdout.str()
    assert 'Write @pytest.mark.parametrize("model_client", ["echo:echo"], indirect=True)' in told
    assert "Unknown provider 'nothing' in the model reference 'nothing:a'" in told
    assert "No provider is named in the model reference 'gpt-4'" in told
    assert log.count("setup") == {"a": 1, "own": 1, "itself": 1}
    assert log.left_over() == []


INTERRUPTED = {
    "a test": ('model_client.generate("slowly")', "counting:a", ("asked", "a")),
    "a load": ("pass", "counting:slow", ("begins", "slow")),
}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to another process")
@pytest.mark.parametrize("during", INTERRUPTED)
def test_ctrl_c(pytester: pytest.Pytester, log: Log, during: str) -> None:
    """Ctrl-C ends a run within seconds, in a test or while a model loads, and leaves nothing."""
    body, reference, sign = INTERRUPTED[during]
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.parametrize("model_client", ["counting:first"], indirect=True)
        def test_first(model_client):
            pass

        @pytest.mark.parametrize("model_client", [{reference!r}], indirect=True)
        def test_long(model_client):
            {body}
    """)
    command = (sys.executable, "-m", "pytest", *NO_ASYNC)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=pytester.path, **pipes) as child:
        try:
            until(lambda: sign in [line[:2] for line in log.lines])
            child.send_signal(signal.SIGINT)
            told, _ = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == pytest.ExitCode.INTERRUPTED, told.decode()
    assert b"KeyboardInterrupt" in told
    assert "first" in log.count("setup")
    assert log.left_over() == []


def test_workers(pytester: pytest.Pytester, log: Log) -> None:
    """Under xdist each worker loads a model once and tears it down itself."""
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_it(model_client, number):
            assert model_client.generate("hi") == model_client.model + " says hi"
    """)
    ran = pytester.runpytest_subprocess(
        *NO_ASYNC, "-n", "2", "--nbp-models", "counting:a,counting:b"
    )
    ran.assert_outcomes(passed=16)
    setups = [(name, pid) for what, name, pid in log.lines if what == "setup"]
    assert len(setups) == len(set(setups))
    assert len({pid for _, pid in setups}) == 2
    assert log.left_over() == []


UNTOUCHED = """
import sys

def pytest_unconfigure():
    heavy = set("torch transformers aiohttp pandas ipywidgets numpy matplotlib pydantic".split())
    ours = {name for name in sys.modules if name.startswith("nbproviders")}
    print("HEAVY", *sorted(heavy & set(sys.modules)))
    print("OURS", *sorted(ours))
"""


def test_a_project_that_does_not_use_it(pytester: pytest.Pytester) -> None:
    """Where nothing of it is used, it says nothing and has imported next to nothing at the end."""
    pytester.makeconftest(UNTOUCHED)
    pytester.makepyfile("def test_it(): pass")
    ran = pytester.runpytest_subprocess(*NO_ASYNC, "-p", "no:hypothesispytest", "-s")
    ran.assert_outcomes(passed=1)
    assert not any(line.startswith("nbproviders") for line in ran.outlines)
    assert "HEAVY" in ran.outlines
    (ours,) = [line for line in ran.outlines if line.startswith("OURS ")]
    assert ours.split()[1:] == [
        "nbproviders",
        "nbproviders.errors",
        "nbproviders.pytest_plugin",
        "nbproviders.pytest_plugin.settings",
    ]


def test_import_is_light() -> None:
    """On top of pytest, the plugin imports three small modules of ours and nothing else."""
    code = (
        "import pytest, sys; before = set(sys.modules); import nbproviders.pytest_plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in ran.stdout.split()} == {"nbproviders"}


IN_A_KERNEL = """
import pytest
import nbproviders as nbp

with nbp.load_sync("echo:mine") as m:
    code = pytest.main(["-q", "-p", "no:dotevals", "test_it.py"])
    print("STAYS", *(one.spec for one in nbp.residents()), int(code))
"""


def test_a_run_within_a_notebook(pytester: pytest.Pytester) -> None:
    """Run from a process with models of its own, it frees what it loaded and leaves those."""
    pytester.makepyfile(
        test_it="""
        import pytest
        @pytest.mark.parametrize("model_client", ["echo:mine", "echo:tests"], indirect=True)
        def test_it(model_client):
            assert model_client.generate("x") == "x"
        """
    )
    path = pytester.path / "kernel.py"
    path.write_text(IN_A_KERNEL)
    ran = pytester.runpython(path)
    assert "STAYS echo:mine 0" in ran.outlines


def test_an_address_that_is_none(pytester: pytest.Pytester) -> None:
    """An option that cannot be meant ends the run at once, saying what to write, without a traceback."""
    ran = pytester.runpytest_subprocess(*NO_ASYNC, "--nbp-api-url", "localhost:8000")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["ERROR: 'localhost:8000' is no address of a service.*"])
    assert "Traceback" not in ran.stderr.str()
