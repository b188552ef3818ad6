"""The README: its code runs, its commands name what is there, its picture and links exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.test_packaging import EXTRAS, PROJECT, pins

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (
    'pip install -c constraints.txt -e ".[local]" && nbproviders demo',
    'pip install -c constraints.txt -e ".[local,llama-cpp]"',
    'pip install -c constraints.txt -e ".[dev]" && pytest',
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
async def test_code_runs(capsys):
    """The Python blocks run one after another, as cells do, and do what the text says."""
    names: dict[str, Any] = {}
    compiled = importlib.util.find_spec("llama_cpp") is not None
    for block in blocks("python"):
        if "llama-cpp" in block and not compiled:
            continue
        code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)
        if inspect.isawaitable(value):
            await value
    assert names["answer"] == "42"
    assert capsys.readouterr().out == "retto" + ("42\n" if compiled else "")
    assert set(names["result"].frame["model"]) == {"demo-s", "demo-m"}
    held = [one.spec for one in names["nbp"].residents()]
    assert "transformers:demo-s" in held
    assert "transformers:demo-m" not in held


def test_commands():
    """The shell blocks are the commands that set everything up, and ask for extras that exist."""
    assert [block.strip() for block in blocks("bash")] == list(COMMANDS)
    for extras in re.findall(r"\.\[([\w,-]+)\]", TEXT):
        assert set(extras.split(",")) <= set(EXTRAS)
    assert (ROOT / "constraints.txt").exists()


def test_subcommands_exist():
    """Each ``nbproviders …`` the text names is a command of the installed script."""
    from nbproviders import cli

    assert PROJECT["scripts"]["nbproviders"] == "nbproviders.cli:main"
    usage = cli._parser().format_help()
    for name in set(re.findall(r"\bnbproviders (demo|lab|list|\w+)`", TEXT)):
        assert re.search(rf"^ +{name} ", usage, re.MULTILINE), name


def test_torch_version():
    """The optional line for a CPU build installs the version that the constraints then accept."""
    assert re.findall(r"torch==([\d.]+)", TEXT) == [pins()["torch"]]


def test_python_versions():
    """The versions of Python it names are those that pyproject allows."""
    low, high = re.findall(r"3\.\d+", PROJECT["requires-python"])
    named = re.search(r"Python (3\.\d+) to (3\.\d+)", TEXT)
    assert named is not None
    assert (named[1], f"3.{int(named[2][2:]) + 1}") == (low, high)


def test_links_exist():
    """Every file it links to is in the repository."""
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), link


def test_picture():
    """The picture is a PNG at twice the resolution, described in words, and under 300 KB."""
    found = re.search(r"!\[([^\]]{20,})\]\(([^)]+)\)", TEXT)
    assert found is not None
    raw = (ROOT / found[2]).read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, _ = struct.unpack(">II", raw[16:24])
    assert width >= 1200
    assert len(raw) < 300_000


def test_one_screen_to_the_first_output():
    """The first command stands within the first ten lines."""
    assert COMMANDS[0] in "\n".join(TEXT.splitlines()[:10])
