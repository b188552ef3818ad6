"""`ollama`: models that an Ollama server runs, on this machine or another, by Ollama's own protocol."""

from __future__ import annotations

import asyncio
import builtins
import difflib
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from nbproviders.authoring.hosted import HostedProvider, on_engine
from nbproviders.authoring.options import Option
from nbproviders.authoring.progress import Line, bar
from nbproviders.authoring.service import mapped_service, served
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.closing import closing_on_failure
from nbproviders.core.completion import UNPRICED, Cost, Finish, Usage
from nbproviders.core.config import ProviderConfig, Secret
from nbproviders.core.model import Model
from nbproviders.core.params import Request
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import (
    ConfigurationError,
    ModelAccessError,
    ProviderError,
    ServiceUnavailableError,
)
from nbproviders.residency.memory import size_text
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.ollama import answers, server
from nbproviders.runtimes.ollama.answers import Answer
from nbproviders.runtimes.ollama.failures import explained, how_to_get
from nbproviders.runtimes.ollama.names import HOST_VARIABLE, address, is_remote, same
from nbproviders.runtimes.ollama.server import Loaded, Pull, Shown

CLOUD = Service(
    "ollama", "Ollama's cloud", "https://ollama.com", ("OLLAMA_API_KEY",), protocol="ollama"
)
PARALLEL_VARIABLE = "OLLAMA_NUM_PARALLEL"
_EFFORTS = ("low", "medium", "high")
_SILENT_S = (
    600.0  # large models are read from slow disks, and their digests checked, without a word
)
_UNLOAD_S = 5.0
_REFRESH_S = 0.2


class OllamaProvider(HostedProvider):
    """An Ollama server. Opening a model loads it there; closing it frees what that took.

    Parameters
    ----------
    config
        ``base_url`` is where the server is, without ``/api``; else ``OLLAMA_HOST`` tells.
    **settings
        ``num_ctx``, ``keep_alive``, ``think``, ``pull``, ``parallel``.
    """

    name = "ollama"
    home: ClassVar[Service] = SERVICES["ollama"]
    settings: ClassVar[Mapping[str, Option]] = {
        "parallel": Option(
            (int,), help=f"Requests at once, at most 512; by itself {PARALLEL_VARIABLE}, else 1."
        ),
        "num_ctx": Option((int,), help="Most tokens of prompt and answer together."),
        "keep_alive": Option(
            (str, int, float),
            help='How long Ollama keeps an idle model: "10m", seconds, -1 for ever.',
        ),
        "think": Option((bool, str), help='Whether it thinks first; or "low", "medium", "high".'),
        "pull": Option((bool,), False, "Download the model if it is not there.", loads=False),
    }

    def __init__(self, config: ProviderConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        self._mine = False  # whether the model is in memory because of this instance
        self._remote = False
        self._context_tokens: int | None = None
        num_ctx, think = self.chosen["num_ctx"], self.chosen["think"]
        if num_ctx is not None and num_ctx < 1:
            raise ConfigurationError(f"num_ctx={num_ctx} must be at least 1.")
        if isinstance(think, str) and think not in _EFFORTS:
            raise ConfigurationError(
                f"think={think!r} must be true, false, or one of {', '.join(_EFFORTS)}."
            )

    @property
    def parallel(self) -> int:
        """Requests at once: more than Ollama works on would wait there, and their time would run."""
        told = self.chosen["parallel"]
        named = os.environ.get(PARALLEL_VARIABLE, "").strip()
        by_itself = min(int(named), 512) if named.isdecimal() and int(named) else 1
        return by_itself if told is None else int(told)

    @property
    def base_url(self) -> str:
        """Where it is: as configured, else by the environment, else this machine."""
        return address(self.config.base_url or os.environ.get(HOST_VARIABLE, ""))

    def _row(self, name: str) -> Service:
        return CLOUD if self.base_url == CLOUD.base_url else self.home

    def _secret(self) -> Secret | None:
        """Return the key: a server of one's own needs none, and gets none that was not given for it."""
        elsewhere = self.service is CLOUD and self.base_url != CLOUD.base_url
        return self.config.api_key if elsewhere else super()._secret()

    # Generating

    async def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask, and yield the text in pieces, then its end."""
        think, num_ctx = self.chosen["think"], self.chosen["num_ctx"]
        path, body = answers.body(request, self._named, num_ctx=num_ctx, think=think)
        answer = Answer(self._what, time.perf_counter())
        with self._explained():
            async with aclosing(self.wire.lines("POST", path, {**body, **self._kept})) as lines:
                async for value in lines:
                    if text := answer.take(value, time.perf_counter()):
                        yield text
                    if answer.reason is not None:
                        break
        yield answer.finish(request, chat="messages" in body)

    @property
    def _kept(self) -> dict[str, Any]:
        keep = self.chosen["keep_alive"]
        return {} if keep is None else {"keep_alive": keep}

    def cost(self, usage: Usage) -> Cost:
        """Return the price of so many tokens: nothing if this machine computes them, else unknown."""
        if self._remote or is_remote(self.config.model or ""):
            return UNPRICED  # a model of the cloud, though the server is here
        return super().cost(usage)

    # What there is, and what is in memory

    async def _list_models(self) -> list[str]:
        with self._explained():
            return server.listed(await self.wire.json("GET", "api/tags"), self.config.name)

    async def loaded(self) -> list[Loaded]:
        """Return what the server has in memory: names, bytes, and until when."""
        return await self._asked(self._loaded)

    async def _loaded(self) -> list[Loaded]:
        with self._explained():
            return server.loaded(await self.wire.json("GET", "api/ps"), self.config.name)

    async def pull(self, name: str | None = None) -> None:
        """Download a model to the server, with a bar that shows how far it is.

        Stop it, and call it again later: it goes on where it stopped.

        Parameters
        ----------
        name
            As the library has it, such as ``llama3.2:1b``; else the configured one.

        Raises
        ------
        ModelAccessError
            If the library has no such model.
        """
        wanted = name or self._named
        progress = Progress()
        work = asyncio.ensure_future(self._asked(lambda: self._pull(wanted, progress)))
        try:
            with Line() as line:
                while not work.done():
                    line.show(_pulling(wanted, progress))
                    await asyncio.wait({work}, timeout=_REFRESH_S)
            await work
        finally:
            work.cancel()

    async def _pull(self, name: str, progress: Progress) -> None:
        state, silent_s = Pull(), max(self.config.timeout, _SILENT_S)
        body = {"model": name, "stream": True}
        try:
            with self._explained():
                lines = self.wire.lines("POST", "api/pull", body, timeout_s=silent_s)
                async with aclosing(lines):
                    async for value in lines:
                        state.take(value, self.config.name)
                        progress.report(state.done_bytes, state.total_bytes, state.status)
        except ServiceUnavailableError as error:
            if "file does not exist" not in error.message:
                raise
            raise ModelAccessError(
                f"Ollama's library has no model {name!r}.",
                hint="See https://ollama.com/search for what it has.",
            ) from None
        if not state.over:
            raise ServiceUnavailableError(
                f"{self.config.name}: pulling {name!r} ended before all was there.",
                hint="Pull it again: it goes on where it stopped.",
            )
        progress.done_bytes = progress.total_bytes = 0

    # Opening and closing

    async def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Make an instance for one model, and have the server load it, so that no answer waits."""
        with mapped_service(f"{self.name}:{key.model}"):
            made = self._instance(key)
            async with closing_on_failure(made):
                await made._begin(progress)
        model = served(made, closes=True)
        model.info = replace(model.info, context_tokens=made._context_tokens)
        return model

    async def _begin(self, progress: Progress) -> None:
        self._headers()  # the key, if one is needed, before anything is asked
        shown = await self._shown(progress)
        if not shown.generates:
            raise ModelAccessError(
                f"The model {self._named!r} of Ollama writes no text.",
                hint="It is for embeddings; `ollama show` tells what a model can.",
            )
        self._remote = shown.remote or self.service is CLOUD or is_remote(self._named)
        limits = [shown.context_tokens, self.chosen["num_ctx"]]
        if not self._remote:
            limits.append(await self._brought_in(progress))
            if server.tells_probabilities(await self.wire.json("GET", "api/version")):
                self.can = self.can | {"logprobs"}
        self._context_tokens = min((one for one in limits if one), default=None)

    async def _brought_in(self, progress: Progress) -> int | None:
        """Have the model loaded, and return the context that it has then."""
        self._mine = not any(same(one.name, self._named) for one in await self._loaded())
        if str(self.chosen["keep_alive"]).rstrip("hmsuµn") in ("0", "0.0"):
            return None  # to load it like that is to unload it
        progress.phase = "loading in Ollama"
        num_ctx = self.chosen["num_ctx"]
        options = {"options": {"num_ctx": num_ctx}} if num_ctx else {}
        body = {"model": self._named, "stream": False, **options, **self._kept}
        with self._explained():
            silent_s = max(self.config.timeout, _SILENT_S)
            await self.wire.json("POST", "api/generate", body, timeout_s=silent_s)
        here = (one for one in await self._loaded() if same(one.name, self._named))
        return next((one.context_tokens for one in here), None)

    async def _shown(self, progress: Progress) -> Shown:
        try:
            return await self._show()
        except ModelAccessError:
            if not self.chosen["pull"]:
                raise await self._missing() from None
        await self._pull(self._named, progress)
        return await self._show()

    async def _show(self) -> Shown:
        with self._explained():
            value = await self.wire.json("POST", "api/show", {"model": self._named})
        return server.shown(value, self._what)

    async def _missing(self) -> ModelAccessError:
        """Return the error of a model that is not there, with what is."""
        name, there = self._named, await self._list_models()
        near = difflib.get_close_matches(name, there, 3)
        near = near or [one for one in there if one.partition(":")[0] == name.partition(":")[0]]
        guess = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        some = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
        return ModelAccessError(
            f"Ollama at {self.base_url} has no model {name!r}; it has: {some or 'none'}.",
            hint=f"{guess}{how_to_get(name)}",
        )

    async def aclose(self) -> None:
        """Free the model, if it was loaded for this instance, and close the connections."""
        try:
            if self._mine:
                self._mine = False
                await on_engine(self._unload)
        finally:
            await super().aclose()

    async def _unload(self) -> None:
        body = {"model": self._named, "keep_alive": 0, "stream": False}
        try:
            async with asyncio.timeout(_UNLOAD_S):
                await self.wire.json("POST", "api/generate", body)
        except (ProviderError, builtins.TimeoutError) as error:
            reason = error if isinstance(error, ProviderError) else f"no answer in {_UNLOAD_S:g} s"
            self.logger.warning("%s may still be in Ollama's memory: %s", self._what, reason)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of a failure what it means here, and what to do."""
        with explained(self.config.model or ""):
            yield


def _pulling(name: str, progress: Progress) -> str:
    text = f"Pulling {name}: {progress.phase}"
    if progress.fraction is None:
        return text
    done, total = map(size_text, (progress.done_bytes, progress.total_bytes))
    return f"{text}  {bar(progress.fraction)}  {done} of {total}"
