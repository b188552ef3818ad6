"""What a model that sleeps can do: give a device's memory back, and take it again, without a new load.

A capability beside the waist: a model that has it names ``sleep`` in ``info.can``. One that has not is freed
where another would sleep, and loaded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nbproviders.residency.progress import Progress


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a sleep or a wake did.

    Attributes
    ----------
    held
        Bytes that the model holds on each device now; ``host`` is main memory that keeps a copy for another
        device.
    moved_bytes
        Bytes that were copied between devices, or read from files.
    source
        Where the weights came from, when it woke: ``host copy`` or ``files``.
    """

    held: Mapping[str, int]
    moved_bytes: int = 0
    source: str = ""


@runtime_checkable
class Sleeps(Protocol):
    """A model whose weights can leave a device while the rest of it stays.

    Both run while no operation does. Structure, tokenizer and thread outlive the sleep.
    """

    async def sleep(self, progress: Progress) -> Transfer:
        """Give the device's memory back. Copies no weights: what they were read from is still there.

        One that takes long tells `progress`. Its `ClosedError` means that the model is unloaded by force:
        it may be raised, and then nothing has changed.
        """

    async def wake(self, progress: Progress) -> Transfer:
        """Have the weights on the device again, each bit as it was.

        Raises
        ------
        ProviderError
            If what they come from is gone or has changed. The model is as before: asleep, and to be closed.
        """
