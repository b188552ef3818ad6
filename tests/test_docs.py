"""The pages in docs: their code runs, they name every option, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.providers.llamacpp import LlamaCppProvider

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROVIDERS = sorted((DOCS / "providers").glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)\)")
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def on_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
async def test_code_runs(page, tmp_path, monkeypatch):
    """The Python blocks of a page run one after another, as cells do, in an empty folder, offline."""
    if page in PROVIDERS and page.stem in ("llama-cpp", "optimized", "transformers"):
        found = nbp.list_available()[page.stem]
        if not found.available:
            pytest.skip(found.reason)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {}
    for block in blocks(page):
        code = compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)
        if inspect.isawaitable(value):
            await value


@pytest.mark.parametrize("page", PROVIDERS, ids=name_of)
def test_options_are_named(page):
    """A provider's page, or one that it builds on, names each option of the provider."""
    text = page.read_text(encoding="utf-8")
    built_on = [page.parent / link for link in LINK.findall(text) if link.endswith(".md")]
    every = "\n".join([text, *(one.read_text(encoding="utf-8") for one in built_on)])
    (provider,) = entry_points(group="nbproviders.providers", name=page.stem)
    options = provider.load().options
    assert options
    assert [name for name in options if not re.search(rf"`{name}[`=]", every)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_exist(page):
    """Every file a page links to is in the repository."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).is_file(), link


def test_llama_cpp_defaults():
    """The table of llama-cpp's options has a row for each, and tells the default that the code has."""
    text = (DOCS / "providers" / "llama-cpp.md").read_text(encoding="utf-8")
    rows = {name: default for name, default, _ in ROW.findall(text)}
    assert list(rows) == list(LlamaCppProvider.options)
    told = {name: f"`{option.default}`" for name, option in LlamaCppProvider.options.items()}
    assert {name: rows[name] for name in told if told[name] != "`None`"} == {
        name: default for name, default in told.items() if default != "`None`"
    }


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed"
)
def test_llama_cpp_numbers():
    """The numbers that the page on llama-cpp tells are those of the code."""
    from nbproviders.runtimes.llamacpp import plan

    text = on_one_line((DOCS / "providers" / "llama-cpp.md").read_text(encoding="utf-8"))
    assert f"at most {plan.DEFAULT_CTX} |" in text
    assert f"largest of {plan._LEAST_CACHE_BYTES >> 20} MiB, a quarter of" in text
    words = re.search(r"type of the cached keys: ([^|]*) \|", text)
    assert words is not None
    assert set(re.findall(r"`(\w+)`", words[1])) == set(plan.CACHE_TYPES)
