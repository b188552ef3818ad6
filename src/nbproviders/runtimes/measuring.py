"""What loads really took, kept for this user, and what estimates learn of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from nbproviders.residency.estimate import Estimate
from nbproviders.residency.history import History, Measured
from nbproviders.runtimes.process.state import base


def history() -> History:
    """Return this user's measurements."""
    return _history(base())


@cache
def _history(folder: Path) -> History:
    return History(folder)


def corrected(estimate: Estimate) -> Estimate:
    """Return an estimate with the workspace that its like took on this machine before."""
    if not estimate.architecture or not estimate.workspace:
        return estimate
    device = next(iter(estimate.workspace))
    factor = history().correction(estimate.architecture, device)
    return estimate if factor == 1 else estimate.corrected(factor)


def remember(spec: str, estimate: Estimate, held: Mapping[str, int]) -> None:
    """Keep what a load took, beside what was told before.

    Parameters
    ----------
    spec
        The model's reference.
    estimate
        As it was told.
    held
        Bytes that the loaded model holds on each device.
    """
    for device, weights in estimate.weights.items():
        if estimate.architecture and device in held:
            history().add(
                Measured(
                    time_s=time.time(),
                    spec=spec,
                    architecture=estimate.architecture,
                    device=device,
                    weights_bytes=weights,
                    cache_bytes=estimate.cache.get(device, 0),
                    workspace_bytes=estimate.workspace.get(device, 0),
                    measured_weights_bytes=held[device],
                    context_tokens=estimate.context_tokens or 0,
                )
            )
