"""Promises of the magic."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nbproviders as nbp
from nbproviders import ipython


class Shell:
    """What an extension sees of IPython."""

    def __init__(self) -> None:
        self.magics: dict[str, object] = {}

    def register_magic_function(self, function, magic_kind, magic_name):  # type: ignore[no-untyped-def]
        self.magics[f"{magic_kind} {magic_name}"] = function


def test_loading_the_extension_registers_the_magic() -> None:
    """%load_ext nbproviders brings %nbproviders."""
    shell = Shell()
    nbp.load_ipython_extension(shell)  # type: ignore[arg-type]
    assert list(shell.magics) == ["line nbproviders"]


def test_residents_and_unload() -> None:
    """The magic shows what is in memory and frees it."""
    m = nbp.load_sync("echo:a")
    assert [one.spec for one in ipython.magic("residents")] == ["echo:a"]
    assert ipython.magic(" unload ") == 0
    assert ipython.magic("residents") == []
    m.close()


@pytest.mark.parametrize("word", ["", "nets", "residents unload"])
def test_any_other_word_is_told(word: str) -> None:
    """A misspelt word is refused with those there are."""
    with pytest.raises(nbp.ConfigurationError, match="nest, residents or unload"):
        ipython.magic(word)


REAL = """
import asyncio
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "nbproviders")
async def cell():
    async def inner():
        return "nested"
    work = inner()
    try:
        return asyncio.run(work)
    except RuntimeError:
        work.close()
        return "refused"
print(asyncio.new_event_loop().run_until_complete(cell()))
shell.run_line_magic("nbproviders", "nest")
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
print(loop.run_until_complete(cell()))
"""


def test_nest_only_when_asked_for() -> None:
    """asyncio.run inside a running loop works after %nbproviders nest, and only then."""
    ran = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.split()[-2:] == ["refused", "nested"], ran.stderr
