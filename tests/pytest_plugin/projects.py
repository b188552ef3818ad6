"""What the tests of the plugin put into a project of their own: a provider that writes down what it does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Models of `counting` answer with their name; `slow` takes a minute to be set up.
COUNTING = """
import asyncio
import os

import pytest

import nbproviders as nbp
from nbproviders.abc import ModelHandle, ModelProvider


def log(*words):
    with open(os.environ["LOG"], "a") as file:
        print(*words, os.getpid(), file=file)


class Named:
    def __init__(self, name):
        self.name = name

    async def generate(self, prompt):
        log("asked", self.name)
        await asyncio.sleep(60 if prompt == "slowly" else 0)
        return f"{self.name} says {prompt}"


class CountingProvider(ModelProvider):
    async def setup(self, resource_spec, **config):
        log("begins", resource_spec)
        await asyncio.sleep(60 if resource_spec == "slow" else 0)
        log("setup", resource_spec)
        return ModelHandle(resource_spec, Named(resource_spec), self)

    async def teardown(self, resource_id):
        log("teardown", resource_id)


nbp.register_provider("counting", CountingProvider)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    log("end", "run")
"""


class Log:
    """The lines that a project's provider wrote: what, which model, and the process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        """All of it, in order."""
        if not self.path.exists():
            return []
        found = (line.split() for line in self.path.read_text().splitlines())
        return [(what, name, pid) for what, name, pid in found]

    def count(self, what: str) -> Counter[str]:
        """How often something was done, by model."""
        return Counter(name for done, name, _ in self.lines if done == what)

    def left_over(self) -> list[tuple[str, str]]:
        """Return the models, with their process, that were set up and not torn down before its end."""
        left: list[tuple[str, str]] = []
        for what, name, pid in self.lines:
            if what == "setup":
                left.append((name, pid))
            elif what == "teardown":
                left.remove((name, pid))
            elif what == "end" and any(owner == pid for _, owner in left):
                return left
        return left


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for another process: look again until it is so."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.02)
