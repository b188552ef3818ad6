"""Models in a session: open one to keep, see what is in memory, have it sleep, wake, stay or leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbproviders import registry
from nbproviders.authoring.group import ModelGroup
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.spec import ModelSpec
from nbproviders.render import memory as shown
from nbproviders.render.fit import FitReport
from nbproviders.residency import residency as residencies
from nbproviders.residency.admission import WAIT_S
from nbproviders.residency.entry import Entry
from nbproviders.residency.memory import parse_budget, parse_keep, parse_wait


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


def models(*references: str | ModelSpec) -> ModelGroup:
    """Open models together: ``async with nbp.models(one, other) as (a, b)``, or ``with``.

    All are in memory at once, or none: room is made for all before the first loads.

    Raises
    ------
    ConfigurationError
        For an unknown provider or option.
    InsufficientMemoryError
        When it is entered and they do not fit together: at once, whatever else could leave.
    """
    return ModelGroup([registry.model(reference) for reference in references])


def will_it_fit(reference: str | ModelSpec, *, timeout_s: float | None = None) -> FitReport:
    """Tell whether a model would fit, and who would make room. Loads nothing, and nobody leaves.

    Parameters
    ----------
    reference
        As it would be opened.
    timeout_s
        Longest wait; the first estimate of an architecture takes a second or two.

    Returns
    -------
    FitReport
        Shown as a sentence and a table; true if the model can be loaded now. Its ``fit`` has the figures.

    Raises
    ------
    ModelAccessError
        If its files are damaged.
    """
    residency, loader = residencies.default(), registry.model(reference).loader
    return FitReport(engine.default().wait(lambda: residency.fit(loader), timeout_s))


def sleep(reference: str | ModelSpec, *, timeout_s: float | None = None) -> int:
    """Have a model give its device back now; return the bytes that came back, 0 if it was not there.

    No bytes move: its weights are on the host or in its files. The next call wakes it, and so does `wake`.
    Running calls are waited for.

    Raises
    ------
    InvalidRequestError
        If it is pinned.
    UnsupportedError
        If it cannot sleep, with the reason: then `unload` it.
    TimeoutError
        If running calls did not end within `timeout_s`.
    """
    residency, entry = residencies.default(), _entry(reference)
    return 0 if entry is None else engine.default().wait(lambda: residency.sleep(entry), timeout_s)


def wake(reference: str | ModelSpec, *, timeout_s: float | None = None) -> None:
    """Have a model ready to compute: awake, or loaded if it is not in memory at all.

    Raises
    ------
    ProviderError
        As `load`.
    """
    residency, loader = residencies.default(), registry.model(reference).loader

    async def ready() -> None:
        async with residency.using(loader):
            pass

    engine.default().wait(ready, timeout_s)


def pin(reference: str | ModelSpec, *, timeout_s: float | None = None) -> None:
    """Have a model in memory and keep it there, whatever else is wanted, until `unpin` or `unload`.

    Raises
    ------
    ProviderError
        As `load`.
    """
    residency, loader = residencies.default(), registry.model(reference).loader
    engine.default().wait(lambda: residency.pin(loader), timeout_s)


def unpin(reference: str | ModelSpec) -> None:
    """Let a pinned model leave again, should its memory be wanted. Nothing happens to one that is not."""
    residency, entry = residencies.default(), _entry(reference)

    async def unpinned(entry: Entry) -> None:
        residency.unpin(entry)

    if entry is not None:
        engine.default().wait(lambda: unpinned(entry))


def set_memory(
    budget: str | None = None, *, keep_s: float | None = None, wait_s: float | None = None
) -> None:
    """Set how models share this machine's memory. What is not given goes back to its default.

    Parameters
    ----------
    budget
        ``"20GiB"`` for the accelerators, or the CPU if there is none; or by device, with ``host`` for the
        copies in main memory from which models wake: ``"cuda:0=20GiB,cpu=8GiB,host=16GiB"``. Default: the
        environment variable ``NBPROVIDERS_BUDGET``, else what is free.
    keep_s
        Seconds that a model stays which nobody uses. Default: ``NBPROVIDERS_KEEP_S``, else until its room
        is wanted.
    wait_s
        Longest wait for memory that running models hold. Default: 60.

    Raises
    ------
    ConfigurationError
        For a size or a number that is none; nothing is changed then.
    """
    sizes = None if budget is None else parse_budget(budget)
    seconds = None if keep_s is None else parse_keep(keep_s)
    longest = WAIT_S if wait_s is None else parse_wait(wait_s)
    residency = residencies.default()
    residency.memory.set_budget(sizes)
    residency.memory.set_keep(seconds)
    residency.set_wait(longest)
    engine.default().post(residency.settle)


def _entry(reference: str | ModelSpec) -> Entry | None:
    """Return a model in memory by its reference; None if it is not there."""
    provider, spec = registry.find(reference)
    return residencies.default().find(provider.resolve(spec))


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
    residency = residencies.default()
    return shown.Residents(residency.residents(), residency.devices())


def events() -> shown.Events:
    """Return what happened to models, oldest first: a list of `Event`, shown as a table."""
    return shown.Events(residencies.default().events())
