"""Where a loaded model's weights are, and how they leave their device and come back.

Weights are only read, so leaving writes none of them anywhere: their memory is given back, and they come
again from a copy in main memory or from the files that they were loaded from. How, is for `slabbed` and
`mapped` to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbproviders.errors import ModelAccessError, UnsupportedError, mapped
from nbproviders.residency.progress import Progress
from nbproviders.residency.sleeping import Transfer
from nbproviders.runtimes.slab import Entry, tensor_bytes, tensors_of
from nbproviders.runtimes.weightfiles import Span, WeightFiles, fits, resembles

WAKING = "waking"
_KEPT_BYTES = 16 * 2**20
_KEPT_SHARE = 100


class Placement(ABC):
    """A model's weights, awake or asleep. All of it runs on the model's own thread.

    Parameters
    ----------
    model
        The module.
    entries
        What leaves and comes back.
    reason
        Why it cannot sleep; empty if it can.
    """

    def __init__(self, model: Any, entries: Sequence[Entry], reason: str = "") -> None:
        self._model, self.entries, self.reason = model, tuple(entries), reason
        self.asleep = False
        self._versions = self._written()

    @property
    @abstractmethod
    def held(self) -> dict[str, int]:
        """Bytes on each device now; ``host`` is a copy in main memory for another device."""

    def sleep(self, progress: Progress) -> Transfer:
        """Give the device's memory back.

        Raises
        ------
        UnsupportedError
            If the weights could not come back as they are. Then they stay, and can only be freed.
        ClosedError
            If it is no longer wanted. They stay.
        """
        read_bytes = 0
        if not self.asleep:
            if self.reason:
                raise UnsupportedError(f"This model cannot sleep: {self.reason}.")
            if not self._is_unchanged():
                raise UnsupportedError(
                    "This model cannot sleep: its weights were changed since it was loaded.",
                    hint="The changes would be lost. Save the model, and load what was saved.",
                )
            read_bytes = self._leave(progress)
            self.asleep = True
        return Transfer(self.held, read_bytes)

    def wake(self, progress: Progress) -> Transfer:
        """Have the weights on the device again, each bit as it was.

        Raises
        ------
        ProviderError
            If what they come from has changed, or there is no room. They are still asleep.
        """
        if not self.asleep:
            return Transfer(self.held)
        with mapped("The model cannot wake"):
            moved_bytes, source = self._return(progress)
        self.asleep = False
        self._versions = self._written()
        return Transfer(self.held, moved_bytes, source)

    @abstractmethod
    def _leave(self, progress: Progress) -> int:
        """Return bytes that were read from files for it."""

    @abstractmethod
    def _return(self, progress: Progress) -> tuple[int, str]:
        """Return bytes that were copied to the device, or read from files to main memory; and where from."""

    @abstractmethod
    def free(self) -> None:
        """Give back all memory; what does not leave by sleeping is for the model to empty."""

    def revise(self, model: Any) -> None:
        """See what a load has made of the model after its weights were placed."""
        self._model = model
        reason = obstacle(model)
        if not reason and not self._is_unchanged():
            reason = "its weights were changed after they were loaded"
        if reason:
            self.reason = reason
            self._give_up()

    @abstractmethod
    def _give_up(self) -> None:
        """Give back what is held only to wake from."""

    def _written(self) -> list[tuple[int, int]]:
        """Return where each tensor lies, and how often it was written to."""
        return [
            (view.tensor.data_ptr(), 0 if view.tensor.is_inference() else view.tensor._version)
            for entry in self.entries
            for view in entry.views
        ]

    def _is_unchanged(self) -> bool:
        few = self._others_bytes <= allowance(self.entries)
        return few and self._written() == self._versions

    @property
    def _others_bytes(self) -> int:
        """Bytes of those tensors that the model has besides: they stay where they are."""
        known = {id(view.tensor) for entry in self.entries for view in entry.views}
        others = (tensor for tensor in tensors_of(self._model) if id(tensor) not in known)
        return sum(tensor.numel() * tensor.element_size() for tensor in others)


class Fixed(Placement):
    """Weights that stay where the library has put them until they are freed.

    Parameters
    ----------
    model
        The module.
    reason
        Why they do.
    """

    def __init__(self, model: Any, reason: str) -> None:
        super().__init__(model, (), reason)

    @property
    def held(self) -> dict[str, int]:
        """Bytes on each device."""
        return tensor_bytes(self._model)

    def _leave(self, progress: Progress) -> int:
        raise AssertionError("unreachable: there is a reason")

    def _return(self, progress: Progress) -> tuple[int, str]:
        raise AssertionError("unreachable: it never sleeps")

    def _give_up(self) -> None:
        """Nothing is."""

    def free(self) -> None:
        """Nothing: there is no other."""


def allowance(entries: Sequence[Entry]) -> int:
    """Return the bytes that may stay in main memory because no file holds them."""
    return max(_KEPT_BYTES, sum(entry.size_bytes for entry in entries) // _KEPT_SHARE)


def files_of(folder: Path | None) -> WeightFiles | None:
    """Return the safetensors of a folder; None if it has none, or none that can be read plainly."""
    if folder is None or not folder.is_dir():
        return None
    try:
        files = WeightFiles(folder)
    except ModelAccessError:  # the library has read them all the same
        return None
    return files if files.spans else None


def spans_of(
    model: Any, entries: Sequence[Entry], files: WeightFiles | None, *, sample: bool = False
) -> list[Span | None]:
    """Return where each entry seems to lie in the files.

    By name; what the library has renamed, by its shape and its first and last bytes.

    Parameters
    ----------
    model
        The module, on the CPU.
    entries
        Its layout.
    files
        None if there are none.
    sample
        Look at the first and last bytes of what is found by name, too.
    """
    if files is None:
        return [None] * len(entries)
    prefix = str(getattr(model, "base_model_prefix", ""))
    named = [files.find(entry, prefix) for entry in entries]
    found: list[Span | None] = []
    claimed = set(named)
    others = [span for span in files.spans.values() if span not in claimed]
    with files.opened() as opened:
        for entry, span in zip(entries, named, strict=True):
            if span is not None and not sample:
                found.append(span)
                continue
            likely = [span] if span is not None else [s for s in others if fits(entry, s)]
            found.append(next((s for s in likely if resembles(entry, s, opened)), None))
    return found


def told(entries: Sequence[Entry]) -> str:
    """Return the names of the first few entries, for a reason."""
    names = [min(entry.views[0].names, default="?") for entry in entries]
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")


def obstacle(model: Any) -> str:
    """Return why a model's tensors cannot be pointed elsewhere; empty if they can."""
    import torch

    tensors = tensors_of(model)
    if getattr(model, "hf_quantizer", None) is not None:
        return "its weights are quantized"
    if any(type(t) not in (torch.Tensor, torch.nn.Parameter) for t in tensors):
        return "its tensors are of a kind of their own"
    if any(t.layout is not torch.strided or t.is_conj() or t.is_neg() for t in tensors):
        return "its tensors are not plain memory"
    if len({t.device for t in tensors}) != 1 or tensors[0].device.type == "meta":
        return "it is spread over devices"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "it moves its weights by hooks"
    return "parts of it are compiled" if _compiled(model) else ""


def _compiled(model: Any) -> bool:
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )
