"""The author's kit: what it writes installs, passes its own tests, and is found; else nothing is written."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.kit import STYLES, Names, add_command, new_provider, next_steps

ROOT = Path(__file__).parents[2]
# No plugin for async tests is needed, and nothing warns.
QUIET = ("-q", "-p", "no:asyncio", "-p", "no:anyio", "-p", "no:cacheprovider", "-W", "error")
STORED = ("--experiment", "e", "--storage", "json://results")


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def run(
    command: list[str], folder: Path, *sites: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with packages that lie in further ones, without a network."""
    told = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    told["PYTHONPATH"] = os.pathsep.join(map(str, sites))
    return subprocess.run(
        command, cwd=folder, env=told, capture_output=True, text=True, check=False, timeout=300
    )


def run_pytest(
    folder: Path, *sites: Path, options: tuple[str, ...] = QUIET, **environment: str
) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "pytest", *options], folder, *sites, **environment)


def installed(project: Path) -> Path:
    """Return a folder with the project's wheel, unpacked as pip does it."""
    site = project.parent / "site"
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(project.parent)!r}))"
    ran = run([sys.executable, "-c", build], project)
    assert ran.returncode == 0, ran.stderr
    with ZipFile(project.parent / ran.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    return site


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# What is written


@needs("hatchling")
@pytest.mark.parametrize(
    "style", ["resource", "request", pytest.param("weights", marks=pytest.mark.slow)]
)
def test_passes_its_tests(style: str, tmp_path: Path) -> None:
    """As it was written it installs, and its contract, its own tests and its evaluation pass."""
    project = new_provider("my-provider", style, tmp_path)
    ran = run_pytest(project, installed(project))
    assert ran.returncode == pytest.ExitCode.OK, ran.stdout + ran.stderr
    found = re.search(r"(\d+) passed(?:, (\d+) skipped)?", ran.stdout)
    assert found is not None
    assert int(found[1]) >= 34
    assert int(found[2] or 0) <= 1  # the clause about secrets, where there are none


@needs("hatchling")
def test_an_error_that_repeats_the_answer_fails(tmp_path: Path) -> None:
    """An author who quotes what the service answered is told by the contract and by a test of the errors."""
    project = new_provider("my-provider", "request", tmp_path)
    code = project / "src" / "my_provider" / "provider.py"
    text = code.read_text(encoding="utf-8")
    call = "_error(self.name, response)"
    assert text.count(call) == 1
    quoting = '_error(f"{self.name}: {await response.text()}", response)'
    code.write_text(text.replace(call, quoting), encoding="utf-8")
    ran = run_pytest(project, installed(project), options=(*QUIET, "-k", "secrets or errors"))
    assert "A secret shows in the error of a generation." in ran.stdout, ran.stdout + ran.stderr
    failed = set(re.findall(r"^FAILED \S+::(\w+)", ran.stdout, re.MULTILINE))
    assert failed == {"test_secrets", "test_errors"}


@needs("hatchling")
@pytest.mark.parametrize("style", STYLES)
def test_skips_what_is_not_installed(style: str, tmp_path: Path) -> None:
    """Tests of what is missing are skipped, each with the reason; pytest itself needs none of it."""
    folder = new_provider("my-provider", style, tmp_path)
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ("dotevals", "transformers", "torch"):
        error = f"ModuleNotFoundError('No module named {name}', name={name!r})"
        (absent / f"{name}.py").write_text(f"raise {error}\n")
    plugins = ("-p", "nbproviders.pytest_plugin", "-p", "my_provider.fixtures")
    chosen = ("-q", "-rs", "-k", "not TestContract", *plugins)
    ran = run_pytest(
        folder, absent, installed(folder), options=chosen, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert "dotevals is not installed" in ran.stdout
    assert ("transformers is not installed" in ran.stdout) is (style == "weights")
    # Where all is skipped, pytest says that it ran no tests.
    kept = pytest.ExitCode.NO_TESTS_COLLECTED if style == "weights" else pytest.ExitCode.OK
    assert ran.returncode == kept, ran.stdout + ran.stderr


@needs("hatchling")
def test_readme_and_listing(tmp_path: Path) -> None:
    """Installed, it is listed with its package's name, by both groups, and the README's code runs."""
    folder = new_provider("my-model-provider", "resource", tmp_path)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    shown = "\n".join(block for block in blocks if "dotevals" not in block)
    told = (
        "from importlib.metadata import entry_points\n"
        "for group in ('nbproviders.providers', 'dotevals.model_providers'):\n"
        "    print(entry_points(group=group)['my_model'].load().__name__)\n"
        "print(nbp.list_available()['my_model'])\n"
    )
    ran = run([sys.executable, "-c", shown + told], tmp_path, installed(folder))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[0] == "HELLO"
    assert ran.stdout.count("MyModelProvider\n") == 2
    assert "ProviderInfo(available=True, reason='', source='my-model-provider')" in ran.stdout


@needs("ruff")
@pytest.mark.parametrize("name", ["my-provider", "a", "the-model-company-provider"])
@pytest.mark.parametrize("style", STYLES)
def test_is_clean(style: str, name: str, tmp_path: Path) -> None:
    """The linter finds nothing in it, whatever it is called; the formatter leaves it as it is."""
    folder = new_provider(name, style, tmp_path)
    settings = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        if command == ["check"] or name == "my-provider":  # a long name would break lines
            ran = run([sys.executable, "-m", "ruff", *command, *settings, "."], folder)
            assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("style", STYLES)
def test_layout(style: str, tmp_path: Path) -> None:
    """It has a source folder, fixtures of the package, tests, and nothing left to fill in."""
    project = new_provider("my-provider", style, tmp_path)
    base = {
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/my_provider/__init__.py",
        "src/my_provider/fixtures.py",
        "src/my_provider/provider.py",
        "tests/test_evaluation.py",
        "tests/test_provider.py",
    }
    service = {"tests/conftest.py", "tests/local_service.py"}
    assert files(project) == (base | service if style == "request" else base)
    assert not [name for name in files(project) if "$" in (project / name).read_text("utf-8")]
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = told["entry-points"]
    assert points["pytest11"] == {"my_provider": "my_provider.fixtures"}
    target = {"my": "my_provider.provider:MyProvider"}
    assert points["nbproviders.providers"] == points["dotevals.model_providers"] == target


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("my-model-provider", ("my-model-provider", "my_model_provider", "my_model", "MyModel")),
        ("My_Model.Provider", ("my-model-provider", "my_model_provider", "my_model", "MyModel")),
        ("acme", ("acme", "acme", "acme", "Acme")),
        (
            "provider-of-acme",
            ("provider-of-acme", "provider_of_acme", "provider_of_acme", "ProviderOfAcme"),
        ),
    ],
)
def test_names(name: str, names: tuple[str, ...]) -> None:
    """One name gives those of the project, the package, the provider and the class."""
    made = Names.of(name)
    assert (made.project, made.package, made.provider, made.camel) == names


# What is refused


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "cannot be a project's name"),
        ("-my-provider", "cannot be a project's name"),
        ("my provider", "cannot be a project's name"),
        ("../my-provider", "cannot be a project's name"),
        ("$name", "cannot be a project's name"),
        ("a" * 41, "it has 41 characters, and 40 at most fit"),
        ("7b-provider", "Python cannot import 7b_provider"),
        ("class", "Python cannot import class"),
        ("provider", "say which"),
        ("test-provider", "pytest would take its class for a test"),
        ("model-provider", "nbproviders' own model_client"),
        ("json", "json is a module of Python's own"),
        ("OpenAI-provider", "there is a provider 'openai' already, of nbproviders"),
        ("pydantic", "a package pydantic is installed, of pydantic"),
    ],
)
def test_names_that_are_refused(name: str, told: str, tmp_path: Path) -> None:
    """What is no project's name, or would hide something, is refused with the reason; nothing is written."""
    with pytest.raises(ConfigurationError, match=re.escape(told)) as caught:
        new_provider(name, "resource", tmp_path)
    assert "my-provider" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("style", ["", "rest"])
def test_styles_are_told(style: str, tmp_path: Path) -> None:
    """Without a style, or with another, the error says what each is for."""
    with pytest.raises(ConfigurationError) as caught:
        new_provider("my-provider", style, tmp_path)
    assert all(f"{name} " in caught.value.hint for name in STYLES)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """What is in the way is listed and stays as it is; an empty folder is not in the way."""
    (tmp_path / "my-provider").mkdir()
    folder = new_provider("my-provider", "resource", tmp_path)
    (folder / "README.md").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ConfigurationError, match=r"not empty: \.gitignore, README\.md, py"):
        new_provider("my-provider", "request", tmp_path)
    assert (folder / "README.md").read_text() == "mine"
    assert files(tmp_path) == before
    (tmp_path / "acme").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"acme is there, and is no folder"):
        new_provider("acme", "request", tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"other is there, and is no folder"):
        new_provider("other", "request", tmp_path)


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after some files leaves none of them."""
    written = []
    real = Path.write_text

    def full(self: Path, *args: str, **kwargs: str) -> int:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        new_provider("my-provider", "resource", tmp_path)
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The folder to write into has to be there; it is not made by a slip of the keyboard."""
    with pytest.raises(ConfigurationError, match="is no folder to write my-provider into"):
        new_provider("my-provider", "resource", tmp_path / "wrng")
    assert not (tmp_path / "wrng").exists()


# The command


def command(*arguments: str) -> int:
    """Run the command as the command line does."""
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(required=True))
    options = parser.parse_args(["new-provider", *arguments])
    code: int = options.run(options, [])
    return code


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes the package and says in three lines how to install, test and use it."""
    assert command("my-provider", "--style", "request", "--into", str(tmp_path)) == 0
    first, *steps = capsys.readouterr().out.splitlines()
    folder = tmp_path / "my-provider"
    assert first == f"{folder} is written."
    assert [step.strip() for step in steps] == next_steps(folder, "request")
    assert steps[0].endswith(f'pip install -e "{folder}[test]"')
    assert steps[2].endswith('nbp.model("my:upper")')


def test_command_asks_for_a_style(tmp_path: Path) -> None:
    """Without a style it says which there are."""
    with pytest.raises(ConfigurationError, match="Say which style"):
        command("my-provider", "--into", str(tmp_path))


# All of it, as an author and their users do it

TWO_MODELS = """
import nbproviders as nbp
import pytest
from dotevals import Result, foreach

@pytest.mark.parametrize("my_client", ["upper", "reverse"], indirect=True)
@foreach("prompt", ["otter", "one two"])
async def eval_models(prompt, my_client):
    response = await my_client.generate(prompt)
    return Result(response)

def test_loads():
    loads = [event.spec for event in nbp.events() if event.kind == "created"]
    assert sorted(loads) == ["my:reverse", "my:upper"]
"""
FAILING = """
import pytest
from dotevals import foreach

@pytest.mark.parametrize("my_client", ["upper"], indirect=True)
@foreach("prompt", ["otter", " "])
async def eval_models(prompt, my_client):
    return (await my_client.generate(prompt)) == "OTTER"
"""


def environment(folder: Path) -> str:
    """Make a fresh environment that sees what this one has, and return its interpreter."""
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt")
    builder.create(folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    told = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", told], capture_output=True, text=True, check=True).stdout
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(seen)]
    Path(site.strip(), "seen.pth").write_text("".join(lines))
    return str(python)


def responses(folder: Path) -> dict[str, list[str]]:
    """Return what dotevals kept as answers, by the name of the evaluation."""
    found = {}
    for path in sorted((folder / "results" / "e").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        found[lines[0]["evaluation_name"]] = [line["model_response"] for line in lines[1:]]
    return found


@pytest.mark.slow
@needs("hatchling")
@needs("dotevals")
@needs("pip")
def test_from_nothing_to_an_evaluation(tmp_path: Path) -> None:
    """Installed by pip into a fresh environment it is listed, passes its tests, and is evaluated."""
    project = new_provider("my-provider", "resource", tmp_path)
    python = environment(tmp_path / "environment")
    install = "install --quiet --no-index --no-build-isolation --no-deps --no-input -e".split()
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    ran = run([*pip, *install, str(project)], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    listed = "import nbproviders as nbp; print('my' in nbp.list_available())"
    assert run([sys.executable, "-c", listed], tmp_path).stdout.strip() == "False"
    assert run([python, "-c", listed], tmp_path).stdout.strip() == "True"

    tests = run([python, "-m", "pytest", *QUIET], project)
    assert tests.returncode == pytest.ExitCode.OK, tests.stdout + tests.stderr

    users = tmp_path / "users"
    users.mkdir()
    (users / "eval_two.py").write_text(TWO_MODELS)
    ran = run([python, "-m", "pytest", *QUIET, *STORED, "eval_two.py"], users)
    assert ran.returncode == pytest.ExitCode.OK, ran.stdout + ran.stderr
    assert responses(users) == {
        "eval_models[None-upper]": ["OTTER", "ONE TWO"],
        "eval_models[None-reverse]": ["retto", "owt eno"],
    }

    (users / "eval_fails.py").write_text(FAILING)
    ran = run([python, "-m", "pytest", *QUIET, "eval_fails.py"], users)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout + ran.stderr
    assert "1 of 2 rows failed:" in ran.stdout
    assert "The prompt has no words." in ran.stdout
