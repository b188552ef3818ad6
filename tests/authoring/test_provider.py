"""Promises of `ModelProvider` and `ModelHandle`: setup, teardown, and opening models by way of them."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.abc import ModelHandle, ModelProvider, ResourceHandle
from nbproviders.catalog import aliases
from nbproviders.errors import ClosedError, ConfigurationError, ProviderError
from nbproviders.residency import residency as residencies
from tests.scripted import BOUND_S, Gate, ScriptedModel, ScriptedProvider, joined, settled


class Thing:
    """A resource that is no model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Shelf(ModelProvider):
    """Written as the pattern says: a set-up is told, and a teardown."""

    def __init__(self, kind: str = "plain", client: Any = None) -> None:
        self.kind = kind
        self.log: list[tuple[str, Any]] = []
        self.things: list[Thing] = []
        self.failing: set[str] = set()
        self.gate: Gate | None = None

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        self.log.append(("setup", (resource_spec, config)))
        if self.gate is not None:
            await self.gate.passed()
        self.things.append(Thing(resource_spec))
        return ModelHandle(f"{resource_spec}-{len(self.things)}", self.things[-1], self)

    async def teardown(self, resource_id: str) -> None:
        self.log.append(("teardown", resource_id))
        if resource_id in self.failing:
            raise OSError(f"cannot close {resource_id}")

    def count(self, what: str) -> int:
        return sum(kind == what for kind, _ in self.log)


# The pattern itself (A1–A3)


@pytest.mark.parametrize("missing", ["setup", "teardown"])
def test_an_incomplete_subclass_cannot_be_made(missing: str) -> None:
    """Whoever forgets a method learns it at once."""

    async def method(self: Any, *_: Any, **__: Any) -> Any: ...

    written = {name: method for name in ("setup", "teardown") if name != missing}
    half = type("Half", (ModelProvider,), written)
    with pytest.raises(TypeError, match=missing):
        half()


async def test_a_handle_is_made_by_position() -> None:
    """ModelHandle(resource_id, model, manager) works, and tells whether it is active."""
    shelf = Shelf()
    handle = ModelHandle("id", "model", shelf)
    assert (handle.resource_id, handle.model, handle.manager, handle.is_active) == (
        "id",
        "model",
        shelf,
        True,
    )
    assert not ModelHandle("id", "model", shelf, False).is_active
    assert ResourceHandle is ModelHandle


async def test_a_handle_tears_down_once() -> None:
    """However often and however close together, the manager's teardown runs once."""
    shelf = Shelf()
    handle = await shelf.setup("a")
    await asyncio.gather(*(handle.teardown() for _ in range(5)))
    await handle.teardown()
    assert shelf.count("teardown") == 1
    assert not handle.is_active


async def test_direct_calls_run_as_written() -> None:
    """A direct setup is the author's code on the caller's loop, each call a resource of its own."""
    shelf = Shelf()
    one, two = await shelf.setup("a", x=1), await shelf.setup("a", x=1)
    assert one.model is not two.model
    assert shelf.log[0] == ("setup", ("a", {"x": 1}))
    assert residencies.default().residents() == []


async def test_teardown_all_ends_what_is_left() -> None:
    """All direct setups that were not given back are torn down, the others not again."""
    shelf = Shelf()
    given_back = await shelf.setup("a")
    await shelf.setup("b")
    await shelf.setup("c")
    await given_back.teardown()
    await shelf.teardown_all()
    assert [what for kind, what in shelf.log if kind == "teardown"] == ["a-1", "b-2", "c-3"]
    await shelf.teardown_all()
    assert shelf.count("teardown") == 3


async def test_teardown_all_goes_on_past_failures() -> None:
    """Everything is tried, and all failures are told together."""
    shelf = Shelf()
    for name in "abc":
        await shelf.setup(name)
    shelf.failing = {"a-1", "b-2"}
    with pytest.raises(ProviderError, match=r"(?s)a-1: OSError: cannot close a-1.*b-2: OSError"):
        await shelf.teardown_all()
    assert shelf.count("teardown") == 3


async def test_a_subclass_that_calls_its_base_counts_once() -> None:
    """One setup is one resource, also if it is written on top of another provider's setup."""

    class Taller(Shelf):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            return await super().setup(resource_spec, tall=True, **config)

    shelf = Taller()
    handle = await shelf.setup("a")
    await handle.teardown()
    await shelf.teardown_all()
    assert shelf.count("teardown") == 1


# By way of the residency (A5–A9, A14)


async def test_model_sets_up_once_and_shares() -> None:
    """`.model()` calls setup once for a key, however often it is entered; unload calls teardown once."""
    shelf = Shelf()
    async with shelf.model("a", x=1) as m, shelf.model("a?x=1") as n:
        assert m.raw is n.raw is shelf.things[0]
    async with shelf.model("a", x=1):
        pass
    assert shelf.log == [("setup", ("a", {"x": 1}))]
    await shelf.teardown_all()
    assert shelf.log[1:] == [("teardown", "a-1")]
    assert shelf.things[0].closed == 1


def test_model_works_blocking() -> None:
    """The same with a plain `with`."""
    shelf = Shelf()
    with shelf.model("a") as m:
        assert m.raw is shelf.things[0]
    assert m.closed


async def test_other_config_is_another_resource() -> None:
    """What differs in an option is set up for itself, and both live side by side."""
    shelf = Shelf()
    async with shelf.model("a", n=1) as one, shelf.model("a", n=2) as two, shelf.model("a") as none:
        assert len({id(m.raw) for m in (one, two, none)}) == 3
    assert shelf.count("setup") == 3


@pytest.mark.parametrize(("first", "second"), [(1, True), (0, False), (1, 1.5), (1, "1")])
def test_values_of_other_types_are_other_configs(first: Any, second: Any) -> None:
    """1 and true, or a number and its text, are not one resource; the order of asking is no matter."""
    shelf = Shelf()
    assert shelf.resolve("a", n=first) != shelf.resolve("a", n=second)
    turned = Shelf()
    assert turned.resolve("a", n=second).options == shelf.resolve("a", n=second).options


def test_setup_config_wins() -> None:
    """Keywords win over the reference's options."""
    assert Shelf().resolve("a?n=1", n=2) == Shelf().resolve("a", n=2)


def test_64_setups_from_four_threads() -> None:
    """Threads with loops of their own: one setup, 64 clients, all given back."""
    shelf = Shelf()
    shelf.gate = Gate()
    inside = threading.Barrier(5)
    key = shelf.resolve("a")

    async def use() -> None:
        entered = asyncio.Event()
        count = 0

        async def one() -> None:
            nonlocal count
            async with shelf.model("a") as m:
                assert m.raw is shelf.things[0]
                count += 1
                if count == 16:
                    await asyncio.to_thread(inside.wait, BOUND_S)
                    await asyncio.to_thread(inside.wait, BOUND_S)
                    entered.set()
                await entered.wait()

        await asyncio.gather(*(one() for _ in range(16)))

    with joined(*(threading.Thread(target=lambda: asyncio.run(use())) for _ in range(4))):
        shelf.gate.open()
        inside.wait(BOUND_S)
        assert residencies.default().handles(key) == 64
        inside.wait(BOUND_S)
    assert shelf.count("setup") == 1
    assert residencies.default().handles(key) == 0


async def test_one_context_entered_by_two_tasks() -> None:
    """One `provider.model(x)` may be entered many times, also at once; each has its own client."""
    context = Shelf().model("a")
    entered, leave = asyncio.Event(), asyncio.Event()

    async def stay() -> nbp.Client:
        async with context as m:
            entered.set()
            await leave.wait()
            assert not m.closed
            return m

    staying = asyncio.ensure_future(stay())
    await entered.wait()
    async with context as mine:
        async with context as inner:
            assert inner is not mine
        assert inner.closed
        assert not mine.closed
        leave.set()
        theirs = await staying
        assert theirs is not mine
        assert theirs.closed
        assert not mine.closed
    assert mine.closed
    with pytest.raises(ClosedError, match="left more often"):
        await context.__aexit__(None, None, None)


def test_a_name_that_the_base_needs_is_refused() -> None:
    """An attribute or method of an author's that would break the base is told at once, not later."""

    class Tidy(Shelf):
        def __init__(self) -> None:
            self._resources = self._handles = {}  # as guides have them
            self._open: dict[str, str] = {}

    with pytest.raises(ConfigurationError, match="Tidy has a _open of its own"):
        Tidy()
    with pytest.raises(ConfigurationError, match="Keyed has a _key of its own"):
        type("Keyed", (Shelf,), {"_key": None, "__module__": "mine"})


@pytest.mark.parametrize("name", ["generate", "stream", "chat", "close"])
def test_a_model_that_was_not_opened_says_how(name: str) -> None:
    """What only an open model can do is refused with the line to write; a typing error is just that."""
    context = Shelf().model("a?n=1")
    with pytest.raises(AttributeError, match=r"not open yet.*nbp\.load\('.*a\?n=1'\)") as caught:
        getattr(context, name)
    assert f"m.{name}(" in str(caught.value)
    with pytest.raises(AttributeError, match="no attribute 'genrate'$"):
        getattr(context, "genrate")  # noqa: B009
    assert not hasattr(context, "generate")


async def test_used_after_its_block() -> None:
    """The error says the line to write."""
    shelf = Shelf()
    async with shelf.model("a?n=1") as m:
        pass
    with pytest.raises(ClosedError) as caught:
        await m.generate("x")
    assert 'async with provider.model("a?n=1") as m: …' in str(caught.value)
    assert 'await nbp.load("shelf:a?n=1")' in str(caught.value)


async def test_a_dropped_client_gives_its_lease_back() -> None:
    """A client that a re-run cell forgot is no open handle for ever."""
    shelf = Shelf()
    key = shelf.resolve("a")
    client = await shelf.model("a").open()
    blocking = shelf.get_client("a")
    assert residencies.default().handles(key) == 2
    del client, blocking
    await asyncio.sleep(0)  # until then the loop itself holds what the thread returned
    gc.collect()
    settled()
    assert residencies.default().handles(key) == 0


async def test_stop_frees_the_caller_and_holds_the_model() -> None:
    """After Stop the cell goes on at once; the hard lease ends when the author's thread does."""
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(Thing):
        def generate(self, prompt: str) -> str:
            started.set()
            go_on.wait(BOUND_S)
            ended.set()
            return prompt

    class Shop(Shelf):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            return ModelHandle("id", Slow(resource_spec), self)

    async with Shop().model("a") as m:
        call = asyncio.ensure_future(m.generate("x"))
        await asyncio.to_thread(started.wait, BOUND_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not ended.is_set()
        settled()
        running = residencies.default().residents()[0].running
        go_on.set()
        assert await m.generate("next") == "next"
        settled()
        assert (running, residencies.default().residents()[0].running) == (1, 0)


async def test_what_is_set_up_in_vain_is_torn_down() -> None:
    """A setup whose handle holds nothing usable fails, and its resource is not left behind."""

    class Empty(Shelf):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            await Shelf.setup.__wrapped__(self, resource_spec)  # type: ignore[attr-defined]
            return ModelHandle("id", None, self)

    shelf = Empty()
    with pytest.raises(ProviderError, match="Failed to setup resource 'empty:a'.*None"):
        async with shelf.model("a"):
            pass
    assert shelf.log[1:] == [("teardown", "id")]


async def test_a_setup_that_returns_no_handle() -> None:
    """The author is told what to return."""

    class Wrong(Shelf):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            return "model"  # type: ignore[return-value]

    with pytest.raises(ProviderError, match="returned str, not a ModelHandle.\nReturn ModelHandle"):
        async with Wrong().model("a"):
            pass


async def test_a_setup_that_fails_can_be_repeated() -> None:
    """Nothing of a failed setup is cached; each waiter has an error of its own."""

    class Flaky(Shelf):
        broken = True

        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            if self.broken:
                raise ConnectionError("server down")
            return await super().setup(resource_spec, **config)

    shelf = Flaky()
    errors = await asyncio.gather(
        *(shelf.model("a").open() for _ in range(3)), return_exceptions=True
    )
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, ProviderError)
        assert error.message == "Failed to setup resource 'flaky:a': ConnectionError: server down"
        assert error.__cause__ is not None
        assert error.__cause__.__traceback__ is None
    shelf.broken = False
    async with shelf.model("a") as m:
        assert m.raw is shelf.things[0]


async def test_a_cancelled_setup_is_stopped() -> None:
    """Stop during a slow setup cancels it when nobody else waits."""
    shelf = Shelf()
    shelf.gate = Gate()
    opening = asyncio.ensure_future(shelf.model("a").open())
    assert await asyncio.to_thread(shelf.gate.reached.wait, BOUND_S)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    settled()
    assert residencies.default().residents() == []
    assert shelf.things == []


# Identity (A15)


async def test_built_alike_share() -> None:
    """Re-running the cell that builds a provider finds what the first one loaded."""

    class Lab(ScriptedProvider): ...

    async with Lab(1).model("a") as first, Lab(1).model("a") as second:
        assert first.raw is second.raw
    assert len(Lab.loads) == 1
    assert Lab(1).resolve("a") == Lab(tag=1).resolve("a")
    assert Lab(1).resolve("a") != Lab(2).resolve("a")


def test_arguments_without_canonical_form_stand_alone() -> None:
    """A provider built with an open client or a function shares with nobody but itself."""
    client = object()
    one, two = Shelf(client=client), Shelf(client=client)
    assert one.resolve("a") == one.resolve("a")
    assert one.resolve("a") != two.resolve("a")


def test_options_without_canonical_form_stand_alone() -> None:
    """The same for an option of one opening."""
    shelf, hook = Shelf(), print
    assert shelf.resolve("a", hook=functools.partial(hook)) != shelf.resolve(
        "a", hook=functools.partial(hook)
    )
    assert shelf.resolve("a", path=Path("/x")) == shelf.resolve("a", path=Path("/x"))


def test_a_number_that_is_none_is_no_foreign_error() -> None:
    """An option that is not a number is refused, or stands alone; nothing foreign escapes."""
    shelf = Shelf()
    assert shelf.resolve("a", n=float("nan")) != Shelf().resolve("a", n=1)


def test_a_class_defined_again_is_another() -> None:
    """A notebook cell with a class, run again, may hold other code: nothing is shared."""

    def cell() -> type[Shelf]:
        class Mine(Shelf): ...

        return Mine

    assert cell()().resolve("a") != cell()().resolve("a")


def test_secrets_are_in_no_key_and_no_reference() -> None:
    """A key given as a keyword decides what is loaded, and is shown nowhere."""
    shelf = Shelf()
    context = shelf.model("a", api_key="hunter2222")
    key = shelf.resolve("a", api_key="hunter2222")
    assert "hunter" not in context.spec
    assert "hunter" not in repr(context)
    assert "hunter" not in repr(key)
    assert key != shelf.resolve("a", api_key="hunter3333")
    assert "hunter" not in Shelf(kind="sk-hunter22222222").resolve("a").origin


def test_an_alias_is_resolved_by_provider() -> None:
    """A short name loads what it stands for, and follows when it is given another meaning."""
    shelf = Shelf()
    aliases.alias("short", shelf="long/one", other="long/two")
    assert shelf.resolve("short").model == "long/one"
    assert shelf.model("short").spec == "shelf:short"
    aliases.alias("short", "long/three")
    assert shelf.resolve("short").model == "long/three"


async def test_setup_gets_what_the_alias_stands_for() -> None:
    """The author's setup need not know of short names."""
    shelf = Shelf()
    aliases.alias("short", "long/one")
    async with shelf.model("short"):
        pass
    assert shelf.log[0][1][0] == "long/one"


@pytest.mark.parametrize("spec", [None, 3, "", " "])
def test_bad_names(spec: Any) -> None:
    """What names no model is refused with its value."""
    with pytest.raises(ConfigurationError, match="str|needs a name"):
        Shelf().model(spec)


@pytest.mark.parametrize("name", [r"C:\m.gguf", "llama3:8b", "repo:Q4_K_M", "echo:echo"])
def test_nothing_is_split_off_inside_a_provider(name: str) -> None:
    """A colon in a model's name is the model's."""
    assert Shelf().resolve(name).model == name


async def test_a_model_of_its_own_is_used_as_it_is() -> None:
    """A setup that makes a Model has it streamed, batched and told by its reference."""

    class Own(ModelProvider):
        async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
            return ModelHandle("id", ScriptedModel(parallel=3), self)

        async def teardown(self, resource_id: str) -> None: ...

    provider = Own()
    async with provider.model("a") as m:
        assert await m.generate("one two") == "one two"
        assert m.info.parallel == 3
        assert m.spec == "own:a"
        assert (await m.generate("x")).spec == "own:a"
        raw = m.raw
        assert isinstance(raw, ScriptedModel)
    await provider.teardown_all()
    assert raw.closed == 1


def test_names_of_providers() -> None:
    """A provider without a name goes by its class's."""
    assert Shelf.name == "shelf"

    class MyLabProvider(Shelf): ...

    assert MyLabProvider.name == "mylab"
    assert repr(Shelf()) == "<Shelf 'shelf'>"
    assert "shelf:a" in repr(Shelf().model("a"))


async def test_what_a_context_tells() -> None:
    """Reference and residency can be read without opening."""
    context = Shelf().model("a")
    assert (context.spec, context.resident) == ("shelf:a", False)
    async with context:
        assert context.resident
