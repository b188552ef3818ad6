"""The pages in docs: their code runs, they name every option, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.catalog.services import SERVICES
from nbproviders.providers.llamacpp import LlamaCppProvider
from nbproviders.runtimes.process.state import STATE_VARIABLE
from tests.services.anthropic import AnthropicServer
from tests.services.gigachat import GigaChatServer
from tests.services.keys import FAKE
from tests.services.openai import OpenAIServer
from tests.services.server import LocalServer

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROVIDERS = sorted((DOCS / "providers").glob("*.md"))
# Providers whose packages may be missing, and whose pages then cannot run.
LOCAL = ("llama-cpp", "llama-server", "optimized", "transformers", "transformers-serve")
LINK = re.compile(r"\]\(([^)#\s]+)\)")
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)


# What the pages on services talk to: a local server at the address that the environment names.
SERVED: dict[str, tuple[Callable[..., LocalServer], str, str]] = {
    "openai": (OpenAIServer, "OPENAI_BASE_URL", "OPENAI_API_KEY"),
    "anthropic": (AnthropicServer, "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
    "gigachat": (GigaChatServer, "GIGACHAT_BASE_URL", "GIGACHAT_CREDENTIALS"),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """The environment in which all of them are reached."""
    with ExitStack() as stack:
        environment = {}
        for make, address, key in SERVED.values():
            environment[key] = FAKE
            server = stack.enter_context(make(key=FAKE))
            environment[address] = server.base_url
            if isinstance(server, GigaChatServer):
                environment["GIGACHAT_AUTH_URL"] = server.auth_url
        yield environment


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def on_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
async def test_code_runs(page, servers, tmp_path, monkeypatch):
    """The Python blocks of a page run one after another, as cells do, in an empty folder, offline."""
    if page in PROVIDERS and page.stem in LOCAL:
        found = nbp.list_available()[page.stem]
        if not found.available:
            pytest.skip(found.reason)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    for variable, value in servers.items():
        monkeypatch.setenv(variable, value)
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


def test_services_are_listed():
    """The page on services has a row for each, with the variables of its key."""
    text = (DOCS / "services.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    told = {name: tuple(re.findall(r"`(\w+)`", keys)) for name, keys in rows}
    assert told == {name: row.key_variables for name, row in SERVICES.items()}


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
