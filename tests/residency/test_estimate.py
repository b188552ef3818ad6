"""Promises of estimates as values."""

from __future__ import annotations

import dataclasses

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.residency.estimate import Estimate

WHOLE = Estimate(
    weights={"cuda:0": 100},
    cache={"cuda:0": 20},
    workspace={"cuda:0": 5, "cpu": 1},
    optional={"host": 100},
    context_tokens=4096,
)


def test_it_is_the_bytes_of_each_device_in_all() -> None:
    """Read as a mapping it is what a plain one would say; what is optional is not in it."""
    assert dict(WHOLE) == {"cuda:0": 125, "cpu": 1}
    assert WHOLE == {"cuda:0": 125, "cpu": 1}
    assert len(WHOLE) == 2
    assert "host" not in WHOLE
    with pytest.raises(KeyError):
        WHOLE["host"]


def test_what_is_needed_only_to_compute() -> None:
    """The reserve is cache and workspace; nothing, where they are taken with the weights."""
    assert WHOLE.reserve == {"cuda:0": 25, "cpu": 1}
    assert dataclasses.replace(WHOLE, held=True).reserve == {}
    assert dict(dataclasses.replace(WHOLE, held=True)) == dict(WHOLE)


def test_a_plain_mapping_is_taken_as_held() -> None:
    """An author's mapping of bytes by device is an estimate without a reserve; an estimate is itself."""
    plain = Estimate.of({"cpu": 7})
    assert dict(plain) == dict(plain.weights) == {"cpu": 7}
    assert plain.reserve == {}
    assert Estimate.of(WHOLE) is WHOLE
    assert dict(Estimate.of({})) == {}


@pytest.mark.parametrize(
    "told", [{"cpu": -1}, {"cpu": 1.5}, {"cpu": True}, {1: 2}, {"cpu": None}, 5]
)
def test_what_is_no_estimate_is_refused(told: object) -> None:
    """Anything but whole bytes by device is refused with itself and an example."""
    with pytest.raises(ConfigurationError) as caught:
        Estimate.of(told)  # type: ignore[arg-type]
    assert repr(told) in caught.value.message
    assert "cuda:0" in caught.value.hint


def test_it_does_not_change() -> None:
    """Neither by assignment, nor through the mapping it was made of."""
    weights = {"cpu": 1}
    made = Estimate(weights=weights)
    weights["cpu"] = 2
    assert made["cpu"] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.weights = {}  # type: ignore[misc]


def test_a_correction_is_of_the_workspace_alone() -> None:
    """What measurements taught multiplies the workspace; the rest is exact by itself."""
    more = WHOLE.corrected(2.0)
    assert more.workspace == {"cuda:0": 10, "cpu": 2}
    assert (more.weights, more.cache) == (WHOLE.weights, WHOLE.cache)
