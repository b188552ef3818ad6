"""Promises of budgets and readings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.residency import memory
from nbproviders.residency.memory import (
    GIB,
    HOST,
    HOST_SHARE,
    KEEP_VARIABLE,
    MIB,
    Memory,
    Reading,
    headroom,
    parse_budget,
    parse_keep,
    parse_size,
    parse_wait,
    probe_cpu,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20GiB", 20 * GIB),
        ("512 MB", 512 * 10**6),
        ("0", 0),
        ("1048576", MIB),
        ("1.5 gib", 3 * GIB // 2),
        (" 3B ", 3),
        ("2TiB", 2 * 2**40),
        ("7kb", 7000),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    """Binary and decimal units, any case, blanks or none."""
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "lots", "-1GiB", "20 GiBs", "1e9", "GiB", "1,5GiB", "0 qB", "9" * 400]
)
def test_no_sizes(text: str) -> None:
    """What is no size is refused with itself and an example."""
    with pytest.raises(ConfigurationError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message
    assert "20GiB" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "meant"),
    [("8", "8GiB"), (" 0.5", "0.5GiB"), ("cpu=24", "24GiB"), ("cpu=1048575", "1048575B")],
)
def test_a_number_without_a_unit_is_asked_back(text: str, meant: str) -> None:
    """Bytes or gigabytes: nobody means 8 bytes, so the likely reading is offered, not taken."""
    with pytest.raises(ConfigurationError, match=f"has no unit: did you mean {meant}"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cpu:8GiB", "Write cpu=8GiB."),
        ("cpu=1GiB, cuda:0:20GiB", "Write cuda:0=20GiB."),
        ("cuda:0", "Write a size as well: cuda:0=20GiB."),
    ],
)
def test_a_colon_for_the_equals_sign(text: str, hint: str) -> None:
    """Who writes a colon, or no size, is told the whole line."""
    with pytest.raises(ConfigurationError, match="is not a budget") as caught:
        parse_budget(text)
    assert caught.value.hint == hint


def test_budgets_by_device() -> None:
    """A budget names devices, or means the accelerators."""
    assert parse_budget("cuda:0=20GiB, cpu=8GiB") == {"cuda:0": 20 * GIB, "cpu": 8 * GIB}
    assert parse_budget("20GiB") == {"": 20 * GIB}
    assert parse_budget("") == {}
    with pytest.raises(ConfigurationError):
        parse_budget("cuda:0=much")


@pytest.mark.parametrize(
    ("text", "twice"), [("cpu=1GiB, CPU=2GiB", "cpu"), ("1GiB,2GiB", "the accelerators")]
)
def test_a_device_has_one_budget(text: str, twice: str) -> None:
    """Which of two is meant cannot be told."""
    with pytest.raises(ConfigurationError, match=f"two budgets for {twice}"):
        parse_budget(text)


@pytest.mark.parametrize("budget", [20, {"cuda:0": 20}, True, b"20GiB"])
def test_a_budget_that_is_no_text_is_refused(budget: object) -> None:
    """A number without a unit may mean bytes or gigabytes: it is asked for, not guessed."""
    with pytest.raises(ConfigurationError, match=f"not {type(budget).__name__}") as caught:
        parse_budget(budget)  # type: ignore[arg-type]
    assert "20GiB" in caught.value.hint


@pytest.mark.parametrize("value", [0, -1, "soon", "", float("nan"), float("inf"), True, [5]])
def test_what_is_no_time_is_refused(value: object) -> None:
    """The error names the value and what it is for."""
    with pytest.raises(ConfigurationError, match="may stay unused") as caught:
        parse_keep(value)
    assert repr(value) in caught.value.message
    assert KEEP_VARIABLE in caught.value.hint
    with pytest.raises(ConfigurationError, match="to wait for memory") as caught:
        parse_wait(value)
    assert "wait_s=" in caught.value.hint


def test_how_long_a_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default until its room is wanted; the variable is read anew, and code wins."""
    monkeypatch.delenv(KEEP_VARIABLE, raising=False)
    found = Memory()
    assert found.keep_s() is None
    monkeypatch.setenv(KEEP_VARIABLE, " 900 ")
    assert found.keep_s() == 900
    found.set_keep(5.5)
    assert found.keep_s() == 5.5
    found.set_keep(None)
    monkeypatch.setenv(KEEP_VARIABLE, "-3")
    with pytest.raises(ConfigurationError, match="^NBPROVIDERS_KEEP_S: '-3'"):
        found.keep_s()
    monkeypatch.setenv(KEEP_VARIABLE, "")
    assert found.keep_s() is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_677_722, "1.6 MiB"),
        (3000 * GIB, "3000.0 GiB"),
    ],
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    """Bytes are shown with one digit after the point."""
    assert size_text(count) == text


def test_headroom() -> None:
    """A tenth of a small device, 512 MiB of a middling one, a twentieth of a large one."""
    assert headroom(1000) == 100
    assert headroom(8 * GIB) == 512 * MIB
    assert headroom(100 * GIB) == 5 * GIB


def test_the_budget_without_device_means_the_accelerators() -> None:
    """20GiB is for cuda:0 where there is one, and for main memory where there is none."""
    plain = Memory({"": 20})
    assert plain.budget("cpu") == 20
    plain.add_probe("cuda", lambda _: Reading(100, 100))
    assert plain.budget("cpu") is None
    assert plain.budget("cuda:0") == 20
    assert Memory({"": 20, "cuda:1": 5}).budget("cuda:1") == 5


def test_a_device_that_is_only_accounted_for_stands_in() -> None:
    """A size alone is for it where there is no accelerator, and for the CPU no longer; else not."""
    found = Memory({"": 20})
    found.add_probe("virtual", lambda _: Reading(100, 100), sees_others=False)
    assert (found.budget("virtual:0"), found.budget("cpu")) == (20, None)
    found.add_probe("cuda", lambda _: Reading(100, 100))
    assert (found.budget("cuda:0"), found.budget("virtual:0"), found.budget("cpu")) == (
        20,
        None,
        None,
    )


def test_a_kind_means_each_of_its_devices() -> None:
    """``cuda=20GiB`` is for all GPUs but those that are named; no device of that name is told."""
    found = Memory({"cuda": 20, "cuda:1": 5, "": 1})
    budgets = [found.budget(device) for device in ("cuda:0", "cuda:1", "cuda:2", "tpu:0")]
    assert budgets == [20, 5, 20, 1]
    assert found.named() == {"cuda:1"}


def test_a_variable_that_many_machines_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names and nobody can read here is not told, and limits nothing else."""
    monkeypatch.setenv(memory.BUDGET_VARIABLE, "cuda:0=20GiB,cpu=5MiB,host=1MiB,cuda=7GiB")
    found = Memory()
    assert found.named() == {"cpu", HOST}
    assert found.budget("cpu") == 5 * MIB
    found.add_probe("cuda", lambda _: Reading(100, 100))
    assert found.named() == {"cuda:0", "cpu", HOST}


def test_the_environment_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the variable in a cell takes effect at the next load; a budget set in code wins."""
    found = Memory()
    assert found.budget("cpu") is None
    monkeypatch.setenv(memory.BUDGET_VARIABLE, "cpu=5MiB")
    assert found.budget("cpu") == 5 * MIB
    found.set_budget({"cpu": 7})
    assert found.budget("cpu") == 7
    found.set_budget(None)
    assert found.budget("cpu") == 5 * MIB
    monkeypatch.setenv(memory.BUDGET_VARIABLE, "cpu=nonsense")
    with pytest.raises(ConfigurationError, match=r"^NBPROVIDERS_BUDGET: 'nonsense'"):
        found.budget("cpu")


def test_the_limit_is_the_lesser_of_budget_and_what_is_free() -> None:
    """Neither the user's word nor the machine is exceeded, and headroom stays free."""
    free = {"x": Reading(1000, 500)}
    found = Memory({"x": 300}, {"x": lambda device: free[device]})
    assert found.limit("x", 0) == 300
    assert found.limit("x", 200) == 300
    free["x"] = Reading(1000, 150)
    assert found.limit("x", 100) == 150
    free["x"] = Reading(1000, 20)
    assert found.limit("x", 100) == 100
    assert found.limit("unheard-of", 0) is None
    assert Memory({}, {"x": lambda _: Reading(1000, 500)}).limit("x", 0) == 400


def test_a_probe_reads_all_devices_of_its_kind() -> None:
    """``cuda`` reads ``cuda:0`` and ``cuda:1``."""
    found = Memory({}, {"cuda": lambda device: Reading(int(device[-1]), 0)})
    assert found.reading("cuda:3") == Reading(3, 0)
    assert found.reading("tpu:0") is None


def test_copies_in_main_memory_have_a_budget_of_their_own() -> None:
    """A share of the machine unless the user says, whatever accelerators have; within what is free."""
    share = int(probe_cpu().total_bytes * HOST_SHARE)
    assert Memory({"": 20}).budget(HOST) == Memory({}).budget(HOST) == share
    assert Memory({HOST: 7}).budget(HOST) == 7
    free = Memory({HOST: 1000}, {"cpu": lambda _: Reading(1000, 300)})
    assert free.limit(HOST, 50) == 50 + 300 - headroom(1000)
    assert Memory({HOST: 0}).limit(HOST, 0) == 0


def test_no_more_than_the_device_has() -> None:
    """Mapped weights take memory, and free memory shows it not: still all together have to fit."""
    found = Memory({}, {"x": lambda _: Reading(1000, 950)})
    assert found.limit("x", 0) == 850
    assert found.limit("x", 600) == 900  # and not 600 + 850
    assert found.limit("x", 1200) == 900
    assert found.limit("x", 100, pending_bytes=100, beside_bytes=300) == 500
    assert found.limit("x", 100, beside_bytes=850) == 100  # what is there may stay


def test_what_is_promised_elsewhere_is_not_free() -> None:
    """What others were promised of the same memory, and still shows as free, is theirs."""
    found = Memory({}, {"x": lambda _: Reading(1000, 500)})
    assert found.limit("x", 0, pending_bytes=150) == 250
    assert found.limit("x", 60, pending_bytes=900) == 60


def test_devices_that_are_shared_are_named_alike_by_all() -> None:
    """A kind with an identity is shared; who cannot see others' use says so; the rest is ours alone."""
    found = Memory({"cuda:0": 5, "": 7}, {"x": lambda _: Reading(1, 1)})
    found.add_probe("cuda", lambda _: Reading(9, 9), identity=lambda name: f"uuid of {name}")
    found.add_probe("blind", lambda _: Reading(9, 9), sees_others=False)
    assert found.identity("cuda:1") == "uuid of cuda:1"
    assert (found.identity("x"), found.identity("cpu"), found.identity("blind:0")) == ("", "", "")
    assert (found.sees_others("cuda:0"), found.sees_others("blind:0")) == (True, False)
    assert found.named() == {"cuda:0"}


def test_main_memory_is_read() -> None:
    """This machine has memory, and some of it is free."""
    found = probe_cpu()
    assert 0 < found.free_bytes <= found.total_bytes


def test_a_container_has_what_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the limit counts, not the machine behind it."""
    limit, usage = tmp_path / "max", tmp_path / "current"
    limit.write_text(f"{100 * MIB}\n")
    usage.write_text(f"{90 * MIB}\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(usage)), ("/none", "/none")))
    assert probe_cpu() == Reading(100 * MIB, 10 * MIB)
    limit.write_text("max\n")
    assert probe_cpu().total_bytes > 100 * MIB
