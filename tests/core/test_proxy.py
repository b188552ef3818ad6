"""A resource that is no model is called through its client, where it lives."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.abc import ModelHandle, ModelProvider


class Table:
    def rows(self, n: int, *, up: bool = False) -> list[int]:
        return list(range(n + up))

    def thread(self) -> str:
        return threading.current_thread().name


class Database:
    """Stands for any connection: sync and async methods, and things below it."""

    def __init__(self) -> None:
        self.table = Table()
        self.closed = False

    async def query(self, text: str) -> tuple[str, str]:
        await asyncio.sleep(0)
        return text, threading.current_thread().name

    def fail(self) -> None:
        raise KeyError("no such table")

    def close(self) -> None:
        self.closed = True


class Databases(ModelProvider):
    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        return ModelHandle(resource_spec, Database(), self)

    async def teardown(self, resource_id: str) -> None:
        return None


async def test_methods_are_called_where_the_resource_lives() -> None:
    """Coroutines run on the engine's loop, plain methods on the resource's thread, both awaited."""
    async with Databases().model("main") as db:
        assert await db.query("select") == ("select", "nbproviders-engine")
        assert await db.table.rows(2, up=True) == [0, 1, 2]
        assert await db.table.thread() not in ("nbproviders-engine", "MainThread")
        with pytest.raises(nbp.ProviderError, match="KeyError: 'no such table'"):
            await db.fail()
        with pytest.raises(nbp.UnsupportedError, match="neither generate nor"):
            await db.generate("x")
        kept, raw = db.query, db.raw
    with pytest.raises(nbp.ClosedError):
        await kept("after its block")
    await asyncio.to_thread(nbp.unload_all)
    assert raw.closed


def test_blocking_clients_call_it_too() -> None:
    """With a SyncClient the same calls return their results."""
    with Databases().model("main") as db:
        assert db.query("select")[0] == "select"
        assert db.table.rows(1) == [0]
    nbp.unload_all()


async def test_a_model_has_no_other_methods() -> None:
    """A client of a real model has its own methods only; a misspelt one is an AttributeError."""
    async with nbp.model("echo:a") as m:
        assert not hasattr(m, "genrate")
    nbp.unload_all()
