"""Promises of the table: one record a key, soft leases counted by cell, and what is told of each."""

from __future__ import annotations

import pytest

from nbproviders.residency.entry import State
from nbproviders.residency.table import Table
from tests.scripted import ScriptedLoader


class Clock:
    """Time that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> Table:
    return Table(clock)


def test_one_record_for_a_key(table: Table) -> None:
    """Whoever asks again gets the same, and all references it was asked by are known."""
    first, again, other = ScriptedLoader("a"), ScriptedLoader("a"), ScriptedLoader("b")
    entry = table.obtain(first)
    assert table.obtain(again) is entry
    assert table.obtain(other) is not entry
    assert table.find(first.key) is entry
    assert entry.specs == {"scripted:a"}
    assert table.find(ScriptedLoader("c").key) is None


def test_what_leaves_is_told_and_not_found(table: Table) -> None:
    """It is charged until it is gone, and never handed out."""
    loader = ScriptedLoader("a")
    entry = table.obtain(loader)
    table.leaving[loader.key] = table.entries.pop(loader.key)
    assert table.all() == [entry]
    assert table.find(loader.key) is None
    assert len(table.residents()) == 1


def test_soft_leases_are_counted_by_cell(table: Table) -> None:
    """Each is given back once, where it was taken; cells without one any more are not told."""
    loader = ScriptedLoader("a")
    entry = table.obtain(loader)
    for cell in ("In [1]", "In [1]", "In [3]", ""):
        table.hold(loader.key, cell)
    assert table.handles(loader.key) == 4
    assert table.opened_in(loader.key) == ("In [1]", "In [3]")
    assert table.give_back(loader.key, "In [1]") is entry
    assert table.opened_in(loader.key) == ("In [1]", "In [3]")
    table.give_back(loader.key, "In [1]")
    assert table.opened_in(loader.key) == ("In [3]",)
    table.give_back(loader.key, "")
    table.give_back(loader.key, "In [3]")
    assert (table.handles(loader.key), table.opened_in(loader.key)) == (0, ())


def test_leases_outlive_the_record(table: Table) -> None:
    """A handle stays open while its model is away, and is counted when it is back."""
    loader = ScriptedLoader("a")
    table.obtain(loader)
    table.hold(loader.key, "In [2]")
    del table.entries[loader.key]
    assert table.handles(loader.key) == 1
    assert table.obtain(loader).charges == {}
    assert table.residents()[0].opened_in == ("In [2]",)
    del table.entries[loader.key]
    assert table.give_back(loader.key, "In [2]") is None


def test_what_is_used_more_is_likelier_to_come_back(table: Table) -> None:
    """By changes from model to model, not by time: a night without use says nothing."""
    often, once, never = (ScriptedLoader(name) for name in ("often", "once", "never"))
    entries = {loader: table.obtain(loader) for loader in (often, once, never)}
    for loader in (often, once, often):
        table.used(entries[loader])
    chances = [table.chance(loader.key) for loader in (often, once, never)]
    assert chances == sorted(chances, reverse=True)
    assert len(set(chances)) == 3
    assert chances[-1] > 0


def test_a_night_changes_no_chance(table: Table, clock: Clock) -> None:
    """Idle time is told, and forgets nothing."""
    loader = ScriptedLoader("a")
    entry = table.obtain(loader)
    entry.state = State.HOT
    table.used(entry)
    before = table.chance(loader.key)
    clock.now_s = 36_000.0
    assert table.chance(loader.key) == before
    assert table.residents()[0].idle_s == 36_000
    assert (entry.uses, entry.last_used_s) == (1, 0)


def test_many_uses_in_a_row_are_one_change(table: Table) -> None:
    """A loop of a thousand calls does not make a model dearer than two that are used in turns."""
    looped, one, two = (ScriptedLoader(name) for name in ("looped", "one", "two"))
    entries = [table.obtain(loader) for loader in (looped, one, two)]
    for _ in range(1000):
        table.used(entries[0])
    for _ in range(5):
        table.used(entries[1])
        table.used(entries[2])
    assert entries[0].uses == 1000
    assert table.chance(looped.key) < table.chance(one.key)


def test_what_is_told_of_a_model(table: Table, clock: Clock) -> None:
    """State, bytes, use and pin; progress only of what is coming, idleness only of what is not used."""
    loader = ScriptedLoader("a")
    entry = table.obtain(loader)
    entry.state, entry.charges = State.LOADING, {"gpu": 50}
    entry.progress.report(5, 20)
    clock.now_s = 3.0
    [one] = table.residents()
    assert (one.spec, one.state, one.bytes) == ("scripted:a", State.LOADING, {"gpu": 50})
    assert (one.progress, one.idle_s, one.key) == (0.25, 0.0, loader.key.digest)
    entry.state, entry.pinned, entry.load_s = State.HOT, True, 1.5
    [one] = table.residents()
    assert (one.progress, one.idle_s, one.pinned, one.load_s) == (None, 3.0, True, 1.5)
    entry.hard = 2
    [one] = table.residents()
    assert (one.running, one.idle_s, one.sleeps, one.notes) == (2, 0.0, False, ())
    entry.charges["gpu"] = 0
    assert one.bytes == {"gpu": 50}
