"""Memory that tensors leave: given back at once, unless somebody else still looks into it.

A notebook keeps things: ``row = m.raw.lm_head.weight[0]`` is a view into all of the model's weights. What is
freed under it crashes the kernel when it is read, or reads as zeros. So small views get a copy of what they
show, and memory that still has a user stays until he has gone.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbproviders.residency.memory import size_text

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

COPIED_BYTES = 64 * 2**20
"""Views that take no more than this together are copied."""


class Leaving:
    """Pieces of memory that are being left.

    `add` each tensor, have whoever owns it let go of it, then `settle`.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, tuple[Any, int]] = {}  # weak reference and bytes, by the storage

    def add(self, tensor: Tensor) -> None:
        """Note the memory that a tensor lies in, without holding it."""
        from torch.multiprocessing.reductions import StorageWeakRef

        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr():
            reference = StorageWeakRef(storage)
            # By what the reference keeps from being given away; an address in memory is another's at once.
            self._pieces.setdefault(reference.cdata, (reference, storage.nbytes()))

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return sum(size for _, size in self._pieces.values())

    @property
    def left_bytes(self) -> int:
        """What is still there, because somebody looks into it."""
        return sum(size for reference, size in self._pieces.values() if not reference.expired())

    def settle(self) -> None:
        """Have others keep what they see; what stays for that is told by the log, and by `left_bytes`."""
        if self.left_bytes:
            self._copy()
        if self.left_bytes:
            gc.collect()
        if self.left_bytes:
            logger.warning(
                "%s of weights stay in memory: a tensor or array outside of the model is a view of them. "
                "Copy what you keep with .clone(), and delete the view.",
                size_text(self.left_bytes),
            )

    def _copy(self) -> None:
        """Give others' small views memory of their own; not where numpy may have the address, too."""
        import torch

        found = list(self._views())
        hidden = _hidden(found)
        views = [view for view in found if not any(view is base for base in hidden)]
        if sum(view.numel() * view.element_size() for view in views) <= COPIED_BYTES:
            with torch.no_grad():
                for view in views:
                    view.data = view.data.clone()
                for base in hidden:
                    base.data = torch.empty(0, dtype=base.dtype, device=base.device)

    def _views(self) -> Iterator[Tensor]:
        import torch

        for one in gc.get_objects():
            # Of these types only: others pretend, or warn when they are asked for their memory.
            plain = type(one) in (torch.Tensor, torch.nn.Parameter)
            if not plain or one.layout is not torch.strided:
                continue
            storage = one.untyped_storage()
            if storage._cdata in self._pieces and storage.resizable():
                yield one


def _hidden(found: list[Any]) -> list[Any]:
    """Return tensors that nobody sees: ``weight.detach()[0]`` keeps what it is a view of.

    Neither by Python's references, nor by torch's own: a graph that waits for ``backward`` has some.
    """
    import torch

    view = torch.zeros(2)[0]
    probe: list[Any] = [view._base]
    [unseen] = [sys.getrefcount(one) for one in probe]  # what torch and this very look hold
    alone = probe[0]._use_count() - 1  # what torch holds of any tensor, less that view
    views = Counter(id(one._base) for one in found if one._base is not None)
    return [
        one
        for one in found
        if id(one) in views
        and sys.getrefcount(one) <= unseen
        and one._use_count() <= alone + views[id(one)]
    ]
