"""A model whose answers are noted: what an evaluation asked, and what that took."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from nbproviders.core.completion import Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.model import Model, ModelInfo, Stream, next_tokens, score
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.tokens import Score, Token


class Watched(Model):
    """A model that notes each request with its completion, in the order they end.

    Parameters
    ----------
    model
        Who is asked; its owner closes it.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seen: list[tuple[Request, Completion]] = []

    def taken(self) -> list[tuple[Request, Completion]]:
        """Return what was noted since the last call. Any thread."""
        count = len(self._seen)
        taken, self._seen[:count] = self._seen[:count], []
        return taken

    @property
    def info(self) -> ModelInfo:  # type: ignore[override]  # read anew, as the model's own is
        """The inner model's."""
        return self._model.info

    @property
    def raw(self) -> object:
        """The inner model's."""
        return self._model.raw

    def cost(self, usage: Usage) -> Cost:
        """The inner model's."""
        return self._model.cost(usage)

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

    def stream(self, request: str | Messages | Request) -> Stream:
        """The inner model's, noted if it is read to its end."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self._model.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        async with self._model.stream(request) as stream:
            async for chunk in stream:
                yield chunk
            self._seen.append((request, stream.completion))
            yield finish_of(stream.completion)

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """The inner model's; what a client of another kind answers is not noted."""
        return await self._model.call(path, arguments, named)

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        """The inner model's."""
        return await next_tokens(self._model, request, k)

    async def score(self, request: Request, continuation: str) -> Score:
        """The inner model's."""
        return await score(self._model, request, continuation)

    async def aclose(self) -> None:
        """Nothing: the inner model is its owner's to close."""
