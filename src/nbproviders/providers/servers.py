"""What `vllm`, `llama-server` and `transformers-serve` have in common: one server a model, started here.

A server is a child process (`nbproviders.runtimes.process`) that speaks chat completions, so its model is an
`OpenAIProvider` at the server's address. One that dies between two calls is started again by the next.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import subprocess
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from nbproviders.authoring.options import Option, filled, with_defaults
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.authoring.service import served
from nbproviders.core.completion import FREE, Completion, Cost, Finish, Usage, finish_of
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.spec import ResourceKey, canonical
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    ProviderError,
    ServiceUnavailableError,
    foreign,
)
from nbproviders.providers.openai import OpenAIProvider
from nbproviders.residency.entry import Progress
from nbproviders.runtimes.process import server as processes
from nbproviders.runtimes.process.server import ManagedServer
from nbproviders.runtimes.process.starting import Command

logger = logging.getLogger(__name__)

_LOOKED_S = 30.0  # for an interpreter to start and tell what it can import
_PROBED_S = 60.0  # for the one token that shows that a server is ready
_SHOWN_LINES = 10
Start = Callable[[Progress], Awaitable[ManagedServer]]


class ServerProvider(ResidentProvider):
    """A provider of servers that are started here. Write `_arguments`, and what the server is called.

    Parameters
    ----------
    **defaults
        Options for every model of this provider; those of a single model win.

    Attributes
    ----------
    program
        What follows the interpreter: ``-m`` and a module.
    packages
        What that interpreter has to have, by names to import.
    extra
        Of nbproviders: what brings them.
    probe
        A path that the server answers with its key only.
    gate
        Whether it knows no keys, and stands behind a door of ours that does.
    parallel
        Requests that it takes at once with profit.
    can
        What its models can.
    """

    program: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    probe: ClassVar[str] = "/v1/models"
    gate: ClassVar[bool] = False
    parallel: ClassVar[int] = 1
    can: ClassVar[frozenset[str]] = frozenset({"chat", "logprobs", "proxy"})
    options: ClassVar[dict[str, Option]] = {
        "python": Option((str,), None, "Interpreter that has the server; None: this one."),
        "command": Option((list,), None, "Program and first arguments instead of the interpreter."),
        "args": Option((list,), None, "Further arguments of the server, as it has them."),
        "keep": Option((bool,), False, "Let it outlive this kernel, to be found again."),
        "keep_s": Option((float,), 1800.0, "How long it then lives without an owner, in seconds."),
        "start_timeout_s": Option(
            (float,), 120.0, "Seconds until it has to be ready.", loads=False
        ),
        "timeout_s": Option(
            (float,), 600.0, "Longest silence in an answer, in seconds.", loads=False
        ),
        "base_url": Option((str,), None, "A server that runs already; none is started then."),
        "api_key": Option((str,), None, "The key of that server; not in a reference."),
        "base_port": Option((int,), 0, "Where the search for a free port begins.", loads=False),
    }

    def __init__(self, **defaults: Any) -> None:
        self.options = with_defaults(type(self).options, defaults, self.name)  # type: ignore[misc]
        # Defaults are part of the options; and a later kernel finds a kept server by the same name.
        self._origin = type(self).name

    # What a server's own class writes

    @abstractmethod
    def _arguments(self, model: str, values: Mapping[str, Any], port: int) -> Sequence[str]:
        """Return the server's own arguments, without program and `args`."""

    def _environment(self, values: Mapping[str, Any], key: str) -> Mapping[str, str]:
        """Return what is added to the environment; the place for a key."""
        return {}

    def _placed(self, key: ResourceKey, progress: Progress) -> str:
        """Return what the server is told to load; called on a thread, may download."""
        return key.model

    def _called(self, model: str) -> str:
        """Return the model's name in requests."""
        return model

    def _exclusive(self, values: Mapping[str, Any]) -> tuple[str, Any]:
        """Return a constraint that one server at a time satisfies, and what to do if another has it."""
        return "", "queue"

    # Loading

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        chosen = filled(type(self).options, values)
        for name in ("keep_s", "start_timeout_s", "timeout_s"):
            if not chosen[name] > 0:
                raise ConfigurationError(f"{name}={chosen[name]} must be above 0 seconds.")
        loads = {k: v for k, v in chosen.items() if self.options[k].loads}
        return ResourceKey(self._origin, model, canonical(loads), values=chosen), ()

    async def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Start the server, or find it, and return its model."""
        values = key.values
        if values["base_url"]:
            speaker = self._speaker(values["base_url"], values["api_key"], key.model, values)
            return served(speaker, closes=True)
        if not values["command"]:
            await asyncio.to_thread(_require, self.packages, values["python"], self.extra)
        model = await asyncio.to_thread(self._placed, key, progress)
        begin = partial(self._start, key, model)
        running = await begin(progress)

        def speak(one: ManagedServer) -> OpenAIProvider:
            return self._speaker(f"{one.base_url}/v1", one.key, self._called(model), values)

        return ServerModel(f"{self.name}:{key.model}", begin, running, speak)

    async def _start(self, key: ResourceKey, model: str, progress: Progress) -> ManagedServer:
        values = key.values
        exclusive, policy = self._exclusive(values)
        return await processes.start(
            f"{self.name}:{key.model}",
            lambda port, secret: self._command(model, values, port, secret),
            ready=partial(self._ready, model, values),
            timeout_s=values["start_timeout_s"],
            progress=progress,
            keep=values["keep"],
            keep_s=values["keep_s"],
            identity=f"{self.name} {key.digest}",
            probe=self.probe,
            exclusive=exclusive,
            policy=policy,
            base_port=values["base_port"],
        )

    def _command(self, model: str, values: Mapping[str, Any], port: int, secret: str) -> Command:
        first = values["command"] or [values["python"] or sys.executable, *self.program]
        given = [str(one) for one in (values["args"] or ())]
        argv = [*map(str, first), *self._arguments(model, values, port), *given]
        return Command(argv, self._environment(values, secret), gate=self.gate)

    async def _ready(
        self, model: str, values: Mapping[str, Any], base_url: str, secret: str
    ) -> bool:
        """Whether it writes a token."""
        speaker = self._speaker(f"{base_url}/v1", secret, self._called(model), values, _PROBED_S)
        try:
            await speaker.complete(
                Request("Hi", GenerationParams(max_tokens=1), chat=False, whole=True)
            )
        finally:
            await speaker.aclose()
        return True

    def _speaker(
        self,
        base_url: str,
        secret: str | None,
        model: str,
        values: Mapping[str, Any],
        timeout_s: float | None = None,
    ) -> OpenAIProvider:
        config = ProviderConfig(
            name=self.name,
            base_url=base_url,
            api_key=secret,
            model=model,
            timeout=timeout_s or values["timeout_s"],
            max_retries=0,  # what a server of ours refuses it refuses again
        )
        speaker = OpenAIProvider(config, parallel=self.parallel)
        speaker.can = self.can
        return speaker


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
        speak: Callable[[ManagedServer], OpenAIProvider],
    ) -> None:
        self._start, self._speak = start, speak
        self._lock = asyncio.Lock()
        self._closed = False
        self._take(server)
        self.info = ModelInfo(spec, parallel=self._inner.info.parallel, can=self._inner.info.can)

    def _take(self, server: ManagedServer) -> None:
        self._server = server
        self._speaker = self._speak(server)
        self._inner = served(self._speaker, closes=True)

    @property
    def server(self) -> ManagedServer:
        """The server as it is now."""
        return self._server

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
                raise self._explained(server, error) from None

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
                raise self._explained(server, error) from None

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """What the protocol offers, such as ``chat.completions.create``."""
        server, inner = await self._running()
        with server.in_use():
            try:
                return await inner.call(path, arguments, named)
            except ProviderError as error:
                raise self._explained(server, error) from None

    async def _running(self) -> tuple[ManagedServer, Model]:
        """Return the server and its model; one that has died is started again, once for all who ask."""
        if not self._server.alive:
            async with self._lock:
                if self._closed:
                    raise ClosedError(f"{self.info.spec} was closed.", hint="Open the model again.")
                if not self._server.alive:
                    logger.warning(
                        "%s had ended and is started again. %s", self.info.spec, _said(self._server)
                    )
                    await self._left()
                    self._take(await self._start(Progress()))
        return self._server, self._inner

    def _explained(self, server: ManagedServer, error: ProviderError) -> ProviderError:
        """Return the error of a call; of one that the server's end broke off, with its last lines."""
        if server.alive or not isinstance(error, ServiceUnavailableError):
            return error
        return ServiceUnavailableError(
            f"{self.info.spec}: the server ended while it answered. {_said(server)}",
            hint="The next call starts it again.",
        )

    async def _left(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            await self._server.release()

    async def aclose(self) -> None:
        """Give the server up; nobody else's is ended, a kept one's clock starts."""
        if self._closed:
            return
        self._closed = True
        async with self._lock:  # one that is just being started again is given up as well
            await self._left()


def _said(server: ManagedServer) -> str:
    lines = server.tail(_SHOWN_LINES)
    return f"It said at last:\n{lines}" if lines else "It said nothing."


def _require(packages: Sequence[str], python: str | None, extra: str) -> None:
    """Check that an interpreter has what the server needs; blocks.

    Raises
    ------
    ConfigurationError
        If it lacks a package, or cannot be started.
    """
    if python is None or python == sys.executable:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
    else:
        missing = _missing(packages, python)
    if missing:
        where = "here" if python is None else f"in {python}"
        raise ConfigurationError(
            f"{', '.join(missing)} not installed {where}.",
            hint=f'Install it: pip install "nbproviders[{extra}]"; or name an interpreter that has it: '
            "python=/path/to/python.",
        )


def _missing(packages: Sequence[str], python: str) -> list[str]:
    code = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    try:
        told = subprocess.run(
            [python, "-c", code, *packages],
            capture_output=True,
            text=True,
            timeout=_LOOKED_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"The interpreter {python!r} cannot be asked what it has: {foreign(error)}",
            hint="Give the path of a Python: python=/path/to/python.",
        ) from None
    return told.stdout.split()
