"""One core or all: chosen by what evaluations took, with little lost by trying."""

from __future__ import annotations

from collections.abc import Callable

from nbproviders.runtimes.llamacpp.pace import Pace, Purse

SMALL, MIDDLE, LARGE = 1_000_000, 20_000_000, 2_000_000_000


def go_on(pace: Pace, rounds: int, took_s: Callable[[int], float], work: int = MIDDLE) -> list[int]:
    """Have so many evaluations take what a machine says for that many cores; return the cores."""
    chosen = []
    for _ in range(rounds):
        cores = pace.cores(work)
        pace.took(work, cores, took_s(cores))
        chosen.append(cores)
    return chosen


def idle(cores: int) -> float:
    """A machine of our own: all cores nearly halve it."""
    return 1.0 if cores == 1 else 0.6


def busy(cores: int) -> float:
    """Somebody else computes too: threads wait for one another."""
    return 1.0 if cores == 1 else 50.0


def useless(cores: int) -> float:
    """Sharing neither helps nor harms much."""
    return 1.0 if cores == 1 else 1.1


def rich() -> Purse:
    """A long day behind it: tries may cost something."""
    return Purse(spent_s=1e6)


def test_what_is_short_gets_one_core_and_what_is_long_gets_all() -> None:
    """Without measuring anything."""
    pace = Pace(8, Purse())
    assert set(go_on(pace, 20, busy, SMALL)) == {1}
    assert set(go_on(pace, 20, busy, LARGE)) == {8}
    assert set(go_on(Pace(1, rich()), 20, idle)) == {1}
    assert set(go_on(Pace(1, rich()), 20, idle, LARGE)) == {1}


def test_sharing_that_pays_is_kept() -> None:
    """After a few evaluations alone, to know what that takes."""
    chosen = go_on(Pace(4, Purse()), 200, idle)
    assert chosen[0] == 1
    assert set(chosen[10:]) == {4}


def test_a_busy_machine_costs_little() -> None:
    """All tries together lose no more than a few hundredths, beside a single one."""
    for took_s in (busy, useless):
        purse = Purse()
        go_on(Pace(4, purse), 20_000, took_s)
        assert purse.lost_s <= 0.025 * purse.spent_s + took_s(4)


def test_sharing_that_does_not_pay_is_left_for_a_while() -> None:
    """Though it could be afforded."""
    chosen = go_on(Pace(4, rich()), 600, useless)
    assert 3 <= chosen.count(4) <= 60


def test_a_machine_that_becomes_free_is_used() -> None:
    """Once what was lost is made up for."""
    pace = Pace(4, Purse())
    go_on(pace, 40, busy)
    chosen = go_on(pace, 6000, idle)
    assert set(chosen[-50:]) == {4}


def test_a_machine_that_becomes_busy_is_left() -> None:
    """At the first evaluation that shows it."""
    pace = Pace(4, Purse())
    go_on(pace, 50, idle)
    chosen = go_on(pace, 50, busy)
    assert chosen[0] == 4
    assert set(chosen[1:]) == {1}


def test_models_learn_from_one_another() -> None:
    """The machine is the same: what one lost, the other does not lose again."""
    purse = Purse()
    go_on(Pace(4, purse), 50, busy)
    assert 4 not in go_on(Pace(4, purse), 50, busy)


def test_works_of_different_size_are_judged_by_themselves() -> None:
    """A long evaluation that shares well says nothing of short ones."""
    pace = Pace(4, rich())
    long, short = [], []
    for _ in range(60):
        long += go_on(pace, 1, idle, MIDDLE * 8)
        short += go_on(pace, 1, useless, MIDDLE)
    assert set(long[10:]) == {4}
    assert 1 in short[10:]
    assert short.count(4) < 10
