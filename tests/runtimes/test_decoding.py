"""Promises of a batch through transformers: how it is cut changes no text."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import nbproviders as nbp
from tests.runtimes.test_transformers_sleep import write

pytest.importorskip("torch")


async def test_a_long_text_for_an_encoder_is_read_whole(tmp_path: Path) -> None:
    """Beyond the size of a chunk, in a batch with a shorter one, it is answered as it is alone."""
    folder = write(tmp_path, "t5")
    long, short = "reverse otter:" * 60, "upper cat:"
    async with nbp.model(f"transformers:{folder}?device=cpu") as m:

        async def told(text: str) -> list[float]:
            answer = await m.generate(text, raw=True, max_tokens=6, logprobs=True)
            return [token.logprob for token in answer.tokens]

        together = await asyncio.gather(told(long), told(short))
        alone = [await told(long), await told(short)]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
