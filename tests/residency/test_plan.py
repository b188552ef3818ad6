"""Promises of the planner: who leaves so that this fits."""

from __future__ import annotations

from hypothesis import given, strategies as st

from nbproviders.residency.plan import Plan, Seat, plan

devices = st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(0, 60), max_size=2)
seats = st.lists(
    st.builds(
        Seat,
        name=st.just("?"),
        charges=devices,
        busy=st.booleans(),
        pinned=st.booleans(),
        open_handles=st.integers(0, 2),
        idle_s=st.floats(0, 5000),
        uses=st.integers(1, 9),
        reload_s=st.floats(0, 60),
    ),
    max_size=6,
).map(lambda found: [_named(seat, n) for n, seat in enumerate(found)])
limits = st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(0, 100), max_size=2)


def _named(seat: Seat, number: int) -> Seat:
    return Seat(
        str(number),
        seat.charges,
        seat.busy,
        seat.pinned,
        seat.open_handles,
        seat.idle_s,
        seat.uses,
        seat.reload_s,
    )


def fits(stay: list[Seat], need: dict[str, int], limit: dict[str, int]) -> bool:
    return all(
        sum(seat.charges.get(device, 0) for seat in stay) + need[device] <= limit[device]
        for device in need
        if device in limit and need[device]
    )


@given(seats=seats, need=devices, limit=limits)
def test_a_plan_is_right(seats: list[Seat], need: dict[str, int], limit: dict[str, int]) -> None:
    """It fits without the victims, none of whom is in use or spared in vain; else it says why not."""
    decided = plan(seats, need, limit)
    victims = [seat for seat in seats if seat.name in decided.victims]
    assert not any(seat.busy or seat.pinned for seat in victims)
    stay = [seat for seat in seats if seat not in victims]
    staying = [seat for seat in seats if seat.busy or seat.pinned]
    if decided.verdict == "fits":
        assert fits(stay, need, limit)
        assert not any(fits([*stay, victim], need, limit) for victim in victims)
        return
    assert decided.victims == ()
    assert decided.short
    assert not fits(staying, need, limit)
    pinned = [seat for seat in seats if seat.pinned]
    assert (decided.verdict == "wait") == fits(pinned, need, limit)


def test_room_enough_moves_nobody() -> None:
    """Nobody leaves where there is room."""
    assert plan([Seat("a", {"gpu": 50})], {"gpu": 50}, {"gpu": 100}) == Plan("fits")


def test_a_device_without_limit_has_room() -> None:
    """What nobody bounded, and what needs nothing, always fits."""
    assert plan([], {"gpu": 10**12}, {}).verdict == "fits"
    assert plan([Seat("a", {"gpu": 500})], {"gpu": 0}, {"gpu": 100}).verdict == "fits"


def test_idle_ones_leave_the_cheapest_first() -> None:
    """Long unused, quickly loaded and unheld models leave before others."""
    seats = [
        Seat("slow", {"gpu": 50}, reload_s=60),
        Seat("quick", {"gpu": 50}, reload_s=1),
    ]
    assert plan(seats, {"gpu": 50}, {"gpu": 100}).victims == ("quick",)
    seats = [Seat("used", {"gpu": 50}, idle_s=1), Seat("forgotten", {"gpu": 50}, idle_s=3600)]
    assert plan(seats, {"gpu": 50}, {"gpu": 100}).victims == ("forgotten",)


def test_open_handles_raise_the_price_but_do_not_forbid() -> None:
    """A model somebody holds open leaves after one that nobody holds, yet it does leave."""
    held, free = Seat("held", {"gpu": 50}, open_handles=1), Seat("free", {"gpu": 50})
    assert plan([held, free], {"gpu": 50}, {"gpu": 100}).victims == ("free",)
    assert set(plan([held, free], {"gpu": 100}, {"gpu": 100}).victims) == {"held", "free"}


def test_open_handles_leave_last() -> None:
    """However quickly it would load again, a model that somebody holds open leaves after the others."""
    held = Seat("held", {"gpu": 50}, open_handles=1, reload_s=0)
    for dear in (0, 60):
        free = Seat("free", {"gpu": 50}, reload_s=dear)
        assert plan([held, free], {"gpu": 50}, {"gpu": 100}).victims == ("free",)


def test_a_model_in_use_never_leaves() -> None:
    """What runs is waited for; what is pinned makes waiting vain; too much never fits."""
    busy, pinned = Seat("b", {"gpu": 50}, busy=True), Seat("p", {"gpu": 50}, pinned=True)
    assert plan([busy], {"gpu": 60}, {"gpu": 100}) == Plan("wait", short={"gpu": 10})
    assert plan([pinned], {"gpu": 60}, {"gpu": 100}) == Plan("never", short={"gpu": 10})
    assert plan([], {"gpu": 101}, {"gpu": 100}) == Plan("never", short={"gpu": 1})


def test_only_those_on_the_device_leave() -> None:
    """Freeing main memory does not help the accelerator."""
    seats = [Seat("cpu", {"cpu": 90}, reload_s=0), Seat("gpu", {"gpu": 90}, reload_s=60)]
    assert plan(seats, {"gpu": 50}, {"gpu": 100, "cpu": 100}).victims == ("gpu",)


def test_a_small_victim_that_does_not_help_is_spared() -> None:
    """A big one that must leave anyway makes the small one's leaving needless."""
    small, big = Seat("small", {"gpu": 10}, reload_s=0.1), Seat("big", {"gpu": 90}, reload_s=10)
    assert plan([small, big], {"gpu": 60}, {"gpu": 100}).victims == ("big",)
