"""Clauses on what is stopped before its end: loads, generations, streams."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

from nbproviders.authoring.provider import ModelProvider
from nbproviders.core.spec import ResourceKey
from nbproviders.testing.footprint import footprint, more_than
from nbproviders.testing.subject import Subject, expect, working

_HELD = "Let CancelledError go on, and give back in finally what was taken."


async def cancelled_load(subject: Subject) -> None:
    """A load that is cancelled leaves nothing, and the next one works."""
    provider = subject.provider()
    key = provider.resolve(subject.model)
    # What is started once for all is not what is looked for.
    await _opened(subject.provider(), subject.model)
    await subject.free(key)
    before = await footprint()
    for loading in (False, True):
        begun = (lambda: subject.entry(key)) if loading else None
        ended = await _stopped(subject, _opened(provider, subject.model), begun)
        expect(
            ended is None or isinstance(ended, asyncio.CancelledError),
            f"A cancelled load raised {type(ended).__name__}: {ended}",
            _HELD,
        )
        expect(
            await subject.settled(lambda: _at_rest(subject, key)),
            f"A cancelled load is still under way after {subject.patience_s:g} s.",
            "Call progress.check() in a load that takes long, and await nothing after a cancellation.",
        )
        if subject.residency.handles(key):
            gc.collect()  # granted in the moment of the cancellation, it goes back by itself
        expect(
            await subject.settled(lambda: not subject.residency.handles(key)),
            f"{subject.residency.handles(key)} leases are left of a cancelled load.",
            _HELD,
        )
        await subject.free(key)
    more = await more_than(before, subject.patience_s)
    expect(not more, f"A cancelled load left: {', '.join(more)}.", _HELD)
    with working("The next load", _HELD):
        async with provider.model(subject.model) as m:
            await subject.answer(m)


async def _stopped(
    subject: Subject, work: Coroutine[Any, Any, Any], begun: Callable[[], object] | None
) -> object:
    """Cancel work, once it has begun if that can be seen, and return how it ended."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    if begun is not None:
        await subject.settled(lambda: task.done() or begun())
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def _opened(provider: ModelProvider, spec: str) -> None:
    async with provider.model(spec):
        pass


def _at_rest(subject: Subject, key: ResourceKey) -> bool:
    """Whether a model is in memory and idle, or not there at all."""
    entries = [entry for entry in subject.residency.entries() if entry.key == key]
    return all(entry.moving is None and not entry.hard for entry in entries)


async def cancelled_generation(subject: Subject) -> None:
    """A generation that is cancelled ends and gives its lease back, and the next call works."""
    prompt = subject.asked()
    provider = subject.provider()
    key = provider.resolve(subject.model)
    async with provider.model(subject.model) as m:
        for running in (False, True):
            begun = (lambda: _running(subject, key)) if running else None
            ended = await _stopped(subject, m.generate(prompt, **subject.params), begun)
            expect(
                isinstance(ended, (str, asyncio.CancelledError)),
                f"A cancelled generation raised {type(ended).__name__}: {ended}",
                _HELD,
            )
            await _given_back(subject, key)
        await _next(subject, m.generate(prompt, **subject.params))


async def broken_off_stream(subject: Subject) -> None:
    """A stream that is left by `break` or closed ends its generation, and the next one works."""
    prompt = subject.asked()
    provider = subject.provider()
    key = provider.resolve(subject.model)
    async with provider.model(subject.model) as m:
        stream = m.stream(prompt, **subject.params)
        async for _ in stream:
            break
        del stream
        await _given_back(subject, key)
        async with m.stream(prompt, **subject.params) as stream:
            async for _ in stream:
                break
        await _given_back(subject, key)
        await _next(subject, _read(m.stream(prompt, **subject.params)))


async def _read(stream: Any) -> str:
    return "".join([chunk async for chunk in stream])


def _running(subject: Subject, key: ResourceKey) -> bool:
    entry = subject.entry(key)
    return entry is not None and entry.hard > 0


async def _given_back(subject: Subject, key: ResourceKey) -> None:
    expect(
        await subject.settled(lambda: not _running(subject, key)),
        f"It still computes {subject.patience_s:g} s after it was stopped.",
        "End at a cancellation: write a stream as an async generator that awaits for each chunk.",
    )


async def _next(subject: Subject, work: Any) -> None:
    with working("The next call", _HELD):
        await work


CLAUSES = (cancelled_load, cancelled_generation, broken_off_stream)
