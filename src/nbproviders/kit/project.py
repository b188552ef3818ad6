"""Writing the package: its files from templates, all of them or none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from string import Template

from nbproviders.errors import ConfigurationError
from nbproviders.kit.names import Names

_MOST_LISTED = 5
# Where each file goes, and the template that it is made of. No template is called as its file is: pytest,
# the linters and a wheel's reader would take it for one of nbproviders' own.
_FILES = {
    ".gitignore": "gitignore.txt",
    "README.md": "readme.md.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "src/$package/__init__.py": "init.py.txt",
    "src/$package/fixtures.py": "fixtures.py.txt",
    "src/$package/provider.py": "provider.py.txt",
    "tests/test_evaluation.py": "evaluation_test.py.txt",
    "tests/test_provider.py": "provider_test.py.txt",
}


@dataclass(frozen=True, slots=True)
class Style:
    """One way of writing a provider.

    Attributes
    ----------
    about
        What it is for, in a few words.
    model
        A model to begin with, as the next steps name it.
    fields
        What the templates of this style say besides the names.
    files
        Files that only this style has.
    """

    about: str
    model: str
    fields: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


STYLES: Mapping[str, Style] = {
    "resource": Style(
        "you set something up and tear it down: a client, a server, a connection (setup, teardown)",
        "upper",
        {"dependencies": '"nbproviders"', "pytest": ""},
    ),
    "request": Style(
        "a service answers over HTTP (generate, health_check, stream)",
        "upper",
        {"dependencies": '"aiohttp", "nbproviders"', "pytest": '\npythonpath = ["tests"]'},
        {
            "tests/conftest.py": "service_fixture.py.txt",
            "tests/local_service.py": "local_service.py.txt",
        },
    ),
    "weights": Style(
        "you load a model and its tokenizer (load_model, load_tokenizer, validate_model_access)",
        "smollm2",
        {"dependencies": '"nbproviders[transformers]"', "pytest": ""},
    ),
}


def new_provider(name: str, style: str, into: str | Path = ".") -> Path:
    """Write the package of a new provider into a folder of its own, and return that folder.

    Parameters
    ----------
    name
        The project's: ``my-provider`` makes the package ``my_provider`` with a class ``MyProvider``, used as
        ``nbp.model("my:…")``.
    style
        One of `STYLES`: ``resource``, ``request`` or ``weights``.
    into
        The folder in which it is written.

    Raises
    ------
    ConfigurationError
        For a name or style that cannot be, and if anything is in the way; then nothing is written.
    """
    names, kind = Names.of(name), _style(style)
    parent = Path(into).expanduser()
    if not parent.is_dir():
        raise ConfigurationError(
            f"{str(into)!r} is no folder to write {names.project} into.", hint="Make it first."
        )
    target = parent / names.project
    _refuse_what_is_there(target)
    try:
        _write(_texts(names, style, kind), target)
    except OSError as error:
        raise ConfigurationError(
            f"{target} cannot be written: {error.strerror or error}.",
            hint="Name a folder of your own: --into FOLDER.",
        ) from None
    return target


def next_steps(folder: Path, style: str) -> list[str]:
    """Return what to do with a package that was just written: install it, test it, use it."""
    names = Names.of(folder.name)
    quoted = f'"{folder}"' if " " in str(folder) else str(folder)
    return [
        f'install  pip install -e "{folder}[test]"',
        f"test     pytest {quoted}",
        f'use      nbp.model("{names.provider}:{_style(style).model}")',
    ]


def _style(name: str) -> Style:
    found = STYLES.get(name)
    if found is None:
        told = f"{name!r} is no style of providers." if name else "Say which style of provider."
        each = "\n".join(f"  {one:10}{style.about}" for one, style in STYLES.items())
        raise ConfigurationError(told, hint=f"Styles:\n{each}")
    return found


def _refuse_what_is_there(target: Path) -> None:
    if target.is_dir():
        found = sorted(path.name for path in target.iterdir())
        if not found:
            return
        listed = ", ".join(found[:_MOST_LISTED])
        more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        wrong = f"The folder {target} is not empty: {listed}{more}."
    elif target.exists() or target.is_symlink():
        wrong = f"{target} is there, and is no folder."
    else:
        return
    raise ConfigurationError(
        wrong, hint="Choose another name, or write it elsewhere: --into FOLDER."
    )


def _texts(names: Names, style: str, kind: Style) -> dict[str, str]:
    """Return the text of each file by its path."""
    fields = {**asdict(names), **kind.fields, "variable": names.provider.upper()}
    return {
        Template(path).substitute(fields): Template(_template(style, source)).substitute(fields)
        for path, source in {**_FILES, **kind.files}.items()
    }


def _template(style: str, name: str) -> str:
    """Return a template's text: the style's own, or the one that all share."""
    folder = resources.files(__package__) / "templates"
    own = folder / style / name
    return (own if own.is_file() else folder / "shared" / name).read_text(encoding="utf-8")


def _write(texts: Mapping[str, str], target: Path) -> None:
    """Write all files beside their place, and then put them there in one step."""
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        whole = beside / target.name
        for path, text in texts.items():
            place = whole / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8", newline="\n")
        if target.is_dir():  # and empty; Windows does not rename onto it
            target.rmdir()
        whole.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
