"""Clauses on what fails: setups, generations, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from nbproviders.authoring.provider import ModelProvider
from nbproviders.errors import ForeignError, ProviderError
from nbproviders.testing.footprint import footprint, more_than
from nbproviders.testing.subject import Breach, Subject, expect, raised, shares

_AT_ONCE = 4
Work = Callable[[], Coroutine[Any, Any, Any]]


def _ways(provider: ModelProvider, spec: str) -> list[Work]:
    """Return the ways of setting a model up that promise the same."""

    async def block() -> None:
        async with provider.model(spec):
            pass

    async def setup() -> None:
        await (await provider.setup(spec)).teardown()

    return [block, setup] if shares(provider) else [block]


async def _failure(work: Work) -> ProviderError:
    """Return what a setup of something that is missing raises."""
    try:
        await work()
    except ProviderError as error:
        return error
    except Exception as error:  # the provider's code, which is what is asked about: it is told
        raise Breach(
            f"A failed setup raised {type(error).__name__}: {error}",
            "Raise one of nbproviders.errors; in load and setup any exception is mapped for you.",
        ) from None
    raise Breach(
        "What is missing was set up.",
        "Fail in setup or load, or say missing=None if every name can be set up.",
    )


async def failed_setup(subject: Subject) -> None:
    """A failed setup raises one of our errors that names the resource, the cause, and what to do."""
    spec = subject.need(subject.missing, "missing", "model that cannot be set up")
    works = _ways(subject.provider(), spec)
    for work in works:
        error = await _failure(work)
        begin, _, cause = error.message.partition("': ")
        # A block may be refused before anything is set up, where its reference is read.
        expect(
            begin.startswith("Failed to setup resource '") or work is not works[-1],
            f"It tells {error.message!r:.200}",
            "Leave setup to ResidentProvider, or raise nbproviders.errors.setup_failed(…).",
        )
        name = spec.partition("?")[0]
        expect(
            name in error.message and (cause or begin).strip(),
            f"It does not tell what failed and why: {error.message!r:.200}",
            "Raise errors that say what was wrong.",
        )
        expect(
            error.hint.strip(),
            f"It has no hint of what to do: {error.message!r:.200}",
            "Raise ModelAccessError(what was wrong, hint=what to do).",
        )


async def failed_setup_leaves_nothing(subject: Subject) -> None:
    """A failed setup leaves nothing behind, and the next one works."""
    spec = subject.need(subject.missing, "missing", "model that cannot be set up")
    provider = subject.provider()
    works = _ways(provider, spec)
    for work in works:  # what is imported and started once for all is not what is looked for
        await _failure(work)
    before = await footprint()
    for work in works:
        await _failure(work)
    more = await more_than(before, subject.patience_s)
    expect(
        not more,
        f"A failed setup left: {', '.join(more)}.",
        "Close what was begun before the error goes on: try … except: close; raise.",
    )
    left = [one.spec for one in subject.residency.residents() if one.key in _keys(provider, spec)]
    expect(not left, f"In memory is left: {left}.", "Cache nothing of a load that failed.")
    async with provider.model(subject.model) as m:
        await subject.answer(m)


def _keys(provider: ModelProvider, spec: str) -> set[str]:
    try:
        return {provider.resolve(spec).digest}
    except ProviderError:  # what cannot be resolved cannot be in memory
        return set()


async def failed_setup_is_each_ones_own(subject: Subject) -> None:
    """Each of those who wait for a setup that fails gets an exception of its own, without foreign frames."""
    spec = subject.need(subject.missing, "missing", "model that cannot be set up")
    todo = "Keep no exception: raise a new one each time, as nbproviders.errors.fresh makes it."
    for work in _ways(subject.provider(), spec):
        errors = await asyncio.gather(*(_failure(work) for _ in range(_AT_ONCE)))
        errors.append(await _failure(work))
        different = len({id(error) for error in errors})
        expect(different == len(errors), f"{len(errors)} waiters got {different} exceptions.", todo)
        causes = [error.__cause__ for error in errors if error.__cause__ is not None]
        foreign = [
            cause for cause in causes if not isinstance(cause, (ForeignError, ProviderError))
        ]
        expect(
            not foreign,
            f"Its __cause__ is {type(foreign[0]).__name__ if foreign else ''}.",
            "Raise from nbproviders.errors.foreign(error), or let load and setup raise as they do.",
        )
        kept = [cause for cause in causes if cause.__traceback__ is not None]
        expect(not kept, "Its __cause__ keeps frames, and so what they hold.", todo)


async def errors(subject: Subject) -> None:
    """Where a model fails, an answer and a stream raise one of our errors, and the next call works."""
    refused: Any = subject.need(subject.refused, "refused", "prompt for which the model fails")
    provider = subject.provider()
    async with provider.model(subject.model) as m:

        async def whole() -> object:
            return await m.generate(refused, **subject.params)

        async def streamed() -> object:
            return [chunk async for chunk in m.stream(refused, **subject.params)]

        for work in (whole, streamed):
            error = await raised(work())
            expect(
                error,
                "A prompt that should fail was answered.",
                "Name another in refused, or none.",
            )
            expect(
                isinstance(error, ProviderError) and str(error).strip(),
                f"generate or stream raised {type(error).__name__}: {error}",
                "Raise one of nbproviders.errors, or an Exception, which is mapped; nothing else.",
            )
        await subject.answer(m)


CLAUSES = (failed_setup, failed_setup_leaves_nothing, failed_setup_is_each_ones_own, errors)
