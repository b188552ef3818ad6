"""Models in a session: open one to keep, see what is in memory, and free it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbproviders import registry
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.spec import ModelSpec
from nbproviders.render import memory as shown
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Entry


async def load(reference: str | ModelSpec, **options: Any) -> Client:
    """Load a model and keep it open from cell to cell, until ``m.close()``.

    Parameters
    ----------
    reference
        ``provider:model?option=value&…``.
    **options
        More options; they win over those in the reference.

    Raises
    ------
    ProviderError
        One of its kinds: an unknown name or option, no access, no room.
    """
    __tracebackhide__ = True
    return await registry.model(reference, **options).open()


def load_sync(
    reference: str | ModelSpec, *, timeout_s: float | None = None, **options: Any
) -> SyncClient:
    """Load a model and return a blocking client; see `load`.

    Raises
    ------
    TimeoutError
        If it takes longer than `timeout_s`.
    """
    __tracebackhide__ = True
    return registry.model(reference, **options).open_sync(timeout_s)


def unload(
    reference: str | ModelSpec, *, force: bool = False, timeout_s: float | None = None
) -> int:
    """Free a model's memory now and return the bytes that came back; 0 if it was not in memory.

    Running calls are waited for. Handles that are still open load it again at their next use.

    Parameters
    ----------
    reference
        As it was opened.
    force
        Cancel running calls; they end with `ClosedError`.
    timeout_s
        Longest wait.

    Raises
    ------
    ConfigurationError
        For an unknown provider or option.
    TimeoutError
        If running calls did not end within `timeout_s`.
    """
    provider, spec = registry.find(reference)
    key = provider.resolve(spec)
    return _free(lambda entry: entry.key == key or spec.text in entry.specs, force, timeout_s)


def unload_all(*, force: bool = False, timeout_s: float | None = None) -> int:
    """Free every model's memory now and return the bytes that came back; see `unload`."""
    return _free(lambda _: True, force, timeout_s)


def _free(chosen: Callable[[Entry], bool], force: bool, timeout_s: float | None) -> int:
    residency = residencies.default()
    return engine.default().wait(lambda: residency.unload(chosen, force=force), timeout_s)


def residents() -> shown.Residents:
    """Return what is in memory: a list of `Resident` that a notebook shows as a table."""
    return shown.Residents(residencies.default().residents())


def events() -> shown.Events:
    """Return what happened to models, oldest first: a list of `Event`, shown as a table."""
    return shown.Events(residencies.default().events())
