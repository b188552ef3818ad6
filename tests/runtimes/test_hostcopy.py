"""Main memory for copies: exact, aligned, and given back though it is referred to."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

import pytest

from nbproviders.errors import InsufficientMemoryError
from nbproviders.runtimes import hostcopy

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [1, 4096, 5_000_001])
def test_memory_is_exact_and_begins_on_a_page(size: int) -> None:
    """As many bytes as asked, all of them usable, from the beginning of a page."""
    memory = hostcopy.main_memory(size)
    assert memory.numel() == size
    assert memory.data_ptr() % 4096 == 0
    memory.fill_(7)
    assert memory[-1] == 7


def test_a_buffer_is_freed_though_somebody_refers_to_it() -> None:
    """After `free` the storage is empty, also of a part that somebody kept."""
    buffer = hostcopy.HostBuffer(10_000)
    part = buffer.bytes[100:200]
    assert buffer.size_bytes == 10_000
    buffer.free()
    buffer.free()
    assert buffer.size_bytes == 0
    assert part.untyped_storage().nbytes() == 0


def test_a_forgotten_buffer_is_freed() -> None:
    """A buffer that nobody freed is given back when it is forgotten."""
    buffer = hostcopy.HostBuffer(10_000)
    part = buffer.bytes[:1]
    del buffer
    gc.collect()
    assert part.untyped_storage().nbytes() == 0


def test_more_than_there_is() -> None:
    """What the system does not give is one of our errors, with the size."""
    with pytest.raises(InsufficientMemoryError, match=r"GiB were asked for"):
        hostcopy.main_memory(2**60)


class Cuda:
    """A driver that locks and unlocks as it is told, for machines without one."""

    def __init__(self, code: int) -> None:
        self.code, self.locked = code, dict[int, int]()
        self.current = "cuda:0"
        self.used: list[str] = []  # a call by a device makes a context there

    @contextlib.contextmanager
    def device(self, name: str) -> Iterator[None]:
        before, self.current = self.current, name
        yield
        self.current = before

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        self.used.append(self.current)
        if not self.code:
            self.locked[pointer] = size
        return self.code

    def cudaHostUnregister(self, pointer: int) -> int:
        self.used.append(self.current)
        ctypes.string_at(pointer, 1)  # it must still be there
        del self.locked[pointer]
        return 0


@pytest.mark.parametrize("code", [0, 801])
def test_memory_is_locked_to_the_page_and_unlocked_before_it_goes(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is locked is what was asked, by its own device; where locking fails it goes on without."""
    driver = Cuda(code)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "device", driver.device)
    if code and not torch.cuda.is_available():
        monkeypatch.setattr(torch, "zeros", lambda *_, **how: driver.used.append(how["device"]))
    buffer = hostcopy.HostBuffer(5 * 2**20 + 1, device="cuda:1")
    assert buffer.pinned is (code == 0)
    assert list(driver.locked.values()) == ([] if code else [5 * 2**20 + 4096])
    assert ("could not lock" in caplog.text) is (code != 0)
    buffer.free()
    assert driver.locked == {}
    assert driver.used == ["cuda:1", "cuda:1"]  # no context on a device that has nothing of it
    assert not hostcopy.HostBuffer(100, device="virtual:0").pinned


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_sees_locked_memory() -> None:
    """What was locked is page-locked for CUDA too, until it is freed."""
    buffer = hostcopy.HostBuffer(5 * 2**20 + 1, device="cuda:0")
    assert buffer.pinned
    assert buffer.bytes.is_pinned()
    buffer.free()
