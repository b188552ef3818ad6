"""Modules in a slab on an accelerator: what is read from where, and what is given back meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import leaving, slabbed, virtual
from tests.runtimes.test_mapped import MEASURED

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

GRANTED = 2**30


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=64MiB")
    yield
    assert virtual.taken_bytes("virtual:0") == 0


class Halves(torch.nn.Module):  # type: ignore[name-defined,misc]
    """Two parameters side by side in one storage, and one by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        whole = torch.randn(2, 300_000)
        self.one, self.other = torch.nn.Parameter(whole[0]), torch.nn.Parameter(whole[1])
        self.alone = torch.nn.Parameter(torch.randn(7))


def placed(model: Any, folder: Path | None = None, host: int = 0) -> Any:
    progress = Progress()
    progress.host_bytes = host
    return slabbed.place(model, "virtual:0", folder, progress)


def test_side_by_side_in_one_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage is given back when the last of its tensors has been read, not the first."""
    monkeypatch.setattr("nbproviders.runtimes.transfers.CHUNK", 2**16)
    monkeypatch.setattr("nbproviders.runtimes.transfers.Lane.chunk_bytes", 2**16)
    model = Halves()
    want = [p.detach().clone() for p in model.parameters()]
    before = [p.untyped_storage() for p in model.parameters()]
    there = placed(model, host=GRANTED)
    for _ in range(2):
        got = [p.detach() for p in model.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        there.sleep(Progress())
        there.wake(Progress())
    assert [storage.nbytes() for storage in before] == [0, 0, 0]
    there.free()


def test_what_no_file_holds_is_kept_if_it_is_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a host copy, what is not in the files is kept by itself up to a limit, and comes back."""
    model = Halves()
    want = [p.detach().clone() for p in model.parameters()]
    stored = {"one": model.one.detach().clone(), "other": model.other.detach().clone()}
    save_file(stored, tmp_path / "model.safetensors")
    there = placed(model, tmp_path)
    assert there.reason == ""
    assert "host" not in there.held
    there.sleep(Progress())
    assert there.held == {}  # what is kept is little, and stays with the structure
    there.wake(Progress())
    got = [p.detach() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    there.free()
    monkeypatch.setattr(slabbed, "allowance", lambda entries: 4)
    there = placed(Halves(), tmp_path)
    assert "alone" in there.reason
    there.free()


def test_what_others_keep_of_an_earlier_sleep_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state_dict that was kept over a sleep and a wake is a second copy on the device; then it is not."""
    monkeypatch.setattr(leaving, "COPIED_BYTES", 0)
    model = Halves()
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(tensors, tmp_path / "model.safetensors")
    there = placed(model, tmp_path)
    [(device, size)] = there.held.items()
    kept = model.state_dict()
    for _ in range(2):
        there.sleep(Progress())
        assert size <= there.held[device] < 1.1 * size  # in whole pages
        there.wake(Progress())
        assert 2 * size <= there.held[device] < 2.1 * size
    del kept
    assert there.held == {device: size}
    there.free()
    assert there.held == {}


def test_a_file_that_holds_something_else_is_not_relied_upon(tmp_path: Path) -> None:
    """A tensor that differs from the file's by one bit is taken as it is, and kept."""
    model = Halves()
    want = model.one.detach().clone()
    stored = model.one.detach().clone()
    stored.view(torch.int32)[150_000] ^= 1  # in no sample
    save_file({"one": stored, "other": model.other.detach()}, tmp_path / "model.safetensors")
    there = placed(model, tmp_path)
    kept = sum(memory.numel() for memory in there._kept.values())
    assert kept == want.nbytes + model.alone.nbytes
    there.sleep(Progress())
    there.wake(Progress())
    assert torch.equal(model.one.detach(), want)
    there.free()


def test_a_slab_is_told_before_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory shows it no more from then on; so at a load and at each wake."""
    model, told = Halves(), []
    stored = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(stored, tmp_path / "model.safetensors")

    class Watched(Progress):
        def report(self, *arguments: Any, **named: Any) -> None:
            told.append(dict(self.allocated_bytes))
            super().report(*arguments, **named)

    there = slabbed.place(model, "virtual:0", tmp_path, Watched())
    taken = {"virtual:0": there.held["virtual:0"]}
    assert told[0] == taken
    there.sleep(Progress())
    told.clear()
    there.wake(Watched())
    assert told[0] == taken
    there.free()


def test_without_files_a_model_is_placed_all_the_same() -> None:
    """Weights of no file go to the device; without a copy and too large to keep, they do not sleep."""
    model = torch.nn.Linear(3000, 2000, bias=False)
    there = placed(model)
    assert there.held == {"virtual:0": 24_000_000}
    assert "weight" in there.reason
    there.free()


def test_what_has_no_place_in_a_slab_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that a slab cannot hold is moved as the library moves it, and says where it is."""
    model = torch.nn.Linear(3, 2)
    model.hf_quantizer = object()
    there = placed(model, host=GRANTED)
    assert there.held == {"cpu": 32}
    assert there.reason == "its weights are quantized"


def test_devices_without_views() -> None:
    """A device whose memory is not both bytes and numbers is found before anything is moved there."""
    assert slabbed._without_views("cpu") == ""
    assert "meta has no views" in slabbed._without_views("meta")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no Linux")
def test_what_was_cast_on_its_way_to_the_device_goes_back_to_the_system(tmp_path: Path) -> None:
    """Once 240 MiB of weights that the library has cast are in a slab, main memory holds them no more."""
    code = """
model, guards = cast()
before = anonymous()
there = slabbed.place(model, "virtual:0", folder, Progress())
print(before + there.held["virtual:0"] / 2**20 - anonymous())
"""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED + code, str(tmp_path)],
        env={**os.environ, virtual.VARIABLE: "virtual:0=1GiB"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(ran.stdout) > 180


class Movable(torch.nn.Linear):  # type: ignore[name-defined,misc]
    """A module that goes to a device which this machine lacks."""

    def __init__(self) -> None:
        super().__init__(3000, 2000, bias=False)
        self.went: list[str] = []

    def to(self, device: str) -> Movable:
        self.went.append(device)
        return self


@pytest.mark.parametrize("large", [True, False])
def test_metal_gives_no_such_piece_or_has_no_room(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one piece is too large the library moves tensor by tensor; out of memory is told as that."""
    told = "Invalid buffer size: 22.89 MiB" if large else "MPS backend out of memory (MPS allocated"
    real = torch.empty

    def empty(*size: Any, **how: Any) -> Any:
        if str(how.get("device")) == "mps":
            raise RuntimeError(told)
        return real(*size, **how)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(slabbed, "_without_views", lambda device: "")
    model = Movable()
    want = model.weight.detach().clone()
    if large:
        there = slabbed.place(model, "mps", None, Progress())
        assert there.reason == "the device gives no piece of memory so large"
        assert model.went == ["mps"]
    else:
        with pytest.raises(InsufficientMemoryError, match=r"22\.9 MiB were asked for") as caught:
            slabbed.place(model, "mps", None, Progress())
        assert "Unload" in caught.value.hint
        assert model.went == []
    assert torch.equal(model.weight, want)
