"""Promises of models in a session: keep one, see what is there, free it."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import nbproviders as nbp
from nbproviders.abc import Model, Progress, ResourceKey
from nbproviders.catalog import keys
from nbproviders.core import engine
from nbproviders.residency import residency as residencies
from nbproviders.residency.memory import Reading
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


def test_a_client_of_a_provider_without_a_name() -> None:
    """What is asked of a client looks its provider up nowhere."""

    class Unnamed(ScriptedProvider):
        name = "unnamed"

    with Unnamed().model("a") as m:
        assert nbp.will_it_fit(m).fit.verdict == "here"
        nbp.pin(m)
        assert nbp.residents()[0].pinned
        nbp.unpin(m)


def test_a_smaller_budget_holds_when_it_is_set() -> None:
    """The next line of the cell finds it so."""
    pytest.importorskip("torch")
    spec = "transformers:demo-s?device=cpu"
    nbp.load_sync(spec).close()
    try:
        nbp.set_memory("cpu=100KiB")
        assert [one.state for one in nbp.residents()] in ([], ["warm"])
    finally:
        nbp.set_memory()


def test_weights_are_not_looked_at_in_their_sleep() -> None:
    """They are empty then: a norm of them would be 0. A pin has them back."""
    pytest.importorskip("torch")
    with nbp.load_sync("transformers:demo-s") as m:
        norm = m.raw.lm_head.weight.norm().item()
        nbp.sleep(m)
        with pytest.raises(nbp.ClosedError, match="asleep") as caught:
            _ = m.raw
        assert "nbp.pin(m)" in caught.value.hint
        nbp.pin(m)
        assert m.raw.lm_head.weight.norm().item() == norm
        nbp.unpin(m)


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
    from nbproviders.authoring import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
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


# Sleep, wake, stay


DEMO = "transformers:demo-s"
MOVES = ("slept", "woken")


@pytest.fixture
def default_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test sets for all models is over with it; meanwhile there are devices called fake."""
    probes = residencies.default().memory._probes
    monkeypatch.setitem(probes, "fake", lambda _: Reading(10_000, 10_000))
    yield
    nbp.set_memory()


def test_a_demo_model_sleeps_and_wakes() -> None:
    """Asleep its weights take nothing, its handle stays open, and the next call writes the same text."""
    pytest.importorskip("torch")
    with nbp.model(DEMO) as m:
        text = m.generate("12+30=")
        [before] = nbp.residents()
        assert before.sleeps
        freed = nbp.sleep(DEMO)
        [asleep] = nbp.residents()
        assert (asleep.state, asleep.handles) == ("warm", 1)
        room = sum(before.bytes.values()) - sum(asleep.bytes.values())
        assert room > freed > 100_000  # of the room, a part was only kept free to compute
        assert nbp.sleep(DEMO) == 0
        assert m.generate("12+30=") == text
        assert nbp.residents()[0].state == "hot"
        nbp.sleep(DEMO)
        nbp.wake(DEMO)
        assert nbp.residents()[0].state == "hot"
    moved = [(e.kind, e.moved_bytes > 0, e.bytes) for e in nbp.events() if e.kind in MOVES][-4:]
    again = [("slept", False, room), ("woken", True, room)]
    assert moved == [("slept", True, room), ("woken", True, room), *again]  # compared once
    assert nbp.residents()[0].load_s == before.load_s


def test_what_is_not_in_memory_need_not_sleep(
    lab: type[ScriptedProvider], caplog: pytest.LogCaptureFixture
) -> None:
    """No bytes come back, nothing is loaded for it, and the log says what is there; wake loads it."""
    nbp.wake("lab:there")
    for ask in (nbp.sleep, nbp.unload, nbp.unpin):
        caplog.clear()
        assert not ask("lab:a")
        [told] = caplog.records
        assert told.levelname == "WARNING"
        assert told.getMessage() == "lab:a is not in memory; in memory: lab:there."
    assert len(lab.loads) == 1
    nbp.unload("lab:there")
    caplog.clear()
    nbp.unpin("lab:there")
    assert caplog.messages == ["lab:there is not in memory; in memory: nothing."]
    nbp.wake("lab:a", timeout_s=BOUND_S)
    assert nbp.residents()[0].state == "hot"
    assert nbp.residents()[0].running == 0


def test_an_open_client_stands_for_its_model(caplog: pytest.LogCaptureFixture) -> None:
    """Each of these takes it, whatever provider object it was opened by; nothing is said of absence."""

    class Mine(ScriptedProvider):
        def __init__(self, place: str) -> None:
            """Told apart from others by what no reference says."""

        def load(self, key: ResourceKey, progress: Progress) -> Model:
            return ScriptedModel(memory_bytes={"fake:0": 1000})

    nbp.register_provider("mine", Mine("there"))
    m = Mine("here").model("a", n=1).open_sync(BOUND_S)
    nbp.pin(m)
    assert [one.pinned for one in nbp.residents()] == [True]
    nbp.unpin(m)
    assert [one.pinned for one in nbp.residents()] == [False]
    nbp.wake(m)
    with pytest.raises(nbp.UnsupportedError, match="cannot sleep"):
        nbp.sleep(m)
    assert nbp.will_it_fit(m).fit.verdict == "here"
    nbp.wake("mine:a?n=1")  # of the other provider, by the same reference
    assert len(nbp.residents()) == 2
    assert nbp.unload(m) == 1000
    assert nbp.unload("mine:a?n=1") == 1000
    assert len(Mine.loads) == 0
    assert caplog.messages == []
    nbp.wake(m)
    assert len(nbp.residents()) == 1
    m.close()
    with pytest.raises(nbp.ClosedError):
        nbp.unload(m)


async def test_an_async_client_stands_for_its_model_too(lab: type[ScriptedProvider]) -> None:
    """The same from a cell that awaits."""
    m = await nbp.load("lab:a", n=1)
    assert nbp.unload(m) == 1000
    m.close()


def test_a_client_of_no_residency_is_refused() -> None:
    """What somebody wrapped himself is not ours to move."""
    m = nbp.SyncClient(ScriptedModel(), lambda: None)
    for ask in (nbp.sleep, nbp.wake, nbp.pin, nbp.unpin, nbp.unload, nbp.will_it_fit):
        with pytest.raises(nbp.ConfigurationError, match="nothing of it is kept"):
            ask(m)


def test_what_cannot_sleep_says_so(lab: type[ScriptedProvider]) -> None:
    """It is an error that says what to do, and the model stays."""
    nbp.wake("lab:a")
    with pytest.raises(nbp.UnsupportedError, match="lab:a cannot sleep") as caught:
        nbp.sleep("lab:a")
    assert "Unload" in caught.value.hint
    assert nbp.residents()[0].state == "hot"


async def test_sleep_waits_for_running_calls(lab: type[ScriptedProvider]) -> None:
    """No longer than `timeout_s`; the call goes on undisturbed."""
    lab.gate = Gate()
    m = await nbp.load("lab:a")
    call = asyncio.ensure_future(m.generate("x"))
    await happened(lab.gate.reached)
    with pytest.raises(nbp.TimeoutError):
        await asyncio.to_thread(nbp.sleep, "lab:a", timeout_s=0.1)
    lab.gate.open()
    assert await call == "x"
    m.close()


def test_a_pin_keeps_a_model(lab: type[ScriptedProvider], default_memory: None) -> None:
    """It is loaded, shown as pinned, refuses to sleep with the line to write, and survives pressure."""
    nbp.set_memory("fake:0=1500B")
    nbp.pin("lab:a")
    assert [(one.spec, one.pinned) for one in nbp.residents()] == [("lab:a", True)]
    assert "ready, pinned" in repr(nbp.residents()).splitlines()[-1]
    with pytest.raises(nbp.InvalidRequestError, match="pinned") as caught:
        nbp.sleep("lab:a")
    assert 'nbp.unpin("lab:a")' in caught.value.hint
    nbp.wake("lab:b")
    nbp.wake("lab:c")
    assert "lab:a" in {one.spec for one in nbp.residents()}
    nbp.unload("lab:b")
    nbp.unload("lab:c")
    nbp.unpin("lab:a")
    assert [one.pinned for one in nbp.residents() if one.spec == "lab:a"] == [False]
    nbp.pin("lab:a")
    assert nbp.unload("lab:a") == 1000


def test_unpin_of_what_is_not_there_or_not_pinned(lab: type[ScriptedProvider]) -> None:
    """Nothing happens, and nothing is told."""
    before = len(nbp.events())
    nbp.unpin("lab:a")
    nbp.wake("lab:a")
    nbp.unpin("lab:a")
    assert {e.kind for e in nbp.events()[before:]} == {"created"}


# Memory


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": "much"},
        {"budget": 20},
        {"budget": {"cpu": 5}},
        {"budget": "8"},
        {"budget": ""},
        {"budget": " ,"},
        {"budget": "cpu=1GiB,CPU=2GiB"},
        {"budget": "cpu=1GiB,nowhere:0=5GiB"},
        {"budget": "5GiB", "keep_s": 0},
        {"budget": "5GiB", "keep_s": "soon"},
        {"keep_s": 5, "wait_s": -1},
        {"keep_s": 5, "wait_s": float("nan")},
    ],
)
def test_memory_that_cannot_be_set(wrong: dict[str, object], default_memory: None) -> None:
    """One value that is none is an error of ours, and nothing at all is changed."""
    nbp.set_memory("cpu=7GiB", keep_s=77, wait_s=7)
    with pytest.raises(nbp.ConfigurationError):
        nbp.set_memory(**wrong)  # type: ignore[arg-type]
    memory = residencies.default().memory
    assert (memory.budget("cpu"), memory.keep_s()) == (7 * 2**30, 77)
    assert residencies.default()._mover.admission.wait_s == 7


def test_a_smaller_budget_is_kept_at_once(
    lab: type[ScriptedProvider], default_memory: None
) -> None:
    """Idle models leave when it is set, not when the next one loads."""
    nbp.wake("lab:a")
    nbp.set_memory("fake:0=500B")
    until_gone()


def until_gone() -> None:
    deadline_s = time.monotonic() + BOUND_S
    while nbp.residents():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_models_of_one_device_take_turns_without_copies(
    default_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no main memory for copies they sleep and wake from their files, and are never loaded again."""
    pytest.importorskip("torch")
    monkeypatch.setenv("NBPROVIDERS_VIRTUAL", "virtual:0=64MiB")
    nbp.set_memory("virtual:0=10MiB,host=0")
    names = (
        "transformers:demo-m?device=virtual:0",
        "transformers:demo-m?device=virtual:0&dtype=float32",
    )
    try:
        texts: dict[str, list[str]] = {name: [] for name in names}
        for name in names * 3:
            with nbp.model(name) as m:
                texts[name].append(m.generate("12+30=", max_tokens=4, temperature=0))
        assert len({text for each in texts.values() for text in each}) == 1
        kinds = Counter((one.kind, one.spec) for one in nbp.events() if one.spec in names)
        assert [kinds["created", name] for name in names] == [1, 1]
        assert [kinds["woken", name] for name in names] == [2, 2]
        assert all("host" not in one.bytes for one in nbp.residents())
    finally:
        nbp.unload_all()


def test_models_that_nobody_uses_leave(lab: type[ScriptedProvider], default_memory: None) -> None:
    """From when it is set, also for those that are there already; a pinned one stays."""
    nbp.wake("lab:a")
    nbp.set_memory(keep_s=0.05)
    until_gone()
    nbp.pin("lab:b")
    nbp.wake("lab:c")
    deadline_s = time.monotonic() + BOUND_S
    while len(nbp.residents()) > 1:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    assert [one.spec for one in nbp.residents()] == ["lab:b"]


def test_the_longest_wait_for_memory(lab: type[ScriptedProvider], default_memory: None) -> None:
    """A call that holds what another needs is waited for as long as was set."""

    class Sized(lab):  # type: ignore[misc, valid-type]
        def estimate(self, key: ResourceKey) -> dict[str, int]:
            return {"fake:0": 1000}

    Sized.gate = Gate()
    nbp.register_provider("sized", Sized)
    nbp.set_memory("fake:0=1500B", wait_s=0.2)
    with nbp.model("sized:a") as m:
        stream = m.stream("one two")
        running = threading.Thread(target=lambda: list(stream))
        running.start()
        assert Sized.gate.reached.wait(BOUND_S)
        with pytest.raises(
            nbp.InsufficientMemoryError, match="sized:a: fake:0 1000 B .ready, 1 run"
        ):
            nbp.load_sync("sized:b", timeout_s=BOUND_S)
        Sized.gate.open()
        running.join(BOUND_S)
    nbp.load_sync("sized:b", timeout_s=BOUND_S).close()


def test_will_it_fit_a_demo_model(default_memory: None) -> None:
    """The figures of a real model before it is loaded; nothing is loaded, and nobody leaves."""
    pytest.importorskip("torch")
    nbp.wake(DEMO)
    before = len(nbp.events())
    here, other = nbp.will_it_fit(DEMO), nbp.will_it_fit("transformers:demo-m")
    assert (here.fit.verdict, other.fit.verdict) == ("here", "fits")
    assert other.fit.estimate.weights["cpu"] > 1_000_000
    assert "transformers:demo-m fits." in repr(other)
    nbp.set_memory("cpu=2MB")
    assert not nbp.will_it_fit("transformers:demo-m")
    nbp.set_memory(f"cpu={sum(other.fit.estimate.values())}")
    tight = nbp.will_it_fit("transformers:demo-m")
    assert (tight.fit.verdict, tight.fit.moves) == ("after", ((DEMO, "sleep"),))
    assert [one.spec for one in nbp.residents()] == [DEMO]
    assert {e.kind for e in nbp.events()[before:]} <= {"slept"}


@pytest.mark.parametrize("reference", ["/nowhere/at/all", "./nowhere", "~/nowhere/at/all"])
def test_a_path_that_leads_nowhere_does_not_fit(reference: str) -> None:
    """It cannot be loaded at all, which is known without loading."""
    pytest.importorskip("torch")
    with pytest.raises(nbp.ModelAccessError, match="there is no file or folder"):
        nbp.will_it_fit(f"transformers:{reference}")


def test_what_is_not_on_this_machine_is_said_to_be_so() -> None:
    """A name may be one of the Hub's: that is not asked, and not claimed."""
    pytest.importorskip("torch")
    found = nbp.will_it_fit("transformers:nobody/nothing-at-all")
    assert found.fit.verdict == "unknown"
    assert "is not on this machine" in found.sentence
    assert not found


def test_several_at_once_are_passed_one_by_one() -> None:
    """A list is refused with the line to write."""
    for ask in (nbp.models, nbp.will_it_fit):
        with pytest.raises(nbp.ConfigurationError, match="was given a list") as caught:
            ask(["echo:a", "echo:b"])  # type: ignore[arg-type]
        assert "one" in caught.value.hint
    assert "nbp.models(a, b)" in error_of(nbp.models, ["echo:a"]).hint


def error_of(ask: Callable[..., object], *arguments: object) -> nbp.ConfigurationError:
    with pytest.raises(nbp.ConfigurationError) as caught:
        ask(*arguments)
    return caught.value


def test_a_service_is_asked_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What only concerns memory asks for no key, opens nothing, and says that there is none."""
    asked: list[object] = []
    monkeypatch.setattr(keys, "_prompted", lambda *told: asked.append(told) or {})
    found = nbp.will_it_fit("openai:some-model")
    assert found
    assert "takes no memory of this process" in found.sentence
    nbp.pin("openai:some-model")
    assert "nothing to pin" in caplog.text
    nbp.wake("openai:some-model")
    assert "nothing to wake" in caplog.text
    assert nbp.sleep("openai:some-model") == nbp.unload("openai:some-model") == 0
    nbp.unpin("openai:some-model")
    assert asked == []
    assert nbp.residents() == []


@pytest.mark.parametrize("reference", ["nobody:x", "demo-m", "", "echo:x?oops=1", None, 5])
@pytest.mark.parametrize(
    "ask", [nbp.sleep, nbp.wake, nbp.pin, nbp.unpin, nbp.will_it_fit, nbp.models]
)
def test_references_that_cannot_be(ask: Callable[[object], object], reference: object) -> None:
    """Each of these refuses what is no reference with an error of ours, and loads nothing."""
    with pytest.raises(nbp.ConfigurationError):
        ask(reference)
    assert nbp.residents() == []


def test_models_that_are_elsewhere_are_nothing_to_move() -> None:
    """One that takes no memory can be asked all of it: it is ready, pinned in name, and cannot sleep."""
    nbp.wake("echo:echo")
    nbp.pin("echo:echo")
    nbp.unpin("echo:echo")
    with pytest.raises(nbp.UnsupportedError, match="echo:echo cannot sleep"):
        nbp.sleep("echo:echo")
    assert nbp.will_it_fit("echo:echo").fit.verdict == "here"


async def test_none_of_them_hangs_on_the_engine() -> None:
    """Where waiting would never end, it is refused at once."""

    async def inside() -> None:
        for ask in (nbp.sleep, nbp.wake, nbp.pin, nbp.will_it_fit):
            with pytest.raises(nbp.ConfigurationError, match="engine's own thread"):
                ask("echo:echo")

    (await nbp.load("echo:echo")).close()
    await engine.default().call(inside)
