"""Promises of soft leases: given back once, by hand or by being dropped, and told with their cell."""

from __future__ import annotations

import gc
import sys

import pytest

from nbproviders.core import engine
from nbproviders.residency import lease as leases
from nbproviders.residency.entry import Loader
from nbproviders.residency.lease import Lease
from tests.kernel.driver import kernel
from tests.scripted import ScriptedLoader, house, in_virtual_time, settled, turns


def test_a_lease_is_given_back_once() -> None:
    """A second time does nothing, and being dropped afterwards neither."""
    given: list[tuple[Loader, str]] = []
    loader = ScriptedLoader()
    lease = Lease(loader, lambda *what: given.append(what), "In [3]")
    assert lease.active
    lease.release()
    lease.release()
    assert not lease.active
    del lease
    gc.collect()
    settled()
    assert given == [(loader, "In [3]")]


def test_a_dropped_lease_is_given_back_on_the_engine() -> None:
    """Garbage is collected on any thread, in the middle of anything: no lock is taken there."""
    where: list[bool] = []
    lease = Lease(ScriptedLoader(), lambda *_: where.append(engine.default().here))
    del lease
    gc.collect()
    settled()
    assert where == [True]


def test_outside_ipython_there_is_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's leases have no place, and asking for it imports nothing."""
    monkeypatch.delitem(sys.modules, "IPython.core.interactiveshell", raising=False)
    assert leases.here() == ""


@in_virtual_time
async def test_leases_of_one_model_are_told_by_cell() -> None:
    """Two cells that hold it open are both told, each until its last lease is given back."""
    home, loader = house(), ScriptedLoader()
    first, second = await home.lease(loader, "In [4]"), await home.lease(loader)
    third = (await home.lease_all([loader], "In [7]"))[0]
    await turns()
    [one] = home.residents()
    assert (one.handles, one.opened_in) == (3, ("In [4]", "In [7]"))
    first.release()
    assert home.residents()[0].opened_in == ("In [7]",)
    third.release()
    second.release()
    assert home.residents()[0].handles == 0


OPEN = """
import nbproviders as nbp
m = await nbp.load("echo:echo")
"""
OPEN_TWO = """
async with nbp.models("echo:echo", "echo:other") as (a, b):
    print([one.opened_in for one in nbp.residents()])
"""


def test_a_cell_that_holds_a_model_open_is_told() -> None:
    """In a notebook the table says where each handle was opened, by the number beside the cell."""
    with kernel() as running:
        first = running.run(OPEN)
        assert first.status == "ok", first.error
        both = running.run(OPEN_TWO)
        assert both.status == "ok", both.error
        told = running.run("print([one.opened_in for one in nbp.residents()])")
        running.run('m = await nbp.load("echo:echo")')
        again = running.run("print(nbp.residents()[0].opened_in)")
    assert both.text.strip() == "[('In [1]', 'In [2]'), ('In [2]',)]"
    assert told.text.strip() == "[('In [1]',), ()]"
    assert again.text.strip() == "('In [4]',)"
