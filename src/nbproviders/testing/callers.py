"""Clauses on who calls: blocking code, threads, event loops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from nbproviders.authoring.provider import ModelProvider
from nbproviders.errors import ClosedError
from nbproviders.testing.subject import Subject, Watch, breach, expect, shares

_THREADS = 4
_LOOP = (
    "Bind nothing to the loop that first calls: no asyncio lock, session or task on self. In a "
    "ResidentProvider, write load and leave setup to it."
)


def clients(subject: Subject) -> None:
    """A model opens by `with`, `async with` and `get_client`, each to a client that ends with its block."""
    provider = subject.provider()

    async def use() -> Any:
        async with provider.model(subject.model) as m:
            await subject.answer(m)
            return m

    def blocking(m: Any) -> Any:
        if subject.prompt is not None:
            m.generate(subject.prompt, **subject.params)
        return m

    with provider.model(subject.model) as m:
        blocking(m)
    kept = blocking(provider.get_client(subject.model))
    kept.close()
    for client in (m, asyncio.run(use()), kept):
        try:
            _ = client.raw
        except ClosedError:
            continue
        breach("A client works on after its end.", "Leave model as ModelProvider has it.")
    held = subject.residency.handles(provider.resolve(subject.model))
    expect(held == 0, f"{held} leases are left.", "Leave model as ModelProvider has it.")


def threads_in_turn(subject: Subject) -> None:
    """It works from one thread after another, each with an event loop of its own that then closes."""
    provider = subject.provider()
    for _ in range(3):
        _run([lambda: _use(subject, provider)], subject.timeout_s)


def threads_at_once(subject: Subject) -> None:
    """It works from several threads at once, each with an event loop of its own, and loads once."""
    provider = subject.provider()
    watch = Watch(subject, provider, subject.model)
    barrier = threading.Barrier(_THREADS)

    async def use() -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(barrier.abort)  # the others shall not wait for one that has failed
            await asyncio.to_thread(barrier.wait, subject.timeout_s / 2)
            await _use(subject, provider)
            await asyncio.to_thread(barrier.wait, subject.timeout_s / 2)  # no loop ends before
            undo.pop_all()

    _run([use] * _THREADS, subject.timeout_s)
    expect(watch.loads == 1, f"{_THREADS} threads at once made {watch.loads} loads.", _LOOP)
    held = subject.residency.handles(provider.resolve(subject.model))
    expect(held == 0, f"{held} leases are left.", "Give back each lease that was taken.")


async def _use(subject: Subject, provider: ModelProvider) -> None:
    """Open a model both ways, and ask it."""
    async with provider.model(subject.model) as m:
        await subject.answer(m)
    if shares(provider):
        handle = await provider.setup(subject.model)
        await subject.answer(handle.model)
        await handle.teardown()


def _run(work: Iterable[Callable[[], Coroutine[Any, Any, None]]], timeout_s: float) -> None:
    """Run coroutine functions, each on a thread and loop of its own; raise the first failure."""
    failures: list[Exception] = []

    def begin(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            try:
                asyncio.run(function())
            except threading.BrokenBarrierError:
                raise
            except Exception as error:  # the provider's code; told below
                failures.append(error)

    threads = [threading.Thread(target=begin, args=(f,), daemon=True) for f in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    expect(not any(t.is_alive() for t in threads), "A thread did not end.", _LOOP)
    if failures:
        first = failures[0]
        breach(f"On another thread came {type(first).__name__}: {first}", _LOOP)


CLAUSES = (clients, threads_in_turn, threads_at_once)
