"""Promises of `ResidentProvider`: write `load`; leases, threads and sharing are done."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

import pytest

from nbproviders.abc import Model, Progress, ResidentProvider, ResourceKey
from nbproviders.authoring.options import Option
from nbproviders.authoring.resident import ResidentHandle
from nbproviders.core import engine
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    InsufficientMemoryError,
    ProviderError,
)
from nbproviders.residency import residency as residencies
from tests.scripted import (
    BOUND_S,
    Gate,
    ScriptedModel,
    ScriptedProvider,
    ends,
    happened,
    joined,
    settled,
)


def handles(provider: ScriptedProvider, name: str = "a") -> int:
    return residencies.default().handles(provider.resolve(name))


def resident() -> list[str]:
    return [one.spec for one in residencies.default().residents()]


async def test_a_second_setup_gets_the_same_live_model() -> None:
    """The same spec and config loads once; another config is another model."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    one, two, other = await lab.setup("a"), await lab.setup("a"), await lab.setup("a", n=2)
    assert isinstance(one, ResidentHandle)
    assert one.model.raw is two.model.raw is not other.model.raw
    assert len(Lab.loads) == 2
    assert await one.model.generate("one two") == "one two"


async def test_a_handle_gives_back_its_own_lease() -> None:
    """The others go on using the model; afterwards it stays cached."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    one, two = await lab.setup("a"), await lab.setup("a")
    assert handles(lab) == 2
    await asyncio.gather(one.teardown(), one.teardown())
    assert handles(lab) == 1
    assert one.model.closed
    assert await two.model.generate("still there") == "still there"
    await two.teardown()
    assert (handles(lab), resident()) == (0, ["lab:a"])
    assert Lab.models[0].closed == 0


async def test_teardown_by_id_returns_the_oldest_lease() -> None:
    """By id the oldest direct lease goes back; with none left the model is freed."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    one, two = await lab.setup("a"), await lab.setup("a")
    assert one.resource_id == two.resource_id
    await lab.teardown(one.resource_id)
    assert (one.model.closed, two.model.closed) == (True, False)
    await lab.teardown(one.resource_id)
    assert two.model.closed
    assert resident() == ["lab:a"]
    await lab.teardown(one.resource_id)
    assert resident() == []
    assert Lab.models[0].closed == 1


async def test_teardown_by_id_frees_nothing_that_is_open() -> None:
    """With a client open elsewhere, or for an unknown id, it is a no-op."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    async with lab.model("a") as m:
        await lab.teardown("lab:a")
        await lab.teardown("nobody:knows")
        assert resident() == ["lab:a"]
        assert await m.generate("x") == "x"
    await lab.teardown("lab:a")
    assert resident() == []


async def test_a_handle_whose_lease_went_back_by_id_takes_no_other() -> None:
    """A handle gives back its own lease or none, never that of its neighbour."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    one, two = await lab.setup("a"), await lab.setup("a")
    await lab.teardown(one.resource_id)
    await one.teardown()
    assert not two.model.closed
    await two.teardown()
    await one.teardown()
    assert resident() == ["lab:a"]


async def test_teardown_all_takes_everything_of_this_provider() -> None:
    """Leases and models go; another provider's stay."""

    class Lab(ScriptedProvider): ...

    class Other(ScriptedProvider): ...

    lab, other = Lab(), Other()
    handle = await lab.setup("a")
    await lab.setup("b")
    await other.setup("c")
    await lab.teardown_all()
    assert handle.model.closed
    assert resident() == ["other:c"]
    assert [model.closed for model in Lab.models] == [1, 1]
    await handle.teardown()


def test_setups_from_four_threads() -> None:
    """64 concurrent setups from four threads with loops of their own: one load, 64 leases, all back."""

    class Lab(ScriptedProvider): ...

    Lab.hold = threading.Event()
    lab, found = Lab(), []
    counts: list[int] = []
    barrier = threading.Barrier(4, action=lambda: counts.append(handles(lab)))

    async def use() -> None:
        taken = await asyncio.gather(*(lab.setup("a") for _ in range(16)))
        found.extend(taken)
        await asyncio.to_thread(barrier.wait, BOUND_S)
        await asyncio.gather(*(handle.teardown() for handle in taken))

    with joined(*(threading.Thread(target=lambda: asyncio.run(use())) for _ in range(4))):
        assert Lab.started.wait(BOUND_S)
        Lab.hold.set()
    assert (len(Lab.loads), len(found), counts, handles(lab)) == (1, 64, [64], 0)


async def test_loading_happens_on_a_thread_of_its_own() -> None:
    """A slow load holds up neither the engine nor the caller's loop, and another key loads beside it."""

    class Lab(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            names.append(threading.current_thread().name)
            if key.model == "slow":
                Lab.started.set()
                assert go_on.wait(BOUND_S)
            return ScriptedModel()

    names: list[str] = []
    go_on = threading.Event()
    slow = asyncio.ensure_future(Lab().setup("slow"))
    await happened(Lab.started)
    await Lab().setup("quick")
    go_on.set()
    await slow
    assert names == ["nbproviders-slow", "nbproviders-quick"]


async def test_stop_during_a_load_leaves_nothing() -> None:
    """The load learns at its next report that nobody wants it; thread, table and memory are clean."""

    class Lab(ScriptedProvider): ...

    Lab.hold = threading.Event()
    lab = Lab()
    opening = asyncio.ensure_future(lab.model("stopped").open())
    await happened(Lab.started)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    residency = residencies.default()
    while residency.residents():
        await engine.default().call(residency.changed)
    assert Lab.models == []
    assert ends("nbproviders-stopped")
    Lab.hold = None
    async with lab.model("stopped") as m:
        assert await m.generate("x") == "x"


async def test_the_same_cell_again_after_stop() -> None:
    """Stop during a load, then the cell again at once: it loads, and is no error."""

    class Lab(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            self.loads.append(key)
            self.started.set()
            if len(self.loads) == 1:
                assert go_on.wait(BOUND_S)  # a library that does not look whether it is wanted
            return ScriptedModel()

    go_on = threading.Event()
    lab = Lab()
    first = asyncio.ensure_future(lab.model("a").open())
    await happened(Lab.started)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.ensure_future(lab.model("a").open())
    await asyncio.sleep(0)
    settled()
    go_on.set()
    m = await second
    assert await m.generate("x") == "x"
    m.close()


async def test_what_a_cancelled_load_made_is_closed() -> None:
    """A load that comes to its end all the same has its model closed, not leaked."""
    made: list[ScriptedModel] = []
    go_on, started = threading.Event(), threading.Event()

    class Lab(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            started.set()
            assert go_on.wait(BOUND_S)
            made.append(ScriptedModel())
            return made[-1]

    opening = asyncio.ensure_future(Lab().model("a").open())
    await happened(started)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    go_on.set()
    residency = residencies.default()
    while residency.residents():
        await engine.default().call(residency.changed)
    assert [model.closed for model in made] == [1]


async def test_a_load_cancelled_twice_leaves_nothing() -> None:
    """A second cancellation, while the first is cleared up, leaves neither model nor thread behind."""
    made: list[ScriptedModel] = []
    go_on, started = threading.Event(), threading.Event()

    class Lab(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            started.set()
            assert go_on.wait(BOUND_S)
            made.append(ScriptedModel())
            return made[-1]

    async def load_and_cancel() -> None:
        work = asyncio.ensure_future(Lab().model("twice").loader.load(Progress()))
        await happened(started)
        for _ in range(2):
            work.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await work

    await engine.default().call(load_and_cancel)
    go_on.set()
    assert ends("nbproviders-twice")
    assert [model.closed for model in made] == [1]


async def test_an_awaited_load_runs_on_the_engine() -> None:
    """An `async def load` takes no thread, knows its reference, and is loaded once."""
    here: list[bool] = []

    class Lab(ScriptedProvider):
        async def load(self, key: ResourceKey, progress: Progress) -> Model:  # type: ignore[override]
            here.append(engine.default().here)
            await asyncio.sleep(0)
            return ScriptedModel()

    one, two = await asyncio.gather(Lab().model("a").open(), Lab().model("a").open())
    assert one.raw is two.raw
    assert one.info.spec == "lab:a"
    assert here == [True]
    assert not [t for t in threading.enumerate() if t.name == "nbproviders-a"]
    one.close()
    two.close()


async def test_an_awaited_load_can_be_stopped() -> None:
    """Cancelled, it ends where it waits, and nothing is kept."""
    gate, ended = Gate(), threading.Event()

    class Lab(ScriptedProvider):
        async def load(self, key: ResourceKey, progress: Progress) -> Model:  # type: ignore[override]
            try:
                await gate.passed()
            finally:
                ended.set()
            return ScriptedModel()

    opening = asyncio.ensure_future(Lab().model("a").open())
    await happened(gate.reached)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await happened(ended)
    residency = residencies.default()
    while residency.residents():
        await engine.default().call(residency.changed)


async def test_an_awaited_load_returns_a_model() -> None:
    """Anything else is an error that says what to return."""

    class Lab(ScriptedProvider):
        async def load(self, key: ResourceKey, progress: Progress) -> Any:  # type: ignore[override]
            return "no model"

    with pytest.raises(ProviderError, match="returned str, not a Model"):
        await Lab().setup("a")


async def test_a_failed_load_says_what_and_where() -> None:
    """Reference, cause and hint are told, the cause without frames, and nothing is kept."""

    class Lab(ScriptedProvider):
        failure = OSError("disk on fire")

    with pytest.raises(ProviderError) as caught:
        await Lab().setup("a?n=1")
    assert caught.value.message == "Failed to setup resource 'lab:a?n=1': OSError: disk on fire"
    assert caught.value.hint
    assert str(caught.value.__cause__) == "OSError: disk on fire"
    frames = [entry.name for entry in caught.traceback]
    assert "load" not in frames
    assert resident() == []
    assert ends("nbproviders-a")


async def test_a_load_that_raises_stop_iteration() -> None:
    """Even the one exception that futures cannot carry fails the load, and leaves nobody waiting."""

    class Lab(ScriptedProvider):
        failure = StopIteration("no more")

    with pytest.raises(ProviderError, match="Failed to setup resource 'lab:a'"):
        async with asyncio.timeout(3):
            await Lab().setup("a")


async def test_a_load_that_returns_no_model() -> None:
    """The author is told what to return."""

    class Lab(ScriptedProvider):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            return "weights"  # type: ignore[return-value]

    with pytest.raises(ProviderError, match="Lab.load returned str, not a Model.\n.*adapt"):
        await Lab().setup("a")


async def test_options_are_checked_before_anything_loads() -> None:
    """A misspelt option fails as a setup, and as a configuration error, with what there is."""

    class Lab(ScriptedProvider):
        options = {
            "n_ctx": Option((int,), 8, "Tokens."),
            "verbose": Option((bool,), False, loads=False),
        }

    with pytest.raises(ConfigurationError, match="Failed to setup resource 'a'.*no option 'n_ctz'"):
        await Lab().setup("a", n_ctz=1)
    with pytest.raises(ConfigurationError, match="n_ctx='x'"):
        Lab().model("a", n_ctx="x")
    assert Lab.loads == []
    assert Lab().resolve("a") == Lab().resolve("a", n_ctx=8)
    assert Lab().resolve("a") == Lab().resolve("a", verbose=True) == Lab().resolve("a", chat=False)
    assert Lab().resolve("a") != Lab().resolve("a", n_ctx=9)


async def test_the_estimate_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a provider estimates is asked of the budget before loading; the refusal shows the table."""

    class Lab(ScriptedProvider):
        def estimate(self, key: ResourceKey) -> dict[str, int]:
            return {"fake:0": int(key.values["needs"])}

    monkeypatch.setenv("NBPROVIDERS_BUDGET", "fake:0=100B")
    lab = Lab()
    await (await lab.setup("small", needs=60)).teardown()
    with pytest.raises(InsufficientMemoryError, match=r"(?s)needs 130 B on fake:0.*lab:small"):
        await lab.setup("huge", needs=130)
    await lab.setup("large", needs=90)
    assert resident() == ["lab:large?needs=90"]
    assert len(Lab.loads) == 2


def test_a_provider_without_load_cannot_be_made() -> None:
    """The one method to write is asked for."""
    with pytest.raises(TypeError, match="load"):
        type("Empty", (ResidentProvider,), {})()


async def test_an_open_client_loads_again_after_unload() -> None:
    """Freed by another cell, the model comes back at the client's next call."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    client = await lab.model("a").open()
    await lab.teardown_all()
    assert resident() == []
    assert await client.generate("back") == "back"
    assert len(Lab.loads) == 2
    client.close()


async def test_stop_during_a_generation_gives_the_lease_back() -> None:
    """The hard lease ends with the work, and the next call works at once."""

    class Lab(ScriptedProvider): ...

    Lab.gate = Gate()
    async with Lab().model("a") as m:
        call = asyncio.ensure_future(m.generate("x"))
        assert await asyncio.to_thread(Lab.gate.reached.wait, BOUND_S)
        assert residencies.default().residents()[0].running == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await happened(Lab.models[0].ended)
        settled()
        assert residencies.default().residents()[0].running == 0
        Lab.gate.open()
        assert await m.generate("next") == "next"


async def test_force_ends_calls_with_an_error() -> None:
    """Calls, many calls and streams under way end with ClosedError when their model is forced out."""

    class Lab(ScriptedProvider): ...

    Lab.gate = Gate()
    lab = Lab()
    async with lab.model("a") as m:
        stream = m.stream("x")

        async def read() -> Any:
            return await anext(stream)

        calls = [
            asyncio.ensure_future(c) for c in (m.generate("x"), m.generate_many(["x"]), read())
        ]
        assert await asyncio.to_thread(Lab.gate.reached.wait, BOUND_S)
        settled()
        residency = residencies.default()
        await engine.default().call(lambda: residency.unload(lambda _: True, force=True))
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, ClosedError)
            assert "unloaded while it was running" in str(error)
        Lab.gate.open()
        assert await m.generate("again") == "again"


# Files


class Fetching(ScriptedProvider):
    """Tells what it fetched, and when it loaded."""

    steps: ClassVar[list[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.steps = []

    def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
        self.steps.append(f"fetch {key.model} on {threading.current_thread().name}")

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        self.steps.append("load")
        return super().load(key, progress)


def test_files_are_fetched_before_each_load() -> None:
    """On a thread of its own, named for the model."""

    class Own(Fetching): ...

    with Own().model("a"):
        pass
    assert Own.steps == ["fetch a on nbproviders-a", "load"]


def test_files_may_be_fetched_on_the_loop() -> None:
    """By an ``async def``, as a load may be."""

    class Own(Fetching):
        async def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
            await asyncio.sleep(0)
            self.steps.append("fetch")

    with Own().model("a"):
        pass
    assert Own.steps == ["fetch", "load"]


def test_a_class_with_its_own_load_fetches_for_itself() -> None:
    """What the class above would fetch is not what it loads; unless it says so."""

    class Own(Fetching):
        def load(self, key: ResourceKey, progress: Progress) -> Model:
            return super().load(key, progress)

    class Both(Own):
        fetch_files = Fetching.fetch_files

    with Own().model("a"):
        pass
    assert Own.steps == ["load"]
    with Both().model("a"):
        pass
    assert len(Both.steps) == 2


def test_a_fetch_that_fails_is_the_failure_of_the_load() -> None:
    """An exception of the author's code becomes ours, and nothing is loaded."""

    class Own(Fetching):
        def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
            raise OSError("no network")

    with pytest.raises(ProviderError, match="no network"), Own().model("a"):
        pass
    assert Own.steps == []
