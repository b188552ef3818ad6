"""Promises of turns: one thread at a time, waiting that can be ended, and a child that waits for nobody."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nbproviders.core.turns import Turn
from tests.scripted import BOUND_S, joined


def nothing() -> None:
    """Wait on."""


class Holder:
    """Another thread that has a turn until it is told to give it back."""

    def __init__(self, turn: Turn) -> None:
        self._turn, self._has, self._done = turn, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with self._turn.taken(nothing):
            self._has.set()
            self._done.wait(BOUND_S)

    def __enter__(self) -> Holder:
        self._thread.start()
        assert self._has.wait(BOUND_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(BOUND_S)


def test_one_thread_at_a_time() -> None:
    """Of many threads never two are inside, and each comes to its turn; the same thread may go in again."""
    turn, inside, most = Turn(), [0], [0]

    def work() -> None:
        for _ in range(50):
            with turn.taken(nothing), turn.taken(nothing):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    with joined(*(threading.Thread(target=work) for _ in range(4))):
        pass
    assert most == [1]


def test_what_waiting_raises_ends_it() -> None:
    """Who waits is asked, at once and again and again, and leaves the turn where it is."""
    turn, asked = Turn(), list[int]()

    def impatient() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise LookupError

    with Holder(turn), pytest.raises(LookupError), turn.taken(impatient):
        pytest.fail("it went in")
    with turn.taken(impatient):  # free again, nobody is asked
        assert len(asked) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_of_its_parent() -> None:
    """A turn that was taken when the process forked is free in the child."""
    turn = Turn()
    with Holder(turn):
        pid = os.fork()
        if not pid:
            signal.alarm(int(BOUND_S))
            with turn.taken(nothing):
                os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
