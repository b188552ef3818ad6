"""Clauses on what is freed, what comes back, and what is told of it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from nbproviders.authoring.provider import ModelProvider
from nbproviders.core.spec import ResourceKey
from nbproviders.testing.footprint import footprint, more_than
from nbproviders.testing.subject import Subject, Watch, breach, expect, working


async def loads_again(subject: Subject) -> None:
    """A handle that is open when its model is unloaded loads it again at its next use."""
    prompt = subject.asked()
    provider = subject.provider()
    key = provider.resolve(subject.model)
    async with provider.model(subject.model) as m:
        await subject.answer(m)
        await subject.free(key)
        expect(
            subject.entry(key) is None,
            "It is in memory after it was unloaded.",
            "Free in teardown or aclose what setup or load took.",
        )
        with working(
            "The next call",
            "Have load and setup work any number of times: consume nothing, and close what they open.",
        ):
            await m.generate(prompt, **subject.params)


async def frees_the_model(subject: Subject) -> None:
    """Once unloaded, a model is out of memory: nobody holds the object any more."""
    provider = subject.provider()
    key = provider.resolve(subject.model)
    async with provider.model(subject.model) as m:
        await subject.answer(m)
        watched = _references(subject, m, key)
    await subject.free(key)
    del m
    expect(subject.entry(key) is None, "It is in memory after it was unloaded.", _DROP)

    def gone() -> bool:
        if all(reference() is None for reference in watched):
            return True
        gc.collect()  # a model is often part of a cycle
        return False

    if not await subject.settled(gone):
        kept = [type(one).__name__ for one in (reference() for reference in watched) if one]
        breach(f"Somebody still holds: {', '.join(kept)}.", _DROP)


_DROP = "Keep no model on self or in a module, and drop it in teardown or aclose."


def _references(subject: Subject, m: Any, key: ResourceKey) -> list[weakref.ref[Any]]:
    """Return weak references to the model and to the object underneath."""
    entry, found = subject.entry(key), []
    for one in (m.raw, entry.model if entry is not None else None):
        try:
            found.append(weakref.ref(one))
        except TypeError:  # a text, a number or the like
            continue
    return found


async def ends_what_it_started(subject: Subject) -> None:
    """Once unloaded, a model leaves no thread, task, child process or socket."""
    # What is imported and started once for all is not what is looked for: the second round tells.
    await _round(subject)
    before = await footprint()
    await _round(subject)
    more = await more_than(before, subject.patience_s)
    expect(
        not more,
        f"A model that was unloaded left: {', '.join(more)}.",
        "End in teardown or aclose what setup or load started, and wait for its end.",
    )


async def _round(subject: Subject) -> None:
    provider: ModelProvider = subject.provider()
    async with provider.model(subject.model) as m:
        await subject.answer(m)
    await subject.free(provider.resolve(subject.model))


async def events(subject: Subject) -> None:
    """Its lifecycle shows: created, leased, reused, released, freed, each with a time and bytes."""
    provider = subject.provider()
    key = provider.resolve(subject.model)
    watch = Watch(subject, provider, subject.model)
    for _ in range(2):
        async with provider.model(subject.model):
            pass
    await subject.free(key)
    found = watch.events()
    kinds = [event.kind for event in found]
    expected = ["created", "leased", "released", "reused", "leased", "released", "freed"]
    expect(
        kinds == expected,
        f"For two blocks and an unload came: {', '.join(kinds) or 'nothing'}.",
        "Leave model, setup and teardown to the bases; in a ModelProvider write setup and teardown only.",
    )
    counts = sorted({event.bytes for event in found}, key=str)
    expect(
        len(counts) == 1 and isinstance(counts[0], int) and counts[0] >= 0,
        f"Its bytes are {', '.join(map(str, counts))}.",
        "Give ModelInfo.memory_bytes whole numbers of bytes, by device, and do not change them.",
    )


CLAUSES = (loads_again, frees_the_model, ends_what_it_started, events)
