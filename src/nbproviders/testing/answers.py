"""Clauses on what a model answers, and what shows of the provider's secrets."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, get_args
from unittest import SkipTest

from nbproviders.authoring.provider import ModelProvider
from nbproviders.core.completion import Completion, FinishReason
from nbproviders.core.params import GenerationParams, Messages
from nbproviders.testing.subject import Subject, expect, raised, reference

Prompt = str | Messages


async def stream_equals_generate(subject: Subject) -> None:
    """The chunks of a stream make the text that `generate` returns, and so does its completion."""
    prompt = subject.asked()
    provider = subject.provider()
    todo = (
        "Write stream alone: generate is made of it. Sampling needs a temperature of 0 or a seed."
    )
    async with provider.model(subject.model) as m:
        whole = await m.generate(prompt, **subject.params)
        stream = m.stream(prompt, **subject.params)
        text = "".join([chunk async for chunk in stream])
    expect(text == whole, f"Streamed: {text!r:.100}; generated: {whole!r:.100}", todo)
    expect(stream.completion == text, f"Its completion: {stream.completion!r:.100}", todo)


async def completions(subject: Subject) -> None:
    """A completion, generated or streamed, tells its reference, why it ended, its parameters and tokens."""
    prompt = subject.asked()
    provider = subject.provider()
    async with provider.model(subject.model) as m:
        whole = await m.generate(prompt, **subject.params)
        stream = m.stream(prompt, **subject.params)
        async for _ in stream:
            pass
    for found in (whole, stream.completion):
        _check(subject, found, reference(provider, subject.model))


def _check(subject: Subject, found: Any, spec: str) -> None:
    expect(
        isinstance(found, Completion) and isinstance(found.params, GenerationParams),
        f"It is {type(found).__name__}, with params {getattr(found, 'params', None)!r:.100}.",
        "Leave params of Finish out, or give GenerationParams.",
    )
    expect(
        found.spec == spec, f"Its spec is {found.spec!r}, not {spec!r}.", "Leave it to the base."
    )
    reasons = get_args(FinishReason)
    expect(
        found.finish in reasons,
        f"Its finish is {found.finish!r}.",
        f"End a stream with Finish(reason=…), one of {', '.join(reasons)}.",
    )
    most, usage = subject.params.get("max_tokens"), found.usage
    counts = (usage.prompt_tokens, usage.completion_tokens)
    expect(
        min(counts) >= 0 and (most is None or usage.completion_tokens <= most),
        f"Its tokens are {counts}, of {most} at most.",
        "Count the model's own tokens, and stop at max_tokens.",
    )
    expect(
        all(counts) or not subject.tells_usage or not found,
        f"Its tokens are {counts}.",
        "End a stream with Finish(usage=Usage(…)), or say tells_usage=False if nobody counts them.",
    )


async def secrets(subject: Subject) -> None:
    """What the provider was given in confidence shows in no repr, error, event or log at any level."""
    if not subject.secrets:
        raise SkipTest("secrets names none that the provider was given.")
    with _logged() as records:
        told = await _told(subject)
    told += [("a log", text) for text in records]
    shown = sorted({place for place, text in told if any(s in text for s in subject.secrets)})
    expect(
        not shown,
        f"A secret shows in {', '.join(shown)}.",
        "Keep it in ProviderConfig.api_key or mask it in __repr__, and log no headers.",
    )


async def _told(subject: Subject) -> list[tuple[str, str]]:
    """Return what can be seen of a provider at work, each with its place."""
    provider = subject.provider()
    told = [("the provider's repr", f"{provider!r} {provider}")]
    told.append(("the resource's key", repr(provider.resolve(subject.model))))
    async with provider.model(subject.model) as m:
        told += [("a client's repr", repr(m)), ("ModelInfo", repr(m.info))]
        for prompt in (subject.prompt, subject.refused):
            if prompt is not None:
                told += await _asked(m, prompt, subject)
        told.append(("the list of residents", repr(subject.residency.residents())))
    handle = await provider.setup(subject.model)
    told.append(("a handle's repr", repr(handle)))
    await handle.teardown()
    if subject.missing is not None:
        told.append(("the error of a setup", await _trace(_opened(provider, subject.missing))))
    told.append(("the events", repr(subject.residency.events())))
    return told


async def _asked(m: Any, prompt: Prompt, subject: Subject) -> list[tuple[str, str]]:
    found: list[Any] = []

    async def ask() -> None:
        found.append(await m.generate(prompt, **subject.params))

    error = await _trace(ask())
    fields = "".join(repr(vars(one)) for one in found)
    return [("the error of a generation", error), ("a completion's fields", fields)]


async def _opened(provider: ModelProvider, spec: str) -> None:
    async with provider.model(spec):
        pass


async def _trace(work: Awaitable[object]) -> str:
    """Return what is printed of what something raises."""
    error = await raised(work)
    return "" if error is None else "".join(traceback.format_exception(error))


class _Texts(logging.Handler):
    """Keeps what is logged, as text."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{self.format(record)} {record.args!r}")


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Have everything logged, and kept."""
    root, ours, handler = logging.getLogger(), logging.getLogger("nbproviders"), _Texts()
    levels = [(logger, logger.level) for logger in (root, ours)]
    root.addHandler(handler)
    for logger, _ in levels:
        logger.setLevel(logging.DEBUG)
    try:
        yield handler.texts
    finally:
        root.removeHandler(handler)
        for logger, level in levels:
            logger.setLevel(level)


CLAUSES = (stream_equals_generate, completions, secrets)
