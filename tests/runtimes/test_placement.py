"""What can be placed: plain tensors on one device, in modules that are as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import UnsupportedError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import placement, slab

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file


class Own(torch.nn.Parameter):  # type: ignore[name-defined,misc]
    """A kind of parameter of its own, as quantizers have."""


def linear() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())


def spoilt(kind: str) -> Any:
    model = linear()
    if kind == "kind":
        model[0].weight = Own(torch.ones(2, 3))
    elif kind == "sparse":
        model.register_buffer("sparse", torch.eye(3).to_sparse())
    elif kind == "conjugate":
        model.register_buffer("turned", torch.ones(2, dtype=torch.complex64).conj())
    elif kind == "meta":
        model[0].weight = torch.nn.Parameter(torch.ones(2, 3, device="meta"))
    elif kind == "hook":
        model[0]._hf_hook = object()
    elif kind == "compiled":
        model[0].compile(backend="eager")
    elif kind == "forward":
        model[0].forward = torch.compile(model[0].forward, backend="eager")
    elif kind == "quantized":
        model.hf_quantizer = object()
    return model


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("kind", "a kind of their own"),
        ("sparse", "not plain memory"),
        ("conjugate", "not plain memory"),
        ("meta", "spread over devices"),
        ("hook", "by hooks"),
        ("compiled", "compiled"),
        ("forward", "compiled"),
        ("quantized", "quantized"),
    ],
)
def test_what_cannot_be_pointed_elsewhere(kind: str, words: str) -> None:
    """Each thing that a slab cannot hold is found, and told."""
    assert words in placement.obstacle(spoilt(kind))


def test_a_plain_model_can() -> None:
    """An ordinary module meets no obstacle, nor do buffers that torch marks as such."""
    model = linear()
    model.marked = torch.nn.Buffer(torch.ones(3))
    assert placement.obstacle(model) == ""


def test_fixed_weights_say_why_and_stay() -> None:
    """What is fixed does not sleep, and needs no waking."""
    fixed = placement.Fixed(linear(), "of a reason")
    assert fixed.held == {"cpu": 4 * 8}
    with pytest.raises(UnsupportedError, match="of a reason"):
        fixed.sleep(Progress())
    assert fixed.wake(Progress()).moved_bytes == 0
    fixed.free()


def test_what_was_renamed_is_found_by_its_bytes(tmp_path: Path) -> None:
    """A tensor without its name in the files is the one of its shape that begins and ends alike."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(40, 60, bias=False)})
    other = torch.randn(60, 40)
    save_file({"a": other, "b": model["head"].weight.detach()}, tmp_path / "model.safetensors")
    files = placement.files_of(tmp_path)
    assert files is not None
    assert placement.spans_of(model, slab.layout(model), files) == [files.spans["b"]]
    with torch.no_grad():
        model["head"].weight[-1, -1] += 1
    assert placement.spans_of(model, slab.layout(model), files) == [None]


def test_a_folder_without_plain_safetensors(tmp_path: Path) -> None:
    """No folder, no such files, or damaged ones: there is nothing to come back from, and no error."""
    assert placement.files_of(None) is None
    assert placement.files_of(tmp_path / "nowhere") is None
    assert placement.files_of(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert placement.files_of(tmp_path) is None


def test_names_in_a_reason_are_few() -> None:
    """A reason names the first tensors, not hundreds."""
    entries = slab.layout(torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(9))))
    assert placement.told(entries) == "0.weight, 0.bias …"
    assert placement.told(entries[:1]) == "0.weight"
