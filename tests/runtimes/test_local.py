"""What every model does whose tokens are computed here: refusing, failing, stopping, closing."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core.model import ModelInfo
from nbproviders.core.params import Message, Request
from nbproviders.core.tokens import Token
from nbproviders.errors import ClosedError, ForeignError, InvalidRequestError, ProviderError
from nbproviders.runtimes.local import LocalModel, Stop
from nbproviders.runtimes.rows import Row
from nbproviders.runtimes.threads import Worker
from tests.gguf_files import write_llama_gguf
from tests.scripted import BOUND_S, happened


class Letters(LocalModel):
    """Its tokens are letters; it writes the prompt again, when `go_on` lets it."""

    def __init__(self, *, template: bool = False, context: int | None = 20) -> None:
        super().__init__(Worker("letters"), 4)
        can = frozenset({"chat"} if template else ())
        self.info = ModelInfo("test:letters", parallel=4, context_tokens=context, can=can)
        self.batches: list[list[str]] = []
        self.begun, self.go_on, self.freed = threading.Event(), threading.Event(), threading.Event()
        self.go_on.set()
        self.fails: BaseException | None = None
        self.hurried = 0

    def _hurry(self) -> None:
        self.hurried += 1

    def _generate(self, rows: list[Row]) -> None:
        assert not self.freed.is_set()
        self.begun.set()
        self.batches.append(["".join(map(chr, row.ids)) for row in rows])
        assert self.go_on.wait(BOUND_S)
        if self.fails:
            raise type(self.fails)(
                *self.fails.args
            )  # one that nobody keeps, nor the frames it passed
        for row in rows:
            text = "".join(map(chr, row.ids))[: row.params.max_tokens]
            row.end("length", text, row.began_s, True)

    def _next_tokens(self, ids: list[int], k: int, stop: Stop) -> tuple[Token, ...]:
        assert not self.freed.is_set()
        self.begun.set()
        assert self.go_on.wait(BOUND_S)
        stop.check()
        return tuple(Token(chr(i), i, -1.0) for i in ids[:k])

    def _scored(self, ids: list[int], continuation: list[int], stop: Stop) -> tuple[Token, ...]:
        return self._next_tokens(continuation, len(continuation), stop)

    def _free(self) -> None:
        self.freed.set()
        if isinstance(self.fails, OSError):
            raise type(self.fails)(
                *self.fails.args
            )  # one that nobody keeps, nor the frames it passed

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(map(ord, text))

    def _templated(self, turns: Sequence[Message]) -> str:
        return "|".join(turn["content"] for turn in turns)

    _beginning = None
    _temperature = 0.0


async def text(model: LocalModel, prompt: Any, **how: Any) -> str:
    return str(await model.generate(prompt, **how))


# Requests


async def test_prompts_become_text_as_the_model_can() -> None:
    """Through a template if there is one and nobody says otherwise."""
    plain, chat = Letters(), Letters(template=True)
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert await text(plain, "abc") == "abc"
    assert await text(chat, turns) == "a|b"
    assert (await chat.generate("abc")).chat
    assert not (await chat.generate(Request("abc", chat=False))).chat
    with pytest.raises(InvalidRequestError, match="no chat template"):
        await text(plain, turns)
    with pytest.raises(InvalidRequestError, match="no beginning token"):
        await text(plain, "")
    await plain.aclose()
    await chat.aclose()


async def test_a_prompt_that_cannot_be_run_fails_alone() -> None:
    """Its neighbours are computed; it never reaches the engine."""
    model = Letters()
    good, long, other = await asyncio.gather(
        text(model, "good"), text(model, "x" * 20), text(model, "other"), return_exceptions=True
    )
    assert (good, other) == ("good", "other")
    assert isinstance(long, InvalidRequestError)
    assert model.batches == [["good", "other"]]
    await model.aclose()


async def test_the_room_is_what_the_prompt_leaves() -> None:
    """The last token of the context may be used, one more may not; without a bound there is one."""
    model, endless = Letters(), Letters(context=None)
    assert (await model.generate("x" * 19, max_tokens=9)).params.max_tokens == 1
    assert (await model.generate("x", max_tokens=5)).params.max_tokens == 5
    assert (await endless.generate("x" * 900)).params.max_tokens == 512
    assert len((await model.score(Request("x" * 10), "y" * 10)).tokens) == 10
    with pytest.raises(InvalidRequestError, match="20 tokens"):
        await model.score(Request("x" * 11), "y" * 10)
    await model.aclose()
    await endless.aclose()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("bad"), "test:letters: KeyError: 'bad'"),
        (InvalidRequestError("ours", hint="do"), "ours"),
        (MemoryError("none"), "out of memory"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "failed: KeyboardInterrupt"),
    ],
)
async def test_whatever_an_engine_raises_is_told_to_each(error: BaseException, words: str) -> None:
    """As an error of ours, each its own, without the engine's frames; the next batch runs."""
    model = Letters()
    model.fails = error
    async with asyncio.timeout(3):
        told = await asyncio.gather(text(model, "a"), text(model, "b"), return_exceptions=True)
    assert told[0] is not told[1]
    for one in told:
        assert isinstance(one, ProviderError)
        assert words in str(one)
        cause = one.__cause__
        assert cause is None if isinstance(error, ProviderError) else type(cause) is ForeignError
    model.fails = None
    assert await text(model, "next") == "next"
    await model.aclose()


async def test_a_request_is_forgotten_when_it_was_answered() -> None:
    """By the model, its thread and its batches."""

    class Prompt(str):
        """One that can be watched."""

        __slots__ = ("__weakref__",)

    model = Letters()
    prompt = Prompt("abc")
    gone, kept = threading.Event(), weakref.ref(prompt, lambda _: gone.set())
    request = Request(prompt)
    del prompt
    await model.generate(request)
    await model.next_tokens(request, 1)
    model.fails = ValueError("x")
    with pytest.raises(ProviderError):
        await model.generate(request)
    del request
    gc.collect()
    await happened(gone)
    assert kept() is None
    await model.aclose()


# Stopping


def test_a_stop_disturbs_only_what_has_begun() -> None:
    """Before, whatever computes now is somebody else's; afterwards it is told to hurry."""
    told: list[int] = []
    early, late = Stop(lambda: told.append(1)), Stop(lambda: told.append(2))
    early.set()
    assert told == []
    with pytest.raises(ClosedError):
        early.check()
    late.check()
    late.set()
    assert told == [2]
    with pytest.raises(ClosedError):
        late.check()
    Stop().set()


async def test_giving_up_one_that_waits_leaves_the_others_alone() -> None:
    """A queued call is cancelled: whoever computes is not told to hurry, and is answered."""
    model = Letters()
    model.go_on.clear()
    first = asyncio.ensure_future(model.next_tokens(Request("abc"), 2))
    await happened(model.begun)
    second = asyncio.ensure_future(model.score(Request("abc"), "d"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    assert model.hurried == 0
    assert not second.done()
    model.go_on.set()
    assert [token.text for token in await first] == ["a", "b"]
    with pytest.raises(asyncio.CancelledError):
        await second
    await model.aclose()


async def test_giving_up_one_that_computes_makes_it_hurry() -> None:
    """And returns when its thread has let go."""
    model = Letters()
    model.go_on.clear()
    call = asyncio.ensure_future(model.next_tokens(Request("abc"), 2))
    await happened(model.begun)
    call.cancel()
    await asyncio.sleep(0)
    assert model.hurried == 1
    assert not call.done()
    model.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    await model.aclose()


# Closing


async def test_what_is_queued_behind_the_end_is_refused() -> None:
    """Never computed with weights that are gone; and nobody waits for ever."""
    model = Letters()
    model.go_on.clear()
    running = asyncio.ensure_future(text(model, "running"))
    await happened(model.begun)
    waiting = asyncio.ensure_future(text(model, "waiting"))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(model.aclose())
    await asyncio.sleep(0)
    late = [
        asyncio.ensure_future(one)
        for one in (
            text(model, "late"),
            model.next_tokens(Request("late"), 1),
            model.score(Request("late"), "x"),
        )
    ]
    await asyncio.sleep(0)
    model.go_on.set()
    await closing
    assert await running == "running"
    async with asyncio.timeout(3):
        ended = await asyncio.gather(waiting, *late, return_exceptions=True)
    assert [type(one) for one in ended] == [ClosedError] * 4
    assert model.batches == [["running"]]
    with pytest.raises(ClosedError):
        await text(model, "after")


async def test_closing_happens_once() -> None:
    """At the same time or after one another."""
    model = Letters()
    await asyncio.gather(model.aclose(), model.aclose())
    await model.aclose()
    assert model.freed.is_set()


async def test_a_cancelled_closing_closes_all_the_same() -> None:
    """The weights are freed and the thread ends."""
    model = Letters()
    model.go_on.clear()
    running = asyncio.ensure_future(text(model, "running"))
    await happened(model.begun)
    closing = asyncio.ensure_future(model.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    model.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert await running == "running"
    assert model.freed.is_set()
    await _ended(model._worker)


async def test_a_freeing_that_fails_ends_the_thread_all_the_same() -> None:
    """And tells why."""
    model = Letters()
    model.fails = OSError("device lost")
    with pytest.raises(OSError, match="device lost"):
        await model.aclose()
    await _ended(model._worker)


async def _ended(worker: Worker) -> None:
    await asyncio.to_thread(worker._thread.join, BOUND_S)
    assert not worker._thread.is_alive()


async def test_who_else_waits_for_the_thread_is_told_to_a_run() -> None:
    """So that an endless one takes no more into itself: a score or the end gets its turn."""
    model = Letters()
    seen: list[bool] = [model._others_wait]
    model.go_on.clear()
    call = asyncio.ensure_future(model.next_tokens(Request("abc"), 2))
    await happened(model.begun)
    seen.append(model._others_wait)
    call.cancel()
    await asyncio.sleep(0)
    seen.append(model._others_wait)
    model.go_on.set()
    await asyncio.gather(call, return_exceptions=True)
    seen.append(model._others_wait)
    await model.aclose()
    assert [*seen, model._others_wait] == [False, True, True, False, True]


# With a real engine


async def test_a_score_gets_its_turn_in_steady_traffic(tmp_path: Path) -> None:
    """Requests that never cease do not keep the thread for ever."""
    pytest.importorskip("llama_cpp")
    path = write_llama_gguf(tmp_path / "endless.gguf", context=256, seed=1)
    m = await nbp.load(f"llama-cpp:{path}")
    going = True

    async def traffic(n: int) -> int:
        count = 0
        while going:
            done = await m.generate(f"the dog {n}", max_tokens=80 + 10 * n, temperature=0)
            assert done.finish == "length"
            count += 1
        return count

    tasks = [asyncio.ensure_future(traffic(n)) for n in range(6)]
    try:
        async with asyncio.timeout(BOUND_S):
            for _ in range(3):
                assert len((await m.score("the dog", " is")).tokens) == 1
                assert len(await m.next_tokens("the dog", 5)) == 5
    finally:
        going = False
        counts = await asyncio.gather(*tasks)
        m.close()
    assert all(counts)
