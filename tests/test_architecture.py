"""The house keeps its plan: who may import whom, what is imported when, and how long things get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nbproviders"

# Level and room of each module, found by its longest listed prefix. A module imports its own room and
# rooms of a lower level; two rooms of one level do not know each other.
PLAN = {
    "errors": (0, "values"),
    "core.completion": (0, "values"),
    "core.config": (0, "values"),
    "core.params": (0, "values"),
    "core.spec": (0, "values"),
    "core.tokens": (0, "values"),
    "core": (1, "waist"),
    "residency": (2, "residency"),
    "runtimes": (3, "runtimes"),
    "demo": (3, "demo"),
    "catalog": (4, "catalog"),
    "authoring": (5, "authoring"),
    "registry": (6, "registry"),
    "providers": (7, "providers"),
    "routing": (7, "routing"),
    "render": (8, "render"),
    "testing": (9, "testing"),
    "session": (9, "session"),
    "comparison": (9, "comparison"),
    "widgets": (10, "widgets"),
    "ipython": (10, "ipython"),
    "pytest_plugin": (10, "pytest_plugin"),
    "cli": (10, "cli"),
    "doctor": (10, "cli"),
    "kit": (10, "cli"),
    "__main__": (10, "cli"),
    "ray": (10, "ray"),
    "__init__": (11, "names"),
    "abc": (11, "names"),
}

# The demo models stand for themselves: of us they know the errors, whatever their level would allow.
ISLANDS = {"demo": {"errors"}}

# Which rooms may name a third-party package. One that is not listed may be named nowhere.
PACKAGES = {
    "pydantic": {"values"},
    "pydantic_core": {"values"},
    "stamina": {"waist"},
    "psutil": {"residency"},
    "aiohttp": {"runtimes"},
    "bitsandbytes": {"runtimes", "providers"},
    "gguf": {"demo"},
    "huggingface_hub": {"runtimes", "providers"},
    "jinja2": {"runtimes"},
    "llama_cpp": {"runtimes", "providers", "demo"},
    "safetensors": {"runtimes", "providers", "demo"},
    "torch": {"runtimes", "providers", "demo"},
    "transformers": {"runtimes", "providers", "demo"},
    "tokenizers": {"demo"},
    "platformdirs": {"catalog", "runtimes"},
    "yaml": {"registry"},
    "keyring": {"catalog"},
    "google": {"catalog"},  # Colab's own module
    "genai_prices": {"catalog"},
    "unsloth": {"providers"},
    "tqdm": {"runtimes", "authoring", "comparison", "cli"},
    "numpy": {"runtimes", "demo", "render", "comparison"},
    "pandas": {"values", "waist", "routing", "render", "comparison"},
    "matplotlib": {"render"},
    "IPython": {"authoring", "catalog", "render", "comparison", "widgets", "ipython"},
    "ipywidgets": {"widgets"},
    "traitlets": {"widgets"},
    "nest_asyncio2": {"ipython"},
    "pytest": {"testing", "pytest_plugin"},
    "dotevals": {"comparison", "pytest_plugin"},
    "jupyter_client": {"cli"},
    "packaging": {"cli"},
    "ray": {"ray"},
}

# What costs little, or is the point of the module, may be imported with it; the rest on first use.
AT_ONCE = {
    "pydantic": {"values"},
    "pydantic_core": {"values"},
    "ipywidgets": {"widgets"},
    "traitlets": {"widgets"},
    "pytest": {"testing", "pytest_plugin"},
}

HEAVY = (
    "torch transformers llama_cpp aiohttp pandas matplotlib ipywidgets IPython ray numpy "
    "huggingface_hub tokenizers safetensors psutil"
).split()

MODULE_LINES = 400
FUNCTION_LINES = 40


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, and when it is imported."""

    name: str
    line: int
    when: str  # "at once", "for types" or "on use"


@dataclass(frozen=True)
class Module:
    """One source file, named relative to the package: ``core.spec``."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    def at(self, line: int) -> str:
        return f"{self.path.name if '.' not in self.name else self.name}:{line}"


def read(source: Path) -> list[Module]:
    """Return all modules of a package folder, with their imports."""
    paths = {_name(path, source): path for path in sorted(source.rglob("*.py"))}
    known = {f"nbproviders.{name}" for name in paths}
    modules = []
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = tuple(_imports(tree, _package(name, path), known, "at once"))
        modules.append(Module(name, path, tree, imports))
    return modules


def _name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def _package(name: str, path: Path) -> list[str]:
    parts = ["nbproviders", *name.split(".")]
    return parts if path.name == "__init__.py" and len(parts) > 2 else parts[:-1]


def _imports(node: ast.AST, package: list[str], known: set[str], when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, when)
        elif isinstance(child, ast.ImportFrom):
            start = package[: len(package) - child.level + 1] if child.level else []
            base = ".".join([*start, *([child.module] if child.module else [])])
            for name in child.names:
                if (base, name.name) != ("nbproviders", "__version__"):
                    whole = f"{base}.{name.name}"
                    yield Import(whole if whole in known else base, child.lineno, when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(ast.Module(child.body, []), package, known, "for types")
            yield from _imports(ast.Module(child.orelse, []), package, known, when)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, package, known, "on use")
        else:
            yield from _imports(child, package, known, when)


def place(name: str) -> tuple[int, str]:
    """Return level and room of a module; ``(-1, "")`` if the plan does not know it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        found = PLAN.get(".".join(parts[:length]))
        if found is not None:
            return found
    return -1, ""


def ours(found: Import) -> str | None:
    """Return the name within the package, or None for what is not ours."""
    top, _, rest = found.name.partition(".")
    return (rest or "__init__") if top == "nbproviders" else None


Rule = Callable[[list[Module]], list[str]]


def unplanned(modules: list[Module]) -> list[str]:
    return [module.name for module in modules if not place(module.name)[1]]


def climbing(modules: list[Module]) -> list[str]:
    """Return the imports of a higher room, of another on the same level, or out of an island."""
    found = []
    for module in modules:
        level, room = place(module.name)
        for imported in module.imports:
            target = ours(imported)
            if target is None or place(target)[1] == room:
                continue
            closed = room in ISLANDS and target not in ISLANDS[room]
            if closed or place(target)[0] >= level:
                found.append(f"{module.at(imported.line)} ({room}) imports {target}")
    return found


def reaching_providers(modules: list[Module]) -> list[str]:
    """Return the imports of a provider: they are plugins, ours like anyone's."""
    return [
        f"{module.at(imported.line)} imports {imported.name}"
        for module in modules
        for imported in module.imports
        if f"{imported.name}.".startswith("nbproviders.providers.")
        and place(module.name)[1] != "providers"
    ]


def cycles(modules: list[Module]) -> list[str]:
    """Return one cycle among the imports made at once, if there is any."""
    graph = {
        module.name: {ours(i) or "" for i in module.imports if i.when == "at once"} - {""}
        for module in modules
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def misplaced_packages(modules: list[Module]) -> list[str]:
    """Return the third-party imports in a room that may not make them, or made too early."""
    found = []
    for module in modules:
        room = place(module.name)[1]
        for imported in module.imports:
            package = imported.name.partition(".")[0]
            if package == "nbproviders" or package in sys.stdlib_module_names:
                continue
            if room not in PACKAGES.get(package, ()):
                found.append(f"{module.at(imported.line)} ({room}) imports {package}")
            elif imported.when == "at once" and room not in AT_ONCE.get(package, ()):
                found.append(f"{module.at(imported.line)} imports {package} before its use")
    return found


def too_long(modules: list[Module]) -> list[str]:
    """Return modules and functions over their ceiling; a function's docstring does not count."""
    found = []
    for module in modules:
        lines = len(module.path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            found.append(f"{module.name}: {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if length > FUNCTION_LINES:
                    found.append(f"{module.at(node.lineno)} {node.name}: {length} lines")
    return found


def without_init(source: Path) -> list[str]:
    """Return folders that hold modules and are no package."""
    folders = {path.parent for path in source.rglob("*.py")}
    return sorted(folder.name for folder in folders if not (folder / "__init__.py").exists())


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return read(SOURCE)


@pytest.mark.parametrize(
    "rule", [unplanned, climbing, reaching_providers, cycles, misplaced_packages, too_long]
)
def test_rule(rule: Rule, modules: list[Module]) -> None:
    """No module of the package breaks it."""
    assert rule(modules) == []


def test_folders_are_packages() -> None:
    """Each folder of modules is a regular package: no namespace package shadows or is shadowed."""
    assert without_init(SOURCE) == []


def test_heavy_packages_are_late() -> None:
    """The tables let nothing heavy be imported with a module, but widgets by widgets."""
    early = {package: rooms for package, rooms in AT_ONCE.items() if package in HEAVY}
    assert early == {"ipywidgets": {"widgets"}}


def test_import_is_light() -> None:
    """``import nbproviders`` brings none of the packages that take long to import."""
    code = f"import sys, nbproviders; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_public_names_are_no_submodules() -> None:
    """A public name that is also a submodule would change its meaning once that is imported."""
    import nbproviders

    submodules = {path.stem for path in SOURCE.glob("*.py")}
    submodules |= {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert set(nbproviders.__all__) & submodules == set()


def plant(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


LONG_BODY = "def f():\n    '''Say.'''\n" + "    a = 1\n" * (FUNCTION_LINES + 1)


@pytest.mark.parametrize(
    ("rule", "name", "text", "finding"),
    [
        (unplanned, "cellar.wine", "", "cellar.wine"),
        (climbing, "core.model", "from nbproviders import registry", "imports registry"),
        (climbing, "core.model", "from nbproviders.residency.plan import plan", "residency.plan"),
        (climbing, "core.params", "from nbproviders.core.model import Model", "core.model"),
        (climbing, "core.model", "from ..residency import plan", "imports residency"),
        (climbing, "core.model", "import nbproviders", "imports __init__"),
        (climbing, "widgets.picker", "import nbproviders.cli", "imports cli"),
        (climbing, "core.model", "def f():\n    import nbproviders.cli", ":2 (waist) imports cli"),
        (climbing, "core.model", "if TYPE_CHECKING:\n    import nbproviders.cli", "imports cli"),
        (climbing, "demo.items", "import nbproviders.core.model", "imports core.model"),
        (reaching_providers, "cli", "import nbproviders.providers.echo", "providers.echo"),
        (reaching_providers, "cli", "from nbproviders import providers", "nbproviders.providers"),
        (cycles, "core.a", "from nbproviders.core import b", "core.b imports core.a"),
        (misplaced_packages, "runtimes.x", "import torch", "imports torch before its use"),
        (misplaced_packages, "runtimes.x", "class A:\n    import torch.nn", "before its use"),
        (misplaced_packages, "runtimes.x", "try:\n    import torch\nfinally: pass", "before its"),
        (misplaced_packages, "render.x", "def f():\n    import torch", "(render) imports torch"),
        (misplaced_packages, "render.x", "import leftpad", "(render) imports leftpad"),
        (too_long, "cli", "\n" * (MODULE_LINES + 1), "cli: 401 lines"),
        (too_long, "cli", LONG_BODY, "f: 41 lines"),
    ],
)
def test_rule_can_fail(rule: Rule, name: str, text: str, finding: str, tmp_path: Path) -> None:
    """A planted breach is found: the rules above do not pass by looking away."""
    plant(tmp_path, {"registry": "", "providers.__init__": ""})
    plant(tmp_path, {"core.b": "import nbproviders.core.a", name: text})
    found = rule(read(tmp_path))
    assert len(found) == 1
    assert finding in found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core.model", "from nbproviders.core.params import Request\nimport nbproviders.errors"),
        ("runtimes.x", "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch"),
        ("core.a", "def f():\n    import nbproviders.core.a"),
        ("cli", "from nbproviders import __version__\nfrom nbproviders.demo import tasks"),
        ("cli", "\n" * MODULE_LINES),
        ("cli", "def f():\n    '''" + "Say.\n" * 99 + "'''"),
    ],
)
def test_rules_let_pass(name: str, text: str, tmp_path: Path) -> None:
    """What the plan allows is no finding."""
    plant(tmp_path, {name: text})
    modules = read(tmp_path)
    rules = (unplanned, climbing, reaching_providers, cycles, misplaced_packages, too_long)
    assert [finding for rule in rules for finding in rule(modules)] == []
