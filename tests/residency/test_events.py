"""Promises of the record of what happened."""

from __future__ import annotations

import logging

import pytest

from nbproviders.residency import events
from nbproviders.residency.events import Record


def test_events_are_kept_in_order() -> None:
    """Each has a time, a kind, a model, bytes and words."""
    record = Record()
    record.add("created", "a:b", 10, "0.1 s")
    record.add("released", "a:b")
    created, released = record.events()
    assert (created.kind, created.spec, created.bytes, created.detail) == (
        "created",
        "a:b",
        10,
        "0.1 s",
    )
    assert released.kind == "released"
    assert created.time_s <= released.time_s


def test_the_record_is_bounded() -> None:
    """A session of days keeps the last events only."""
    record = Record()
    for number in range(events._KEPT + 5):
        record.add("leased", str(number))
    kept = record.events()
    assert len(kept) == events._KEPT
    assert kept[0].spec == "5"


def test_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Loads and evictions at INFO, the many leases at DEBUG."""
    record = Record()
    with caplog.at_level(logging.INFO, "nbproviders"):
        record.add("leased", "a:b")
        record.add("evicted", "a:b", 7)
    assert [r.getMessage().strip() for r in caplog.records] == ["evicted a:b (7 bytes)"]
    with caplog.at_level(logging.DEBUG, "nbproviders"):
        record.add("leased", "a:b")
    assert caplog.records[-1].levelno == logging.DEBUG


def test_no_handlers_are_installed() -> None:
    """Importing the package leaves logging to whoever runs it."""
    assert logging.getLogger("nbproviders").handlers == []
    assert logging.getLogger("nbproviders.residency").handlers == []
