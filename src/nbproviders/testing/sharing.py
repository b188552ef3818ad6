"""Clauses on who shares what: setups alike, setups at once, other options, providers built alike."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from typing import Any
from unittest import SkipTest

from nbproviders.core.spec import ResourceKey
from nbproviders.testing.subject import Subject, Watch, expect, object_of, shares

_AT_ONCE = 8
_ALONE = re.compile(r"\(#\d+\)$")
_SHARE = "Share by ResidentProvider's own setup: write load, and leave setup and teardown to it."


async def sharing(subject: Subject) -> None:
    """A second setup of a model gets the live one and loads nothing."""
    provider = subject.provider()
    watch = Watch(subject, provider, subject.model)
    async with provider.model(subject.model) as m, provider.model(subject.model) as n:
        expect(m.raw is n.raw, "Two blocks at once hold two objects.", _SHARE)
    async with provider.model(subject.model):
        pass
    expect(watch.loads == 1, f"It was loaded {watch.loads} times for three blocks.", _SHARE)
    if shares(provider):
        one, two = await provider.setup(subject.model), await provider.setup(subject.model)
        same = object_of(one.model) is object_of(two.model)
        for handle in (one, two):
            await handle.teardown()
        expect(same, "Two setups hold two objects.", _SHARE)
        expect(watch.loads == 1, f"It was loaded {watch.loads} times in all.", _SHARE)


async def leases(subject: Subject) -> None:
    """Whoever gives a model back gives back his own lease: the others go on, and the model stays cached."""
    provider = subject.provider()
    key = provider.resolve(subject.model)
    watch = Watch(subject, provider, subject.model)
    todo = (
        "Free nothing in teardown that others still hold; the residency frees it when it is time."
    )
    async with provider.model(subject.model) as m:
        async with provider.model(subject.model):
            pass
        await subject.answer(m)
    expect(subject.entry(key), "The model left memory when its blocks ended.", todo)
    if shares(provider):
        first, second = await provider.setup(subject.model), await provider.setup(subject.model)
        await second.teardown()
        expect(first.is_active, "The other handle is no longer active.", todo)
        expect(subject.entry(key), "The model left memory when one of two gave it back.", todo)
        await subject.answer(first.model)
        await first.teardown()
        expect(subject.entry(key), "The model left memory when it was given back.", todo)
    expect(not watch.count("freed"), "The model was freed while it was held.", todo)
    held = subject.residency.handles(key)
    expect(held == 0, f"{held} leases are left.", "Give back each lease that was taken.")


async def other_config(subject: Subject) -> None:
    """Another model or option is another resource, and both live side by side."""
    other = subject.need(subject.other, "other", "second model or option")
    provider = subject.provider()
    todo = "Declare each option that decides what is loaded, and leave loads=True."
    one, two = provider.resolve(subject.model), provider.resolve(other)
    expect(one != two, f"{subject.model!r} and {other!r} are the same resource.", todo)
    async with provider.model(subject.model) as m, provider.model(other) as n:
        expect(m.raw is not n.raw, f"{subject.model!r} and {other!r} hold the same object.", todo)
        await subject.answer(m)
        await subject.answer(n)


async def at_once(subject: Subject) -> None:
    """However many ask for a model at once, it is loaded once, and each has a lease."""
    await _blocks_at_once(subject)
    provider = subject.provider()
    if not shares(provider):
        return
    key = provider.resolve(subject.model)
    await subject.free(key)
    watch = Watch(subject, provider, subject.model)
    handles = await _all(*(provider.setup(subject.model) for _ in range(_AT_ONCE)))
    objects = len({id(object_of(handle.model)) for handle in handles})
    for handle in handles:
        await handle.teardown()
    expect(objects == 1, f"{_AT_ONCE} setups at once hold {objects} objects.", _SHARE)
    _loaded_once(subject, watch, key)


async def _blocks_at_once(subject: Subject) -> None:
    provider = subject.provider()
    key = provider.resolve(subject.model)
    watch = Watch(subject, provider, subject.model)
    async with AsyncExitStack() as stack:
        blocks = (provider.model(subject.model) for _ in range(_AT_ONCE))
        clients = await _all(*map(stack.enter_async_context, blocks))
        held = subject.residency.handles(key)
        expect(held == _AT_ONCE, f"{_AT_ONCE} blocks hold {held} leases.", _SHARE)
        await subject.answer(clients[-1])
    _loaded_once(subject, watch, key)


def _loaded_once(subject: Subject, watch: Watch, key: ResourceKey) -> None:
    expect(watch.loads == 1, f"{_AT_ONCE} at once made {watch.loads} loads.", _SHARE)
    held = subject.residency.handles(key)
    expect(held == 0, f"{held} leases are left.", "Give back each lease that was taken.")


async def different_at_once(subject: Subject) -> None:
    """Different models that are asked for at once are each loaded once, and none spoils the other."""
    other = subject.need(subject.other, "other", "second model or option")
    provider = subject.provider()
    async with provider.model(subject.model) as m:
        alone = await subject.answer(m)
    await subject.free(provider.resolve(subject.model))
    provider = subject.provider()
    watches = [Watch(subject, provider, spec) for spec in (subject.model, other)]
    async with AsyncExitStack() as stack:
        blocks = (provider.model(spec) for spec in (subject.model, other))
        clients = await _all(*map(stack.enter_async_context, blocks))
        answers = [await subject.answer(m) for m in clients]
    loads = [watch.loads for watch in watches]
    todo = "Keep nothing of a load on self, and lock what a library keeps for the whole process."
    expect(max(loads) <= 1, f"They were loaded {loads} times.", todo)
    expect(
        answers[0] == alone,
        f"It answers {answers[0]!r:.100}; loaded alone, it answered {alone!r:.100}",
        todo,
    )


async def built_alike(subject: Subject) -> None:
    """Two providers built alike share what they loaded: running a cell again orphans nothing."""
    if not subject.remade:
        raise SkipTest("One provider was given; give what makes it: check_provider(lambda: …, …).")
    one, two = subject.provider(), subject.provider()
    keys = [provider.resolve(subject.model) for provider in (one, two)]
    if any(_ALONE.search(key.origin) for key in keys):
        raise SkipTest("Its constructor takes what cannot be compared, so each stands for itself.")
    expect(
        keys[0] == keys[1],
        "The same model of a provider built again is another resource.",
        "Take nothing in the constructor that differs each time, and define the class in a module.",
    )
    watch = Watch(subject, one, subject.model)
    async with one.model(subject.model) as m, two.model(subject.model) as n:
        expect(m.raw is n.raw, "They hold two objects.", _SHARE)
    expect(watch.loads == 1, f"It was loaded {watch.loads} times.", _SHARE)


async def _all(*work: Any) -> list[Any]:
    """Run all at once to their ends, and raise the first failure only then."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


CLAUSES = (sharing, leases, other_config, at_once, different_at_once, built_alike)
