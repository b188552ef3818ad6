"""What may be routed or recorded, as a model: an open one as it is, a reference opened when first asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from nbproviders import registry
from nbproviders.authoring.adapted import Adapted
from nbproviders.authoring.opening import ModelContext
from nbproviders.authoring.provider import ModelHandle, ModelProvider
from nbproviders.authoring.service import BaseProvider, served
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.completion import UNPRICED, Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import ClosedError, ConfigurationError

# Of a model that is not opened yet: what it really takes at once it tells later, and the rest queues.
_PARALLEL = 8


class Referred(Model):
    """A model by its reference: leased when it is first asked, given back by `close`."""

    def __init__(self, context: ModelContext) -> None:
        self._context = context
        self._client: Client | None = None
        self._closed = False

    @property
    def info(self) -> ModelInfo:  # type: ignore[override]  # read anew: it may have loaded since
        """The model's own; before it is opened only its reference."""
        client = self._client
        return ModelInfo(self._context.spec, _PARALLEL) if client is None else client.info

    @property
    def raw(self) -> object:
        """The model's own."""
        return self if self._client is None else self._client.raw

    def cost(self, usage: Usage) -> Cost:
        """The model's own; before it is opened nobody knows."""
        return UNPRICED if self._client is None else self._client.waist.cost(usage)

    async def open(self) -> Model:
        """Return the model itself; opened by the first call.

        Raises
        ------
        ClosedError
            After `close`.
        """
        if self._client is None and not self._closed:
            client = await self._context.open()
            # Two that came at once opened it once, but hold two leases of it; or it was closed meanwhile.
            if self._client is None and not self._closed:
                self._client = client
            else:
                client.close()
        if self._client is None:
            raise ClosedError(f"The model {self._context.spec!r} was used after its end.")
        return self._client.waist

    def stream(self, request: str | Messages | Request) -> Stream:
        """The model's own."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self._context.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        model = await self.open()
        async with model.stream(request) as stream:
            async for chunk in stream:
                yield chunk
            yield finish_of(stream.completion)

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """The model's own."""
        request = as_request(prompt, params, whole=True, **overrides)
        return await (await self.open()).generate(request)

    def close(self) -> None:
        """Give the model back; it stays in memory for others."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()


def as_model(given: Any) -> Model:
    """Return what a user named as a model.

    Parameters
    ----------
    given
        A reference, a client, handle or model, an instance of a `BaseProvider`, or an object with
        ``generate`` or ``stream``.

    Raises
    ------
    ProviderError
        For a reference that cannot be resolved, and for what is none of these.
    """
    if isinstance(given, ModelHandle):
        given = given.model
    if isinstance(given, (str, ModelSpec)):
        return Referred(registry.model(given))
    if isinstance(given, ModelContext):
        return Referred(given)
    if isinstance(given, (Client, SyncClient)):
        return given.waist
    if isinstance(given, BaseProvider):
        return served(given)
    if isinstance(given, Model):
        return given
    answers = any(callable(getattr(given, name, None)) for name in ("generate", "stream"))
    if answers and not isinstance(given, (type, ModelProvider)):
        return Adapted(given, f"object:{type(given).__name__}")
    raise ConfigurationError(
        f"{given!r:.60} ({type(given).__name__}) is no model.",
        hint="Give a reference such as 'transformers:demo-m', a client, or an object with generate().",
    )
