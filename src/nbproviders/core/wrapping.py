"""`Wrapping`: the base of models that do something around another one's requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from typing import Any

from nbproviders.core.completion import Cost, Finish, Usage
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request


class Wrapping(Model):
    """A model that is another one in all that it does not say itself.

    Write `_run`, and ``generate`` where whole answers need no stream. Closing this closes nothing: the
    inner model is its owner's.

    Parameters
    ----------
    model
        Who is asked.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def info(self) -> ModelInfo:  # read anew, as the inner model's own may be
        """The inner model's."""
        return self._model.info

    @info.setter
    def info(self, info: ModelInfo) -> None:
        self._model.info = info

    @property
    def raw(self) -> object:
        """The inner model's."""
        return self._model.raw

    def cost(self, usage: Usage) -> Cost:
        """The inner model's."""
        return self._model.cost(usage)

    def stream(self, request: str | Messages | Request) -> Stream:
        """The inner model's, as `_run` has it."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    @abstractmethod
    def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Stream a request's answer."""

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """The inner model's."""
        return await self._model.call(path, arguments, named)

    async def aclose(self) -> None:
        """Nothing: the inner model is its owner's to close."""
