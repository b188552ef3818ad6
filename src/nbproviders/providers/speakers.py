"""What speaks to servers that were started here: chat completions, in each server's own way.

The protocol leaves to a server what becomes of a field that nobody sent, and of a prompt that is too long.
Here a model shall do the same behind a server as without one, so that is said in each request.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

from nbproviders.core.completion import Finish
from nbproviders.core.params import GenerationParams, Request
from nbproviders.errors import InvalidRequestError
from nbproviders.providers.openai import OpenAIProvider
from nbproviders.runtimes.rows import held_back, stop_at

_TEMPLATE_TOKENS = 256  # a chat template is not expected to add more
_TRANSFORMERS_MOST = 1024  # what transformers serve writes at most, if nobody says


class Speaker(OpenAIProvider):
    """What all of them need; what vLLM needs.

    Attributes
    ----------
    context_tokens
        Most tokens of prompt and completion together, if known.
    refuses
        Whether the server itself refuses a prompt that is too long: ``stream`` (also in a stream),
        ``whole`` (only where it is to answer as a whole) or ``never``.
    defaults
        What is meant by a parameter that was not given.
    """

    context_tokens: int | None = None
    refuses: ClassVar[str] = "stream"
    defaults: ClassVar[dict[str, Any]] = {}

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask for a stream, or a whole answer, of a prompt that fits."""
        if not request.whole and self.refuses != "stream":
            await self._ensure_fits(request)
        async with aclosing(super().answer(self._meant(request))) as parts:
            async for part in parts:
                yield part

    async def complete(self, request: Request) -> tuple[str, Finish]:
        """Ask for a whole answer of a prompt that fits."""
        if self.refuses == "never":
            await self._ensure_fits(request)
        return await super().complete(self._meant(request))

    def _meant(self, request: Request) -> Request:
        given = request.params.given()
        missing = {name: value for name, value in self.defaults.items() if name not in given}
        return replace(request, params=request.params.merged(**missing)) if missing else request

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        body = super()._body(request, stream=stream)
        # What the server refused stays away: at an address of the user's it may be another than ours.
        own = self._own(request).items()
        return {k: v for k, v in own if k not in self._dialect.refused} | body

    def _own(self, request: Request) -> dict[str, Any]:
        """Return fields of a request besides what was asked for."""
        plain = isinstance(request.prompt, str) and request.chat is False
        return {"max_tokens": None} if plain else {}  # by itself it would write 16 tokens

    async def _ensure_fits(self, request: Request) -> None:
        """Have a prompt that may be too long counted, by asking for one token.

        A token is at least a byte, so most prompts need no counting.

        Raises
        ------
        InvalidRequestError
            If it is too long.
        """
        most = self.context_tokens
        turns = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        texts = [turn if isinstance(turn, str) else turn["content"] for turn in turns]
        count = sum(len(text.encode()) for text in texts)
        if most is None or count + min(_TEMPLATE_TOKENS, most // 2) < most:
            return
        one = replace(request, params=GenerationParams(max_tokens=1), whole=True, logprobs=False)
        _, end = await super().complete(one)
        if end.usage.prompt_tokens >= most:
            raise InvalidRequestError(
                f"The prompt has {end.usage.prompt_tokens} tokens; {self._what} has a context of "
                f"{most}, and at least one must stay free for the answer.",
                hint="Shorten the prompt, or choose a model with a longer context.",
            )


class LlamaSpeaker(Speaker):
    """For llama-cpp-python's server, which else samples, and ends a stream whose prompt is too long.

    What it would do by itself (temperature 0.8, ``top_k=40``, a penalty for repetition) is not what the
    provider `llama-cpp` does, which is greedy.
    """

    refuses = "whole"
    defaults: ClassVar[dict[str, Any]] = {"temperature": 0.0}

    def _own(self, request: Request) -> dict[str, Any]:
        off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
        return {**super()._own(request), **off}


class TransformersSpeaker(Speaker):
    """For ``transformers serve``, which else never samples, tells stop strings, and takes any length."""

    refuses = "never"

    def _own(self, request: Request) -> dict[str, Any]:
        own = super()._own(request)
        if request.params.temperature:  # by itself it changes how it would sample, and does not
            most = request.params.max_tokens or _TRANSFORMERS_MOST
            sampling = {"do_sample": True, "top_k": 0, "max_new_tokens": most}
            own["generation_config"] = json.dumps(sampling)
        return own

    async def complete(self, request: Request) -> tuple[str, Finish]:
        """Return a whole answer up to its stop string."""
        text, end = await super().complete(request)
        return text[: stop_at(text, request.params.stop)], end

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Stream an answer up to its stop string, which may come in pieces."""
        stop, text, told = request.params.stop, "", 0
        async with aclosing(super().answer(request)) as parts:
            async for part in parts:
                if isinstance(part, Finish):
                    end = stop_at(text, stop)
                    rest = text[told:end]
                    if rest:
                        yield rest
                    yield part
                    return
                text += part
                found = stop_at(text, stop)
                safe = len(text) - held_back(text, stop) if found is None else found
                if safe > told:
                    yield text[told:safe]
                    told = safe
