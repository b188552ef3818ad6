"""The conda environments: Binder finds its own, they hold our pins, and no CUDA build can be chosen."""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ("environment.yml", "binder/environment.yml")
# conda-forge's own names for what the package index calls otherwise.
CONDA_NAMES = {"pytorch": "torch"}
# conda-forge does not build every release of it.
ANY_VERSION = {"llama-cpp-python"}


def environment(path: str) -> tuple[list[str], list[str]]:
    """Return what a file asks of conda, and what of pip."""
    yaml = pytest.importorskip("yaml", reason="pyyaml reads the environment files")
    asked: list[Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["dependencies"]
    conda = [entry for entry in asked if isinstance(entry, str)]
    pip = [line for entry in asked if isinstance(entry, dict) for line in entry["pip"]]
    return conda, pip


def constraints(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture
def buildpack(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The buildpack that repo2docker picks for this repository."""
    with warnings.catch_warnings():
        # Its log formatter is imported from where it used to be.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        app = pytest.importorskip("repo2docker.app", reason="jupyter-repo2docker is not installed")
        packs = app.Repo2Docker().buildpacks
    monkeypatch.chdir(ROOT)  # it looks into the current folder
    made = (pack("ubuntu") for pack in packs)
    return next(pack for pack in made if pack.detect())


def test_binder_is_detected(buildpack: Any) -> None:
    """repo2docker builds from binder/ with conda, not from the file at the top or from pyproject."""
    assert type(buildpack).__name__ == "CondaBuildPack"
    assert buildpack.environment_yaml_path == "binder/environment.yml"
    assert buildpack.python_version == "3.11"


def test_binder_renders(buildpack: Any) -> None:
    """The Dockerfile installs the environment and runs the script that installs the package."""
    buildpack.platform = "linux/amd64"
    dockerfile = buildpack.render()
    assert "FROM ubuntu" in dockerfile.splitlines()
    assert 'env update -p ${NB_PYTHON_PREFIX} --file "binder/environment.yml"' in dockerfile
    assert "RUN ./binder/postBuild" in dockerfile
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


@pytest.mark.parametrize("path", ENVIRONMENTS)
def test_pins_agree(path: str) -> None:
    """The environments install the versions of constraints.txt."""
    conda, pip = environment(path)
    pins = constraints()
    packages = [line for line in pip if not line.startswith("-")]
    for line in packages:
        name, _, version = line.partition("==")
        assert version == pins[name.strip()], line
    for line in conda:
        name, version, *_ = [*line.split("="), ""]
        if name not in {"python", "pip", *ANY_VERSION}:
            assert version == pins[CONDA_NAMES.get(name, name)], line


def test_environment_names_everything() -> None:
    """Without constraints, conda's pip is told the version of each package the extra asks for."""
    from tests.test_packaging import PROJECT, asked_by, name_of

    asked = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    asked |= asked_by("local") | asked_by("llama-cpp")
    conda, pip = environment("environment.yml")
    wanted = asked - {"torch", *ANY_VERSION}
    assert {name_of(line) for line in pip if not line.startswith("-")} == wanted
    assert set(conda) >= ANY_VERSION
    assert "-e .[local,llama-cpp]" in pip


@pytest.mark.parametrize("path", ENVIRONMENTS)
def test_no_cuda_build(path: str) -> None:
    """torch comes from conda, by a build string that no CUDA build has; pip is not asked for it."""
    conda, pip = environment(path)
    (torch,) = (line for line in conda if line.startswith("pytorch"))
    _, _, build = torch.split("=")
    assert fnmatchcase("cpu_generic_py311h1a2b3c4_0", build)
    assert not fnmatchcase("cuda130_generic_py311h1a2b3c4_200", build)
    assert not [line for line in pip if re.match(r"torch\b|-c\b|nvidia", line)]
    assert not [line for line in conda if re.match(r"cuda|cudnn|pytorch-(cuda|gpu)", line)]


FAKE_PIP = """#!/bin/bash
printf '%s\\n' "$@" > asked
while [[ $# -gt 0 ]]; do [[ $1 == -c ]] && cp "$2" held; shift; done
"""
FAKE_PYTHON = """#!/bin/bash
case "$2" in
    *torch.version*) exit {after} ;;
    *llama-cpp-python*) echo 0.3.99 ;;
    *importlib.metadata*) echo 2.13.0.post1 ;;
esac
"""


def run_post_build(folder: Path, after: int) -> int:
    """Run binder/postBuild with a pip that notes what it is asked, and a python of few words."""
    for name, text in {"pip": FAKE_PIP, "python": FAKE_PYTHON.format(after=after)}.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    (folder / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
    search = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    script = ROOT / "binder" / "postBuild"
    return subprocess.run([script], cwd=folder, env=search, check=False).returncode


def test_post_build_holds_torch(tmp_path: Path) -> None:
    """pip is held to what conda installed, and to constraints.txt for everything else."""
    assert run_post_build(tmp_path, after=0) == 0
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-2:] == ["-e", ".[transformers,llama-cpp]"]
    held = constraints(tmp_path / "held")
    by_conda = {"torch": "2.13.0.post1", "llama-cpp-python": "0.3.99"}
    assert held == {**constraints(), **by_conda}


def test_post_build_refuses_cuda(tmp_path: Path) -> None:
    """If a CUDA build came in all the same, the image is not built."""
    assert run_post_build(tmp_path, after=1) != 0
