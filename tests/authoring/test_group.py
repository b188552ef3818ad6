"""Promises of opening several models in one line: all of them or none, each with a client of its own."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

import nbproviders as nbp
from nbproviders.abc import Model, Progress, ResourceKey
from nbproviders.authoring.group import ModelGroup
from nbproviders.residency import residency as residencies
from tests.scripted import (
    BOUND_S,
    Gate,
    ScriptedModel,
    ScriptedProvider,
    happened,
    joined,
    settled,
)


@pytest.fixture
def lab() -> type[ScriptedProvider]:
    """A provider of models that take 1000 bytes of a device each."""

    class Lab(ScriptedProvider):
        def estimate(self, key: ResourceKey) -> dict[str, int]:
            return {"fake:0": 1000}

        def load(self, key: ResourceKey, progress: Progress) -> Model:
            model = super().load(key, progress)
            assert isinstance(model, ScriptedModel)
            model.info = type(model.info)("", 4, {"fake:0": 1000})
            return model

    nbp.register_provider("lab", Lab)
    return Lab


def handles() -> dict[str, int]:
    return {one.spec: one.handles for one in nbp.residents()}


async def test_clients_in_the_order_of_the_references(lab: type[ScriptedProvider]) -> None:
    """Each is a client like any other; after the block they are closed and the models stay."""
    async with nbp.models("lab:a", "lab:b") as (a, b):
        assert [a.spec, b.spec] == ["lab:a", "lab:b"]
        assert await asyncio.gather(a.generate("one"), b.generate("two")) == ["one", "two"]
        assert handles() == {"lab:a": 1, "lab:b": 1}
    assert handles() == {"lab:a": 0, "lab:b": 0}
    with pytest.raises(nbp.ClosedError):
        await a.generate("x")


def test_in_a_script(lab: type[ScriptedProvider]) -> None:
    """The same with ``with``: blocking clients, and an error in the block closes them as well."""
    with nbp.models("lab:a", "lab:b") as (a, b):
        assert isinstance(a, nbp.SyncClient)
        assert a.generate("x", timeout_s=BOUND_S) == b.generate("x", timeout_s=BOUND_S)
    with pytest.raises(ValueError, match="mine"), nbp.models("lab:a", "lab:b"):
        raise ValueError("mine")
    assert handles() == {"lab:a": 0, "lab:b": 0}


async def test_kept_beyond_a_block(lab: type[ScriptedProvider]) -> None:
    """open gives clients that whoever opened them closes, each by itself."""
    a, b = await nbp.models("lab:a", "lab:b").open()
    a.close()
    assert handles() == {"lab:a": 0, "lab:b": 1}
    assert await b.generate("x") == "x"
    b.close()
    c, d = await asyncio.to_thread(nbp.models("lab:a", "lab:b").open_sync, BOUND_S)
    assert handles() == {"lab:a": 1, "lab:b": 1}
    c.close()
    d.close()


async def test_the_same_model_twice(lab: type[ScriptedProvider]) -> None:
    """Two clients of one model, loaded once; closing one leaves the other open."""
    async with nbp.models("lab:a", "lab:b", "lab:a") as (a, _, again):
        assert handles() == {"lab:a": 2, "lab:b": 1}
        a.close()
        assert await again.generate("x") == "x"
    assert handles() == {"lab:a": 0, "lab:b": 0}
    assert len(lab.loads) == 2


def test_no_model_at_all() -> None:
    """It is refused where it is written, with the line to write."""
    with pytest.raises(nbp.ConfigurationError, match="none was given") as caught:
        nbp.models()
    assert 'models("transformers:demo-s"' in caught.value.hint
    with pytest.raises(nbp.ConfigurationError):
        ModelGroup([])


@pytest.mark.parametrize("bad", ["nobody:x", "", "echo:x?oops=1", None, 5, ["echo:a", "echo:b"]])
def test_a_reference_that_cannot_be(bad: object) -> None:
    """One is enough to refuse the line, before anything loads."""
    with pytest.raises(nbp.ConfigurationError):
        nbp.models("echo:echo", bad)  # type: ignore[arg-type]
    assert nbp.residents() == []


def test_what_never_fits_is_refused_when_it_is_entered(
    lab: type[ScriptedProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone would fit: the error names both, nothing loads, and what is there stays."""
    monkeypatch.setenv("NBPROVIDERS_BUDGET", "fake:0=1500B")
    with nbp.model("lab:a") as m:
        assert m.generate("x", timeout_s=BOUND_S) == "x"
    group = nbp.models("lab:b", "lab:c")
    with pytest.raises(nbp.InsufficientMemoryError, match="lab:b and lab:c need"), group:
        pass
    assert (len(lab.loads), handles()) == (1, {"lab:a": 0})


async def test_one_that_fails_leaves_none_open(lab: type[ScriptedProvider]) -> None:
    """The error is that of the one, and no handle stays of the others."""
    lab.failure = OSError("no such file")
    with pytest.raises(
        nbp.ProviderError, match=r"Failed to setup resource 'lab:.': OSError: no such"
    ):
        await nbp.models("lab:a", "lab:b").open()
    assert sum(handles().values()) == 0
    async with asyncio.timeout(BOUND_S):
        while nbp.residents():  # the other one's thread is told to stop, and does so in its time
            await asyncio.sleep(0.001)
    lab.failure = None
    a, b = await nbp.models("lab:a", "lab:b").open()
    a.close()
    b.close()


async def test_stop_leaves_nothing_open(lab: type[ScriptedProvider]) -> None:
    """A cancelled cell has no handle of any of them, though one had loaded already; it can be run again."""
    (await nbp.load("lab:a")).close()
    lab.hold = threading.Event()
    lab.started.clear()
    opening = asyncio.ensure_future(nbp.models("lab:a", "lab:b").open())
    await happened(lab.started)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    lab.hold.set()
    await asyncio.to_thread(settled)
    entry = residencies.default().find(nbp.model("lab:a").loader.key)
    assert entry is not None
    assert (entry.hard, handles()["lab:a"]) == (0, 0)
    async with nbp.models("lab:a", "lab:b") as (_, b):
        assert await b.generate("x") == "x"


async def test_a_group_that_was_dropped_gives_its_handles_back(
    lab: type[ScriptedProvider],
) -> None:
    """Clients that nobody holds any more leak nothing."""
    clients = await nbp.models("lab:a", "lab:b").open()
    assert handles() == {"lab:a": 1, "lab:b": 1}
    del clients
    async with asyncio.timeout(BOUND_S):  # the engine's thread may hold them a moment longer
        while handles() != {"lab:a": 0, "lab:b": 0}:
            gc.collect()
            await asyncio.sleep(0.01)


async def test_one_group_entered_by_many(lab: type[ScriptedProvider]) -> None:
    """Tasks and threads that enter the same group at once each leave with their own clients."""
    group = nbp.models("lab:a", "lab:b")
    gate, inside = Gate(), []

    async def enter() -> None:
        async with group as (a, _):
            inside.append(a)
            await gate.passed()
            assert await a.generate("x") == "x"

    tasks = [asyncio.ensure_future(enter()) for _ in range(3)]
    async with asyncio.timeout(BOUND_S):
        while len(inside) < 3:
            await asyncio.sleep(0.001)
    assert len(set(map(id, inside))) == 3
    assert handles() == {"lab:a": 3, "lab:b": 3}
    tasks[1].cancel()
    gate.open()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert handles() == {"lab:a": 0, "lab:b": 0}

    def enter_blocking() -> None:
        with group as (a, b):
            assert a.generate("x", timeout_s=BOUND_S) == b.generate("x", timeout_s=BOUND_S)

    with joined(*(threading.Thread(target=enter_blocking) for _ in range(3))):
        pass
    assert handles() == {"lab:a": 0, "lab:b": 0}


def test_what_a_group_says_of_itself() -> None:
    """Printed without being entered, it tells how."""
    text = repr(nbp.models("echo:echo", "echo:other"))
    assert "echo:echo, echo:other" in text
    assert "async with" in text
