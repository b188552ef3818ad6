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


def remember(
    spec: str,
    estimate: Estimate,
    held: Mapping[str, int],
    peak_bytes: int | None = None,
    tokens: int = 0,
) -> None:
    """Keep what a load took, or what computing did, beside what was told before.

    Parameters
    ----------
    spec
        The model's reference.
    estimate
        As it was told.
    held
        Bytes that the loaded model holds on each device.
    peak_bytes
        What computing took beside at its peak; None if that was not measured. More text than was estimated
        with says nothing about the estimate and is not kept; nor is a model on several devices.
    tokens
        How long the text was.
    """
    devices = [device for device in estimate.weights if device in held]
    if not estimate.architecture:
        return
    if peak_bytes is not None and (len(devices) > 1 or tokens > (estimate.context_tokens or 0)):
        return
    for device in devices:
        history().add(
            Measured(
                time_s=time.time(),
                spec=spec,
                architecture=estimate.architecture,
                device=device,
                weights_bytes=estimate.weights[device],
                cache_bytes=estimate.cache.get(device, 0),
                workspace_bytes=estimate.workspace.get(device, 0),
                measured_weights_bytes=held[device],
                measured_peak_bytes=None if peak_bytes is None else held[device] + peak_bytes,
                context_tokens=estimate.context_tokens or 0,
                measured_tokens=tokens,
            )
        )
