"""Promises of locks between processes; what they do when processes die is with the ledger's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nbproviders.residency import locks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


def test_one_at_a_time(path: Path) -> None:
    """A second taker gets nothing until the first has given it back."""
    held = locks.try_lock(path)
    assert held is not None
    assert locks.try_lock(path) is None
    locks.unlock(held)
    again = locks.try_lock(path)
    assert again is not None
    locks.unlock(again)


def test_lookers_do_not_see_each_other(path: Path) -> None:
    """Two that look at once both see what is held by an owner, and only that."""
    path.touch()
    with locks.looked_at(path) as first, locks.looked_at(path) as second:
        assert (first, second) == (False, False)
    held = locks.try_lock(path)
    assert held is not None
    with locks.looked_at(path) as first, locks.looked_at(path) as second:
        assert (first, second) == (True, True)
    locks.unlock(held)
    path.unlink()
    with locks.looked_at(path) as gone:
        assert gone is False


def test_what_is_being_removed_cannot_be_taken(path: Path) -> None:
    """Between a look that finds no owner and the removal nobody becomes one."""
    path.touch()
    with locks.looked_at(path):
        assert locks.try_lock(path) is None
        path.unlink()


def test_the_lock_of_a_removed_file_is_worth_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened it just before it was removed is told so, and leaves nothing open."""
    opened: list[int] = []

    def open_late(*arguments: object) -> int:
        opened.append(really(*arguments))  # type: ignore[arg-type]
        path.unlink()
        return opened[-1]

    really = os.open
    monkeypatch.setattr(locks.os, "open", open_late)
    assert locks.try_lock(path) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_when_a_process_started() -> None:
    """It is the same each time one asks; nobody's is empty, and ends no other process."""
    own = locks.process_started(os.getpid())
    assert own == locks.process_started(os.getpid()) != ""
    assert locks.process_started(2**22 + 1) == ""
    assert not locks.has_ended(os.getpid(), own)
    assert locks.has_ended(os.getpid(), own + "0")
    assert not locks.has_ended(os.getpid(), "")
