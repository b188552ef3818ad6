"""Promises of the residency: load once, lease, free; nothing lost, nothing left."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from nbproviders.core import engine
from nbproviders.errors import ClosedError, ForeignError, ModelAccessError, ProviderError
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import State
from nbproviders.residency.progress import Progress
from nbproviders.residency.residency import Residency
from nbproviders.residency.residents import held_text
from tests.scripted import (
    BOUND_S,
    Gate,
    ScriptedLoader,
    ScriptedModel,
    house,
    in_virtual_time,
    joined,
    operate,
    settled,
    start,
    turns,
)

# One load


@in_virtual_time
async def test_many_ask_one_load() -> None:
    """However many ask at once, it loads once, and each has a lease of its own."""
    home, gate = house(), Gate()
    loader = ScriptedLoader(gate=gate)
    asking = [start(home.lease(loader)) for _ in range(64)]
    await turns()
    assert home.residents()[0].state is State.LOADING
    gate.open()
    leases = await asyncio.gather(*asking)
    assert loader.loads == 1
    assert home.handles(loader.key) == 64
    for lease in leases:
        lease.release()
        lease.release()
        assert not lease.active
    assert home.handles(loader.key) == 0
    assert [r.state for r in home.residents()] == [State.HOT]


def test_many_threads_ask_one_load() -> None:
    """64 leases from four threads with loops of their own: one load, and all come back."""
    home, loader = Residency(), ScriptedLoader()
    leases = []

    async def ask() -> None:
        call = engine.default().call
        leases.extend(await asyncio.gather(*(call(lambda: home.lease(loader)) for _ in range(16))))

    with joined(*(threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(4))):
        pass
    assert (len(leases), loader.loads, home.handles(loader.key)) == (64, 1, 64)
    with joined(
        *(
            threading.Thread(target=lambda n=n: [lease.release() for lease in leases[n::4]])
            for n in range(4)
        )  # type: ignore[misc]
    ):
        pass
    assert home.handles(loader.key) == 0


@in_virtual_time
async def test_different_keys_do_not_wait_for_one_another() -> None:
    """A slow load holds up nobody but those who asked for it."""
    home, gate = house(), Gate()
    slow = start(home.lease(ScriptedLoader("slow", gate=gate)))
    await turns()
    lease = await home.lease(ScriptedLoader("quick"))
    assert lease.active
    assert not slow.done()
    gate.open()
    (await slow).release()
    lease.release()


@in_virtual_time
async def test_a_resident_model_is_leased_at_once() -> None:
    """From any thread, without a loop; not before it is there."""
    home, loader = house(), ScriptedLoader()
    assert home.lease_now(loader) is None
    first = await home.lease(loader)
    second = home.lease_now(loader)
    assert second is not None
    assert home.handles(loader.key) == 2
    first.release()
    second.release()
    assert loader.loads == 1


# Failure


@in_virtual_time
async def test_a_failed_load_is_told_to_each_and_kept_by_none() -> None:
    """Every waiter gets an error of its own with reference and hint; nothing stays; it can be retried."""
    home, gate = house(100), Gate()
    loader = ScriptedLoader(needs=50, gate=gate, failure=OSError("token=abcdef123456 disk"))
    asking = [start(home.lease(loader)) for _ in range(3)]
    await turns()
    gate.open()
    errors = await asyncio.gather(*asking, return_exceptions=True)
    assert len(set(map(id, errors))) == 3
    for error in errors:
        assert isinstance(error, ProviderError)
        assert error.message.startswith("Failed to setup resource 'scripted:a': OSError: ")
        assert "abcdef" not in str(error)
        assert error.hint
        cause = error.__cause__
        assert isinstance(cause, ForeignError)
        assert (cause.type_name, cause.__traceback__, cause.__context__) == ("OSError", None, None)
    assert home.residents() == []
    assert home.events()[-1].kind == "failed"
    loader.failure = None
    (await home.lease(loader)).release()
    assert loader.loads == 2


@in_virtual_time
async def test_a_failed_estimate_fails_the_setup() -> None:
    """What cannot be measured is not loaded; our own kind of error stays what it is."""

    class Missing(ScriptedLoader):
        async def estimate(self):  # type: ignore[no-untyped-def]
            raise ModelAccessError("no such model", hint="look in the hub")

    home, loader = house(), Missing()
    with pytest.raises(ModelAccessError, match="Failed to setup resource 'scripted:a': no such"):
        await home.lease(loader)
    assert home.residents() == []
    assert loader.loads == 0


# Cancellation


@in_virtual_time
async def test_a_cancelled_waiter_leaves_the_load_to_the_others() -> None:
    """One Stop among several waiters stops only that one."""
    home, gate = house(), Gate()
    loader = ScriptedLoader(gate=gate)
    staying, leaving = start(home.lease(loader)), start(home.lease(loader))
    await turns()
    leaving.cancel()
    await turns()
    assert home.residents()[0].state is State.LOADING
    gate.open()
    lease = await staying
    assert leaving.cancelled()
    assert home.handles(loader.key) == 1
    assert home.residents()[0].running == 0
    lease.release()


@in_virtual_time
async def test_a_load_that_nobody_waits_for_is_cancelled() -> None:
    """With the last waiter the load goes, and nothing of it stays."""
    home = house(100)
    loader = ScriptedLoader(needs=100, gate=Gate())
    asking = [start(home.lease(loader)) for _ in range(3)]
    await turns()
    for task in asking:
        task.cancel()
    await turns()
    assert loader.cancelled == 1
    assert home.residents() == []
    (await home.lease(ScriptedLoader("b", needs=100))).release()


@in_virtual_time
async def test_asking_again_while_a_cancelled_load_winds_down() -> None:
    """Stop, then the same cell again: the new request loads anew once the old load is gone."""
    home, winding_down, again = house(), Gate(), Gate(opened=True)

    class Slow(ScriptedLoader):
        async def load(self, progress: Progress):  # type: ignore[no-untyped-def]
            self.loads += 1
            if self.loads > 1:
                await again.passed()
                return self.make()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await winding_down.passed()
                raise

    loader = Slow()
    first = start(home.lease(loader))
    await turns()
    first.cancel()
    await turns()
    second = start(home.lease(loader))
    await turns()
    winding_down.open()
    lease = await second
    assert loader.loads == 2
    assert home.handles(loader.key) == 1
    lease.release()


@in_virtual_time
async def test_cancelled_in_the_moment_of_the_grant() -> None:
    """A waiter cancelled just as its load ends leaves no lease, hard or soft."""
    home, gate = house(), Gate()
    loader = ScriptedLoader(gate=gate)
    for extra in range(6):
        asking = start(home.lease(loader))
        await turns()
        gate.open()
        for _ in range(extra):
            await asyncio.sleep(0)
        asking.cancel()
        await turns()
        if not asking.cancelled():
            asking.result().release()
        assert home.handles(loader.key) == 0
        assert all(r.running == 0 for r in home.residents())
        await home.unload(lambda _: True)
        loader.gate = gate = Gate()


# Use


@in_virtual_time
async def test_use_is_counted_and_ends() -> None:
    """An operation holds the model while it runs, whatever its end."""
    home, loader, gate = house(), ScriptedLoader(), Gate()
    running = [start(operate(home, loader, gate)) for _ in range(3)]
    await turns()
    assert home.residents()[0].running == 3
    running[0].cancel()
    await turns()
    assert home.residents()[0].running == 2
    gate.open()
    await asyncio.gather(*running, return_exceptions=True)
    assert home.residents()[0].running == 0
    with pytest.raises(ProviderError, match="scripted:a failed: KeyError: 'x'"):
        async with home.using(loader):
            raise KeyError("x")
    assert home.residents()[0].running == 0


# Leaving


@in_virtual_time
async def test_unload_frees_for_real() -> None:
    """What was chosen is closed once and gone; the bytes are told; the rest stays."""
    home = house(100)
    one, two = ScriptedLoader("one", needs=30), ScriptedLoader("two", needs=40)
    for loader in (one, two):
        (await home.lease(loader)).release()
    assert await home.unload(lambda entry: entry.key == one.key) == 30
    assert [r.spec for r in home.residents()] == ["scripted:two"]
    assert (one.model.closed, two.model.closed) == (1, 0)
    assert await home.unload(lambda entry: entry.key == one.key) == 0


@in_virtual_time
async def test_unload_waits_for_what_runs() -> None:
    """A running operation ends in peace; meanwhile no new one begins on the leaving model."""
    home, loader, gate = house(), ScriptedLoader(), Gate()
    running = start(operate(home, loader, gate))
    await turns()
    first = loader.model
    leaving = start(home.unload(lambda _: True))
    await turns()
    assert home.lease_now(loader) is None
    late = start(operate(home, loader, gate))
    await turns()
    assert (home.residents()[0].state, first.closed, loader.loads) == (State.DRAINING, 0, 1)
    gate.open()
    await asyncio.gather(running, leaving, late)
    assert (first.closed, loader.loads) == (1, 2)


@in_virtual_time
async def test_two_unloads_at_once_both_wait() -> None:
    """Whoever asks for the memory gets it back for real, also as the second to ask."""
    home, loader, gate = house(), ScriptedLoader(), Gate()
    running = start(operate(home, loader, gate))
    await turns()
    first, second = (start(home.unload(lambda _: True)) for _ in range(2))
    await turns()
    assert not first.done()
    assert not second.done()
    gate.open()
    await asyncio.gather(first, second, running)
    assert home.residents() == []
    assert loader.model.closed == 1


@in_virtual_time
async def test_force_cancels_with_an_error_that_says_so() -> None:
    """A forced unload ends what runs with ClosedError, not with a bare cancellation."""
    home, loader = house(), ScriptedLoader()
    running = start(operate(home, loader, Gate()))
    await turns()
    await home.unload(lambda _: True, force=True)
    with pytest.raises(ClosedError, match="scripted:a was unloaded while it was running"):
        await running
    assert loader.model.closed == 1
    assert home.residents() == []


@in_virtual_time
async def test_force_after_an_unload_that_waits() -> None:
    """A patient unload that takes too long can be followed by a forced one."""
    home, loader = house(), ScriptedLoader()
    running = start(operate(home, loader, Gate()))
    await turns()
    patient = start(home.unload(lambda _: True))
    await turns()
    await home.unload(lambda _: True, force=True)
    with pytest.raises(ClosedError, match="unloaded while it was running"):
        await running
    await patient
    assert home.residents() == []


@in_virtual_time
async def test_force_cancels_a_load() -> None:
    """A load under way is given up, and its waiters are told."""
    home = house()
    loader = ScriptedLoader(gate=Gate())
    asking = start(home.lease(loader))
    await turns()
    await home.unload(lambda _: True, force=True)
    with pytest.raises(ClosedError, match="cancelled"):
        await asking
    assert loader.cancelled == 1
    assert home.residents() == []


@in_virtual_time
async def test_force_in_the_moment_a_load_was_asked_for() -> None:
    """A load that is given up before its first step is told to its waiters, and nobody waits for ever."""
    home, loader = house(), ScriptedLoader()
    asking = start(home.lease(loader))
    unloading = start(home.unload(lambda _: True, force=True))
    async with asyncio.timeout(30):
        await unloading
        with pytest.raises(ClosedError):
            await asking
    assert home.residents() == []


@in_virtual_time
async def test_unload_without_force_lets_a_load_end() -> None:
    """Whoever waits for a load gets the model, then it goes."""
    home, gate = house(), Gate()
    loader = ScriptedLoader(gate=gate)
    asking = start(home.lease(loader))
    await turns()
    unloading = start(home.unload(lambda _: True))
    await turns()
    gate.open()
    lease = await asking
    await unloading
    assert home.residents() == []
    assert loader.model.closed == 1
    lease.release()


@in_virtual_time
async def test_a_failing_close_is_told_and_the_others_are_freed() -> None:
    """Freeing goes on past a failure; the model that failed is out of the table all the same."""
    home = house()
    bad = [
        ScriptedLoader(name, make=lambda name=name: ScriptedModel(closing=OSError(name)))  # type: ignore[misc]
        for name in ("x", "y")
    ]
    good = ScriptedLoader("good")
    for loader in (*bad, good):
        (await home.lease(loader)).release()
    with pytest.raises(ProviderError, match=r"(?s)scripted:x failed.*scripted:y failed"):
        await home.unload(lambda _: True)
    assert good.model.closed == 1
    assert home.residents() == []
    (await home.lease(bad[0])).release()
    with pytest.raises(ProviderError, match="Closing scripted:x failed: OSError: x"):
        await home.unload(lambda _: True)


@in_virtual_time
async def test_a_cancelled_unload_still_frees() -> None:
    """Memory is never half given back: once begun, leaving goes on to its end."""
    home, loader, gate = house(), ScriptedLoader(), Gate()
    running = start(operate(home, loader, gate))
    await turns()
    unloading = start(home.unload(lambda _: True))
    await turns()
    unloading.cancel()
    gate.open()
    await running
    await turns()
    assert loader.model.closed == 1
    assert home.residents() == []


@in_virtual_time
async def test_closing_takes_all() -> None:
    """At the interpreter's end everything goes, running or not."""
    home = house()
    idle, busy = ScriptedLoader("idle"), ScriptedLoader("busy")
    (await home.lease(idle)).release()
    running = start(operate(home, busy, Gate()))
    await turns()
    await home.close()
    assert (idle.model.closed, busy.model.closed) == (1, 1)
    with pytest.raises(ClosedError):
        await running


# What is told


@in_virtual_time
async def test_every_event_has_a_time_and_bytes() -> None:
    """created, leased, reused, released, freed: in this order, each with what the model is charged."""
    home, loader = house(100), ScriptedLoader(needs=30)
    (await home.lease(loader)).release()
    lease = home.lease_now(loader)
    assert lease is not None
    lease.release()
    await home.unload(lambda _: True)
    kinds = ["created", "leased", "released", "reused", "leased", "released", "freed"]
    assert [event.kind for event in home.events()] == kinds
    assert all(event.time_s > 0 for event in home.events())
    assert [event.bytes for event in home.events()] == [30] * len(kinds)


@in_virtual_time
async def test_residents_tell_what_is_there() -> None:
    """Reference, state, bytes, handles, idleness and progress, while loading and after."""
    home, gate = house(100), Gate()
    loader = ScriptedLoader(needs=30, gate=gate)
    asking = start(home.lease(loader))
    await turns()
    entry = home.find(loader.key)
    assert entry is not None
    entry.progress.report(5, 10, "reading")
    [one] = home.residents()
    assert (one.state, one.bytes, one.progress, one.idle_s) == (State.LOADING, {"gpu": 30}, 0.5, 0)
    gate.open()
    lease = await asking
    await asyncio.sleep(7)
    [one] = home.residents()
    assert (one.spec, one.state, one.handles, one.running, one.uses) == (
        "scripted:a",
        State.HOT,
        1,
        0,
        1,
    )
    assert one.idle_s == pytest.approx(7)
    assert one.progress is None
    assert "scripted:a: gpu 30 B (ready, 0 running, 1 open)" in held_text([one])
    lease.release()
    assert held_text([]) == "Nothing is in memory."


def test_progress() -> None:
    """A load reports how far it is, and learns by it that nobody wants it any more."""
    progress = Progress()
    assert progress.fraction is None
    progress.report(5, 20, "reading")
    progress.report(40)
    assert (progress.fraction, progress.phase, progress.total_bytes) == (1.0, "reading", 20)
    progress.cancel()
    with pytest.raises(ClosedError, match="load was cancelled"):
        progress.report(1)


# The process's own


def test_a_dropped_lease_gives_itself_back() -> None:
    """A handle lost in a re-run cell leaks nothing."""
    home, loader = residencies.default(), ScriptedLoader("dropped")
    lease = engine.default().wait(lambda: home.lease(loader), BOUND_S)
    assert home.handles(loader.key) == 1
    del lease
    gc.collect()
    settled()
    assert home.handles(loader.key) == 0


def test_there_is_one_default() -> None:
    """Threads that ask first at once get the same residency."""
    found: list[Residency] = []
    with joined(
        *(threading.Thread(target=lambda: found.append(residencies.default())) for _ in range(8))
    ):
        pass
    assert len(set(map(id, found))) == 1
