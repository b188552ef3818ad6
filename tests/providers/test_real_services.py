"""The real services, where whoever runs this names them: what the local servers say is what they say.

    NBPROVIDERS_TEST_SERVICES="openai:gpt-4o-mini ollama:llama3.2" pytest -k real_services

The keys are those of the environment or the keyring. It costs some tokens.
"""

from __future__ import annotations

import os

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.core.completion import Completion

VARIABLE = "NBPROVIDERS_TEST_SERVICES"
ENVIRONMENT = dict(os.environ)  # before each test's own is emptied of keys
REFERENCES = ENVIRONMENT.get(VARIABLE, "").split()
QUESTION = "What is the capital of France? Answer with one word."

pytestmark = [
    pytest.mark.skipif(not REFERENCES, reason=f"{VARIABLE} names no services"),
    pytest.mark.parametrize("reference", REFERENCES or [""]),
]


@pytest.fixture(autouse=True)
def _keys(own_settings: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def check(answer: Completion) -> None:
    assert "paris" in answer.lower()
    assert answer.finish == "stop"
    assert 0 < answer.usage.prompt_tokens < 500
    assert 0 < answer.usage.completion_tokens < 2000
    assert answer.total_s > 0


async def test_whole_and_streamed(reference: str) -> None:
    """Both give text, reason and the service's own count of tokens."""
    async with nbp.model(reference) as m:
        check(await m.generate(QUESTION, max_tokens=1000))
        stream = m.stream(QUESTION, max_tokens=1000)
        chunks = [chunk async for chunk in stream]
    check(stream.completion)
    assert "".join(chunks) == stream.completion
    assert stream.completion.ttft_s <= stream.completion.total_s


async def test_turns_and_limit(reference: str) -> None:
    """A system prompt is obeyed, earlier turns are known, and a limit is told as the reason."""
    async with nbp.model(reference) as m:
        turns = [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada."},
            {"role": "user", "content": "What is my name?"},
        ]
        answer = await m.chat(turns, system="Answer in capital letters only.", max_tokens=1000)
        assert "ADA" in answer
        long = await m.generate("Count from 1 to 500, in words.", max_tokens=16)
        assert long.finish == "length"


async def test_compared(reference: str) -> None:
    """What `compare` sends by itself is taken, or told as ignored; the cost is told."""
    result = await nbp.compare([reference], [QUESTION], budget_usd=0.1, allow_unpriced=True)
    (row,) = result.frame.to_dict("records")
    assert row["error"] is None
    assert row["cost_kind"] in ("free", "known", "estimated", "unpriced")


async def test_lists_and_health(reference: str) -> None:
    """It is healthy, and lists the model that is asked."""
    provider, spec = registry.find(reference)
    assert await provider.health_check()  # type: ignore[attr-defined]
    listed = await provider.list_models()  # type: ignore[attr-defined]
    assert any(spec.model in name or name in spec.model for name in listed)
