"""The command: run as people run it, in a process of its own wherever that is what is promised."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nbproviders as nbp
from nbproviders import cli, registry
from nbproviders.catalog.services import SERVICES
from nbproviders.runtimes.process import state
from tests.services.keys import FAKE, fake

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "nbproviders"]

needs_models = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch) -> Path:
    """No servers and no keyring of the user's; where the servers are written down is told."""
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    monkeypatch.setenv(state.STATE_VARIABLE, str(tmp_path / "servers"))
    return tmp_path / "servers"


def run(
    *arguments: str, cwd: Path, path: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; `path` stands first where modules are looked for."""
    environment = {**os.environ, **more}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_version(tmp_path):
    """``--version`` prints the version of the package."""
    assert run("--version", cwd=tmp_path).stdout == f"nbproviders {nbp.__version__}\n"


def test_a_command_is_needed(capsys):
    """Without a command, or with a wrong one, the usage names the four there are."""
    for arguments in ([], ["dance"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    assert re.findall(r"^ +(demo|lab|list|stop) ", told, re.MULTILINE) == [
        "demo",
        "lab",
        "list",
        "stop",
    ]


# demo


@needs_models
def test_demo(tmp_path):
    """The demo compares the three models for real, prints both tables and writes one whole report."""
    ran = run("demo", "--n", "4", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines()[:-1])) <= 80
    assert "\x1b" not in ran.stdout + ran.stderr
    scores = dict(re.findall(r"transformers:(demo-\w+) +28 +(\d+)%", ran.stdout))
    assert list(scores) == ["demo-xs", "demo-s", "demo-m"]
    assert int(scores["demo-xs"]) < int(scores["demo-m"])
    assert re.search(r"^  add3( +\d+%){3}$", ran.stdout, re.MULTILINE)
    report = tmp_path / cli.REPORT
    assert str(report) in ran.stdout.splitlines()[-1]
    page = report.read_text(encoding="utf-8")
    assert "transformers:demo-xs" in page
    assert not re.search(r"<script|<link|(src|href)=[\"']?(http|/)", page)


def test_demo_without_its_packages(tmp_path, monkeypatch, capsys):
    """Where transformers is missing, the demo says what to install, fails, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    absent = (("not_there",), "transformers")
    monkeypatch.setitem(registry._NEEDS, "transformers", absent)
    assert cli.main(["demo"]) == 1
    told = capsys.readouterr()
    assert "not_there" in told.err
    assert 'pip install "nbproviders[transformers]"' in told.err
    assert 'pip install -c constraints.txt -e ".[local]"' in told.err
    assert told.out == ""
    assert not (tmp_path / cli.REPORT).exists()


@pytest.mark.parametrize("place", [".", "missing/report.html"])
def test_demo_refuses_a_bad_place_first(place, tmp_path, monkeypatch, capsys):
    """A report that cannot be written is refused before the models are asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._NEEDS, "transformers", ((), "transformers"))
    assert cli.main(["demo", "--html", place]) == 1
    told = capsys.readouterr()
    assert "The report" in told.err
    assert told.out == ""


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--n", "-3"], ["--n", "x"], ["--fast"]])
def test_demo_refuses_bad_arguments(arguments, capsys):
    """A number of prompts below one, or an unknown option, is refused with the usage."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *arguments])
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


@needs_models
@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C another way")
def test_interrupt_is_quiet(tmp_path):
    """Ctrl-C in the middle ends the demo with 130, no traceback, and no report."""
    begun = subprocess.Popen(
        [*COMMAND, "demo", "--n", "400"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert begun.stdout is not None
    assert begun.stdout.readline().startswith("Asking")
    begun.send_signal(signal.SIGINT)
    _, told = begun.communicate(timeout=60)
    assert begun.returncode == 130
    assert "Traceback" not in told
    assert not (tmp_path / cli.REPORT).exists()


# lab

FAKE_LAB = """
import sys
print("lab", *sys.argv[1:])
sys.exit(7)
"""


@pytest.fixture
def fake_lab(tmp_path) -> Path:
    """A folder with a module ``jupyterlab`` that tells its arguments and ends with 7."""
    package = tmp_path / "fake" / "jupyterlab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_LAB)
    return package.parent


@pytest.fixture
def lesson(tmp_path) -> Path:
    folder = tmp_path / "lesson"
    folder.mkdir()
    return folder


def test_lab_copies_and_opens(lesson, fake_lab):
    """The notebooks are copied here and opened; further arguments and the exit code are passed on."""
    ran = run("lab", "--no-open-browser", "--port", "8890", cwd=lesson, path=fake_lab)
    copied = {path.name: path.read_bytes() for path in lesson.iterdir()}
    shipped = {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert copied == shipped
    assert "copied  01_quickstart.ipynb" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "lab --port 8890 01_quickstart.ipynb --no-browser"
    assert ran.returncode == 7


def test_lab_opens_what_is_asked_for(lesson, fake_lab):
    """A file of the user's own, named as an argument, is opened instead of the quickstart."""
    ran = run("lab", "mine.ipynb", cwd=lesson, path=fake_lab)
    assert ran.stdout.splitlines()[-1] == "lab mine.ipynb"


def test_lab_keeps_what_was_changed(lesson, fake_lab):
    """A notebook that was worked in is never overwritten; an unchanged one is left as it is."""
    (lesson / "01_quickstart.ipynb").write_text("my work")
    ran = run("lab", cwd=lesson, path=fake_lab)
    assert (lesson / "01_quickstart.ipynb").read_text() == "my work"
    assert "kept    01_quickstart.ipynb: yours differs" in ran.stdout
    (lesson / "01_quickstart.ipynb").unlink()
    run("lab", cwd=lesson, path=fake_lab)
    ran = run("lab", cwd=lesson, path=fake_lab)
    assert "there   01_quickstart.ipynb" in ran.stdout


def test_lab_from_a_wheel(tmp_path, monkeypatch):
    """In an installed package the notebooks are taken from the package itself."""
    package = tmp_path / "site-packages" / "nbproviders"
    (package / "notebooks").mkdir(parents=True)
    (package / "notebooks" / "a.ipynb").touch()
    monkeypatch.setattr(cli, "__file__", str(package / "cli.py"))
    assert cli._notebooks() == [package / "notebooks" / "a.ipynb"]
    (package / "notebooks" / "a.ipynb").unlink()
    with pytest.raises(nbp.ConfigurationError, match="not in this installation"):
        cli._notebooks()


def test_lab_without_jupyterlab(lesson, monkeypatch, capsys):
    """Where JupyterLab is missing, nothing is copied and the command to install it is told."""
    monkeypatch.chdir(lesson)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lab"]) == 1
    assert 'pip install "nbproviders[lab]"' in capsys.readouterr().err
    assert list(lesson.iterdir()) == []


def test_lab_where_nothing_can_be_written(tmp_path, capsys, monkeypatch):
    """A folder that takes no files is an error that says where to go."""
    source = tmp_path / "a.ipynb"
    source.touch()
    with pytest.raises(nbp.ConfigurationError, match="cannot be written") as failed:
        cli._copy_notebooks([source], tmp_path / "missing")
    assert "nbproviders lab" in failed.value.hint


# list


def test_list(tmp_path):
    """Providers are listed with the reason of one that is unavailable, models with size and reference."""
    (tmp_path / "config.toml").write_text(f'[folders]\ngguf = ["{tmp_path.as_posix()}"]\n')
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(2044))
    ran = run(
        "list",
        cwd=tmp_path,
        NBPROVIDERS_CONFIG=str(tmp_path / "config.toml"),
        HF_HUB_CACHE=str(tmp_path / "hub"),
    )
    assert ran.returncode == 0, ran.stderr
    assert "\x1b" not in ran.stdout
    assert re.search(r"^  echo +available$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ +[\d.]+ KiB  demo +transformers:demo-xs$", ran.stdout, re.MULTILINE)
    reference = re.escape(f"llama-cpp:{tmp_path / 'tiny.gguf'}")
    assert re.search(rf"^ +2.0 KiB  folder +{reference}$", ran.stdout, re.MULTILINE)


def test_list_finds_other_programs_models(tmp_path):
    """Files of the Hub cache, of LM Studio and of Ollama are listed with source, size and reference."""
    studio = tmp_path / ".lmstudio" / "models" / "org" / "small"
    snapshot = tmp_path / "hub" / "models--org--tiny-GGUF" / "snapshots" / "c0ffee"
    ollama = tmp_path / ".ollama" / "models"
    names = ollama / "manifests" / "registry.ollama.ai" / "library" / "llama3.2"
    refs = snapshot.parents[1] / "refs"
    for folder in (studio, snapshot, names, ollama / "blobs", refs):
        folder.mkdir(parents=True)
    (refs / "main").write_text("c0ffee")
    (snapshot / "tiny-Q8_0.gguf").write_bytes(b"GGUF" + bytes(1020))
    (studio / "small-Q4_0.gguf").write_bytes(b"GGUF" + bytes(2044))
    (ollama / "blobs" / f"sha256-{'a' * 64}").write_bytes(b"GGUF" + bytes(3068))
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}"}
    (names / "3b").write_text(json.dumps({"layers": [layer]}))
    (names / "torn").write_text('{"layers":')
    ran = run(
        "list",
        cwd=tmp_path,
        HOME=str(tmp_path),
        USERPROFILE=str(tmp_path),
        HF_HUB_CACHE=str(tmp_path / "hub"),
        OLLAMA_MODELS="",
    )
    assert ran.returncode == 0, ran.stderr
    for line in (
        "   1.0 KiB  hub        llama-cpp:org/tiny-GGUF:Q8_0",
        f"   2.0 KiB  lm studio  llama-cpp:{studio / 'small-Q4_0.gguf'}",
        "   3.0 KiB  ollama     llama-cpp:ollama://llama3.2:3b",
    ):
        assert line in ran.stdout
    assert re.search(
        r"^ +[\d.]+ [KM]iB  demo +llama-cpp:demo-m\?quant=F16$", ran.stdout, re.MULTILINE
    )
    assert "torn" not in ran.stdout + ran.stderr


def test_list_tells_why_not(monkeypatch, capsys, tmp_path):
    """A provider that cannot run here has its reason beside it; models it would open are listed, with it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    absent = (("not_there",), "transformers")
    monkeypatch.setitem(registry._NEEDS, "transformers", absent)
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^  transformers +not available: not_there not installed", told, re.MULTILINE)
    assert "transformers:demo-m" in told
    note = told.partition("Those of transformers need its provider")[2]
    assert 'not_there not installed: pip install "nbproviders[transformers]"' in note


def test_list_without_the_provider(monkeypatch, capsys, tmp_path):
    """Models of a provider that this installation does not even know are listed with what to install."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    known = {name: point for name, point in registry._entry_points().items() if name != "llama-cpp"}
    monkeypatch.setattr(registry, "_points", known)
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    assert "llama-cpp:demo-m?quant=F16" in told
    note = told.partition("Those of llama-cpp need its provider")[2]
    assert 'pip install "nbproviders[llama-cpp]"' in note


BACKEND = """
from keyring.backend import KeyringBackend

class Keyring(KeyringBackend):
    priority = 1
    def get_password(self, service, username):
        return "nbp-fake-key" if (service, username) == ("nbproviders", "XAI_API_KEY") else None
    set_password = None
"""


def services_in(told: str) -> dict[str, str]:
    """Return the lines on services by name, each with one space between its words."""
    section = told.partition("Services and their keys\n")[2].partition("\n\n")[0]
    assert max(map(len, section.splitlines())) <= 80
    words = [line.split() for line in section.splitlines()]
    return {name: " ".join(rest) for name, *rest in words}


def test_list_tells_which_services_have_a_key(tmp_path):
    """Each service is told with the place of its key, or with what to set; no key is ever shown."""
    (tmp_path / "kept_in_memory.py").write_text(BACKEND)
    ran = run(
        "list",
        cwd=tmp_path,
        path=tmp_path,
        GROQ_API_KEY=fake("groq"),
        GOOGLE_API_KEY=fake("google"),
        MISTRAL_API_KEY=fake("mistral") + "\n" + fake("again"),
        OPENAI_API_KEY=fake("openai"),
        OPENAI_BASE_URL=f"https://me:{fake('password')}@example.com/v1",
        OLLAMA_HOST="0.0.0.0",
        PYTHON_KEYRING_BACKEND="kept_in_memory.Keyring",
    )
    assert ran.returncode == 0, ran.stderr
    assert FAKE not in ran.stdout + ran.stderr
    told = services_in(ran.stdout)
    assert told["groq"] == "has a key GROQ_API_KEY"
    assert told["gemini"] == "has a key GOOGLE_API_KEY"
    assert told["mistral"] == "key spoiled MISTRAL_API_KEY has a line break"
    assert told["openai"] == "has a key OPENAI_API_KEY, at OPENAI_BASE_URL"
    assert told["together"] == "no key yet set TOGETHER_API_KEY"
    assert told["lmstudio"] == "needs no key at http://localhost:1234/v1"
    assert told["ollama"] == "needs no key at OLLAMA_HOST"
    if importlib.util.find_spec("keyring") is not None:
        assert told["xai"] == "has a key keyring: XAI_API_KEY"
    assert set(told) <= set(SERVICES)
    assert not set(told) & set(re.findall(r"^  ([\w-]+) +available", ran.stdout, re.MULTILINE))


def test_list_imports_no_provider():
    """What is told of providers and services comes from tables: none of them is imported."""
    code = (
        "import sys; from nbproviders import cli; cli.main(['list']); "
        "print([name for name in sys.modules if name.startswith('nbproviders.providers.')])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="servers are kept on Linux")
async def test_list_shows_kept_servers(own_places, capsys):
    """A server that outlives its kernel is listed with address, process, owners and the time it has left."""
    from nbproviders.runtimes.process import server
    from tests.runtimes.process.servers import nothing_left
    from tests.runtimes.process.test_guardian import kernel, killed

    with nothing_left(own_places):
        child, (pid,) = kernel("start", keep_s=60)
        owned = kept_in(capsys)
        killed(child)
        one = await server.find("a")
        await one.release()
        left = kept_in(capsys)
        await (await server.find("a")).stop()
    for told in (owned, left):
        assert told[0] == "  lab"
        assert told[1].startswith(f"    {one.base_url}  process {pid}  ")
        assert len(told) == 2
        assert one.key not in "".join(told)
    assert owned[1].endswith("  1 owner")
    assert re.search(r"  no owner, ends in (59|60) s$", left[1])
    assert kept_in(capsys) == []


@pytest.fixture
def servers(own_places):
    """A function that keeps a stand-in running under a reference; nothing of them is left."""
    from nbproviders.residency.progress import Progress
    from nbproviders.runtimes.process import server
    from tests.runtimes.process.servers import healthy, nothing_left, program

    async def keep(reference: str, *, released: bool = True):
        one = await server.start(
            reference.partition("?")[0],
            program(),
            ready=healthy,
            timeout_s=30,
            progress=Progress(),
            keep=True,
            identity=reference,
            reference=reference,
        )
        if released:
            await one.release()
        return one

    with nothing_left(own_places):
        yield keep
        cli.main(["stop", "--all"])


def stopped(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["stop", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.skipif(sys.platform != "linux", reason="servers are kept on Linux")
async def test_list_shows_how_it_is_found_again(servers, capsys):
    """A kept server goes by the reference that opened it, with its process and its time in minutes."""
    reference = "llama-server:demo-m?keep=true&keep_s=1800"
    one = await servers(reference)
    name, line = kept_in(capsys)
    assert name == f"  {reference}"
    assert line == f"    {one.base_url}  process {one.pid}  no owner, ends in 30 min"


@pytest.mark.skipif(sys.platform != "linux", reason="servers are kept on Linux")
async def test_stop_ends_the_one_that_is_named(servers, capsys):
    """By its process, by its reference however that is spelled, or by what it loads; the others stay."""
    names = {
        "llama-server:a?keep=true&keep_s=60&n_ctx=512": "LLAMA-server:a?n_ctx=512&keep_s=60&keep=True",
        "llama-server:a?keep=true": "llama-server:a?keep=true&keep_s=7",
        "llama-server:b?keep=true&n_ctx=256": "llama-server:b",
        "vllm:c?keep=true": "",
    }
    ones = {reference: await servers(reference) for reference in names}
    left = len(names)
    for reference, spelled in names.items():
        pid = ones[reference].pid
        code, told, _ = stopped(capsys, spelled or str(pid))
        assert (code, told) == (0, f"ended  {reference}  (process {pid})\n")
        assert not state.process_started(pid)
        left -= 1
        assert len(kept_in(capsys)) == 2 * left


@pytest.mark.skipif(sys.platform != "linux", reason="servers are kept on Linux")
async def test_stop_ends_all(servers, capsys):
    """With ``--all`` every kept one ends, and it is told which of them somebody used; none is no error."""
    owned = await servers("llama-server:a?keep=true", released=False)
    free = await servers("llama-server:b?keep=true")
    code, told, _ = stopped(capsys, "--all")
    assert code == 0
    assert sorted(told.splitlines()) == [
        f"ended  llama-server:a?keep=true  (process {owned.pid}, which had 1 owner)",
        f"ended  llama-server:b?keep=true  (process {free.pid})",
    ]
    assert not owned.alive
    await owned.release()
    assert stopped(capsys, "--all") == (0, "No server is kept running.\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="servers are kept on Linux")
async def test_stop_says_what_there_is(servers, capsys):
    """A name of none, or of several, ends nothing, and the error has those to choose from."""
    code, out, told = stopped(capsys, "llama-server:a")
    assert (code, out) == (1, "")
    assert told == (
        "nbproviders: No kept server goes by 'llama-server:a'.\nNone is kept running now.\n"
    )
    one = await servers("llama-server:a?keep=true&n_ctx=256")
    two = await servers("llama-server:a?keep=true&n_ctx=512")
    code, _, told = stopped(capsys, "llama-server:a")
    assert code == 1
    assert "'llama-server:a' is the name of 2 kept servers." in told
    assert {str(one.pid), str(two.pid)} <= set(re.findall(r"\d+", told))
    code, _, told = stopped(capsys, str(os.getpid()))
    assert code == 1
    assert f"llama-server:a?keep=true&n_ctx=256 (process {one.pid})" in told
    assert len(kept_in(capsys)) == 4


def test_stop_needs_a_name(capsys):
    """Neither nothing nor both is a request."""
    for arguments in ([], ["--all", "7"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["stop", *arguments])
        assert ended.value.code == 2
    assert "--all" in capsys.readouterr().err


def kept_in(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines on kept servers."""
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    return told.partition("Servers that are kept running\n")[2].splitlines()


def test_list_where_no_server_can_be_kept(own_places, capsys):
    """A folder of servers that cannot be used is told; it does not keep the rest from being listed."""
    own_places.parent.mkdir(exist_ok=True)
    own_places.write_text("a file, not a folder")
    told = kept_in(capsys)
    assert " ".join(told).split()[:2] == ["The", "folder"]
    assert max(map(len, told)) <= 80


def test_errors_are_messages(own_settings, capsys):
    """An error of ours is told with its hint and ends with 1, without a traceback."""
    own_settings.write_text("not TOML at all")
    assert cli.main(["list"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("nbproviders: The settings file")
    assert told.endswith("Mend it or remove it.\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes end another way on Windows")
def test_reader_may_leave(tmp_path):
    """When what reads the output ends first, as ``head`` does, the command ends in silence."""
    begun = subprocess.Popen(
        [*COMMAND, "list"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert begun.stdout is not None
    begun.stdout.close()
    assert begun.stderr is not None
    assert begun.stderr.read() == ""
    assert begun.wait(timeout=60) == 0
    begun.stderr.close()


def test_poor_encoding(tmp_path):
    """A terminal without Unicode gets a stand-in for what it cannot show, not a traceback."""
    folder = tmp_path / "модели"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF")
    config = tmp_path / "config.toml"
    config.write_text(f'[folders]\ngguf = ["{folder.as_posix()}"]\n', encoding="utf-8")
    ran = run("list", cwd=tmp_path, NBPROVIDERS_CONFIG=str(config), PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert "\\u043c" in ran.stdout


def test_doctor(tmp_path):
    """What is wrong is told, with what to do, and the exit code says so."""
    empty = tmp_path / "config.toml"
    empty.touch()
    broken = run("doctor", cwd=tmp_path, NBPROVIDERS_CONFIG=str(empty), OPENAI_API_KEY=f"{FAKE}\nx")
    assert broken.returncode == 1
    assert broken.stdout.startswith("Packages\n")
    assert re.search(r"WRONG OpenAI +OPENAI_API_KEY has a line break\n +> Copy it", broken.stdout)
    assert re.search(r"\n\d+ things? (is|are) wrong\.\n$", broken.stdout)
    assert FAKE not in broken.stdout + broken.stderr
