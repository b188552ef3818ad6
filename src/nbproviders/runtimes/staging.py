"""The way of a load's weights to their device: by main memory into a slab, or as the library puts them."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbproviders.residency import memory
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import checkpoints, devices, mapped, slabbed
from nbproviders.runtimes.placement import Fixed, Placement, obstacle
from nbproviders.runtimes.weightfiles import TORCH_NAMES

CPU = {"": "cpu"}


@dataclass
class Loading:
    """What a load knows, for steps between which there is code of others.

    Attributes
    ----------
    progress
        Of the load.
    device
        Where the weights are to be, as the residency calls it.
    quantized
        Whether they are, or will be.
    notes
        For the model's `info`.
    placement
        Of the weights, once they are where they are to be.
    """

    progress: Progress
    device: str
    quantized: bool = False
    notes: list[str] = field(default_factory=list)
    placement: Placement | None = None

    def stages(self, model: str, device_map: Any, options: Mapping[str, Any]) -> bool:
        """Whether the library is to load to the CPU, and the weights go into a slab from there.

        As stored they take no memory there, for they are mapped. Those that are cast take all of their bytes
        until they have gone, so there must be room twice over: the rest may be wanted for a copy.

        Parameters
        ----------
        model
            Folder or Hub id.
        device_map
            As the library would take it.
        options
            The library's further ones: ``dtype``, ``revision``.
        """
        if self.quantized or self.device == "cpu" or device_map != {"": self.device}:
            return False
        if devices.computes_on(self.device) == "cpu":
            return True
        wanted = str(options.get("dtype", "auto")).removeprefix("torch.")
        folder = checkpoints.folder_of(model, options.get("revision"))
        weights = checkpoints.read_weights(folder) if folder and folder.is_dir() else None
        if weights is None or folder is None:
            return wanted == "auto"
        if wanted == "auto":
            wanted = checkpoints.dtype_of(checkpoints.read_config(folder))
        stored = {TORCH_NAMES.get(dtype, "") for dtype in weights.dtypes.values()}
        if all(name == wanted or "float" not in name for name in stored):
            return True
        return 2 * weights.bytes_as(wanted) <= memory.probe_cpu().free_bytes

    def place(self, model: Any, source: str, revision: str | None) -> None:
        """Move a staged model to its device."""
        folder = checkpoints.folder_of(source, revision)
        self.placement = slabbed.place(model, self.device, folder, self.progress)

    def settled(self, model: Any, source: str, revision: str | None) -> Placement:
        """Return where the weights are, now that everything was done to the model."""
        if self.placement is not None:
            self.placement.revise(model)
        elif self.device == "cpu":
            self.placement = mapped.keep(model, checkpoints.folder_of(source, revision))
        else:
            reason = obstacle(model) or "the library has loaded it to its device by itself"
            self.placement = Fixed(model, reason)
        return self.placement

    def undo(self) -> None:
        """Give back what a load holds that has failed."""
        if self.placement is not None:
            self.placement.free()


current: contextvars.ContextVar[Loading | None] = contextvars.ContextVar("loading", default=None)


def computing(device_map: Any) -> Any:
    """Return a device map as the library takes it: of virtual devices it knows nothing."""
    if isinstance(device_map, Mapping):
        return {part: computing(place) for part, place in device_map.items()}
    return devices.computes_on(device_map) if isinstance(device_map, str) else device_map
