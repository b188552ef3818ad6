"""What `vllm`, `llama-server` and `transformers-serve` have in common: one server a model, started here.

A server is a child process (`nbproviders.runtimes.process`) that speaks chat completions, so its model is an
`OpenAIProvider` at the server's address. One that dies between two calls is started again by the next.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from nbproviders.authoring.options import Option, filled, with_defaults
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.authoring.service import served
from nbproviders.core.closing import closing_on_failure
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Model
from nbproviders.core.params import GenerationParams, Request
from nbproviders.core.spec import ModelSpec, ResourceKey, canonical
from nbproviders.errors import ConfigurationError, ServiceUnavailableError, foreign
from nbproviders.providers.server_model import ServerModel
from nbproviders.providers.speakers import Speaker
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import server as processes
from nbproviders.runtimes.process.server import ManagedServer
from nbproviders.runtimes.process.starting import Command

_LOOKED_S = 30.0  # for an interpreter to start and tell what it can import
_PROBED_S = 60.0  # for the one token that shows that a server is ready


@dataclass(frozen=True, slots=True)
class Placed:
    """What a server is told to load.

    Attributes
    ----------
    model
        A path, or a name for the server to look up.
    context_tokens
        Most tokens of prompt and completion together, if that is known before it runs.
    """

    model: str
    context_tokens: int | None = None


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
    requirement
        What brings them, as pip is asked for it; and the extra of nbproviders that does.
    probe
        A path that the server answers with its key only.
    gate
        Whether it knows no keys, and stands behind a door of ours that does.
    parallel
        Requests that it takes at once with profit.
    can
        What its models can.
    speaker
        What speaks to it.
    """

    program: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    requirement: ClassVar[tuple[str, str]] = ("", "")
    probe: ClassVar[str] = "/v1/models"
    gate: ClassVar[bool] = False
    parallel: ClassVar[int] = 1
    can: ClassVar[frozenset[str]] = frozenset({"chat", "proxy"})
    speaker: ClassVar[type[Speaker]] = Speaker
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
        self.__dict__["_origin"] = type(self).name

    # What a server's own class writes

    @abstractmethod
    def _arguments(self, placed: Placed, values: Mapping[str, Any], port: int) -> Sequence[str]:
        """Return the server's own arguments, without program and `args`."""

    def _environment(
        self, values: Mapping[str, Any], key: str, port: int
    ) -> Mapping[str, str | None]:
        """Return what is added to the environment; the place for a key."""
        return {}

    def _placed(self, key: ResourceKey, progress: Progress) -> Placed:
        """Return what the server is told to load; called on a thread, may download."""
        return Placed(key.model)

    async def _context(self, placed: Placed, speaker: Speaker) -> int | None:
        """Return most tokens of prompt and completion together; called once the server is ready."""
        return placed.context_tokens

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
        return await self._serving(ModelSpec(self.name, key.model), key, progress)

    async def open_spec(self, spec: ModelSpec, key: ResourceKey, progress: Progress) -> Model:
        """The same, and the server goes by the reference as it was written: a key has paths."""
        progress.phase = "connecting"
        return self._known(await self._serving(spec, key, progress), spec)

    async def _serving(self, spec: ModelSpec, key: ResourceKey, progress: Progress) -> Model:
        values = key.values
        if values["base_url"]:
            speaker = self._speaker(values["base_url"], values["api_key"], key.model, values)
            return served(speaker, closes=True)
        if not values["command"]:
            await asyncio.to_thread(_require, self.packages, values["python"], *self.requirement)
        placed = await asyncio.to_thread(self._placed, key, progress)
        begin = partial(self._start, spec, key, placed)
        running = await begin(progress)

        def speak(one: ManagedServer) -> Speaker:
            return self._speaker(f"{one.base_url}/v1", one.key, placed.model, values)

        model = ServerModel(_named(spec), begin, running, speak)
        async with closing_on_failure(model):
            model.limit(await self._context(placed, model.speaker))
        return model

    async def _start(
        self, spec: ModelSpec, key: ResourceKey, placed: Placed, progress: Progress
    ) -> ManagedServer:
        values = key.values
        exclusive, policy = self._exclusive(values)
        return await processes.start(
            _named(spec),
            lambda port, secret: self._command(placed, values, port, secret),
            ready=partial(self._ready, placed.model, values),
            timeout_s=values["start_timeout_s"],
            progress=progress,
            keep=values["keep"],
            keep_s=values["keep_s"],
            identity=f"{self.name} {self._same(key).digest}",
            probe=self.probe,
            exclusive=exclusive,
            policy=policy,
            base_port=values["base_port"],
            reference=spec.text,
        )

    def _same(self, key: ResourceKey) -> ResourceKey:
        """Return a key that servers share which differ in nothing but how long they are kept."""
        loads = {k: v for k, v in key.values.items() if self.options[k].loads and k != "keep_s"}
        return replace(key, options=canonical(loads))

    def _command(
        self, placed: Placed, values: Mapping[str, Any], port: int, secret: str
    ) -> Command:
        first = values["command"] or [values["python"] or sys.executable, *self.program]
        given = [str(one) for one in (values["args"] or ())]
        argv = [*map(str, first), *self._arguments(placed, values, port), *given]
        return Command(argv, self._environment(values, secret, port), gate=self.gate)

    async def _ready(
        self, model: str, values: Mapping[str, Any], base_url: str, secret: str
    ) -> bool:
        """Whether it writes a token."""
        speaker = self._speaker(f"{base_url}/v1", secret, model, values, _PROBED_S)
        try:
            await speaker.complete(
                Request("Hi", GenerationParams(max_tokens=1), chat=False, whole=True)
            )
        except ServiceUnavailableError as error:  # told by a start that failed, which has the name
            error.args = (error.message.removeprefix(f"{self.name}:{model}: "),)
            raise
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
    ) -> Speaker:
        config = ProviderConfig(
            name=self.name,
            base_url=base_url,
            api_key=secret,
            model=model,
            timeout=timeout_s or values["timeout_s"],
            max_retries=0,  # what a server of ours refuses it refuses again
        )
        speaker = self.speaker(config, parallel=self.parallel)
        speaker.can = self.can
        return speaker


def _named(spec: ModelSpec) -> str:
    """Return a reference without its options."""
    return f"{spec.provider}:{spec.model}"


def _require(packages: Sequence[str], python: str | None, needed: str, extra: str) -> None:
    """Check that an interpreter has what the server needs; blocks.

    Raises
    ------
    ConfigurationError
        If it lacks a package, or cannot be started.
    """
    if python is None:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        where, command = "here", f'pip install "nbproviders[{extra}]"'
    else:
        missing = _missing(packages, python)
        where, command = f"in {python}", f'{python} -m pip install "{needed}"'
    if missing:
        raise ConfigurationError(
            f"{', '.join(missing)} not installed {where}: {command}",
            hint="Or name an interpreter that has it: python=/path/to/python.",
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
