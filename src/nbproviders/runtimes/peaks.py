"""The most memory that computing takes on a GPU beside the weights, as torch's allocator counts it.

Nothing is reset: the peak since the process began is the user's to ask for and to reset, too. So only what
goes beyond it is seen, as by the first long texts of a model. A count is of a whole GPU: what overlaps with
another computation, or with an allocation of weights, is not told. CPUs and Apple's GPUs count no peak.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

Tell = Callable[[int, int], object]
"""Told of bytes, and of how many tokens all texts had together."""

Counts = Callable[[str], tuple[int, int]]
"""Bytes that are allocated on a device now, and that were at the peak."""

_guard = threading.Lock()
_inside: dict[str, int] = {}  # computations by device
_disturbed: dict[str, int] = {}  # how often something began there that a peak would include


@runtime_checkable
class TellsPeaks(Protocol):
    """A model that counts what its computing takes."""

    def on_peak(self, tell: Tell) -> None:
        """Have each new peak told, on any thread."""


def disturb(device: str) -> None:
    """Say that weights are allocated on a device: what is computed there now does not count."""
    with _guard:
        _disturbed[device] = _disturbed.get(device, 0) + 1


class Peaks:
    """Watches the computations of one model.

    Parameters
    ----------
    device
        Where it computes.
    counts
        The allocator's; by default torch's, where it keeps a peak.
    """

    def __init__(self, device: str, counts: Counts | None = None) -> None:
        self._device = device
        self._counts = counts or _counts.get(device.partition(":")[0])
        self.tell: Tell | None = None

    @contextmanager
    def computing(self, tokens: Callable[[], int]) -> Iterator[None]:
        """Watch a computation, and tell a new peak at its end; nothing of one that failed.

        Parameters
        ----------
        tokens
            Asked at the end: how long all its texts are together, with what was written.
        """
        if self._counts is None or self.tell is None:
            yield
            return
        with _alone(self._device) as undisturbed:
            before, peak_before = self._counts(self._device)
            yield
            _, peak = self._counts(self._device)
            told = peak > peak_before and undisturbed()
        if told:
            self.tell(peak - before, tokens())


@contextmanager
def _alone(device: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether nothing else began there, or was under way, since."""
    with _guard:
        others = _inside.get(device, 0)
        _inside[device] = others + 1
        began = _disturbed[device] = _disturbed.get(device, 0) + 1
    try:
        yield lambda: not others and _disturbed[device] == began
    finally:
        with _guard:
            _inside[device] -= 1


def _cuda(device: str) -> tuple[int, int]:
    import torch

    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


_counts: dict[str, Counts] = {"cuda": _cuda}
