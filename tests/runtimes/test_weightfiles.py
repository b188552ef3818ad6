"""Where tensors lie in safetensors files, and reading them from there."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ModelAccessError, ProviderError, UnsupportedError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import mapped, slab, slabbed, virtual, weightfiles

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

NAN = float("nan")
BOUND_S = 20
MIB = 2**20


class Small(torch.nn.Module):  # type: ignore[name-defined,misc]
    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(300, 8).to(dtype))
        self.odd = torch.nn.Parameter(torch.tensor([1.0, NAN, -0.0]).to(dtype))


def written(folder: Path, **tensors: Any) -> weightfiles.WeightFiles:
    save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()}, folder / "model.safetensors"
    )
    return weightfiles.WeightFiles(folder)


def source(files: weightfiles.WeightFiles, opened: Any, name: str, dtype: Any) -> Any:
    span = files.spans[name]
    return weightfiles.FileSource(opened[span.path], span, dtype)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loaded", ["float32", "bfloat16"])
def test_bytes_are_read_as_the_library_casts_them(stored: str, loaded: str, tmp_path: Path) -> None:
    """Any part of a tensor, in the loaded dtype, is bit for bit what casting the whole gives."""
    kept = Small().weight.detach().to(getattr(torch, stored))
    files = written(tmp_path, weight=kept)
    want = kept.to(getattr(torch, loaded)).view(-1).view(torch.uint8)
    with files.opened() as opened:
        read = source(files, opened, "weight", getattr(torch, loaded))
        for begin, end in ((0, len(want)), (256, 1024), (len(want) - 64, len(want))):
            out = torch.empty(end - begin, dtype=torch.uint8)
            read.read(begin, end, out)
            assert torch.equal(out, want[begin:end])


def test_a_tensor_is_found_by_its_name_with_a_prefix_or_without(tmp_path: Path) -> None:
    """Names may lack the model's prefix or have one more; another shape is another tensor."""
    model = Small()
    [weight, odd] = slab.layout(model)
    files = written(tmp_path, **{"base.weight": model.weight, "odd": model.odd[:2]})
    assert files.find(weight, "base") == files.spans["base.weight"]
    assert files.find(weight, "other") is None
    assert files.find(odd) is None


def test_what_no_cast_makes_is_not_found(tmp_path: Path) -> None:
    """Whole numbers do not become floating ones by being loaded."""
    model = Small()
    files = written(tmp_path, weight=torch.ones(300, 8, dtype=torch.int8))
    assert files.find(slab.layout(model)[0]) is None


def test_the_index_says_which_files_count(tmp_path: Path) -> None:
    """With an index only its files are read; others may hold other weights by the same names."""
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"weight": "a.safetensors"}}')
    span = weightfiles.WeightFiles(tmp_path).spans["weight"]
    assert span.path.name == "a.safetensors"
    index.write_text('{"weight_map": 3}')
    with pytest.raises(ModelAccessError, match="damaged"):
        weightfiles.WeightFiles(tmp_path)


@pytest.mark.parametrize("change", ["newer", "longer", "replaced", "gone"])
def test_files_that_changed_are_not_opened(change: str, tmp_path: Path) -> None:
    """Another time, length or file under the name, or none, is told with what to do."""
    files = written(tmp_path, weight=torch.ones(4))
    path = tmp_path / "model.safetensors"
    told = path.stat()
    if change == "newer":
        os.utime(path, ns=(1, 1))
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    elif change == "replaced":
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(told.st_atime_ns, told.st_mtime_ns))
        other.replace(path)
    else:
        path.unlink()
    with pytest.raises(ProviderError, match=r"model\.safetensors") as caught, files.opened():
        pass
    assert "load it again" in caught.value.hint


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    """A file that is cut while it is read is an error, not zeros."""
    files = written(tmp_path, weight=torch.ones(4096))
    path = tmp_path / "model.safetensors"
    with files.opened() as opened:
        os.truncate(path, 5000)
        out = torch.empty(4096 * 4, dtype=torch.uint8)
        with pytest.raises(ProviderError, match="ends before its last tensor"):
            source(files, opened, "weight", torch.float32).read(0, len(out), out)


def test_what_differs_from_its_file_is_taken_from_memory(tmp_path: Path) -> None:
    """A compared source gives what memory has, and says whether the file has the same."""
    model = Small()
    files = written(tmp_path, weight=model.weight, odd=model.odd)
    memories = [entry.memory() for entry in slab.layout(model)]
    with files.opened() as opened:
        for name, memory in zip(("weight", "odd"), memories, strict=True):
            compared = weightfiles.ComparedSource(
                source(files, opened, name, torch.float32), weightfiles.MemorySource(memory)
            )
            out = torch.empty_like(memory)
            compared.read(0, len(memory), out)
            assert compared.equal  # NaN and -0.0 among them
            with torch.no_grad():
                memory[-1] ^= 1
            compared.read(0, len(memory), out)
            assert not compared.equal
            assert torch.equal(out, memory)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that find no difference say so only when another one has noted his."""
    same, read = weightfiles.same, weightfiles.ComparedSource.read
    comparing, noted, mine = threading.Semaphore(0), threading.Event(), threading.local()

    def slowly(one: Any, other: Any) -> bool:
        equal = same(one, other)
        if not getattr(mine, "reading", False):  # a sample
            return equal
        if equal:
            comparing.release()
            assert noted.wait(BOUND_S)
        else:
            mine.differs = True
            assert comparing.acquire(timeout=BOUND_S)  # so another part is read meanwhile
        return equal

    def reading(self: Any, begin: int, end: int, out: Any) -> None:
        mine.reading = True
        read(self, begin, end, out)
        mine.reading = False
        if getattr(mine, "differs", False):
            noted.set()

    monkeypatch.setattr(weightfiles, "same", slowly)
    monkeypatch.setattr(weightfiles.ComparedSource, "read", reading)


def a_bit_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write 8 MiB, to be read in four parts, and return a module with one other bit in the first."""
    monkeypatch.setattr("nbproviders.runtimes.transfers.Lane.chunk_bytes", 2 * MIB)
    model = torch.nn.Linear(2**20, 2, bias=False)
    save_file({"weight": model.weight.detach()}, folder / "model.safetensors")
    with torch.no_grad():
        model.weight.view(torch.int32)[0, 5000] ^= 1  # in no sample
    return model


@pytest.mark.usefixtures("late")
def test_a_difference_that_one_reader_finds_is_forgotten_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many threads read a tensor on the CPU, one bit that its file has not keeps it awake."""
    model = a_bit_off(tmp_path, monkeypatch)
    want = model.weight.detach().clone()
    there = mapped.keep(model, tmp_path)
    with pytest.raises(UnsupportedError, match="as the files hold them"):
        there.sleep(Progress())
    assert torch.equal(model.weight, want)


@pytest.mark.usefixtures("late")
def test_a_slab_keeps_what_one_of_its_readers_found_to_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a host copy, a tensor of which one reader saw another bit comes back from memory."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=64MiB")
    model = a_bit_off(tmp_path, monkeypatch)
    want = model.weight.detach().clone()
    there = slabbed.place(model, "virtual:0", tmp_path, Progress())
    assert torch.equal(model.weight, want)
    there.sleep(Progress())
    there.wake(Progress())
    assert torch.equal(model.weight, want)
    there.free()


@pytest.mark.parametrize("size", [0, 7, 8, 8003])
@pytest.mark.parametrize("offset", [0, 3])
def test_bytes_are_compared_to_the_last(size: int, offset: int) -> None:
    """A difference in any single byte is seen, however many there are and wherever they begin."""
    memory = torch.arange(size + offset, dtype=torch.int64).to(torch.uint8)
    one, other = memory[offset:], memory.clone()[offset:]
    assert weightfiles.same(one, other)
    for at in {0, size // 2, size - 1} if size else ():
        other[at] ^= 128
        assert not weightfiles.same(one, other)
        other[at] ^= 128


def test_a_mapping_is_the_file_and_writing_does_not_change_it(tmp_path: Path) -> None:
    """A mapped file can be written to in memory only."""
    path = tmp_path / "some"
    path.write_bytes(b"abcdef")
    with path.open("rb") as file:
        memory = weightfiles.mapped_bytes(file)
    memory[0] = 0
    assert bytes(memory.tolist()) == b"\0bcdef"
    assert path.read_bytes() == b"abcdef"
