"""The picker, driven by its traits and buttons, with real models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.authoring.provider import ModelHandle, ModelProvider
from nbproviders.residency import residency as residencies
from nbproviders.widgets import tasks
from nbproviders.widgets.picker import ModelPicker

BOUND_S = 60.0


class Gated(ModelProvider):
    """Loads when it is let."""

    name = "gated"
    begun, let = threading.Event(), threading.Event()

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        self.begun.set()
        await asyncio.to_thread(self.let.wait, BOUND_S)
        return ModelHandle(resource_spec, lambda prompt: prompt, self)

    async def teardown(self, resource_id: str) -> None:
        return None


@pytest.fixture
def picker() -> Iterator[Callable[..., ModelPicker]]:
    """Make pickers; close them and unload all in the end."""
    made: list[ModelPicker] = []

    def make(*args: Any) -> ModelPicker:
        made.append(ModelPicker(*args))
        return made[-1]

    yield make
    for one in made:
        one.close()
    nbp.unload_all(force=True, timeout_s=BOUND_S)


@pytest.fixture
def gated() -> Iterator[type[Gated]]:
    Gated.begun.clear()
    Gated.let.clear()
    nbp.register_provider("gated", Gated)
    yield Gated
    Gated.let.set()
    nbp.unregister_provider("gated")


def button(picker: ModelPicker, text: str) -> Any:
    return next(one for one in picker._buttons if one.description == text)


def click(picker: ModelPicker, text: str) -> None:
    """Click a button and wait until what it began is over."""
    button(picker, text).click()
    assert picker._loads.wait(BOUND_S)
    assert picker._unloads.wait(BOUND_S)


def handles() -> int:
    return sum(one.handles for one in nbp.residents())


def states(widget: Any) -> str:
    """Return everything of a widget and its parts that goes to the page and into the file."""
    parts = [widget, *getattr(widget, "_parts", [])]
    return "\n".join(str(part.get_state()) for part in parts)


def test_load_and_unload_a_real_model(picker: Callable[..., ModelPicker]) -> None:
    """A click loads the shipped model, which then answers; another click gives its memory back."""
    one = picker("transformers:demo-xs")
    assert one.model is None
    click(one, "Load")
    assert one.error == ""
    assert one.model is not None
    assert "Loaded transformers:demo-xs" in one._status.value
    assert "demo-xs" in one._table.value
    answer = asyncio.run(one.model.generate("2+2=", max_tokens=4))
    assert isinstance(answer, str)
    click(one, "Unload")
    assert one.model is None
    assert "came back" in one._status.value
    assert "Nothing is in memory" in one._table.value
    assert nbp.residents() == []


def test_the_first_choice_is_the_shipped_model(picker: Callable[..., ModelPicker]) -> None:
    """Without a reference demo-m is chosen; a newcomer only has to click."""
    assert picker().spec == "transformers:demo-m"


def test_without_transformers_llama_cpp_is_the_first_choice(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where transformers is missing and llama.cpp is not, the shipped model is chosen in its form."""
    monkeypatch.setitem(registry._NEEDS, "transformers", (("absent_module",), "transformers"))
    monkeypatch.setitem(registry._NEEDS, "llama-cpp", ((), "llama-cpp"))
    assert picker().spec == "llama-cpp:demo-m"


def test_without_both_the_first_choice_is_echo(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing runs the shipped model the picker says why, and offers echo."""
    for name in ("transformers", "llama-cpp"):
        monkeypatch.setitem(registry._NEEDS, name, (("absent_module",), name))
    one = picker()
    assert one.spec == "echo:echo"
    assert "transformers (not available)" in [label for label, _ in one._provider.options]
    one._provider.value = "transformers"
    assert "absent_module not installed" in one.error
    assert "absent_module not installed" in one._status.value
    assert button(one, "Load").disabled
    assert "absent_module not installed" in one._repr_mimebundle_()["text/html"]


def test_spec_and_fields_follow_each_other(picker: Callable[..., ModelPicker]) -> None:
    """Setting the spec fills the fields; changing the fields changes the spec."""
    one = picker("Echo:hello?seed=3&delay_s=0.5")
    assert one.spec == "echo:hello?delay_s=0.5&seed=3"
    fields = one._provider.value, one._model.value, one._options.value
    assert fields == ("echo", "hello", "delay_s=0.5&seed=3")
    one._options.value = "seed=4"
    one._model.value = "other"
    assert one.spec == "echo:other?seed=4"
    one._provider.value = "transformers"
    assert one.spec == "transformers:demo-m"
    one._provider.value = "echo"
    assert one.spec == "echo:other"
    one.spec = ""
    assert one._model.value == ""
    assert button(one, "Load").disabled


@pytest.mark.parametrize("spec", ["nope:x", "echo", "echo:", "echo:a?seed"])
def test_a_wrong_reference_is_refused(picker: Callable[..., ModelPicker], spec: str) -> None:
    """A reference that means nothing is one of our errors, at the making and later."""
    with pytest.raises(nbp.ConfigurationError):
        picker(spec)
    one = picker("echo:echo")
    with pytest.raises(nbp.ConfigurationError):
        one.spec = spec
    assert one.spec == "echo:echo"


def test_wrong_fields_are_explained(picker: Callable[..., ModelPicker]) -> None:
    """Options that cannot be read disable loading and say why; put right, all is well again."""
    one = picker("echo:echo")
    one._options.value = "seed"
    assert "not of the form name=value" in one.error
    assert one.spec == ""
    assert button(one, "Load").disabled
    one._options.value = "seed=1"
    assert (one.error, one.spec) == ("", "echo:echo?seed=1")


def test_a_load_that_fails_says_why(picker: Callable[..., ModelPicker]) -> None:
    """A misspelt option is told by the load, escaped, and the next choice clears it."""
    one = picker("echo:echo?sead=<b>")
    click(one, "Load")
    assert one.model is None
    assert "sead" in one.error
    assert "<b>" not in one._status.value
    one._options.value = ""
    assert one.error == ""
    click(one, "Load")
    assert one.model is not None


def test_secrets_never_stay_in_the_widget(picker: Callable[..., ModelPicker]) -> None:
    """A key typed into a field is taken out, and is in no state, text or code of the picker."""
    one = picker("echo:echo")
    for field in (one._options, one._model):
        for typed in ("api_key=sk-abcdefghijklmnop", "sk-abcdefghijklmnop", "a?token=abcdefgh"):
            field.value = typed
            assert one.error != ""
            assert "abcdefgh" not in states(one) + str(one._repr_mimebundle_()) + one.error


def test_loading_another_model_closes_the_first(picker: Callable[..., ModelPicker]) -> None:
    """There is one open client; loading the same model again keeps it."""
    one = picker("echo:a")
    click(one, "Load")
    first = one.model
    click(one, "Load")
    assert one.model is first
    one.spec = "echo:b"
    assert one.model is first
    click(one, "Load")
    assert first is not None
    assert first.closed
    assert one.model is not None
    assert one.model.spec == "echo:b"
    assert handles() == 1


def test_closing_gives_the_model_back(picker: Callable[..., ModelPicker]) -> None:
    """A closed picker holds no lease and leaves none of its parts behind."""
    one = picker("echo:echo")
    click(one, "Load")
    client, parts = one.model, one._parts
    one.close()
    assert client is not None
    assert client.closed
    assert handles() == 0
    assert all(part.comm is None for part in parts)


def test_stop_ends_a_load_at_once(picker: Callable[..., ModelPicker], gated: type[Gated]) -> None:
    """Stop while a model loads: the picker is ready again, and nothing stays behind."""
    one = picker("gated:slow")
    button(one, "Load").click()
    assert gated.begun.wait(BOUND_S)
    assert not button(one, "Stop").disabled
    button(one, "Load").click()  # ignored while it loads, and does not take the focus away
    click(one, "Stop")
    assert one.model is None
    assert "Stopped" in one._status.value
    assert not button(one, "Load").disabled
    gated.let.set()
    click(one, "Load")
    assert one.model is not None
    assert handles() == 1


def test_who_reads_how_it_ended_may_go_on_at_once(
    picker: Callable[..., ModelPicker], gated: type[Gated]
) -> None:
    """The fields and buttons are ready before the words: a key pressed between would go elsewhere."""
    one, ready = picker("echo:echo?sead=1"), dict[str, bool]()

    def said(_: object) -> None:
        load, unload, stop = one._buttons
        off = [one._found, one._provider, one._model, one._options, load, unload]
        ready[one._said.text] = stop.disabled and not any(field.disabled for field in off)

    one._status.observe(said, "value")
    click(one, "Load")  # fails
    one._options.value = "=="
    one._options.value = ""
    click(one, "Load")
    click(one, "Unload")
    one.spec = "gated:slow"
    button(one, "Load").click()
    assert gated.begun.wait(BOUND_S)
    click(one, "Stop")
    words = ("The provider", "Not loaded", "Loaded", "Unloaded", "Stopped")
    ended = {word: [ready[text] for text in ready if text.startswith(word)] for word in words}
    assert ended == {word: [True] for word in words}


def test_what_was_typed_before_the_click_counts(
    picker: Callable[..., ModelPicker], gated: type[Gated]
) -> None:
    """Though it comes when the load has begun: each widget's messages may come on a thread of their own."""
    one = picker("gated:old")
    button(one, "Load").click()
    assert gated.begun.wait(BOUND_S)
    one._model.value = "new"
    gated.let.set()
    assert one._loads.wait(BOUND_S)
    assert one.model is not None
    assert (one.model.spec, one.error) == ("gated:new", "")
    assert "Loaded gated:new" in one._status.value
    assert handles() == 1


def test_what_was_typed_wrongly_before_the_click_ends_the_load(
    picker: Callable[..., ModelPicker], gated: type[Gated]
) -> None:
    """What is no reference is told; nothing is loaded in its place."""
    one = picker("gated:old")
    button(one, "Load").click()
    assert gated.begun.wait(BOUND_S)
    one._options.value = "=="
    gated.let.set()
    assert one._loads.wait(BOUND_S)
    assert one.model is None
    assert "name=value" in one._status.value
    assert handles() == 0


async def test_a_change_that_comes_right_after_the_click_counts(
    picker: Callable[..., ModelPicker],
) -> None:
    """In a notebook a click waits a moment for what was typed before it."""
    one = picker("echo:old")
    button(one, "Load").click()
    one._model.value = "new"
    async with asyncio.timeout(BOUND_S):
        while one.model is None:
            await asyncio.sleep(0.01)
    assert one.model.spec == "echo:new"
    assert [held.spec for held in nbp.residents()] == ["echo:new"]


def test_a_picker_closed_while_loading_takes_no_model(
    picker: Callable[..., ModelPicker], gated: type[Gated]
) -> None:
    """Closing during a load leaves no lease, even if the load comes to its end."""
    one = picker("gated:slow")
    button(one, "Load").click()
    assert gated.begun.wait(BOUND_S)
    one.close()
    gated.let.set()
    assert one._loads.wait(BOUND_S)
    assert one.model is None
    assert handles() == 0


async def test_progress_is_shown_on_the_kernels_loop(
    picker: Callable[..., ModelPicker], gated: type[Gated]
) -> None:
    """In a running loop the load goes on behind, and its phase is shown meanwhile."""
    one = picker("gated:slow")
    threads: set[int] = set()
    for part in (one._status, one._table, one._bar):
        part.observe(lambda _: threads.add(threading.get_ident()))
    button(one, "Load").click()
    told, loaded = asyncio.Event(), asyncio.Event()

    def saw(change: Any) -> None:
        if "setting up" in change["new"]:
            told.set()

    one._status.observe(saw, "value")
    one.observe(lambda _: loaded.set(), "model")
    async with asyncio.timeout(BOUND_S):
        await told.wait()
        assert one._bar.layout.display == ""
        gated.let.set()
        await loaded.wait()
    assert one._bar.layout.display == "none"
    assert threads == {threading.get_ident()}


def test_progress_counts_bytes() -> None:
    """A load tells its phase and bytes; a model that waits for room says so."""
    from nbproviders.core.spec import ModelSpec, ResourceKey
    from nbproviders.residency.entry import Entry, State
    from nbproviders.widgets import models

    key, spec = ResourceKey("o", "m", "{}"), ModelSpec.of("echo", "m")
    entry = Entry(key, spec, 0.0, State.LOADING)
    entry.progress.report(512 * 1024, 2**20, "weights")
    told = models.describe("echo:m", entry)
    assert told.fraction == 0.5
    assert told.text == "Loading echo:m: weights, 512.0 KiB of 1.0 MiB"
    entry.state = State.WAITING
    assert models.describe("echo:m", entry).text.startswith("Waiting for memory")


def test_the_code_does_the_same(picker: Callable[..., ModelPicker]) -> None:
    """The code can be copied, cannot be lost by typing, and is Python that loads the model."""
    one = picker('echo:he"y')
    code = one._code.value
    assert 'await nbp.load("echo:he' in code
    compile(code, "code", "exec", flags=__import__("ast").PyCF_ALLOW_TOP_LEVEL_AWAIT)
    one._code.value = "gone"
    assert one._code.value == code


def test_the_static_form_tells_all_and_is_escaped(picker: Callable[..., ModelPicker]) -> None:
    """Without a kernel there are still the choice, the providers and what is in memory."""
    one = picker("echo:<script>x")
    click(one, "Load")
    bundle = one._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "<script>" not in bundle["text/html"] + one._table.value + one._status.value
    for form in (bundle["text/html"], bundle["text/plain"]):
        assert "echo:" in form
        assert "transformers" in form
        assert "ready" in form
    assert "echo:<script>x" in bundle["text/plain"]


def test_a_name_cannot_turn_what_stands_beside_it_round(
    picker: Callable[..., ModelPicker],
) -> None:
    """Signs that turn text round are written out, and no mathematics is set in a name."""
    one = picker("echo:$x$\u202eb")
    click(one, "Load")
    bundle = one._repr_mimebundle_()
    for text in (one._status.value, one._table.value, bundle["text/plain"], bundle["text/html"]):
        assert "\u202e" not in text
        assert "U+202E" in text
    assert one._code.value.startswith("m = await nbp.load('echo:$x$\\u202eb')\n")
    assert "mathjax_ignore" in one._status.value
    assert "mathjax_ignore" in one._table.value


def test_the_table_names_a_state_as_the_panel_does(picker: Callable[..., ModelPicker]) -> None:
    """A model that sleeps is asleep here too."""
    with nbp.model("transformers:demo-xs"):
        pass
    nbp.sleep("transformers:demo-xs")
    assert ">asleep<" in picker("transformers:demo-xs")._table.value


def test_every_control_has_a_name(picker: Callable[..., ModelPicker]) -> None:
    """Every field and button has a label, and a tooltip that says what it is for."""
    one = picker("echo:echo")
    fields = [one._found, one._provider, one._model, one._options, one._code]
    for control in [*fields, *one._buttons]:
        assert control.description
        assert control.tooltip


def test_suggestions_name_what_is_there(picker: Callable[..., ModelPicker]) -> None:
    """Shipped models, aliases and what is in memory are offered, each once."""
    one = picker("transformers:demo-m")
    assert {"demo-xs", "demo-s", "demo-m", "tinyllama"} <= set(one._model.options)
    one.spec = "echo:special"
    click(one, "Load")
    one._model.value = "x"
    assert one._model.options[:2] == ("echo", "special")
    assert len(set(one._model.options)) == len(one._model.options)


async def test_a_choice_of_another_thread_is_shown_at_home(
    picker: Callable[..., ModelPicker],
) -> None:
    """Code may choose on any thread; the fields are filled where the view lives."""
    one = picker("transformers:demo-m")
    threads: list[int] = []
    one._provider.observe(lambda _: threads.append(threading.get_ident()), "value")
    await asyncio.to_thread(setattr, one, "spec", "echo:special")
    async with asyncio.timeout(BOUND_S):
        while one._model.value != "special":
            await asyncio.sleep(0.01)
    assert threads == [threading.get_ident()]


def test_a_provider_registered_later_can_be_chosen(
    picker: Callable[..., ModelPicker], gated: type[Gated]
) -> None:
    """A picker that is already shown takes a provider of a later cell."""
    nbp.unregister_provider("gated")
    one = picker("echo:echo")
    nbp.register_provider("gated", gated)
    one.spec = "gated:x"
    assert one._provider.value == "gated"


def test_old_kernels_are_told_about_clicks(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clicks act after the running cell, the picker says so."""
    assert picker("echo:echo")._note not in picker("echo:echo").children
    monkeypatch.setattr("nbproviders.widgets.picker.clicks_note", lambda: "after the cell")
    one = picker("echo:echo")
    assert one._note in one.children
    assert "after the cell" in one._note.value
    assert tasks.clicks_note() == ""


async def test_a_model_that_is_in_memory_already_is_told(
    picker: Callable[..., ModelPicker],
) -> None:
    """What code loaded is not called "not loaded", though the picker has not opened it."""
    m = await nbp.load("echo:held")
    assert "In memory" in picker("echo:held")._status.value
    assert "Not loaded" in picker("echo:other")._status.value
    m.close()


def test_the_residency_keeps_no_hard_lease(picker: Callable[..., ModelPicker]) -> None:
    """A loaded picker holds a soft lease only: its model may make room for another."""
    one = picker("echo:echo")
    click(one, "Load")
    assert [(r.handles, r.running) for r in nbp.residents()] == [(1, 0)]
    assert [entry.hard for entry in residencies.default().entries()] == [0]
