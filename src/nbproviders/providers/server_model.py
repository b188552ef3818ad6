"""`ServerModel`: the model of a server that was started here; one that has died is started again."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from nbproviders.authoring.service import served
from nbproviders.core.completion import FREE, Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.errors import ClosedError, ProviderError, ServiceUnavailableError
from nbproviders.providers.speakers import Speaker
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import state
from nbproviders.runtimes.process.server import ManagedServer

logger = logging.getLogger(__name__)

_SHOWN_LINES = 10
_NOTICED_S, _GOING_S = 0.5, 5.0
Start = Callable[[Progress], Awaitable[ManagedServer]]


class ServerModel(Model):
    """The model of a server that was started here; closing it gives the server up.

    Parameters
    ----------
    spec
        Its reference.
    start
        Starts the server again.
    server
        As it was started.
    speak
        Makes what speaks to it.
    """

    def __init__(
        self,
        spec: str,
        start: Start,
        server: ManagedServer,
        speak: Callable[[ManagedServer], Speaker],
    ) -> None:
        self._start, self._speak = start, speak
        self._mourned: ManagedServer | None = None
        self._closed = False
        self._context_tokens: int | None = None
        self._take(server)
        self.info = ModelInfo(spec, parallel=self._inner.info.parallel, can=self._inner.info.can)

    def _take(self, server: ManagedServer) -> None:
        self._server = server
        self._speaker = self._speak(server)
        self._speaker.context_tokens = self._context_tokens
        self._inner = served(self._speaker, closes=True)

    def limit(self, context_tokens: int | None) -> None:
        """Have it know how long prompt and completion may be together."""
        self._context_tokens = self._speaker.context_tokens = context_tokens
        self.info = replace(self.info, context_tokens=context_tokens)

    @property
    def server(self) -> ManagedServer:
        """The server as it is now."""
        return self._server

    @property
    def speaker(self) -> Speaker:
        """What speaks to the server."""
        return self._speaker

    @property
    def raw(self) -> object:
        """What speaks to the server: an `OpenAIProvider`."""
        return self._speaker

    def cost(self, usage: Usage) -> Cost:
        """Nothing: it is computed here."""
        return FREE

    def stream(self, request: str | Messages | Request) -> Stream:
        """Stream from the server."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        server, inner = await self._running()
        with server.in_use():
            try:
                async with inner.stream(request) as stream:
                    async for chunk in stream:
                        yield chunk
                    yield finish_of(stream.completion)
            except ProviderError as error:
                raise await self._explained(server, error) from None

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """Return the server's completion."""
        request = as_request(prompt, params, whole=True, **overrides)
        server, inner = await self._running()
        with server.in_use():
            try:
                return await inner.generate(request)
            except ProviderError as error:
                raise await self._explained(server, error) from None

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """What the protocol offers, such as ``chat.completions.create``."""
        server, inner = await self._running()
        with server.in_use():
            try:
                return await inner.call(path, arguments, named)
            except ProviderError as error:
                raise await self._explained(server, error) from None

    async def _running(self) -> tuple[ManagedServer, Model]:
        """Return the server and its model; one that has died is started again, once for all who ask."""
        while not self._server.alive:
            ended = self._server
            self._check_open()
            if self._mourned is not ended:
                self._mourned = ended
                logger.warning(
                    "%s had ended and is started again. %s", self.info.spec, _said(ended)
                )
            # One start for all who wait; it goes on while one of them is not cancelled.
            started = await self._start(Progress())
            if self._closed or self._server is not ended:  # closed meanwhile, or another was first
                await started.release()
                self._check_open()
                continue
            left = self._inner
            self._take(started)
            try:
                await left.aclose()
            finally:
                await ended.release()
        return self._server, self._inner

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.info.spec} was closed.", hint="Open the model again.")

    async def _explained(self, server: ManagedServer, error: ProviderError) -> ProviderError:
        """Return the error of a call; of one that the server's end broke off, with its last lines."""
        if not isinstance(error, ServiceUnavailableError):
            return error
        # A connection breaks before the end is known; and what the server started may take a while to end.
        going = not state.process_started(server.pid)
        if not await server.ended(_GOING_S if going else _NOTICED_S):
            return error
        return ServiceUnavailableError(
            f"{self.info.spec}: the server ended while it answered. {_said(server)}",
            hint="The next call starts it again.",
        )

    async def aclose(self) -> None:
        """Give the server up; nobody else's is ended, a kept one's clock starts."""
        if self._closed:
            return
        self._closed = True  # a call that is just starting it again gives that one up
        try:
            await self._inner.aclose()
        finally:
            await self._server.release()


def _said(server: ManagedServer) -> str:
    lines = server.tail(_SHOWN_LINES)
    return f"It said at last:\n{lines}" if lines else "It said nothing."
