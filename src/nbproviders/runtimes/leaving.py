"""Memory that tensors leave: given back at once, unless somebody else still looks into it.

A notebook keeps things: ``row = m.raw.lm_head.weight[0]`` is a view into all of the model's weights. What is
freed under it crashes the kernel when it is read, or reads as zeros. So small views get a copy of what they
show, and memory that still has a user stays until he has gone.
"""

from __future__ import annotations

import gc
import logging
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
        self._pieces: dict[int, tuple[Any, int]] = {}  # reference and bytes, by address

    def add(self, tensor: Tensor) -> None:
        """Note the memory that a tensor lies in, without holding it."""
        from torch.multiprocessing.reductions import StorageWeakRef

        storage = tensor.untyped_storage()
        size, address = storage.nbytes(), storage.data_ptr()
        if size and address and address not in self._pieces:
            self._pieces[address] = (StorageWeakRef(storage), size)

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
        """Give others' small views memory of their own; not where numpy, too, may have the address."""
        import torch

        found = list(self._views())
        if sum(view.numel() * view.element_size() for view in found) <= COPIED_BYTES:
            with torch.no_grad():
                for view in found:
                    view.data = view.data.clone()

    def _views(self) -> Iterator[Tensor]:
        import torch

        for one in gc.get_objects():
            # Of these types only: others pretend, or warn when they are asked for an address.
            if (
                type(one) not in (torch.Tensor, torch.nn.Parameter)
                or one.layout is not torch.strided
            ):
                continue
            try:
                storage = one.untyped_storage()
                address = storage.data_ptr()
            except (RuntimeError, NotImplementedError):  # a tensor without memory
                continue
            if address in self._pieces and storage.resizable():
                yield one
