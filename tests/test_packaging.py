"""What is shipped: the wheel's contents, the extras, and the one set of pinned versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement: str) -> str:
    """Return the normalised name of the distribution a requirement asks for."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def inner_of(requirement: str) -> list[str]:
    """Return the extras that a requirement ``name[one,two]`` asks for."""
    inner = requirement[requirement.index("[") + 1 : requirement.index("]")]
    return [extra.strip() for extra in inner.split(",")]


def asked_by(extra: str) -> set[str]:
    """Return the distributions of an extra, those of the extras it refers to included."""
    names: set[str] = set()
    for requirement in EXTRAS[extra]:
        if name_of(requirement) == "nbproviders":
            names |= {name for other in inner_of(requirement) for name in asked_by(other)}
        else:
            names.add(name_of(requirement))
    return names


def pins() -> dict[str, str]:
    """Return the pinned version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return dict(line.split("==") for line in found)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and return its path."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    ran = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(built: Path) -> list[str]:
    """Return the names of the files in the wheel."""
    with ZipFile(built) as archive:
        return archive.namelist()


@pytest.mark.parametrize("name", ["demo-xs", "demo-s", "demo-m"])
def test_wheel_has_demo_weights(wheel: list[str], name: str) -> None:
    """Each demo model runs from an installed wheel, without the source tree."""
    folder = f"nbproviders/demo/weights/{name}"
    files = {PurePosixPath(file).name for file in wheel if file.startswith(f"{folder}/")}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("model", ["demo-xs", "demo-m"])
def test_wheel_has_gguf_files(wheel: list[str], model: str, quant: str) -> None:
    """The models that llama.cpp reads are there in each form, without a download."""
    assert f"nbproviders/demo/weights/{model}-gguf/{model}-{quant}.gguf" in wheel


def test_wheel_is_small(built: Path) -> None:
    """With all its weights, the wheel is a download of at most 6 MB."""
    assert built.stat().st_size <= 6e6


def test_wheel_has_model_card(wheel: list[str]) -> None:
    """The card that says what the demo models are travels with them."""
    assert any(re.fullmatch(r"nbproviders/demo/weights/\w+\.md", name) for name in wheel)


def test_wheel_has_notebooks(wheel: list[str]) -> None:
    """The notebooks are those of the source tree, and at least the quickstart."""
    shipped = {name for name in wheel if name.startswith("nbproviders/notebooks/")}
    assert "nbproviders/notebooks/01_quickstart.ipynb" in shipped
    sources = (ROOT / "notebooks").glob("*.ipynb")
    assert shipped >= {f"nbproviders/notebooks/{path.name}" for path in sources}


def test_wheel_has_every_package_file(wheel: list[str]) -> None:
    """Nothing of the package stays behind, neither the type marker nor data beside the code."""
    assert "nbproviders/py.typed" in wheel
    source = ROOT / "src"
    files = {path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(source).as_posix() for path in files} <= set(wheel)


def test_wheel_has_nothing_else(wheel: list[str]) -> None:
    """No tests, caches or checkpoints; one top-level package."""
    tops = {PurePosixPath(name).parts[0] for name in wheel}
    version = PROJECT["version"]
    assert tops == {"nbproviders", f"nbproviders-{version}.dist-info"}
    unwanted = re.compile(r"(^|/)(tests?/|test_|conftest|__pycache__|\.)")
    assert [name for name in wheel if unwanted.search(name)] == []


def test_versions_agree() -> None:
    """The package tells the version it was built as."""
    import nbproviders

    assert nbproviders.__version__ == PROJECT["version"]


def test_all_leaves_out_what_pins_its_own_torch() -> None:
    """``pip install "nbproviders[all]"`` must not bring what only installs alone."""
    assert asked_by("all") & {"vllm", "unsloth"} == set()
    wanted = [asked_by(extra) for extra in ("transformers", "llama-cpp", "bitsandbytes", "lab")]
    assert asked_by("all") >= set.union(*wanted)


@pytest.mark.parametrize("extra", ["local", "dev"])
def test_readme_extras_need_no_compiler(extra: str) -> None:
    """The extras of the README's commands install from wheels alone."""
    assert asked_by(extra) & {"llama-cpp-python", *asked_by("all") - asked_by("local")} == set()


def test_no_name_in_two_extras() -> None:
    """Each third-party name sits in one extra, so that it has one bound to keep."""
    core = [name_of(requirement) for requirement in PROJECT["dependencies"]]
    named = [name_of(line) for lines in EXTRAS.values() for line in lines if "[" not in line]
    assert sorted([*core, *named]) == sorted({*core, *named})


def test_more_of_a_distribution_is_asked_for_beside_it() -> None:
    """``name[extra]`` is more of one dependency: the extra refers to another one that has its bound."""
    for extra, lines in EXTRAS.items():
        more = [line for line in lines if "[" in line and name_of(line) != "nbproviders"]
        wrong = [line for line in more if not line.endswith("]")]
        assert wrong == [], "it has a bound of its own"
        referred = [line for line in lines if name_of(line) == "nbproviders"]
        bound = set().union(*(asked_by(name) for line in referred for name in inner_of(line)))
        assert {name_of(line) for line in more} <= bound, extra


@pytest.mark.parametrize("asked", ["llama-cpp-python[server]", "transformers[serving]"])
def test_pins_cover_what_extras_of_others_bring(asked: str) -> None:
    """What ``name[extra]`` adds to a distribution is pinned with it."""
    assert asked in [line for lines in EXTRAS.values() for line in lines]
    try:
        lines = metadata.requires(name_of(asked)) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name_of(asked)} is not installed")
    of_extra = [line for line in lines if re.search(rf"extra == ['\"]{inner_of(asked)[0]}", line)]
    assert of_extra
    assert {name_of(line) for line in of_extra} - set(pins()) == set()


def test_pins_are_exact_and_public() -> None:
    """Each line is ``name==version``: no local version (+cpu), no marker, no address."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wrong = [
        line
        for line in lines
        if line and not line.startswith("#") and not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line)
    ]
    assert wrong == []


def test_pins_cover_what_is_asked_for() -> None:
    """Every distribution of the core and of all extras is pinned."""
    asked = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    # These two pin a torch of their own: nothing can share a set of versions with them.
    shared = [extra for extra in EXTRAS if extra not in ("unsloth", "vllm")]
    asked |= {name for extra in shared for name in asked_by(extra)}
    assert asked - set(pins()) == set()


def test_entry_points_exist() -> None:
    """What the package announces can be imported."""
    from importlib import import_module

    announced = [*PROJECT["scripts"].values()]
    announced += PROJECT["entry-points"]["nbproviders.providers"].values()
    for target in announced:
        module, _, name = target.partition(":")
        assert hasattr(import_module(module), name), target
