"""Promises of `closing_on_failure`: what was made is not left open, and not closed in vain."""

from __future__ import annotations

import asyncio

import pytest

from nbproviders.core.closing import closing_on_failure


class Made:
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("failure", [OSError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_failure_or_a_stop_closes(failure: type[BaseException]) -> None:
    """Whatever ends the block early closes what was made, once, and passes on."""
    made = Made()
    with pytest.raises(failure):
        async with closing_on_failure(made):
            raise failure
    assert made.closed == 1


async def test_a_block_that_ends_leaves_it_open() -> None:
    """Also one that is left by a return."""
    made = Made()

    async def opened() -> Made:
        async with closing_on_failure(made):
            return made

    assert (await opened()).closed == 0
