"""Clauses on how a provider is made, set up and torn down."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbproviders.authoring.options import CALL_OPTIONS
from nbproviders.errors import ProviderError
from nbproviders.testing.footprint import footprint, more_than
from nbproviders.testing.subject import Subject, Watch, expect, working

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


async def construction(subject: Subject) -> None:
    """It is complete, has a name that can stand in a reference, and resolves a model to one key."""
    provider = subject.provider()
    name = provider.name
    expect(
        _NAME.fullmatch(name),
        f"Its name is {name!r}.",
        "Give the class a name of small letters, digits and hyphens.",
    )
    stolen = [option for option in CALL_OPTIONS if option in (provider.options or {})]
    expect(
        not stolen,
        f"It declares {', '.join(stolen)}, which every model takes already.",
        "Name the option otherwise: it would never reach the provider.",
    )
    expect(
        provider.resolve(subject.model) == provider.resolve(subject.model),
        f"{subject.model!r} is another resource each time it is resolved.",
        "Make nothing anew in what decides what is loaded.",
    )


async def lazy(subject: Subject) -> None:
    """Nothing is loaded or started before a model is first used."""
    subject.residency.residents()  # the engine and its thread are not the provider's
    before = await footprint()
    provider = subject.provider()
    watch = Watch(subject, provider, subject.model)
    provider.model(subject.model)
    key = provider.resolve(subject.model)
    there = subject.entry(key) is not None or watch.events()
    expect(
        not there,
        "A model was loaded when it was only named.",
        "Load in setup or load, not in the constructor, model or resolve.",
    )
    more = await more_than(before, subject.patience_s)
    expect(
        not more,
        f"Making the provider left: {', '.join(more)}.",
        "Start threads, processes and connections when a model is first set up.",
    )


async def lifecycle(subject: Subject) -> None:
    """A handle is active until its teardown, which reaches the provider once, even if asked twice at once."""
    provider = subject.provider()
    handle = await provider.setup(subject.model)
    lacks = [n for n in ("resource_id", "model", "is_active", "teardown") if not hasattr(handle, n)]
    expect(
        not lacks,
        f"setup returned {type(handle).__name__} without {', '.join(lacks)}.",
        "Return ModelHandle(resource_id, model, manager=self).",
    )
    expect(handle.is_active, "A new handle is not active.", "Leave _active as ModelHandle has it.")
    manager = getattr(handle, "manager", provider)
    with counted(manager) as calls:
        await asyncio.gather(handle.teardown(), handle.teardown())
        await handle.teardown()
    expect(
        calls == [handle.resource_id],
        f"After three calls of handle.teardown() the provider's teardown got {calls!r}.",
        "Leave teardown of the handle as ModelHandle has it, or mark it inactive before any await.",
    )
    expect(
        not handle.is_active, "A handle is active after its teardown.", "Leave is_active as it is."
    )


async def unknown_id(subject: Subject) -> None:
    """The teardown of an id that is unknown, or was given back already, does nothing."""
    provider = subject.provider()
    handle = await provider.setup(subject.model)
    await handle.teardown()
    for resource_id in ("an id that nobody was given", handle.resource_id):
        with working(
            f"teardown({resource_id!r})",
            "Return quietly if there is nothing to give back, as with dict.pop(key, None).",
        ):
            await provider.teardown(resource_id)


async def teardown_all(subject: Subject) -> None:
    """`teardown_all` goes on past a failure, frees the rest, and tells what failed."""
    provider = subject.provider()
    async with provider.model(subject.model):
        pass
    handles = [await provider.setup(subject.model) for _ in range(2)]
    with counted(provider, failing=1) as calls:
        (told,) = await asyncio.gather(provider.teardown_all(), return_exceptions=True)
    if calls:  # what was made to fail is really ended now
        await provider.teardown(calls[0])
    left = Counter(handle.resource_id for handle in handles) - Counter(calls)
    expect(
        not left,
        f"{left.total()} of {len(handles)} handles were not torn down; the first teardown failed.",
        "Go on past a failure: leave teardown_all as ModelProvider has it.",
    )
    expect(
        isinstance(told, ProviderError) and _FAILURE in str(told),
        f"After a teardown failed, teardown_all raised {told!r:.200}",
        "Raise one ProviderError that tells all failures.",
    )
    expect(
        subject.entry(provider.resolve(subject.model)) is None,
        "A model is still in memory after teardown_all.",
        "Call super().teardown_all() as well.",
    )


_FAILURE = "a teardown that was made to fail"


@contextmanager
def counted(manager: Any, failing: int = 0) -> Iterator[list[str]]:
    """Note the calls of a manager's teardown; the first ones fail."""
    calls: list[str] = []
    real = manager.teardown

    async def teardown(resource_id: str) -> None:
        calls.append(resource_id)
        if len(calls) <= failing:
            raise OSError(_FAILURE)
        await real(resource_id)

    manager.teardown = teardown
    try:
        yield calls
    finally:
        del manager.teardown


CLAUSES = (construction, lazy, lifecycle, unknown_id, teardown_all)
