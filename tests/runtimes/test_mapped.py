"""Modules on the CPU that sleep by their files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ClosedError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import mapped

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file


def written(folder: Path, **tensors: Any) -> Path:
    """Save tensors one behind the other, in the order of their names."""
    save_file({k: v.detach().clone() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def module(**tensors: Any) -> Any:
    made = torch.nn.Module()
    for name, tensor in tensors.items():
        made.register_buffer(name, tensor)
    return made


def came_back(model: Any, there: Any) -> bool:
    want = {name: t.clone() for name, t in model.named_buffers()}
    there.sleep(Progress())
    there.wake(Progress())
    return all(torch.equal(t, want[name]) for name, t in model.named_buffers())


def test_what_lies_askew_in_its_file_comes_into_a_slab(tmp_path: Path) -> None:
    """A mapping is used where numbers lie on their boundaries; elsewhere their bytes are read."""
    model = module(a=torch.arange(6, dtype=torch.int8), b=torch.randn(500), c=torch.randn(500))
    folder = written(tmp_path, a=model.a, b=model.b, c=model.c)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b" "  # a length that is no multiple of anything
    header += b" " * (1 - len(header) % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    there = mapped.keep(model, folder)
    assert there.reason == ""
    there.sleep(Progress())
    woken = there.wake(Progress())
    assert woken.moved_bytes >= 4_000
    assert torch.equal(model.a, torch.arange(6, dtype=torch.int8))
    assert came_back(model, there)
    there.free()


def test_a_storage_leaves_whole_or_not_at_all(tmp_path: Path) -> None:
    """What shares its storage with something that no file holds stays with it."""
    whole = torch.randn(2, 50)
    model = module(a=whole[0], b=whole[1], c=torch.randn(40_000))
    there = mapped.keep(model, written(tmp_path, a=model.a, c=model.c))
    assert there.reason == ""
    there.sleep(Progress())
    assert there.held == {"cpu": whole.nbytes}
    assert torch.equal(model.b, whole[1])
    assert torch.equal(model.a, whole[0])
    there.wake(Progress())
    assert came_back(model, there)


def test_there_is_no_sleep_for_a_part(tmp_path: Path) -> None:
    """Where more than a little would stay, it does not sleep, however few bytes that is."""
    model = module(a=torch.randn(50), b=torch.randn(100))
    there = mapped.keep(model, written(tmp_path, b=model.b))
    assert there.reason == "not all weights are as the files hold them (a)"
    assert "safetensors" in mapped.keep(model, None).reason


def test_sleeping_again_reads_no_file(tmp_path: Path) -> None:
    """What was compared once is not compared again: the second sleep needs no files."""
    model = module(a=torch.randn(5000))
    folder = written(tmp_path, a=model.a)
    there = mapped.keep(model, folder)
    assert came_back(model, there)
    (folder / "model.safetensors").rename(folder / "away")
    there.sleep(Progress())
    (folder / "away").rename(folder / "model.safetensors")
    there.wake(Progress())
    assert came_back(model, there)


MEASURED = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import mapped, slabbed

def anonymous():
    [line] = [line for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous")]
    return int(line.split()[1]) / 1024

def cast():
    # Blocks of one size are mapped each by itself until one of them was freed; then they are of the heap.
    del warm[:]
    made, guards = torch.nn.Module(), []
    for name, tensor in stored.items():
        made.register_buffer(name, tensor.float())
        guards.append(torch.zeros(2**16))  # what is in use between them keeps the heap from shrinking
    return made, guards

folder = Path(sys.argv[1])
stored = {f"t{i:02}": torch.ones(2**20 * size, dtype=torch.bfloat16) for i, size in enumerate([1, 3] * 15)}
save_file(stored, folder / "model.safetensors")
warm = [torch.ones(2**20 * 7)]
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no Linux")
def test_what_was_cast_goes_back_to_the_system_at_the_first_sleep(tmp_path: Path) -> None:
    """240 MiB of weights that the library has cast are not kept by the heap once they sleep."""
    code = """
model, guards = cast()
there = mapped.keep(model, folder)
assert not there.reason, there.reason
before = anonymous()
there.sleep(Progress())
print(before - anonymous())
"""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED + code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(ran.stdout) > 180


def test_a_first_sleep_tells_what_it_read(tmp_path: Path) -> None:
    """Comparing with the files reads them once, as they are stored; waking what is cast reads them again."""
    stored = torch.randn(50_000).to(torch.bfloat16)
    model = module(a=stored.float(), b=torch.randn(30_000))
    there = mapped.keep(model, written(tmp_path, a=stored, b=model.b))
    assert there.sleep(Progress()).moved_bytes == 100_000 + 120_000
    assert there.sleep(Progress()).moved_bytes == 0
    assert there.wake(Progress()).moved_bytes == 100_000  # the other is mapped
    assert there.sleep(Progress()).moved_bytes == 0
    there.free()


class StoppedAt(Progress):
    """Nobody wants it any more once so much is done."""

    def report(self, done_bytes: int, total_bytes: int = 0, phase: str = "") -> None:
        if done_bytes >= 100_000:
            self.cancel()
        super().report(done_bytes, total_bytes, phase)


def test_a_first_sleep_can_be_stopped(tmp_path: Path) -> None:
    """It reads as much as the model has, and tells how far it is; stopped, the model is as it was."""
    model = module(a=torch.randn(50_000))
    there = mapped.keep(model, written(tmp_path, a=model.a))
    before = model.a.clone()
    with pytest.raises(ClosedError):
        there.sleep(StoppedAt())
    assert (there.asleep, there.held) == (False, {"cpu": 200_000})
    assert torch.equal(model.a, before)
    told = Progress()
    there.sleep(told)
    assert there.asleep
    assert (told.phase, told.fraction) == ("comparing", 1.0)
    there.free()
