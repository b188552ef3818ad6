"""Virtual devices: what the environment describes, and what is taken of it."""

from __future__ import annotations

import gc

import pytest

from nbproviders.errors import ConfigurationError, InsufficientMemoryError
from nbproviders.runtimes import virtual

MIB = 2**20


def test_devices_are_described_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry is a device with its bytes, and with a speed if one is given."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=64MiB@2GiB/s, virtual:1 = 1GiB ,")
    assert virtual.devices() == {
        "virtual:0": virtual.VirtualDevice(64 * MIB, 2 * 2**30),
        "virtual:1": virtual.VirtualDevice(2**30, None),
    }
    monkeypatch.delenv(virtual.VARIABLE)
    assert virtual.devices() == {}


@pytest.mark.parametrize("text", ["virtual:0", "cuda:0=1GiB", "virtual:0=1GiB@2GiB", "virtual=1"])
def test_what_describes_no_device_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that cannot be read is told with itself, and with how to write it."""
    monkeypatch.setenv(virtual.VARIABLE, text)
    with pytest.raises(ConfigurationError, match="describes no device") as caught:
        virtual.devices()
    assert repr(text) in str(caught.value)
    assert "64MiB@2GiB/s" in caught.value.hint


def test_what_is_taken_is_read_until_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free bytes are the total less what is taken; giving back twice, or by forgetting, counts once."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:7=10MiB")
    one, other = virtual.Taking("virtual:7", 4 * MIB), virtual.Taking("virtual:7", 5 * MIB)
    assert virtual.probe("virtual:7").free_bytes == 1 * MIB
    with pytest.raises(InsufficientMemoryError, match=r"2.0 MiB were asked for, 1.0 MiB of 10.0"):
        virtual.Taking("virtual:7", 2 * MIB)
    one.release()
    one.release()
    assert virtual.probe("virtual:7").free_bytes == 5 * MIB
    del other
    gc.collect()
    assert virtual.taken_bytes("virtual:7") == 0


def test_a_device_that_is_not_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not there holds nothing, and cannot be taken from."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=1MiB")
    assert virtual.probe("virtual:1").total_bytes == 0
    with pytest.raises(ConfigurationError, match="Virtual devices here: virtual:0"):
        virtual.Taking("virtual:1", 1)
