"""Promises of memory that is left: what others see of it stays, all else is given back."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nbproviders as nbp  # noqa: E402
from nbproviders.runtimes import leaving, slab  # noqa: E402
from nbproviders.runtimes.transformers import free_tensors  # noqa: E402

SIDE = 2048  # 16 MiB of float32


def placed(side: int = SIDE) -> tuple[torch.nn.Module, tuple[slab.Entry, ...], slab.Slab]:
    """Return a model whose weight lies in a slab."""
    model = torch.nn.Linear(side, side, bias=False)
    entries = slab.layout(model)
    made = slab.Slab("cpu", slab.slab_bytes(entries))
    for entry in entries:
        made.bytes[entry.begin : entry.end] = entry.memory()
    made.point(entries)
    return model, entries, made


def test_without_views_nothing_is_searched_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The usual case costs no look at all objects, though the module lives on."""
    model, entries, made = placed()
    monkeypatch.setattr(leaving.gc, "get_objects", lambda: pytest.fail("searched"))
    slab.emptied(entries, made)
    assert made.size_bytes == 0
    assert model.weight.numel() == 0
    assert caplog.messages == []


@pytest.mark.parametrize("see", ["row", "detached", "parameter", "transposed"])
def test_small_views_keep_what_they_show(see: str, caplog: pytest.LogCaptureFixture) -> None:
    """They get a copy, with their strides; the slab goes whole."""
    model, entries, made = placed()
    weight = model.weight.data
    seen = {
        "row": weight[3],
        "detached": model.weight.detach()[5:9],
        "parameter": torch.nn.Parameter(weight[7:8]),
        "transposed": weight[:4].T,
    }[see]
    before = seen.clone()
    del weight
    slab.emptied(entries, made)
    assert torch.equal(seen, before)
    assert made.size_bytes == 0
    assert caplog.messages == []


@pytest.mark.parametrize("see", ["weight.detach()[3]", "weight.data[3]", "weight[3]"])
def test_a_row_of_a_large_tensor_does_not_keep_it(
    see: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the row is a view of, and nobody sees, is neither copied nor kept."""
    monkeypatch.setattr(leaving, "COPIED_BYTES", 2**20)
    model, entries, made = placed()
    row = eval(see, {"weight": model.weight})
    before = row.detach().clone()
    slab.emptied(entries, made)
    assert torch.equal(row.detach(), before)
    assert made.size_bytes == 0
    assert caplog.messages == []


def test_what_somebody_sees_as_well_is_not_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large view that has a name stays as it is, with the row taken of it."""
    monkeypatch.setattr(leaving, "COPIED_BYTES", 2**20)
    model, entries, made = placed()
    whole = model.weight.detach()
    row, before = whole[3], whole.clone()
    slab.emptied(entries, made)
    assert torch.equal(whole, before)
    assert torch.equal(row, before[3])
    assert made.size_bytes > 0


def test_what_a_graph_will_need_is_not_emptied() -> None:
    """Gradients that are asked for after the model has left are those of its weights."""
    model, entries, made = placed()
    x = torch.ones(SIDE, SIDE, requires_grad=True)

    def used(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight[3], (weight * x).sum()

    row, loss = used(model.weight.detach())
    before = model.weight.detach().clone()
    slab.emptied(entries, made)
    loss.backward()
    assert torch.equal(x.grad, before)
    assert torch.equal(row, before[3])


def test_memory_that_was_given_to_another_is_not_touched() -> None:
    """An address that came free is somebody else's, though a part of what was left is still looked into."""
    kept, gone = torch.ones(5_000_000), torch.ones(10_000_000)
    view, departure = kept[:3], leaving.Leaving()
    departure.add(kept)
    departure.add(gone)
    del kept, gone
    strangers = [torch.zeros(10_000_000) for _ in range(4)]
    addresses = [one.data_ptr() for one in strangers]
    departure.settle()
    assert [one.data_ptr() for one in strangers] == addresses
    assert (view.tolist(), departure.left_bytes) == ([1.0] * 3, 0)


def test_a_load_that_fails_keeps_nothing_though_its_error_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The frames of what should have filled a slab are no user's view: no word of one."""
    seen: list[torch.Tensor] = []
    made = slab.Slab("cpu", 2**24)

    def fill() -> None:
        try:
            seen.append(made.bytes.view(torch.float32))  # as a frame of the error keeps it
            raise OSError("the disk is gone")
        finally:
            made.free()

    with pytest.raises(OSError, match="the disk is gone"):
        fill()
    assert seen[0].untyped_storage().nbytes() == 0
    assert made.size_bytes == 0
    assert caplog.messages == []


def test_what_is_too_large_to_copy_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is still right, it is counted, and the user is told; it goes with the view."""
    monkeypatch.setattr(leaving, "COPIED_BYTES", 2**20)
    model, entries, made = placed()
    whole = model.state_dict()
    before = whole["weight"].clone()
    slab.emptied(entries, made)
    assert torch.equal(whole["weight"], before)
    assert entries[0].end <= made.size_bytes <= entries[0].end + 2**22  # in whole pages
    [said] = caplog.messages
    assert said.startswith("18.0 MiB of weights stay in memory")
    assert ".clone()" in said
    whole.clear()
    assert made.size_bytes == 0


def test_a_numpy_array_keeps_its_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """Its memory cannot be exchanged under it: it stays until the array goes."""
    model, entries, made = placed()
    seen = model.weight.detach()[4:6].numpy()
    before = seen.copy()
    slab.emptied(entries, made)
    assert np.array_equal(seen, before)
    assert made.size_bytes > 0
    assert len(caplog.messages) == 1
    del seen
    assert made.size_bytes == 0


def test_a_view_in_a_cycle_is_collected(caplog: pytest.LogCaptureFixture) -> None:
    """As tracebacks make them: nobody can read it any more."""
    model, entries, made = placed()
    cycle: list[object] = [model.weight.detach().numpy()]
    cycle.append(cycle)
    del cycle
    slab.emptied(entries, made)
    assert made.size_bytes == 0
    assert caplog.messages == []


def test_tensors_that_hold_nothing_do_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    """Empty, sparse, meta and fake tensors elsewhere are passed over by the search."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(5)
    others = [torch.empty(0), torch.eye(3).to_sparse(), torch.empty(5, device="meta"), fake]
    model, entries, made = placed()
    row = model.weight.detach()[0]
    slab.emptied(entries, made)
    assert len(others) == 4
    assert row.numel() == SIDE
    assert made.size_bytes == 0


def test_attributes_of_modules_are_the_models_own() -> None:
    """Quantized layers keep a second name of a weight: it is emptied with it, not taken for a user's view."""
    model, _, _ = placed()
    model.weight.CB = model.weight.data
    model.weight.CB_small = model.weight.data[:2]
    free_tensors(model)
    assert model.weight.CB.numel() == model.weight.CB_small.numel() == model.weight.numel() == 0


@pytest.mark.parametrize("options", ["", "?device=virtual:0", "?dtype=bfloat16"])
def test_a_row_outlives_its_model(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell has looked at is right after its model slept, woke, and was freed."""
    monkeypatch.setenv("NBPROVIDERS_VIRTUAL", "virtual:0=1GiB")
    spec = f"transformers:demo-s{options}"
    with nbp.load_sync(spec) as m:
        row = m.raw.lm_head.weight[3].detach()
        array = m.raw.lm_head.weight[4].detach().float().numpy()
        before, numbers = row.clone(), array.copy()
        nbp.sleep(spec)
        assert torch.equal(row, before)
        nbp.wake(spec)
        assert torch.equal(m.raw.lm_head.weight[3], before)
    nbp.unload(spec)
    assert torch.equal(row, before)
    assert np.array_equal(array, numbers)
