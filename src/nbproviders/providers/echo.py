"""`echo`: answers with what it is told, without weights; for lessons, demonstrations and tests."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from typing import ClassVar

from nbproviders.authoring.options import Option
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.core.completion import FREE, Cost, Finish, FinishReason, Usage
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import ConfigurationError, InvalidRequestError, ServiceUnavailableError
from nbproviders.residency.progress import Progress

CONTEXT_TOKENS = 4096


class EchoProvider(ResidentProvider):
    """Every model of it, whatever its name, writes the last user turn back, word by word."""

    name = "echo"
    options: ClassVar[dict[str, Option]] = {
        "delay_s": Option((float,), 0.0, "Seconds before each word."),
        "fail_rate": Option(
            (float,), 0.0, "Share of prompts that fail, 0 to 1; always the same ones."
        ),
        "seed": Option((int,), 0, "Another seed chooses other prompts to fail."),
    }

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Return the model at once; there is nothing to load."""
        delay_s, fail_rate = key.values["delay_s"] or 0.0, key.values["fail_rate"] or 0.0
        if not 0 <= fail_rate <= 1 or delay_s < 0:
            raise ConfigurationError(
                f"echo cannot use delay_s={delay_s}, fail_rate={fail_rate}.",
                hint="delay_s is 0 or more seconds, fail_rate is between 0 and 1.",
            )
        return EchoModel(delay_s, fail_rate, key.values["seed"] or 0)


class EchoModel(Model):
    """Writes the prompt back; a word is a token."""

    def __init__(self, delay_s: float, fail_rate: float, seed: int) -> None:
        self._delay_s, self._fail_rate, self._seed = delay_s, fail_rate, seed
        self.info = ModelInfo("echo", 64, {}, CONTEXT_TOKENS, frozenset({"chat"}))

    def stream(self, request: str | Messages | Request) -> Stream:
        """Write the last user turn, one word a chunk."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        began_s = time.perf_counter()
        text = _last_turn(request)
        self._check(text)
        most = request.params.max_tokens or CONTEXT_TOKENS
        answer, reason = _answer(text, most, request.params.stop)
        first_s = 0.0
        for count, word in enumerate(answer.split(" ") if answer else ()):
            await asyncio.sleep(self._delay_s)
            first_s = first_s or time.perf_counter() - began_s
            yield f" {word}" if count else word
        yield Finish(
            reason=reason,
            usage=Usage(len(text.split()), len(answer.split())),
            params=request.params.merged(temperature=0, max_tokens=most),
            ttft_s=first_s,
            total_s=time.perf_counter() - began_s,
            chat=request.chat is not False,
            cost=FREE,
        )

    def _check(self, text: str) -> None:
        words = len(text.split())
        if words > CONTEXT_TOKENS:
            raise InvalidRequestError(
                f"The prompt has {words} words; {self.info.spec} has a context of {CONTEXT_TOKENS}.",
                hint="Shorten the prompt.",
            )
        if random.Random(f"{self._seed}/{text}").random() < self._fail_rate:
            raise ServiceUnavailableError(
                "echo fails for this prompt, as its fail_rate asks.", hint="It is a drill."
            )

    def cost(self, usage: Usage) -> Cost:
        """Nothing."""
        return FREE

    async def aclose(self) -> None:
        """Nothing to free."""


def _last_turn(request: Request) -> str:
    return request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]


def _answer(text: str, most: int, stop: tuple[str, ...]) -> tuple[str, FinishReason]:
    """Return the words that are written back, and why they end there."""
    words = text.split(" ")
    answer = " ".join(words[:most])
    places = [place for place in (answer.find(s) for s in stop) if place >= 0]
    if places:
        return answer[: min(places)], "stop"
    return answer, "length" if len(words) > most else "stop"
