"""The residents panel, driven by its buttons, with real models and some that can sleep."""

from __future__ import annotations

import ast
import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import comm
import ipywidgets as widgets
import pytest
from ipywidgets.widgets.widget import _instances

import nbproviders as nbp
from nbproviders.abc import Model, Progress, ResourceKey
from nbproviders.errors import ProviderError
from nbproviders.residency.entry import State
from nbproviders.residency.residents import DeviceUse, Resident
from nbproviders.widgets import residents, rows
from nbproviders.widgets.residents import ResidentsPanel, Seen, looks_like
from nbproviders.widgets.rows import Row, actions
from tests.scripted import BOUND_S, Gate, ScriptedModel, ScriptedProvider, SleepyModel, happened

GIB = 2**30
LOAD_S = 120.0  # with the import of torch, on a busy machine
HOSTILE = "lab:<img src=x onerror=alert(1)>$x$\u202e"


class Lab(ScriptedProvider):
    """Models that can sleep; those with ``plain`` in their names cannot."""

    made: dict[str, SleepyModel]

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        model = super().load(key, progress)
        if "plain" in key.model:
            return model
        self.made[key.model] = SleepyModel({"fake:0": 2 * GIB, "host": GIB}, self.gate)
        return self.made[key.model]


@pytest.fixture
def lab() -> Iterator[type[Lab]]:
    class Own(Lab):
        made: dict[str, SleepyModel] = {}

    nbp.register_provider("lab", Own)
    yield Own
    if Own.gate is not None:
        Own.gate.open()


@pytest.fixture
def panel() -> Iterator[Callable[[], ResidentsPanel]]:
    """Make panels; close them in the end."""
    made: list[ResidentsPanel] = []

    def make() -> ResidentsPanel:
        made.append(ResidentsPanel())
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """Count the looks at the residency, which come fast."""
    counted = Looks()
    monkeypatch.setattr(residents, "look", counted)
    monkeypatch.setattr(residents, "POLL_S", 0.001)
    return counted


class Looks:
    def __init__(self) -> None:
        self._look = residents.look
        self._changed = threading.Condition()
        self.count = 0

    def __call__(self) -> Seen:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
        seen = self._look()
        # Of main memory other programs take and give back what they like.
        return replace(seen, devices=tuple(d for d in seen.devices if d.device != "cpu"))

    def more(self, count: int = 5) -> None:
        """Wait until so many more looks began: what the first of them saw was told."""
        with self._changed:
            until = self.count + count
            assert self._changed.wait_for(lambda: self.count >= until, BOUND_S)

    def until(self, shown: Callable[[], object]) -> None:
        """Wait until something is shown; what was told is shown a little later."""
        ended_s = time.monotonic() + BOUND_S
        while not shown():
            assert time.monotonic() < ended_s, "it is never shown"
            self.more(1)


def row(panel: ResidentsPanel, spec: str) -> Row:
    [found] = [one for one in panel._rows.values() if one._one.spec == spec]
    return found


def button(panel: ResidentsPanel, spec: str, text: str) -> Any:
    [found] = [one for one in row(panel, spec)._buttons if one.description == text]
    return found


def click(panel: ResidentsPanel, spec: str, text: str) -> None:
    """Click a button and wait until what it began is over."""
    one = row(panel, spec)
    button(panel, spec, text).click()
    assert one.wait(BOUND_S)


def texts(panel: ResidentsPanel, spec: str) -> list[str]:
    return [one.description for one in row(panel, spec)._buttons]


def told(panel: ResidentsPanel) -> str:
    """Return all HTML of the panel."""
    parts = [panel._bars, panel._status, *(one._text for one in panel._rows.values())]
    return "\n".join(part.value for part in parts)


def registered() -> set[str]:
    """Return the widgets that ipywidgets keeps."""
    return set(_instances)


def states() -> dict[str, str]:
    return {one.spec: str(one.state) for one in nbp.residents()}


# Buttons


def test_sleep_and_wake(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """A click puts a model to sleep and tells what came back; the same button wakes it."""
    m = nbp.load_sync("lab:a")
    one = panel()
    assert texts(one, "lab:a") == ["Sleep", "Pin", "Unload"]
    click(one, "lab:a", "Sleep")
    assert states() == {"lab:a": "warm"}
    assert "lab:a is asleep: 2.0 GiB came back." in one._status.value
    assert "<b>asleep</b>" in row(one, "lab:a")._text.value
    assert texts(one, "lab:a") == ["Wake", "Pin", "Unload"]
    click(one, "lab:a", "Wake")
    assert states() == {"lab:a": "hot"}
    assert "lab:a is ready." in one._status.value
    assert lab.made["a"].wakes == 1
    m.close()


def test_who_reads_that_it_is_over_may_click_at_once(
    panel: Callable[[], ResidentsPanel], lab: type[Lab]
) -> None:
    """The buttons are ready before the words."""
    nbp.load_sync("lab:a").close()
    one, seen = panel(), list[list[str]]()
    one._status.observe(lambda _: seen.append(texts(one, "lab:a")), "value")
    click(one, "lab:a", "Sleep")
    begun, over = seen
    assert (begun, over) == (["Sleep", "Pin", "Unload"], ["Wake", "Pin", "Unload"])


def test_pin_and_unpin(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """A pinned model says so and cannot be put to sleep, with the reason; unpinned it can."""
    nbp.load_sync("lab:a").close()
    one = panel()
    click(one, "lab:a", "Pin")
    assert [held.pinned for held in nbp.residents()] == [True]
    assert "pinned" in row(one, "lab:a")._text.value
    assert button(one, "lab:a", "Sleep").disabled
    assert button(one, "lab:a", "Sleep").tooltip == "lab:a is pinned: unpin it first."
    click(one, "lab:a", "Unpin")
    assert [held.pinned for held in nbp.residents()] == [False]
    assert not button(one, "lab:a", "Sleep").disabled


def test_unload_a_real_model(panel: Callable[[], ResidentsPanel]) -> None:
    """A click frees a model, and its row goes; one that cannot sleep says so."""
    m = nbp.load_sync("transformers:demo-xs", timeout_s=LOAD_S)
    one = panel()
    assert button(one, "transformers:demo-xs", "Unload").disabled is False
    assert "open 1" in row(one, "transformers:demo-xs")._text.value
    click(one, "transformers:demo-xs", "Unload")
    assert nbp.residents() == []
    assert "Unloaded transformers:demo-xs" in one._status.value
    assert "came back" in one._status.value
    assert one._models.children == ()
    assert "Nothing is in memory." in one._bars.value
    m.close()


def test_each_model_has_its_own_buttons(
    panel: Callable[[], ResidentsPanel], lab: type[Lab]
) -> None:
    """Of two alike but for an option the one is meant whose row it is."""
    nbp.load_sync("lab:a").close()
    nbp.load_sync("lab:a", n=1).close()
    one = panel()
    click(one, "lab:a?n=1", "Unload")
    assert states() == {"lab:a": "hot"}


def resident(**changes: object) -> Resident:
    values = {
        "spec": "lab:a",
        "state": State.HOT,
        "bytes": {"fake:0": GIB},
        "handles": 1,
        "running": 0,
        "idle_s": 0.0,
        "uses": 1,
        "load_s": 0.5,
        "progress": None,
        "key": "k",
        "sleeps": True,
    }
    return Resident(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, ["sleep", "pin", "unload"]),
        ({"running": 1}, ["sleep", "pin", "unload"]),
        ({"sleeps": False}, ["pin", "unload"]),
        ({"pinned": True}, ["unpin", "unload"]),
        ({"state": State.WARM}, ["wake", "pin", "unload"]),
        ({"state": State.WAKING}, ["pin", "unload"]),
        ({"state": State.LOADING, "sleeps": False}, ["pin", "unload"]),
        ({"state": State.WAITING, "sleeps": False}, ["pin", "unload"]),
        ({"state": State.COLD, "sleeps": False}, ["pin", "unload"]),
        ({"state": State.DRAINING}, []),
        ({"state": State.FAILED}, []),
    ],
)
def test_what_cannot_be_done_says_why(changes: dict[str, object], can: list[str]) -> None:
    """In each state the buttons that make sense are there, and the others have a sentence for a reason."""
    found = actions(resident(**changes))
    assert [action.name for action in found if not action.reason] == can
    assert all(action.reason.startswith("lab:a ") for action in found if action.name not in can)
    assert all(action.tooltip for action in found)


def test_a_disabled_button_does_nothing(
    panel: Callable[[], ResidentsPanel], lab: type[Lab]
) -> None:
    """A click that comes all the same, from a page that is behind, changes nothing."""
    nbp.load_sync("lab:plain").close()
    one = panel()
    sleep = button(one, "lab:plain", "Sleep")
    assert sleep.disabled
    assert "cannot sleep" in sleep.tooltip
    sleep.click()
    assert row(one, "lab:plain").wait(BOUND_S)
    assert states() == {"lab:plain": "hot"}
    assert one.error == ""


def test_errors_are_shown_in_the_panel(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """A model that has left, or whose sleep fails, is an error in the panel; the next click clears it."""
    nbp.load_sync("lab:a").close()
    nbp.load_sync("lab:b").close()
    one = panel()
    nbp.unload("lab:a")
    click(one, "lab:a", "Pin")
    assert "lab:a is no longer in memory" in one.error
    assert "✗ lab:a is no longer in memory" in one._status.value
    assert [held._one.spec for held in one._rows.values()] == ["lab:b"]
    lab.made["b"].upset = RuntimeError("no <b>room</b>")
    click(one, "lab:b", "Sleep")
    assert "no <b>room</b>" in one.error
    assert "no &lt;b&gt;room&lt;/b&gt;" in one._status.value
    nbp.load_sync("lab:c").close()
    one._show(residents.look())
    click(one, "lab:c", "Pin")
    assert one.error == ""


async def test_a_click_waits_and_can_be_stopped(
    panel: Callable[[], ResidentsPanel], lab: type[Lab]
) -> None:
    """Unload waits for a running call; its button then stops the waiting, and the row stays meanwhile."""
    gate = Gate()

    class Slow(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            return ScriptedModel(gate=gate)

    nbp.register_provider("slow", Slow)
    m = await nbp.load("slow:plain")
    call = asyncio.ensure_future(m.generate("x"))
    await happened(gate.reached)
    one = panel()
    assert "<b>running</b>" in row(one, "slow:plain")._text.value
    button(one, "slow:plain", "Unload").click()
    assert texts(one, "slow:plain") == ["Sleep", "Pin", "Stop"]
    assert "running calls are waited for" in one._status.value
    button(one, "slow:plain", "Pin").click()  # ignored: one thing at a time
    assert one.code == 'nbp.unload("slow:plain")'
    async with asyncio.timeout(BOUND_S):
        while states() != {"slow:plain": "draining"}:
            await asyncio.sleep(0)
    one._show(residents.look())
    assert "<b>leaving</b>" in row(one, "slow:plain")._text.value
    one._show(Seen())  # it has left, and what unloads it is not over
    button(one, "slow:plain", "Stop").click()
    assert "No longer waiting" in one._status.value
    gate.open()
    assert await call == "x"
    m.close()


async def test_buttons_act_while_a_cell_awaits(
    panel: Callable[[], ResidentsPanel], lab: type[Lab]
) -> None:
    """With the kernel's loop running, work is done behind and shown on that loop's thread."""
    m = await nbp.load("lab:a")
    one = panel()
    threads: set[int] = set()
    asleep = asyncio.Event()

    def saw(change: Any) -> None:
        threads.add(threading.get_ident())
        if "is asleep" in change["new"]:
            asleep.set()

    one._status.observe(saw, "value")
    row(one, "lab:a")._text.observe(lambda _: threads.add(threading.get_ident()), "value")
    button(one, "lab:a", "Sleep").click()
    async with asyncio.timeout(BOUND_S):
        await asleep.wait()
    assert threads == {threading.get_ident()}
    m.close()


# The watch


def test_the_panel_follows_the_residency(
    panel: Callable[[], ResidentsPanel], lab: type[Lab], looks: Looks
) -> None:
    """What code loads and unloads comes and goes by itself while the panel is on a page."""
    one = panel()
    one._view_count = 1
    nbp.load_sync("lab:a").close()
    looks.until(lambda: "<b>ready</b>" in told(one))
    assert texts(one, "lab:a") == ["Sleep", "Pin", "Unload"]
    assert "Nothing is in memory" not in told(one)
    nbp.unload_all()
    looks.until(lambda: not one._models.children)
    assert "Nothing is in memory" in told(one)


def test_nothing_is_sent_while_nothing_changes(
    panel: Callable[[], ResidentsPanel],
    lab: type[Lab],
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred looks at models at rest send no message; a change of one sends few, and no new widgets."""
    for name in ("a", "b", "plain"):
        nbp.load_sync(f"lab:{name}").close()
    one = panel()
    sent: list[object] = []
    monkeypatch.setattr(
        widgets.Widget, "_send", lambda _, message, *__, **___: sent.append(message)
    )
    one._view_count = 1
    looks.more()
    sent.clear()
    looks.more(100)
    assert sent == []
    before, made = dict(one._rows), registered()
    click(one, "lab:a", "Sleep")
    looks.until(lambda: "<b>asleep</b>" in told(one))
    assert one._rows == before
    assert registered() == made
    assert 0 < len(sent) <= 24  # also where a look falls into the middle of it


def test_nobody_looks_nobody_asks(
    panel: Callable[[], ResidentsPanel], lab: type[Lab], looks: Looks
) -> None:
    """Before it is on a page, when it has left the page, and once it is closed, a panel does not look."""
    one = panel()
    assert not one._watch.busy
    one._view_count = 1
    assert one._watch.busy
    one._view_count = 2
    looks.more()
    one._view_count = 1
    assert one._watch.busy
    one._view_count = 0
    assert one._watch.wait(BOUND_S)
    nbp.load_sync("lab:a").close()
    one._view_count = 1
    looks.until(lambda: "lab:a" in told(one))
    one.close()
    assert not one._watch.busy
    assert one._watch.wait(BOUND_S)


def test_a_forgotten_panel_stops_looking(
    lab: type[Lab], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panel that only its watch would keep is collected, and the watch ends."""
    manager = comm.get_comm_manager()
    monkeypatch.setattr(manager, "unregister_comm", lambda _: None)
    nbp.load_sync("lab:a").close()
    known = registered()
    one = ResidentsPanel()
    one._view_count = 1
    looks.more()
    watch, gone = one._watch, weakref.ref(one)
    for key in registered() - known:
        del manager.comms[key], _instances[key]  # they keep all widgets that are not closed
    del one
    gc.collect()
    assert gone() is None
    assert watch.wait(BOUND_S)


def test_a_closed_panel_leaves_no_widget(
    panel: Callable[[], ResidentsPanel], lab: type[Lab]
) -> None:
    """Neither rows nor parts, layouts or styles stay in the kernel."""
    before = registered()
    nbp.load_sync("lab:a").close()
    nbp.load_sync("lab:b").close()
    one = panel()
    click(one, "lab:b", "Unload")
    one.close()
    assert [type(_instances[key]) for key in registered() - before] == []


def use(**changes: object) -> DeviceUse:
    values = {
        "device": "cpu",
        "limit": 12 * GIB,
        "total": 16 * GIB,
        "in_use": GIB,
        "idle": 0,
        "peers": 0,
        "strangers": 4 * GIB,
        "free": 11 * GIB,
    }
    return DeviceUse(**{**values, **changes})  # type: ignore[arg-type]


def test_what_nobody_would_notice_is_no_change() -> None:
    """A little less free memory or another second of idling is not shown anew; a byte of ours is."""
    seen = Seen((resident(),), (use(),))
    for alike in (
        Seen((resident(idle_s=30.0, uses=5),), (use(),)),
        Seen((resident(),), (use(free=11 * GIB + 2**20, strangers=4 * GIB - 2**20),)),
        Seen((resident(),), (use(limit=12 * GIB - 2**20),)),
    ):
        assert looks_like(seen, alike)
    for other in (
        Seen((resident(idle_s=61.0),), (use(),)),
        Seen((resident(running=1),), (use(),)),
        Seen((resident(opened_in=("In [2]",)),), (use(),)),
        Seen((), (use(),)),
        Seen((resident(),), (use(in_use=GIB + 1),)),
        Seen((resident(),), (use(free=9 * GIB),)),
        Seen((resident(),), (use(limit=None),)),
        Seen((resident(),), ()),
        Seen((resident(),), (use(),), "wrong"),
    ):
        assert not looks_like(seen, other)
    loading = resident(state=State.LOADING, progress=0.501)
    assert looks_like(Seen((loading,)), Seen((replace(loading, progress=0.509),)))
    assert not looks_like(Seen((loading,)), Seen((replace(loading, progress=0.51),)))


def test_a_budget_nobody_can_read_is_told(
    panel: Callable[[], ResidentsPanel],
    lab: type[Lab],
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The panel says what is wrong, goes on showing models, and takes it back when it is mended."""
    nbp.load_sync("lab:a").close()
    one = panel()
    one._view_count = 1
    monkeypatch.setenv("NBPROVIDERS_BUDGET", "plenty")
    looks.until(lambda: one.error)
    assert "plenty" in one.error
    assert "plenty" in one._status.value
    assert texts(one, "lab:a")
    monkeypatch.delenv("NBPROVIDERS_BUDGET")
    looks.until(lambda: not one.error)
    assert "plenty" not in one._status.value


# Forms


def test_names_cannot_write_the_page(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """A hostile name is shown and not obeyed, wherever it comes in."""
    nbp.load_sync(HOSTILE).close()
    one = panel()
    [spec] = states()
    for text in ("Pin", "Unpin", "Sleep"):
        click(one, spec, text)
        page = told(one) + one._repr_mimebundle_()["text/html"]
        assert "<img" not in page
        assert "\u202e" not in page
        assert "&lt;img" in page
    nbp.unload_all()
    click(one, spec, "Pin")
    assert "<img" not in told(one)
    assert "\u202e" not in told(one)


def test_the_code_does_the_same(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """Each click leaves the line that does it, a call of a public function; it cannot be lost by typing."""
    nbp.load_sync('lab:he"y').close()
    one = panel()
    assert one._code.value == "nbp.residents()"
    for text in ("Sleep", "Wake", "Pin", "Unpin", "Unload"):
        click(one, 'lab:he"y', text)
        [line] = one._code.value.splitlines()
        assert line == one.code
        call = ast.parse(line, mode="eval").body
        assert isinstance(call, ast.Call)
        assert ast.unparse(call.func) == f"nbp.{text.lower()}"
        assert ast.literal_eval(call.args[0]) == 'lab:he"y'
        assert callable(getattr(nbp, text.lower()))
    one._code.value = "gone"
    assert one._code.value == 'nbp.unload("lab:he\\"y")'


def test_the_static_form_tells_all(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """Reopened without a kernel there are still the devices, the models and the code."""
    m = nbp.load_sync("lab:a")
    bundle = panel()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    for form in ("text/html", "text/plain"):
        bundle[form] = bundle[form].replace("\u00a0", " ")
        for word in ("cpu", "free", "lab:a", "ready", "2.0 GiB on fake:0", "nbp.residents()"):
            assert word in bundle[form]
    assert "<script" not in bundle["text/html"]
    m.close()


def test_every_control_has_a_name(panel: Callable[[], ResidentsPanel], lab: type[Lab]) -> None:
    """Buttons say what they do, and their tooltips with which model."""
    nbp.load_sync("lab:a").close()
    one = panel()
    for control in row(one, "lab:a")._buttons:
        assert control.description
        assert "lab:a" in control.tooltip
    assert one._code.description
    assert one._code.tooltip


def test_old_kernels_are_told_about_clicks(
    panel: Callable[[], ResidentsPanel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clicks act after the running cell, the panel says so."""
    one = panel()
    assert one._note not in one.children
    monkeypatch.setattr(residents, "clicks_note", lambda: "after the cell")
    other = panel()
    assert other._note in other.children
    assert "after the cell" in other._note.value


async def test_what_a_button_does_can_fail_only_as_ours(lab: type[Lab]) -> None:
    """An action on a model that has left raises an error of ours, with the line that loads it again."""
    from nbproviders.core import engine

    gone = resident(spec="lab:gone", key="none")
    with pytest.raises(ProviderError, match=r"nbp\.load\(\"lab:gone\"\)"):
        await engine.default().call(lambda: rows.act("wake", gone))
