"""Models in a session: open one to keep, see what is in memory, have it sleep, wake, stay or leave.

What is asked of a model takes its reference or an open client of it. What only concerns memory looks for no
key and reaches no network where a service computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nbproviders import registry
from nbproviders.authoring.group import ModelGroup
from nbproviders.authoring.opening import shown_now
from nbproviders.authoring.progress import PUTTING_TO_SLEEP
from nbproviders.authoring.service import BaseProvider
from nbproviders.authoring.weights import WeightsProvider
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import ConfigurationError, ModelAccessError
from nbproviders.render import memory as shown
from nbproviders.render.fit import FitReport
from nbproviders.residency import residency as residencies
from nbproviders.residency.admission import WAIT_S
from nbproviders.residency.entry import Entry, Loader
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.fit import Fit
from nbproviders.residency.leased import LeasedModel
from nbproviders.residency.memory import parse_budget, parse_keep, parse_wait
from nbproviders.runtimes import presence
from nbproviders.runtimes.checkpoints import is_local

logger = logging.getLogger("nbproviders.residency")

# A model as it was opened: its reference, or an open client.
Named = str | ModelSpec | Client | SyncClient


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
    for reference in references:
        _check_single(reference, "models")
    return ModelGroup([registry.model(reference) for reference in references])


def will_it_fit(reference: Named, *, timeout_s: float | None = None) -> FitReport:
    """Tell whether a model would fit, and who would make room. Loads nothing, and nobody leaves.

    Parameters
    ----------
    reference
        As it would be opened.
    timeout_s
        Longest wait; the first estimate imports the library, and for an architecture tries it out.

    Returns
    -------
    FitReport
        Shown as a sentence and a table; true if the model can be loaded now. Its ``fit`` has the figures.

    Raises
    ------
    ModelAccessError
        If its files are damaged, or its path leads nowhere.
    """
    __tracebackhide__ = True
    _check_single(reference, "will_it_fit")
    service = _service(reference)
    if service is not None:
        said = f"{service} takes no memory of this process: a service computes it."
        return FitReport(Fit(service.text, "fits", Estimate(), {}, {}), said)
    residency, loader = residencies.default(), _loader(reference)
    found = shown_now([loader], lambda: residency.fit(loader), timeout_s, doing="Measuring")
    return FitReport(found, _unknown(reference, loader) if found.verdict == "unknown" else "")


def sleep(reference: Named, *, timeout_s: float | None = None) -> int:
    """Have a model give its device back now; return the bytes that came back, 0 if it was not there.

    No weights are copied: they are on the host or in its files. On a CPU the first time compares them with
    the files, and so reads these once. The next call wakes it, and so does `wake`. Running calls are waited
    for; what takes longer than a second shows a line.

    Raises
    ------
    InvalidRequestError
        If it is pinned.
    UnsupportedError
        If it cannot sleep, with the reason: then `unload` it.
    TimeoutError
        If running calls did not end within `timeout_s`.
    """
    __tracebackhide__ = True
    residency, entry = residencies.default(), _entry(reference)
    if entry is None:
        _tell_absent(reference)
        return 0
    sleeping = partial(residency.sleep, entry)
    return shown_now([entry.loader], sleeping, timeout_s, doing=PUTTING_TO_SLEEP)


def wake(reference: Named, *, timeout_s: float | None = None) -> None:
    """Have a model ready to compute: awake, or loaded if it is not in memory at all.

    For a service's model nothing is done, and the log says so.

    Raises
    ------
    ProviderError
        As `load`.
    """
    __tracebackhide__ = True
    if _is_elsewhere(reference, "wake"):
        return
    residency, loader = residencies.default(), _loader(reference)

    async def ready() -> None:
        async with residency.using(loader):
            pass

    shown_now([loader], ready, timeout_s)


def pin(reference: Named, *, timeout_s: float | None = None) -> None:
    """Have a model in memory and keep it there, whatever else is wanted, until `unpin` or `unload`.

    A service's model takes no memory of this process: nothing is done for it, and the log says so.

    Raises
    ------
    ProviderError
        As `load`.
    """
    __tracebackhide__ = True
    if _is_elsewhere(reference, "pin"):
        return
    residency, loader = residencies.default(), _loader(reference)
    shown_now([loader], lambda: residency.pin(loader), timeout_s)


def unpin(reference: Named) -> None:
    """Let a pinned model leave again, should its memory be wanted. Nothing happens to one that is not."""
    residency, entry = residencies.default(), _entry(reference)

    async def unpinned(entry: Entry) -> None:
        residency.unpin(entry)

    if entry is None:
        _tell_absent(reference)
    else:
        engine.default().wait(lambda: unpinned(entry))


def set_memory(
    budget: str | None = None, *, keep_s: float | None = None, wait_s: float | None = None
) -> None:
    """Set how models share this machine's memory. What is not given goes back to its default.

    Parameters
    ----------
    budget
        ``"20GiB"`` for the accelerators, or the CPU if there is none; or by device, with ``host`` for the
        copies in main memory from which models wake: ``"cuda:0=20GiB,cpu=8GiB,host=16GiB"``. ``cuda`` means
        each such device. Default: the environment variable ``NBPROVIDERS_BUDGET``, else what is free.
    keep_s
        Seconds that a model stays which nobody uses. Default: ``NBPROVIDERS_KEEP_S``, else until its room
        is wanted.
    wait_s
        Longest wait for memory that running models hold. Default: 60.

    Raises
    ------
    ConfigurationError
        For a size or a number that is none, or a device that is not there; nothing is changed then.
    """
    residency = residencies.default()
    sizes = None if budget is None else parse_budget(budget)
    if sizes == {}:
        raise ConfigurationError(
            f"A budget of {budget!r} holds no size", hint="Leave it out to go back to the default."
        )
    presence.require(sizes or (), residency.memory)
    seconds = None if keep_s is None else parse_keep(keep_s)
    longest = WAIT_S if wait_s is None else parse_wait(wait_s)
    residency.memory.set_budget(sizes)
    residency.memory.set_keep(seconds)
    residency.set_wait(longest)
    if engine.default().here:  # where waiting would never end, they leave by and by
        residency.settle()
    else:
        engine.default().wait(residency.settled)


def unload(reference: Named, *, force: bool = False, timeout_s: float | None = None) -> int:
    """Free a model's memory now and return the bytes that came back; 0 if it was not in memory.

    Running calls are waited for. Handles that are still open load it again at their next use.

    Parameters
    ----------
    reference
        As it was opened; or an open client of it.
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
    __tracebackhide__ = True
    chosen = _chosen(reference)
    if not any(map(chosen, residencies.default().entries())):
        _tell_absent(reference)
        return 0
    return _free(chosen, force, timeout_s)


def unload_all(*, force: bool = False, timeout_s: float | None = None) -> int:
    """Free every model's memory now and return the bytes that came back; see `unload`."""
    return _free(lambda _: True, force, timeout_s)


def _free(chosen: Callable[[Entry], bool], force: bool, timeout_s: float | None) -> int:
    __tracebackhide__ = True
    residency = residencies.default()
    return engine.default().wait(lambda: residency.unload(chosen, force=force), timeout_s)


def residents() -> shown.Residents:
    """Return what is in memory: a list of `Resident` that a notebook shows as a table."""
    residency = residencies.default()
    return shown.Residents(residency.residents(), residency.devices())


def events() -> shown.Events:
    """Return what happened to models, oldest first: a list of `Event`, shown as a table."""
    return shown.Events(residencies.default().events())


# Whom a reference means


def _client(reference: object) -> LeasedModel | None:
    """Return what an open client talks to; None for what is no client."""
    if not isinstance(reference, (Client, SyncClient)):
        return None
    model = reference.waist
    if not isinstance(model, LeasedModel):
        raise ConfigurationError(
            f"{reference.spec} is a client of its own making: nothing of it is kept in memory here."
        )
    return model


def _loader(reference: Named) -> Loader:
    client = _client(reference)
    if client is not None:
        return client.loader
    return registry.model(_reference(reference)).loader


def _service(reference: Named) -> ModelSpec | None:
    """Return the reference to a service's model; None for any other."""
    client = _client(reference)
    if client is not None:  # its provider need not be registered
        return client.loader.spec if isinstance(_provider(client.loader), BaseProvider) else None
    provider, spec = registry.find(_reference(reference))
    return spec if isinstance(provider, BaseProvider) else None


def _is_elsewhere(reference: Named, verb: str) -> bool:
    """Whether a service computes it; then the log says that there is nothing to do."""
    service = _service(reference)
    if service is not None:
        logger.warning("%s takes no memory of this process: there is nothing to %s.", service, verb)
    return service is not None


def _provider(loader: Loader) -> object:
    return getattr(loader, "provider", None)


def _reference(reference: Named) -> str | ModelSpec:
    assert not isinstance(reference, (Client, SyncClient))
    return reference


def _chosen(reference: Named) -> Callable[[Entry], bool]:
    """Return who of those in memory is meant."""
    client = _client(reference)
    if client is not None:
        return lambda entry: entry.key == client.loader.key
    provider, spec = registry.find(_reference(reference))
    there = residencies.default().entries()
    if isinstance(provider, BaseProvider) and all(e.spec.provider != provider.name for e in there):
        return lambda _: False  # resolving it might ask for a key
    key = provider.resolve(spec)
    return lambda entry: entry.key == key or spec.text in entry.specs


def _entry(reference: Named) -> Entry | None:
    """Return a model in memory, asleep or loading; None if it is not there."""
    chosen, residency = _chosen(reference), residencies.default()
    found = filter(chosen, residency.entries())
    return next((entry for entry in found if residency.find(entry.key) is entry), None)


def _tell_absent(reference: Named) -> None:
    there = ", ".join(one.spec for one in residencies.default().residents())
    spec = reference.spec if isinstance(reference, (Client, SyncClient)) else reference
    logger.warning("%s is not in memory; in memory: %s.", spec, there or "nothing")


def _unknown(reference: Named, loader: Loader) -> str:
    """Return why nobody can tell how much a model takes, where its provider reads files; empty elsewhere.

    Raises
    ------
    ModelAccessError
        If they cannot be there.
    """
    model = loader.key.model
    if not isinstance(_provider(loader), WeightsProvider):
        return ""
    if not is_local(model):
        return (
            f"Nobody can tell what {loader.spec} takes: it is not on this machine. Loading it asks the Hub, "
            "which may not have it."
        )
    if Path(model).expanduser().exists():
        return ""
    raise ModelAccessError(
        f"{loader.spec} cannot be loaded: there is no file or folder {model!r}.",
        hint="Check the path, or give a Hub id such as 'org/name'. `nbproviders list` shows what is here.",
    )


def _check_single(reference: object, name: str) -> None:
    if isinstance(reference, (list, tuple, set)):
        raise ConfigurationError(
            f"{name}() was given a {type(reference).__name__}: {reference!r:.60}",
            hint="Pass them one by one: nbp.models(a, b)."
            if name == "models"
            else "Ask for one model at a time.",
        )
