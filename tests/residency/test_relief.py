"""Promises of models that run out of memory: others make room, none that is wanted, and it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest

from nbproviders.core.completion import Finish
from nbproviders.core.model import Model
from nbproviders.core.params import Request, as_request
from nbproviders.core.tokens import Score, Token
from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency.leased import LeasedModel
from nbproviders.residency.progress import Progress
from tests.scripted import (
    Gate,
    ScriptedLoader,
    ScriptedModel,
    SlowToLeave,
    house,
    in_virtual_time,
    operate,
    resident,
    runs_out,
    start,
    turns,
)


class Full(ScriptedModel):
    """Runs out of memory as long as a rival is there."""

    def __init__(self, rivals: Callable[[], int]) -> None:
        super().__init__(memory_bytes={"gpu": 10})
        self.info = replace(self.info, parallel=8, can=frozenset({"score"}))
        self._rivals = rivals

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        await asyncio.sleep(1)
        if self._rivals():
            raise InsufficientMemoryError("the device is full")
        async for piece in super()._run(request):
            yield piece

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        raise NotImplementedError

    async def score(self, request: Request, continuation: str) -> Score:
        await asyncio.sleep(1)
        if self._rivals():
            raise InsufficientMemoryError("the device is full")
        return Score((), self.info.spec, 0)


@pytest.fixture
def closing() -> Gate:
    return Gate()


@pytest.fixture
def rivals(closing: Gate) -> list[ScriptedLoader]:
    return [
        ScriptedLoader(n, needs=10, make=lambda: SlowToLeave(closing, {"gpu": 10})) for n in "ab"
    ]


@in_virtual_time
async def test_all_calls_that_run_out_of_memory_together_are_made_again(
    closing: Gate, rivals: list[ScriptedLoader]
) -> None:
    """The first has others leave; the rest wait for that, and are no less lucky. Scores, too."""
    home = house(100)

    def there() -> int:
        return sum(one.model.closed == 0 for one in rivals)

    full = ScriptedLoader("full", needs=10, make=lambda: Full(there))
    await resident(home, full, *rivals)
    model = LeasedModel(home, full)
    asked = [start(model.generate("x")) for _ in range(3)]
    asked.append(start(model.score(as_request("x"), "y")))
    await asyncio.sleep(2)
    closing.open()
    answers = await asyncio.gather(*asked)
    assert [str(answer) for answer in answers[:3]] == ["x"] * 3
    assert [one.model.closed for one in rivals] == [1, 1]


@in_virtual_time
async def test_a_call_for_which_others_left_in_vain_is_told_who_is_there() -> None:
    """The error of the second try has the table and what to do, as that of a first has."""
    home = house(100)
    full = ScriptedLoader("full", needs=10, make=lambda: Full(lambda: 1))
    pinned, idle = ScriptedLoader("pinned", needs=10), ScriptedLoader("idle", needs=10)
    await resident(home, full, pinned, idle)
    await home.pin(pinned)
    for _ in range(2):
        with pytest.raises(
            InsufficientMemoryError, match=r"(?s)is full.*scripted:pinned"
        ) as caught:
            await LeasedModel(home, full).generate("x")
        assert "nbp.unpin" in caught.value.hint
    assert idle.model.closed == 1


@in_virtual_time
@pytest.mark.parametrize("how", ["pinned", "running"])
async def test_who_is_wanted_meanwhile_stays(
    how: str, closing: Gate, rivals: list[ScriptedLoader]
) -> None:
    """While one rival leaves for a model that ran out of memory, another is pinned or used: it stays."""
    home, using = house(100), Gate()
    full = ScriptedLoader("full", needs=10)
    await resident(home, full, *rivals)
    relieving = start(runs_out(home, full))
    await turns()
    [stays] = [one for one in rivals if home.find(one.key) is not None]
    task = start(home.pin(stays) if how == "pinned" else operate(home, stays, using))
    await turns()
    closing.open()
    await relieving
    assert asyncio.get_running_loop().time() < 1  # whoever runs is not waited for
    entry = home.find(stays.key)
    assert entry is not None
    assert entry.pinned == (how == "pinned")
    assert stays.model.closed == 0
    using.open()
    await task


class Twice(ScriptedLoader):
    """Runs out of memory when all of it is there, and is given a second try."""

    async def load(self, progress: Progress) -> Model:
        self.loads += 1
        if self.loads == 1:
            progress.allocated_bytes["gpu"] = 80
            progress.report(80, 80)
            raise InsufficientMemoryError("the device is full")
        self.models.append(ScriptedModel(memory_bytes=self.needs))
        return self.models[-1]


@in_virtual_time
async def test_what_a_first_try_gave_back_is_not_taken() -> None:
    """While others leave for the second, the device's free memory shows what the first one had."""
    home, leaving = house(100), Gate()
    rival = ScriptedLoader("rival", needs=10, make=lambda: SlowToLeave(leaving, {"gpu": 10}))
    await resident(home, rival)
    loader = Twice("a", needs=80)
    asking = start(home.lease(loader))
    await turns()
    entry = home.find(loader.key)
    assert entry is not None
    assert (loader.loads, entry.taken("gpu")) == (1, 0)
    leaving.open()
    (await asking).release()
    assert (loader.loads, entry.taken("gpu")) == (2, 80)
