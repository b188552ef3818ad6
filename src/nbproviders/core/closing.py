"""Closing what was made, if what comes next fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol


class Closable(Protocol):
    """What is closed by `aclose`: a model, a stream."""

    async def aclose(self) -> None:
        """Free what it holds."""


@asynccontextmanager
async def closing_on_failure(made: Closable) -> AsyncIterator[None]:
    """Close `made` if the block fails or is stopped; after a block that ends, leave it open."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(made.aclose)
        yield
        stack.pop_all()
