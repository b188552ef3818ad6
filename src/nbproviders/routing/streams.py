"""Streams that another model writes, and waits that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from nbproviders.core.completion import Completion, Finish
from nbproviders.core.model import Stream
from nbproviders.core.params import Request
from nbproviders.errors import TimeoutError

T = TypeVar("T")


class Answering:
    """The reference of who answers a stream; shared by it and its source, which must not know each other."""

    __slots__ = ("spec",)

    def __init__(self, spec: str) -> None:
        self.spec = spec


class AnsweredStream(Stream):
    """A stream whose completion tells which member wrote it."""

    def __init__(
        self, source: AsyncGenerator[str | Finish, None], request: Request, told: Answering
    ) -> None:
        super().__init__(source, request, told.spec)
        self._told = told

    @property
    def completion(self) -> Completion:
        """The whole, once the stream has ended; see `Stream.completion`."""
        done = super().completion
        done.spec = self._told.spec
        return done


def late(timeout_s: float | None) -> TimeoutError:
    """Return the error of a member that did not answer in its time."""
    return TimeoutError(
        f"No answer within {timeout_s:g} s.", hint="Give it longer: Router(…, timeout_s=…)"
    )


async def left_behind(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return what work returns; if it is late, cancel it and do not wait for its end.

    A call on a thread ends when it ends: a member that hangs there must not hold the next one.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_seen)
    if not task.done():
        raise late(timeout_s)
    return task.result()


def _seen(task: asyncio.Future[Any]) -> None:
    """Take notice of an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
