"""Who is asked first: the strategies by themselves, in a time that is told."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from nbproviders.routing.health import EXPLORE_AFTER_S, HALF_LIFE_S, STRATEGIES, Health

RNG = random.Random(0)


def health(*results: bool, at_s: float = 0.0, took_s: float = 1.0, turn: int = 0) -> Health:
    """A member that was asked this often, with these ends."""
    made = Health(20)
    made.turn = turn
    for good in results:
        made.began(at_s)
        made.ended(at_s, good=good, took_s=took_s)
    return made


def order(strategy: str, *members: Health, now_s: float = 0.0) -> list[int]:
    return STRATEGIES[strategy](members, now_s, RNG)


def test_one_failure_makes_a_stranger_unhealthy_for_a_half_life() -> None:
    """Then it may be asked again."""
    failed = health(False)
    assert not failed.ready(0)
    assert not failed.ready(HALF_LIFE_S * 0.9)
    assert failed.ready(HALF_LIFE_S * 1.1)


def test_one_failure_among_many_answers_is_forgiven() -> None:
    """Also while other calls are under way."""
    member = health(*[True] * 15, False)
    member.began(0)
    assert member.ready(0)


def test_old_successes_do_not_hide_what_fails_now() -> None:
    """A window of the last answers, not a lifetime's average."""
    assert not health(*[True] * 1000, *[False] * 200).ready(0)


def test_old_failures_are_forgotten() -> None:
    """Hours later it is as good as new."""
    member = health(*[False] * 200)
    assert member.share(0) < 0.05
    assert member.share(5 * 3600) == pytest.approx(1)


def test_what_time_healed_is_tried_by_one_call_at_a_time() -> None:
    """Sixty callers do not wait together for what may still be down."""
    member = health(False)
    later_s = HALF_LIFE_S * 3
    assert member.ready(later_s)
    member.began(later_s)
    assert not member.ready(later_s)
    member.ended(later_s, good=True)
    member.began(later_s)
    assert member.ready(later_s)


def test_a_stopped_call_says_nothing() -> None:
    """Neither good nor bad."""
    member = health()
    member.began(0)
    member.ended(0, good=None, took_s=99)
    assert (member.share(0), member.median_s, member.under_way) == (1, None, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_unhealthy_are_asked_last_but_asked(strategy: str) -> None:
    """If all others fail, they are the only hope."""
    assert order(strategy, health(False, False), health(True), health(True))[-1] == 0
    assert sorted(order(strategy, health(False), health(False))) == [0, 1]


def test_first_available_is_in_the_order_of_adding() -> None:
    """However quick the others are."""
    assert order("first-available", health(True, took_s=9), health(True, took_s=1)) == [0, 1]


def test_best_available_is_the_healthiest_then_the_quickest() -> None:
    """A small difference in health does not outweigh time; a large one does."""
    slow, quick = health(*[True] * 9, took_s=2), health(*[True] * 9, took_s=1)
    shaky = health(*[True] * 9, *[False] * 5, took_s=0.1)
    assert order("best-available", slow, quick, shaky) == [1, 0, 2]


def test_best_available_explores() -> None:
    """The new first, then the long unused, one call each; then what is known."""
    known = health(True, took_s=1, at_s=EXPLORE_AFTER_S)
    unused, new = health(True, took_s=5), health()
    now_s = EXPLORE_AFTER_S * 1.5
    assert order("best-available", known, unused, new, now_s=now_s) == [2, 1, 0]
    new.began(now_s)
    unused.began(now_s)
    assert order("best-available", known, unused, new, now_s=now_s) == [0, 1, 2]


def test_random_is_everybody_alike() -> None:
    """And the same again for the same seed."""
    members = [health() for _ in range(4)]
    firsts = [STRATEGIES["random"](members, 0.0, RNG)[0] for _ in range(4000)]
    assert all(850 < count < 1150 for count in Counter(firsts).values())
    once, again = (STRATEGIES["random"](members, 0.0, random.Random(7)) for _ in range(2))
    assert once == again


EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([True, False, None]), st.floats(0, 100)),
    max_size=60,
)


@settings(deadline=None)
@given(strategy=st.sampled_from(sorted(STRATEGIES)), events=EVENTS)
def test_whatever_happened_everybody_is_in_the_order_once(
    strategy: str, events: list[tuple[int, bool | None, float]]
) -> None:
    """No history of answers, failures and pauses loses a member or puts the unready first."""
    members, now_s = [Health(5) for _ in range(4)], 0.0
    for number, good, step_s in events:
        now_s += step_s
        members[number].began(now_s)
        members[number].ended(now_s, good=good, took_s=step_s)
        assert 0 < members[number].share(now_s) <= 1
    found = order(strategy, *members, now_s=now_s)
    assert sorted(found) == [0, 1, 2, 3]
    ready = [members[number].ready(now_s) for number in found]
    assert ready == sorted(ready, reverse=True)


@settings(deadline=None)
@given(rates=st.lists(st.floats(0, 1), min_size=2, max_size=5), seed=st.integers(0, 999))
def test_best_available_ends_with_the_quickest_that_works(rates: list[float], seed: int) -> None:
    """Simulated: members that fail at their own rate; the one that never fails gets most calls."""
    rng, now_s = random.Random(seed), 0.0
    members = [Health(20) for _ in [*rates, 0.0]]
    asked: Counter[int] = Counter()
    for _ in range(300):
        first = STRATEGIES["best-available"](members, now_s, rng)[0]
        asked[first] += 1
        members[first].began(now_s)
        now_s += 0.1
        good = rng.random() >= (0.5 + rates[first] / 2 if first < len(rates) else 0)
        members[first].ended(now_s, good=good, took_s=0.1)
    assert asked[len(rates)] > 200
