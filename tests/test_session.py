"""Promises of models in a session: keep one, see what is there, free it."""

from __future__ import annotations

import asyncio
import io
import threading

import pytest

import nbproviders as nbp
from nbproviders.abc import Model, Progress, ResourceKey
from tests.scripted import BOUND_S, Gate, ScriptedModel, ScriptedProvider, happened


@pytest.fixture
def lab() -> type[ScriptedProvider]:
    class Lab(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            model = super().load(key, progress)
            assert isinstance(model, ScriptedModel)
            model.info = type(model.info)("", 4, {"fake:0": 1000})
            return model

    nbp.register_provider("lab", Lab)
    return Lab


async def test_a_model_is_kept_from_cell_to_cell(lab: type[ScriptedProvider]) -> None:
    """load gives a client without a block; it loads once and is closed by hand."""
    m = await nbp.load("lab:a", n=1)
    assert await m.generate("one two") == "one two"
    again = await nbp.load("lab:a?n=1")
    assert len(lab.loads) == 1
    m.close()
    with pytest.raises(nbp.ClosedError):
        await m.generate("x")
    assert await again.generate("x") == "x"
    again.close()


def test_a_blocking_client_is_kept(lab: type[ScriptedProvider]) -> None:
    """load_sync is the same, blocking, and takes a time limit."""
    m = nbp.load_sync("lab:a", timeout_s=BOUND_S)
    assert m.generate("x", timeout_s=BOUND_S) == "x"
    assert isinstance(m, nbp.SyncClient)
    m.close()


def test_loading_has_an_end(lab: type[ScriptedProvider]) -> None:
    """A load that takes too long is given up, with our error, and leaves nothing."""
    lab.hold = threading.Event()
    with pytest.raises(nbp.TimeoutError, match=r"0\.1 s"):
        nbp.load_sync("lab:a", timeout_s=0.1)
    lab.hold.set()
    nbp.unload_all(timeout_s=BOUND_S)
    assert nbp.residents() == []


def test_residents_are_told(lab: type[ScriptedProvider]) -> None:
    """What is in memory is a list and a table with bytes, state and handles."""
    assert nbp.residents() == []
    assert "Nothing is in memory." in nbp.residents()._repr_html_()
    m = nbp.load_sync("lab:a")
    [one] = nbp.residents()
    assert (one.spec, one.state, one.bytes, one.handles) == ("lab:a", "hot", {"fake:0": 1000}, 1)
    assert "lab:a" in repr(nbp.residents())
    assert "lab:a" in nbp.residents()._repr_html_()
    m.close()
    assert nbp.residents()[0].handles == 0


def test_unload_frees_one(lab: type[ScriptedProvider]) -> None:
    """The named model goes and its bytes are told; the others stay; once more is nothing."""
    a, b = nbp.load_sync("lab:a"), nbp.load_sync("lab:b")
    assert nbp.unload("lab:a") == 1000
    assert [one.spec for one in nbp.residents()] == ["lab:b"]
    assert lab.models[0].closed == 1
    assert nbp.unload("lab:a") == 0
    assert a.generate("again", timeout_s=BOUND_S) == "again"
    assert nbp.unload_all() == 2000
    assert nbp.residents() == []
    b.close()
    a.close()


def test_unload_finds_a_model_however_it_was_opened(lab: type[ScriptedProvider]) -> None:
    """By alias, in another order of options, or by another provider built alike."""
    nbp.alias("short", "a")
    nbp.load_sync("lab:short?x=1&y=2").close()
    assert nbp.unload("LAB:short?y=2&x=1") == 1000
    nbp.load_sync("lab:short").close()
    assert nbp.unload("lab:a") == 1000
    with lab(3).model("a"):
        pass
    assert nbp.unload("lab:a") == 1000


@pytest.mark.parametrize("reference", ["nobody:x", "demo-m", "", "echo:x?oops=1"])
def test_unload_of_what_cannot_be(reference: str) -> None:
    """A reference that cannot be read is refused, not silently nothing."""
    with pytest.raises(nbp.ConfigurationError):
        nbp.unload(reference)


async def test_unload_waits_or_forces(lab: type[ScriptedProvider]) -> None:
    """A running call is waited for within `timeout_s`; force ends it with an error."""
    lab.gate = Gate()
    m = await nbp.load("lab:a")
    call = asyncio.ensure_future(m.generate("x"))
    await happened(lab.gate.reached)
    with pytest.raises(nbp.TimeoutError):
        await asyncio.to_thread(nbp.unload, "lab:a", timeout_s=0.1)
    assert not call.done()
    assert await asyncio.to_thread(nbp.unload, "lab:a", force=True, timeout_s=BOUND_S) == 1000
    with pytest.raises(nbp.ClosedError, match="unloaded while it was running"):
        await call
    assert nbp.residents() == []
    m.close()


async def test_unload_lets_a_running_call_end(lab: type[ScriptedProvider]) -> None:
    """Without force the call gets its text before the memory goes."""
    lab.gate = Gate()
    m = await nbp.load("lab:a")
    call = asyncio.ensure_future(m.generate("x"))
    await happened(lab.gate.reached)
    freeing = asyncio.ensure_future(asyncio.to_thread(nbp.unload_all))
    while nbp.residents()[0].state != "draining":
        await asyncio.sleep(0)
    lab.gate.open()
    assert await call == "x"
    assert await freeing == 1000
    m.close()


def test_events_are_told(lab: type[ScriptedProvider]) -> None:
    """What happened is a list and a table, oldest first."""
    before = len(nbp.events())
    nbp.load_sync("lab:a").close()
    nbp.load_sync("lab:a").close()
    nbp.unload("lab:a")
    kinds = [event.kind for event in nbp.events()[before:]]
    assert kinds == ["created", "leased", "released", "reused", "leased", "released", "freed"]
    assert "lab:a" in nbp.events()._repr_html_()
    assert "freed" in repr(nbp.events())


def test_the_name_of_a_model(lab: type[ScriptedProvider]) -> None:
    """client.model is the model's own name, whatever characters it has."""
    for name in ("org/m", "50%", "a&b"):
        with nbp.create_provider("lab").model(name.replace("%", "%25")) as m:
            assert m.model == name


def test_a_load_that_takes_long_shows_a_bar(
    lab: type[ScriptedProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a moment a line says what is loading and how far it is; then it goes away."""
    from nbproviders.authoring import opening

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(opening, "_SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(opening, "_REFRESH_S", 0.01)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    hold = threading.Event()

    class Slow(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            progress.report(512, 1024, "reading")
            assert hold.wait(BOUND_S)
            return ScriptedModel()

    async def open_it() -> nbp.Client:
        opening_ = asyncio.ensure_future(Slow().model("big").open())
        async with asyncio.timeout(BOUND_S):
            while "512 B of 1.0 KiB" not in terminal.getvalue():
                await asyncio.sleep(0.005)
        hold.set()
        return await opening_

    asyncio.run(open_it()).close()
    shown = terminal.getvalue()
    assert "reading" in shown
    assert "\u2588" * 10 + "\u2591" in shown
    assert not shown.rpartition("\r")[2].strip()
    assert not shown.rstrip("\r").rpartition("\r")[2].strip()
