"""Promises of what a budget may name: devices that are here."""

from __future__ import annotations

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import HOST, Memory, Reading
from nbproviders.runtimes import presence, virtual


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the driver told of two GPUs; this machine may have any number."""
    monkeypatch.setattr(presence, "cuda_count", lambda: 2)
    monkeypatch.setenv(virtual.VARIABLE, "virtual:3=1MiB")


@pytest.mark.parametrize(
    "device", ["", "cpu", HOST, "cuda", "cuda:0", "cuda:1", "virtual", "virtual:3"]
)
def test_what_is_here_may_have_a_budget(two_gpus: None, device: str) -> None:
    """Devices, kinds of them, and no device at all; nothing has computed on them yet."""
    presence.require([device], Memory())


@pytest.mark.parametrize(
    "device", ["cuda:2", "gpu:0", "cup", "virtual:0", "cpu:0", "cuda:", "npu:0", "cuda0"]
)
def test_what_is_not_here_may_not(two_gpus: None, device: str) -> None:
    """A budget for it would limit nothing: the error names what is here."""
    with pytest.raises(ConfigurationError, match=f"no device '{device}' here") as caught:
        presence.require(["cpu", device], Memory())
    here = caught.value.hint.partition(".")[0].removeprefix("Devices here: ").split(", ")
    assert {"cpu", "cuda:0", "cuda:1", HOST, "virtual:3"} == {*here} - {"mps"}


def test_a_probe_of_somebody_else_is_believed(two_gpus: None) -> None:
    """An author's accelerator is there, by any number, and so is what a model was charged on."""
    memory = Memory({})
    memory.add_probe("npu", lambda _: Reading(1, 1))
    memory.limit("odd:0", 0)
    presence.require(["npu:0", "npu", "odd:0"], memory)
    memory.add_probe("cuda", lambda _: Reading(1, 1))
    with pytest.raises(ConfigurationError):
        presence.require(["cuda:2"], memory)


def test_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind without a device is refused like a device."""
    monkeypatch.setattr(presence, "cuda_count", lambda: 0)
    for device in ("cuda", "cuda:0", "virtual"):
        with pytest.raises(ConfigurationError):
            presence.require([device], Memory())
