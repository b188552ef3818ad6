"""`BaseProvider`: write `generate` and `health_check`, and a service is a provider like any.

An instance serves one model at its service, with a client of its own. As a provider, ``.model(name)`` makes
another instance with that name in its configuration, on the engine's loop, and closes it by ``__aexit__``.
"""

from __future__ import annotations

import inspect
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Self

from nbproviders.authoring.opening import Opened
from nbproviders.authoring.options import Option
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.core.completion import UNPRICED, Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.retry import Retry, T, retrying
from nbproviders.core.spec import ResourceKey, canonical
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    ServiceUnavailableError,
    TimeoutError,
    foreign,
)
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.http.call import origin_of

Answer = Callable[[Request], AsyncGenerator[str | Finish, None]]
Complete = Callable[[Request], Awaitable[tuple[str, Finish]]]

LOCAL = ("localhost", "127.0.0.1", "::1")
_PARALLEL = 32
# What a reference or a setup may say of how a service is reached; it wins over the configuration.
CONFIG_OPTIONS = {
    "api_key": Option((str,), help="Its key; not in a reference, which is shown."),
    "base_url": Option((str,), help="Where it is, such as https://host/v1."),
    "timeout": Option((float,), help="Seconds for each phase of a request."),
    "max_retries": Option((int,), help="Attempts after the first."),
    "verify_ssl": Option((bool,), help="Whether certificates are checked."),
    "scope": Option((str,), help="What GigaChat asks for besides."),
    "folder_id": Option((str,), help="What YandexGPT asks for besides."),
}


class BaseProvider(ResidentProvider):
    """A provider of a service.

    Write `generate` and `health_check`. For more than text in and text out, write ``answer`` as well: an
    async generator that takes a `Request` (messages, parameters) and yields pieces of text, then a
    `Finish` with usage and reason. A coroutine function ``complete``, which takes a `Request` and returns a
    text and its `Finish`, spares whole answers the stream, unless ``streams`` says otherwise.

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
    settings
        Options of this provider besides the configuration's; its constructor takes them as keywords.
    """

    options: ClassVar[Mapping[str, Option] | None] = CONFIG_OPTIONS
    settings: ClassVar[Mapping[str, Option]] = {}

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

    def _refused(self, error: AuthenticationError) -> None:
        """Told that the service refused the key; there is nothing to do for one that was given."""

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

    async def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Make an instance for one model, on the engine's loop, and enter it."""
        with mapped_service(f"{self.name}:{key.model}"):
            made = self._instance(key)
            await made.__aenter__()
        return served(made, closes=True)

    # Its configuration can be assigned: what is then opened must not be what was opened before.

    def _open(self, spec: str, config: Mapping[str, Any]) -> Opened:
        fields = dict(vars(self.config))
        if self.__dict__.get("_configured") != fields:
            self._configured = fields
            self._opened.clear()
        return super()._open(spec, config)

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        key, watched = super()._key(model, values)
        try:
            own = canonical(self.config)
        except TypeError:  # an author's own fields; then each instance stands for itself
            return key, watched
        return replace(key, options=f"{key.options} {own}"), watched

    @property
    def elsewhere(self) -> bool:
        """Whether another machine computes, as far as the address tells."""
        url = self.config.base_url
        try:
            return url is not None and origin_of(url)[1] not in LOCAL
        except ValueError:  # it is told when something is asked
            return False

    def remote(self, key: ResourceKey) -> bool:
        """Whether the instance for this model is asked elsewhere."""
        return self._instance(key).elsewhere

    def _instance(self, key: ResourceKey) -> Self:
        """Return a provider for one of the service's models, configured as its reference says."""
        return type(self)(self._config_of(key))

    def _config_of(self, key: ResourceKey) -> ProviderConfig:
        own = self.config.__canonical__()
        given = {name: v for name, v in key.values.items() if name in own and v is not None}
        return type(self.config)(**{**own, **given, "model": key.model})


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
    """A `BaseProvider` as a model: by its ``answer``, else its ``stream``, else its ``generate``."""

    def __init__(self, provider: BaseProvider, spec: str, *, closes: bool) -> None:
        self._provider = provider
        self._closes = closes
        self._closed = False
        self._answer: Answer | None = getattr(provider, "answer", None)
        streams = getattr(provider, "streams", False)
        self._complete: Complete | None = None if streams else getattr(provider, "complete", None)
        can = getattr(provider, "can", frozenset({"chat"}))
        parallel = getattr(provider, "parallel", _PARALLEL)
        self.info = ModelInfo(spec, parallel=parallel, can=can, remote=provider.elsewhere)

    @property
    def raw(self) -> object:
        """The provider's instance."""
        return self._provider

    def stream(self, request: str | Messages | Request) -> Stream:
        """Ask the service when first read."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """By the provider's ``complete``, if it has one: a whole answer needs no stream."""
        request = as_request(prompt, params, whole=True, **overrides)
        if self._complete is None:
            return await super().generate(request)
        began_s = time.perf_counter()
        try:
            text, end = await self._complete(request)
        except Exception:  # mapped where it is rare: each answer comes this way
            with asking(self._provider, self.info.spec):
                raise
        took_s = time.perf_counter() - began_s
        return Completion(
            text,
            end=self._priced(end),
            params=request.params,
            spec=self.info.spec,
            ttft_s=took_s,
            total_s=took_s,
        )

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        parts = self._told(request) if self._answer is None else self._answer(request)
        with asking(self._provider, self.info.spec):
            async with aclosing(parts):
                async for part in parts:
                    yield self._priced(part) if isinstance(part, Finish) else part

    async def _told(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask by the author's ``stream`` or ``generate``, which take a text."""
        prompt = _text(request, self.info.spec)
        streams = getattr(self._provider, "stream", None)
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
            yield finish_of(text)

    def _priced(self, end: Finish) -> Finish:
        """Fill in what the request cost, if its tokens are known."""
        if end.cost is not UNPRICED or not end.usage.total_tokens:
            return end
        return replace(end, cost=self.cost(end.usage))

    def cost(self, usage: Usage) -> Cost:
        """What the provider says; one that says nothing is not taken for free."""
        cost: Callable[[Usage], Cost] | None = getattr(self._provider, "cost", None)
        return UNPRICED if cost is None else cost(usage)

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """One of the provider's ``calls``: names, as users write them, and its methods."""
        calls: Mapping[str, str] = getattr(self._provider, "calls", {})
        method = calls.get(".".join(path))
        if method is None:
            return await super().call(path, arguments, named)
        with asking(self._provider, self.info.spec):
            return await getattr(self._provider, method)(*arguments, **named)

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
def asking(provider: BaseProvider, what: str) -> Iterator[None]:
    """Map errors as `mapped_service` does, and have the provider know of a refused key."""
    try:
        with mapped_service(what):
            yield
    except AuthenticationError as error:
        provider._refused(error)
        raise


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
