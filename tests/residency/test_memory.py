"""Promises of budgets and readings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.residency import memory
from nbproviders.residency.memory import (
    GIB,
    MIB,
    Memory,
    Reading,
    headroom,
    parse_budget,
    parse_size,
    probe_cpu,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20GiB", 20 * GIB),
        ("512 MB", 512 * 10**6),
        ("1000", 1000),
        ("1.5 gib", 3 * GIB // 2),
        (" 3B ", 3),
        ("2TiB", 2 * 2**40),
        ("7kb", 7000),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    """Binary and decimal units, any case, blanks or none."""
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "20 GiBs", "1e9", "GiB", "1,5GiB"])
def test_no_sizes(text: str) -> None:
    """What is no size is refused with itself and an example."""
    with pytest.raises(ConfigurationError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message
    assert "20GiB" in caught.value.hint


def test_budgets_by_device() -> None:
    """A budget names devices, or means the accelerators."""
    assert parse_budget("cuda:0=20GiB, cpu=8GiB") == {"cuda:0": 20 * GIB, "cpu": 8 * GIB}
    assert parse_budget("20GiB") == {"": 20 * GIB}
    assert parse_budget("") == {}
    with pytest.raises(ConfigurationError):
        parse_budget("cuda:0=much")


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
    with pytest.raises(ConfigurationError, match="nonsense"):
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
