"""A model whose answers are noted: what an evaluation asked, and what that took."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from nbproviders.core.completion import Completion, Finish, finish_of
from nbproviders.core.model import Model, next_tokens, score
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.tokens import Score, Token
from nbproviders.core.wrapping import Wrapping


class Watched(Wrapping):
    """A model that notes each request with its completion, in the order they end.

    Parameters
    ----------
    model
        Who is asked; its owner closes it.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._seen: list[tuple[Request, Completion]] = []

    def taken(self) -> list[tuple[Request, Completion]]:
        """Return what was noted since the last call. Any thread."""
        count = len(self._seen)
        taken, self._seen[:count] = self._seen[:count], []
        return taken

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """The inner model's, noted."""
        request = as_request(prompt, params, whole=True, **overrides)
        completion = await self._model.generate(request)
        self._seen.append((request, completion))
        return completion

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        async with self._model.stream(request) as stream:
            async for chunk in stream:
                yield chunk
            self._seen.append((request, stream.completion))
            yield finish_of(stream.completion)

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        """The inner model's."""
        return await next_tokens(self._model, request, k)

    async def score(self, request: Request, continuation: str) -> Score:
        """The inner model's."""
        return await score(self._model, request, continuation)
