"""Promises of what predicts a model's next use."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from nbproviders.residency.reuse import Reuse

turns = st.lists(st.integers(1, 300), min_size=1, max_size=60, unique=True).map(sorted)


def used(at: Iterable[int]) -> Reuse:
    """Return what was used at these turns."""
    reuse = Reuse()
    for turn in at:
        reuse.used(turn)
    return reuse


def test_what_was_never_used_has_no_chance() -> None:
    """Without a use nothing speaks for another."""
    assert Reuse().chance(10) == 0


@given(turns=turns, later=st.integers(0, 1000))
def test_a_chance_is_a_share(turns: list[int], later: int) -> None:
    """What was used has a chance above none and never above certainty, whatever the turns."""
    assert 0 < used(turns).chance(turns[-1] + later) <= 1


@given(turns=turns)
def test_the_longer_unused_the_less_likely_once_its_rhythm_is_over(turns: list[int]) -> None:
    """Past its longest gap a chance only falls."""
    reuse = used(turns)
    start = turns[-1] + max((b - a for a, b in itertools.pairwise(turns)), default=0)
    chances = [reuse.chance(start + n) for n in range(0, 200, 10)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > chances[-1]


def test_frequent_use_counts() -> None:
    """Of two that were used last at the same time, the one used more often is likelier."""
    assert used(range(10, 101, 10)).chance(105) > used([100]).chance(105)


def test_recent_use_counts() -> None:
    """Of two that were used equally often, the one used lately is likelier."""
    assert used([80, 87, 99]).chance(140) > used([10, 17, 29]).chance(140)


def test_idle_time_does_not_erase_what_is_known() -> None:
    """A favourite that rested for a while is still likelier than what was tried once."""
    favourite, tried = used(range(1, 60, 2)), used([75])
    assert favourite.chance(80) > tried.chance(80)


def test_uses_in_one_turn_are_one() -> None:
    """A burst of cells with one model counts as one use of it."""
    assert used([3, 3, 3, 3]).chance(9) == used([3]).chance(9)


def test_a_loop_wants_the_one_used_last_at_the_end() -> None:
    """In a loop over models the chance grows with the time since the last use, up to the period."""
    loop = {n: used(range(n + 1, 40, 5)) for n in range(5)}
    now = 40
    # Turn 40 was the last one's; next comes the first, and so on.
    chances = [loop[n].chance(now) for n in range(5)]
    assert chances == sorted(chances, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_chances_rank_as_frequencies_do(seed: int) -> None:
    """Where each use is drawn by itself, models of clearly different odds are told apart."""
    rng = random.Random(seed)
    reuse = {name: Reuse() for name in "abcd"}
    right = looked = 0
    for turn in range(1, 1000):
        [name] = rng.choices("abcd", [8, 4, 2, 1])
        reuse[name].used(turn)
        if turn > 100:
            looked += 1
            chances = [reuse[each].chance(turn) for each in "abcd"]
            right += chances[0] > chances[2] and chances[1] > chances[3]
    assert right / looked > 0.9


def test_memory_is_bounded() -> None:
    """A model that was used very often knows as much as it needs, and no more."""
    exact = sum((10_000 - turn + 1) ** -0.5 for turn in range(1, 10_001, 2))
    reuse = used(range(1, 10_001, 2))
    assert reuse.chance(10_000) == pytest.approx(0.5, rel=0.35)
    assert len(reuse._recent) < 20
    assert reuse._rate(10_000) == pytest.approx(exact / (2 * 10_001**0.5), rel=0.02)
