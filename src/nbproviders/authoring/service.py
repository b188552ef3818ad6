"""`BaseProvider`: write `generate` and `health_check`, and a service is a provider like any.

An instance serves one model at its service, with a client of its own. As a provider, ``.model(name)`` makes
another instance with that name in its configuration, on the engine's loop, and closes it by ``__aexit__``.
"""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Any, Self

from nbproviders.authoring.resident import ResidentProvider
from nbproviders.core.completion import Completion, Finish
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.retry import Retry, T, retrying
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.errors import (
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    ServiceUnavailableError,
    TimeoutError,
    foreign,
)
from nbproviders.residency.entry import Loader, Progress

_PARALLEL = 32


class BaseProvider(ResidentProvider):
    """A provider of a service.

    Parameters
    ----------
    config
        How it is reached. ``create_provider(name, **fields)`` makes it of keywords.

    Attributes
    ----------
    config
        As given; it may be completed in ``__init__`` (``self.config.base_url = …``).
    logger
        ``nbproviders.<name>``; log no prompts and no keys.
    """

    def __init__(self, config: ProviderConfig) -> None:
        if not isinstance(config, ProviderConfig):
            raise ConfigurationError(
                f"{type(self).__name__} takes a ProviderConfig, not {type(config).__name__}.",
                hint='Write ProviderConfig(name="…", api_key="…", model="…").',
            )
        self.config = config
        self.logger = logging.getLogger(f"nbproviders.{config.name}")

    @abstractmethod
    async def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
        """Return the text of one completion; raise one of nbproviders.errors."""

    @abstractmethod
    async def health_check(self) -> bool:
        """Return whether the service answers; never raise."""

    async def _retry_with_backoff(
        self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
    ) -> T:
        """Return what a coroutine function returns, asking again where that may help.

        ``config.max_retries`` times; what fails to the end is not tried again by anybody outside.
        """

        async def call() -> T:
            with mapped_service(self.config.name):
                return await function(*args, **kwargs)

        return await retrying(call, self.config.max_retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close what the instance opened; the base has nothing."""

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Not asked: an instance is made on the engine's loop, see `ServiceLoader`."""
        raise NotImplementedError

    def _loader(self, spec: ModelSpec, key: ResourceKey) -> Loader:
        return ServiceLoader(self, spec, key)


class ServiceLoader:
    """Makes an instance of a provider for one of its models, on the engine's loop."""

    def __init__(self, provider: BaseProvider, spec: ModelSpec, key: ResourceKey) -> None:
        self._provider, self.spec, self.key = provider, spec, key

    async def estimate(self) -> Mapping[str, int]:
        """A service takes no memory here."""
        return {}

    async def load(self, progress: Progress) -> Model:
        """Make the instance and enter it."""
        progress.phase = "connecting"
        provider = self._provider
        own = provider.config.model_copy(update={"model": self.key.model})
        with mapped_service(self.spec.text):
            made = type(provider)(own)
            await made.__aenter__()
        return served(made, self.spec.text, closes=True)


def served(provider: BaseProvider, spec: str = "", *, closes: bool = False) -> Model:
    """Return an instance of a provider as a model, retrying as its configuration says.

    Parameters
    ----------
    provider
        The instance; all its calls run on the engine's loop.
    spec
        Its reference, for tables and errors.
    closes
        Whether closing the model ends the instance.
    """
    config = provider.config
    name = spec or f"{config.name}:{config.model or 'default'}"
    return Retry(ServiceModel(provider, name, closes=closes), config.max_retries)


class ServiceModel(Model):
    """A `BaseProvider` as a model: its ``stream``, else its ``generate`` as one chunk."""

    def __init__(self, provider: BaseProvider, spec: str, *, closes: bool) -> None:
        self._provider = provider
        self._closes = closes
        self._closed = False
        self.info = ModelInfo(spec, parallel=_PARALLEL, can=frozenset({"chat"}))

    @property
    def raw(self) -> object:
        """The provider's instance."""
        return self._provider

    def stream(self, request: str | Messages | Request) -> Stream:
        """Ask the service when first read."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        prompt = _text(request, self.info.spec)
        streams = getattr(self._provider, "stream", None)
        with mapped_service(self.info.spec):
            if streams is not None and not request.whole:
                async with aclosing(_pieces(streams(prompt, request.params))) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            text = await self._provider.generate(prompt, request.params)
        if not isinstance(text, str):
            raise ProviderError(
                f"{type(self._provider).__name__}.generate returned {type(text).__name__}, not str.",
                hint="Return the generated text.",
            )
        yield str(text)
        if isinstance(text, Completion):
            yield Finish(text.finish, text.usage, text.params, chat=text.chat)

    async def aclose(self) -> None:
        """End the instance, if this model made it."""
        if self._closes and not self._closed:
            self._closed = True
            with mapped_service(self.info.spec):
                await self._provider.__aexit__(None, None, None)


async def _pieces(source: Any) -> AsyncGenerator[str, None]:
    """Read what an author's ``stream`` returned: an async iterator, or a coroutine that gives one."""
    iterator: AsyncIterator[str] = await source if inspect.isawaitable(source) else source
    try:
        async for piece in iterator:
            yield str(piece)
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _text(request: Request, spec: str) -> str:
    """Return the prompt as the text that ``generate`` takes; a single user turn is its content."""
    if isinstance(request.prompt, str):
        return request.prompt
    if len(request.prompt) == 1 and request.prompt[0]["role"] == "user":
        return request.prompt[0]["content"]
    raise InvalidRequestError(
        f"{spec} takes a text, not {len(request.prompt)} messages.",
        hint="Give plain text: m.generate(text).",
    )


@contextmanager
def mapped_service(what: str) -> Iterator[None]:
    """Turn what an author's code or its HTTP library raises into one of our errors."""
    try:
        yield
    except (ProviderError, StopAsyncIteration):
        raise
    except Exception as error:  # the border to other people's code; it is shown
        raise _kind_of(error)(f"{what}: {foreign(error)}") from foreign(error)


def _kind_of(error: Exception) -> type[ProviderError]:
    """Return our class for a library's: by its name, since none of those libraries is imported here."""
    names = {cls.__name__ for cls in type(error).__mro__}
    package = type(error).__module__.partition(".")[0]
    if any("Timeout" in name for name in names):
        return TimeoutError
    if package in ("httpx", "httpx2", "httpcore", "aiohttp") or isinstance(error, OSError):
        transport = {"TransportError", "ClientError", "NetworkError", "OSError"}
        return ServiceUnavailableError if names & transport else ProviderError
    return ProviderError
