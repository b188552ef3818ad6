"""Promises of how the planner sees a model: what it could do, and what that would cost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nbproviders.residency.entry import Entry, State
from nbproviders.residency.memory import HOST
from nbproviders.residency.plan import Seat
from nbproviders.residency.residency import Residency
from nbproviders.residency.seats import seat, wake_s
from tests.scripted import (
    Gate,
    ScriptedLoader,
    SleepyLoader,
    house,
    in_virtual_time,
    operate,
    resident,
    start,
    turns,
)

GB = 10**9


def seen(home: Residency, loader: ScriptedLoader, **how: object) -> Seat:
    return seat(entry_of(home, loader), home._table, **how)  # type: ignore[arg-type]


def entry_of(home: Residency, loader: ScriptedLoader) -> Entry:
    entry = home.find(loader.key)
    assert entry is not None
    return entry


@in_virtual_time
async def test_who_can_sleep_may_sleep_or_leave() -> None:
    """Asleep it keeps its copy on the host; freed it gives that back as well. Others can only leave."""
    home = house(100, host=100)
    sleeper, plain = SleepyLoader("sleeper", needs=30), ScriptedLoader("plain", needs=20)
    await resident(home, sleeper, plain)
    moves = {move.kind: move.frees for move in seen(home, sleeper).moves}
    assert moves == {"sleep": {"gpu": 30}, "free": {"gpu": 30, HOST: 30}}
    assert [(m.kind, m.frees) for m in seen(home, plain).moves] == [("free", {"gpu": 20})]
    await home.sleep(entry_of(home, sleeper))
    assert [(m.kind, m.frees) for m in seen(home, sleeper).moves] == [("free", {HOST: 30})]


@in_virtual_time
async def test_who_is_in_use_stays() -> None:
    """Loading, running or pinned it is no candidate, unless one asks what if running ones had ended."""
    home, gate, loading = house(200, host=0), Gate(), Gate()
    busy, pinned = ScriptedLoader("busy", needs=30), ScriptedLoader("pinned", needs=30)
    coming, idle = ScriptedLoader("coming", needs=30, gate=loading), ScriptedLoader("i", needs=30)
    await home.pin(pinned)
    await resident(home, idle)
    work = [start(operate(home, busy, gate)), start(home.lease(coming))]
    await turns()
    loaders = (busy, pinned, coming, idle)
    assert [seen(home, loader).busy for loader in loaders] == [True, True, True, False]
    assert [seen(home, loader).pinned for loader in loaders] == [False, True, False, False]
    later = [seen(home, loader, as_if_idle=True) for loader in loaders]
    assert [one.busy for one in later] == [False, False, True, False]
    assert later[1].pinned
    assert [seen(home, one, only=State.WARM).busy for one in loaders] == [True] * 4
    for opened in (gate, loading):
        opened.open()
    await asyncio.gather(*work)


@in_virtual_time
async def test_what_makes_a_model_dear() -> None:
    """Open handles, how often it is used, and how long it takes to come back; idleness decides the rest."""
    home = house(1000, host=0)
    held, used, once = (SleepyLoader(name, needs=100) for name in ("held", "used", "once"))
    lease = await home.lease(held)
    await resident(home, used, once, used)
    await asyncio.sleep(5)
    await resident(home, used)
    seats = {name: seen(home, one) for name, one in zip("huo", (held, used, once), strict=True)}
    assert (seats["h"].open_handles, seats["u"].open_handles) == (1, 0)
    assert seats["u"].reuse > seats["o"].reuse > 0
    assert (seats["u"].idle_s, seats["o"].idle_s) == (0, pytest.approx(5))
    lease.release()


def _entry(**changes: object) -> Entry:
    loader = SleepyLoader("a")
    entry = Entry(loader.key, loader.spec, loader, 0.0)
    for name, value in changes.items():
        setattr(entry, name, value)
    return entry


def test_what_a_wake_costs() -> None:
    """As measured the last time; before that by bytes: a copy on the host is faster than files."""
    files = _entry(charges={"gpu": 10 * GB})
    copy = _entry(charges={"gpu": 10 * GB, HOST: 10 * GB})
    assert 0 < wake_s(copy) < wake_s(files)
    assert wake_s(_entry(charges={"gpu": 20 * GB})) == pytest.approx(2 * wake_s(files))
    assert wake_s(_entry(charges={"gpu": 10 * GB}, wake_s=7.5)) == 7.5
    assert wake_s(_entry()) > 0


@in_virtual_time
async def test_a_sleep_never_costs_more_than_a_new_load() -> None:
    """If a wake is slower than a load, the price is that of the load: sleeping is not worse than leaving."""
    home, loader = house(1000, host=0), SleepyLoader("a", needs=100)
    await resident(home, loader)
    entry = entry_of(home, loader)
    entry.load_s, entry.wake_s = 2.0, 9.0
    assert {move.kind: move.cost_s for move in seen(home, loader).moves} == {"sleep": 2, "free": 2}
    entry.load_s = 30.0
    assert {move.kind: move.cost_s for move in seen(home, loader).moves} == {"sleep": 9, "free": 30}
    entry.load_s = 0.0
    assert all(move.cost_s > 0 for move in seen(home, loader).moves)
    assert replace(seen(home, loader), open_handles=1).price(seen(home, loader).moves[0]) > 0
