"""A model's tensors in one flat piece of memory: identity, ties and bytes."""

from __future__ import annotations

from typing import Any

import pytest

from nbproviders.errors import InsufficientMemoryError
from nbproviders.runtimes import slab, virtual

torch = pytest.importorskip("torch")
nn = torch.nn


class Odd(nn.Module):  # type: ignore[name-defined,misc]
    """Ties by name and by storage, a turned weight, a scalar, an empty one, and other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 3)
        self.tied = nn.Linear(5, 3, bias=False)
        self.tied.weight = self.first.weight
        whole = torch.randn(6, 4)
        self.upper, self.lower = nn.Parameter(whole[:3]), nn.Parameter(whole[3:])
        self.overlapping = nn.Parameter(whole[2:5])
        self.turned = nn.Parameter(torch.randn(4, 7).t())
        self.brief = nn.Parameter(torch.randn(9).to(torch.bfloat16))
        self.register_buffer("count", torch.tensor(41))
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("flags", torch.tensor([True, False, True]), persistent=False)


def bytes_of(model: Odd) -> dict[str, bytes]:
    return {
        name: bytes(t.detach().contiguous().view(-1).view(torch.uint8).tolist())
        for name, t in model.state_dict(keep_vars=True).items()
    }


def moved(model: Any) -> tuple[tuple[slab.Entry, ...], slab.Slab]:
    entries = slab.layout(model)
    made = slab.Slab("cpu", slab.slab_bytes(entries))
    for entry in entries:
        made.bytes[entry.begin : entry.end] = entry.memory()
    made.point(entries)
    return entries, made


def test_pointing_keeps_identity_ties_strides_and_bytes() -> None:
    """Each tensor is the object it was, of the same numbers and strides, and now a view into the slab."""
    model = Odd()
    before, kept = bytes_of(model), dict(model.named_parameters())
    strides = model.turned.stride()
    _, made = moved(model)
    assert bytes_of(model) == before
    assert all(dict(model.named_parameters())[name] is tensor for name, tensor in kept.items())
    assert model.tied.weight is model.first.weight
    assert model.turned.stride() == strides
    storage = made.bytes.untyped_storage().data_ptr()
    assert {t.untyped_storage().data_ptr() for t in model.parameters()} == {storage}
    with torch.no_grad():
        model.upper[2, 0] = 5.0
    assert model.overlapping[0, 0] == 5.0


def test_shared_bytes_are_counted_once() -> None:
    """What tensors share is one entry: views that overlap, and a parameter with two names."""
    model = Odd()
    entries = slab.layout(model)
    names = {view.names for entry in entries for view in entry.views}
    assert ("first.weight", "tied.weight") in names
    joined = [entry for entry in entries if len(entry.views) > 1]
    assert [sorted(view.names[0] for view in entry.views) for entry in joined] == [
        ["lower", "overlapping", "upper"]
    ]
    size = 4 * (15 + 3 + 24 + 28) + 2 * 9 + 8 + 3
    assert sum(entry.size_bytes for entry in entries) == size
    assert slab.tensor_bytes(model) == {"cpu": size}
    assert all(entry.begin % slab.ALIGNMENT == 0 for entry in entries)
    moved(model)
    assert slab.tensor_bytes(model) == {"cpu": size}


def test_only_a_tensor_in_plain_order_fills_its_entry() -> None:
    """A turned weight, and views that share bytes, are not what a file would hold in their place."""
    whole = {e.views[0].names[0]: e.whole is not None for e in slab.layout(Odd())}
    assert (whole["first.weight"], whole["turned"], whole["upper"]) == (True, False, False)


def test_emptied_tensors_hold_nothing_and_crash_nobody() -> None:
    """Their memory goes though they live on; reading one gives nothing, computing with it is an error."""
    for in_slab in (False, True):
        model = Odd()
        entries, made = moved(model) if in_slab else (slab.layout(model), None)
        slab.emptied(entries)
        if made is not None:
            made.free()
            made.free()
            assert made.size_bytes == 0
        assert sum(t.untyped_storage().nbytes() for t in model.state_dict().values()) == 0
        assert model.first.weight.sum() == 0
        with pytest.raises(RuntimeError):
            model.first(torch.ones(5))


def test_emptied_tensors_come_back_into_another_slab() -> None:
    """What was emptied is pointed to a new slab with shapes, strides and ties as before."""
    model = Odd()
    before = bytes_of(model)
    entries, made = moved(model)
    kept = made.bytes.clone()
    slab.emptied(entries)
    made.free()
    again = slab.Slab("cpu", len(kept))
    again.bytes.copy_(kept)
    again.point(entries)
    assert bytes_of(model) == before
    assert model.turned.shape == (7, 4)


def test_a_virtual_device_counts_its_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab is taken of a virtual device until it is freed; one too many is refused whole."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=1000B")
    one = slab.Slab("virtual:0", 600)
    with pytest.raises(InsufficientMemoryError):
        slab.Slab("virtual:0", 600)
    assert virtual.taken_bytes("virtual:0") == 600
    one.free()
    slab.Slab("virtual:0", 600).free()
    assert virtual.taken_bytes("virtual:0") == 0


def test_what_is_wrong_with_a_device_is_not_told_as_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only what says so is taken for a lack of memory; anything else stays what the library has raised."""
    real = torch.empty
    wrong = RuntimeError("CUDA error: an illegal memory access was encountered")

    def empty(*size: Any, **how: Any) -> Any:
        if how.get("device") == "mps":
            raise wrong
        return real(*size, **how)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(RuntimeError) as caught:
        slab.Slab("mps", 100)
    assert caught.value is wrong
