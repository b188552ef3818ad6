"""What people hold: `Client` (async) and `SyncClient` (blocking), the same calls over one waist.

A client is light: it knows a model by way of its lease and the engine it lives on, and never holds
weights. So a cell's ``Out``, ``_`` or a traceback that keeps a client keeps no memory.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nbproviders.core import engine as engines
from nbproviders.core.chat import Chat
from nbproviders.core.completion import Completion
from nbproviders.core.model import Model, ModelInfo, answer, generate_all, next_tokens, score
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.proxy import Proxy
from nbproviders.core.spec import split_options
from nbproviders.core.streams import ClientStream, SyncStream
from nbproviders.core.tokens import Score, token_frame
from nbproviders.core.watch import Watch
from nbproviders.errors import ClosedError, InvalidRequestError, ProviderError, fresh

if TYPE_CHECKING:
    import pandas as pd

Prompt = str | Messages | Request


def _nobody() -> None:
    """Have nobody look at calls."""


class _Held(ABC):
    """What both clients share: a model, a way to give it back, and the refusal after the end."""

    def __init__(
        self,
        model: Model,
        release: Callable[[], object] | None = None,
        reopen: str = "",
        watch: Callable[[], Watch | None] = _nobody,
    ) -> None:
        self._model = model
        self._release = release
        self._reopen = reopen
        self._watch = watch

    @property
    def _engine(self) -> engines.Engine:
        # Looked up at each call: a forked child has an engine of its own.
        return engines.default()

    @property
    def info(self) -> ModelInfo:
        """What is known of the model: `ModelInfo`."""
        return self._model.info

    @property
    def spec(self) -> str:
        """The model's reference."""
        return self._model.info.spec

    @property
    def model(self) -> str:
        """The model's name, without the provider."""
        return split_options(self.spec.partition(":")[2])[0] or self.spec

    @property
    def raw(self) -> object:
        """The object underneath, such as a transformers model. It is freed with the model."""
        return self._open().raw

    @property
    def waist(self) -> Model:
        """The model itself, for code that runs on the engine: comparison, routers, widgets."""
        return self._open()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._release is None

    def close(self) -> None:
        """Give the model back. It stays in memory for the next cell; `nbproviders.unload` frees it."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __getattr__(self, name: str) -> Proxy:
        # Only what is not found otherwise comes here: methods of a held resource, such as a client.
        model = self.__dict__.get("_model")
        if name.startswith("_") or model is None or "proxy" not in model.info.can:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return Proxy(self._carried, (name,))

    @abstractmethod
    def _carried(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Call a method of a held resource where it lives."""

    def _open(self) -> Model:
        __tracebackhide__ = True
        if self._release is None:
            raise ClosedError(
                f"The model {self.spec!r} was used after its end.", hint=self._reopen or _REOPEN
            )
        return self._model

    def _requests(
        self, prompts: Iterable[Prompt], params: GenerationParams | None, options: Any
    ) -> list[Request]:
        if isinstance(prompts, str):
            raise InvalidRequestError(
                f"generate_many takes a list of prompts, not one str: {prompts!r:.60}",
                hint="Write generate_many([prompt]), or generate(prompt).",
            )
        requests = [as_request(p, params, whole=True, **options) for p in prompts]
        if not requests:
            raise InvalidRequestError(
                "An empty list of prompts has nothing to generate.", hint="Give at least one."
            )
        return requests

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<{type(self).__name__} {self.spec}{state}>"


_REOPEN = "Open it again: async with provider.model(…) as m: …, or m = await nbp.load(…)"


class Client(_Held):
    """A model in a notebook or any async code. Every call may be awaited on any loop."""

    def _carried(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        model = self._open()
        return self._engine.call(lambda: model.call(path, arguments, named), self._watch())

    async def generate(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        *,
        raw: bool = False,
        logprobs: bool = False,
        **overrides: Any,
    ) -> Completion:
        """Return the completion of one prompt.

        Parameters
        ----------
        prompt
            Text (one user turn, if the model has a chat template) or messages.
        params
            How to generate; `overrides` such as ``temperature=0`` replace single fields.
        raw
            Take text as it stands, without the chat template.
        logprobs
            Tell each token with its probability, in the completion's ``tokens``.

        Raises
        ------
        ProviderError
            One of its kinds; nothing else.
        """
        __tracebackhide__ = True
        model = self._open()
        request = as_request(prompt, params, raw=raw, whole=True, logprobs=logprobs, **overrides)
        return await self._engine.call(lambda: answer(model, request), self._watch())

    async def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: GenerationParams | None = None,
        *,
        raw: bool = False,
        logprobs: bool = False,
        **overrides: Any,
    ) -> list[Completion]:
        """Return the completions of many prompts, in their order, batched.

        Raises
        ------
        ProviderError
            The first failure, after all have ended. `nbproviders.compare` isolates failures.
        """
        __tracebackhide__ = True
        told = {"raw": raw, "logprobs": logprobs, **overrides}
        model, requests = self._open(), self._requests(prompts, params, told)
        work = functools.partial(generate_all, model, requests)
        return _all_good(await self._engine.call(work, self._watch()))

    @property
    def chat(self) -> Chat[Coroutine[Any, Any, Completion]]:
        """``await m.chat(messages, system=…)`` returns the next turn of a chat; see `Chat`."""
        return Chat(self.generate, self._carried)

    def stream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        *,
        raw: bool = False,
        logprobs: bool = False,
        **overrides: Any,
    ) -> ClientStream:
        """Return the completion as it is written: ``async for chunk in m.stream(prompt)``."""
        request = as_request(prompt, params, raw=raw, logprobs=logprobs, **overrides)
        return ClientStream(self._open(), request, self._engine, self._watch())

    async def next_tokens(self, prompt: Prompt, k: int = 10, *, raw: bool = False) -> pd.DataFrame:
        """Return the tokens that may come next, most likely first.

        Parameters
        ----------
        prompt
            As for `generate`.
        k
            How many; at most as many as the model has.
        raw
            Take text as it stands, without the chat template.

        Returns
        -------
        pandas.DataFrame
            ``token``, ``id``, ``probability`` and ``logprob`` (natural), from the model's own distribution:
            no temperature, no sampler.

        Raises
        ------
        UnsupportedError
            If this kind of model does not tell.
        """
        __tracebackhide__ = True
        model, request = self._open(), as_request(prompt, raw=raw)
        found = await self._engine.call(lambda: next_tokens(model, request, k), self._watch())
        return token_frame(found, self.spec)

    async def score(self, prompt: Prompt, continuation: str, *, raw: bool = False) -> Score:
        """Return how likely the model finds a given continuation, token by token.

        Parameters
        ----------
        prompt
            As for `generate`.
        continuation
            What comes after it.
        raw
            Take text as it stands, without the chat template.

        Returns
        -------
        Score
            ``tokens``, ``total`` (natural logarithm), ``perplexity``, and all of it as ``frame``.

        Raises
        ------
        UnsupportedError
            If this kind of model does not tell.
        """
        __tracebackhide__ = True
        model, request = self._open(), as_request(prompt, raw=raw)
        work = functools.partial(score, model, request, continuation)
        return await self._engine.call(work, self._watch())

    async def aclose(self) -> None:
        """The same as `close`, for ``contextlib.aclosing``."""
        self.close()

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SyncClient(_Held):
    """The same calls, blocking: for scripts, threads and plain cells. Ctrl-C ends a call."""

    def _carried(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        model = self._open()
        work = functools.partial(model.call, path, arguments, named)
        return self._engine.wait(work, watch=self._watch())

    def generate(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        *,
        raw: bool = False,
        logprobs: bool = False,
        timeout_s: float | None = None,
        **overrides: Any,
    ) -> Completion:
        """Return the completion of one prompt; see `Client.generate`."""
        __tracebackhide__ = True
        model = self._open()
        request = as_request(prompt, params, raw=raw, whole=True, logprobs=logprobs, **overrides)
        return self._engine.wait(lambda: answer(model, request), timeout_s, self._watch())

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: GenerationParams | None = None,
        *,
        raw: bool = False,
        logprobs: bool = False,
        timeout_s: float | None = None,
        **overrides: Any,
    ) -> list[Completion]:
        """Return the completions of many prompts; see `Client.generate_many`."""
        __tracebackhide__ = True
        told = {"raw": raw, "logprobs": logprobs, **overrides}
        model, requests = self._open(), self._requests(prompts, params, told)
        work = functools.partial(generate_all, model, requests)
        return _all_good(self._engine.wait(work, timeout_s, self._watch()))

    @property
    def chat(self) -> Chat[Completion]:
        """``m.chat(messages, system=…)`` returns the next turn of a chat; see `Chat`."""
        return Chat(self.generate, self._carried)

    def stream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        *,
        raw: bool = False,
        logprobs: bool = False,
        timeout_s: float | None = None,
        **overrides: Any,
    ) -> SyncStream:
        """Return the completion as it is written: ``for chunk in m.stream(prompt)``.

        `timeout_s` bounds the wait for each next chunk.
        """
        request = as_request(prompt, params, raw=raw, logprobs=logprobs, **overrides)
        return SyncStream(self._open(), request, self._engine, timeout_s, self._watch())

    def next_tokens(
        self, prompt: Prompt, k: int = 10, *, raw: bool = False, timeout_s: float | None = None
    ) -> pd.DataFrame:
        """Return the tokens that may come next; see `Client.next_tokens`."""
        __tracebackhide__ = True
        model, request = self._open(), as_request(prompt, raw=raw)
        work = functools.partial(next_tokens, model, request, k)
        found = self._engine.wait(work, timeout_s, self._watch())
        return token_frame(found, self.spec)

    def score(
        self,
        prompt: Prompt,
        continuation: str,
        *,
        raw: bool = False,
        timeout_s: float | None = None,
    ) -> Score:
        """Return how likely the model finds a given continuation; see `Client.score`."""
        __tracebackhide__ = True
        model, request = self._open(), as_request(prompt, raw=raw)
        work = functools.partial(score, model, request, continuation)
        return self._engine.wait(work, timeout_s, self._watch())

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _all_good(results: Sequence[Completion | ProviderError]) -> list[Completion]:
    for result in results:
        if isinstance(result, ProviderError):
            raise fresh(result)
    return [result for result in results if isinstance(result, Completion)]
