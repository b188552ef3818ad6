"""What an author's code returned, as a `Model`: nothing at all, a library's object, or any object."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

from nbproviders.core.completion import Completion, Finish
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.errors import ProviderError, UnsupportedError
from nbproviders.runtimes import threads

_END = object()


def adapt(
    thing: object, *, tokenizer: Any = None, spec: str = "", parallel: int | None = None
) -> Model:
    """Return a model for whatever `setup` or `load_model` returned.

    A `Model` as it is; a transformers model or a ``llama_cpp.Llama`` by its runtime; an object with
    ``generate`` or ``stream`` by its methods; anything else as a resource that is held and handed out.

    Raises
    ------
    ProviderError
        For None.
    """
    if thing is None:
        raise ProviderError(
            f"The provider returned None for {spec}.", hint="Return the model it made."
        )
    if isinstance(thing, Model):
        return thing
    if _from(thing, "transformers") and tokenizer is not None:
        from nbproviders.runtimes.transformers import TransformersModel

        return TransformersModel(thing, tokenizer, threads.claim(), spec=spec, parallel=parallel)
    if _from(thing, "llama_cpp") and hasattr(thing, "create_completion"):
        from nbproviders.runtimes.llamacpp.adopted import adopt

        return adopt(thing, threads.claim(), spec)
    if callable(getattr(thing, "generate", None)) or callable(getattr(thing, "stream", None)):
        return Adapted(thing, spec)
    return Held(thing, spec)


def _from(thing: object, package: str) -> bool:
    """Whether an object is of a class of a package, without importing that package."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(thing).__mro__)


class Held(Model):
    """Any resource: a connection, a client, a wrapper. It is kept, handed out and closed.

    Parameters
    ----------
    thing
        The object; its ``aclose`` or ``close`` is called at the end.
    spec
        Its reference.
    """

    def __init__(self, thing: object, spec: str) -> None:
        self._thing = thing
        self._worker = threads.claim()
        self._closed = False
        self.info = ModelInfo(spec or type(thing).__name__, parallel=8, can=frozenset({"proxy"}))

    @property
    def raw(self) -> object:
        """The object."""
        return self._thing

    def stream(self, request: str | Messages | Request) -> Stream:
        """Cannot generate.

        Raises
        ------
        UnsupportedError
            Always: the object has neither ``generate`` nor ``stream``.
        """
        raise UnsupportedError(
            f"{self.info.spec} holds a {type(self._thing).__name__}, which has neither generate nor "
            "stream.",
            hint="Call its own methods by m.raw, or give its class a generate(prompt).",
        )

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Call a method of the object: a coroutine on this loop, a plain one on its thread."""
        function: Any = self._thing
        for name in path:
            function = getattr(function, name)
        return await self._run_here(function, *arguments, **named)

    async def _run_here(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of the object: a coroutine on this loop, a plain one on its thread."""
        if inspect.iscoroutinefunction(function):
            return await function(*arguments, **named)
        result = await self._worker.run_to_end(lambda: function(*arguments, **named))
        return await result if inspect.isawaitable(result) else result

    async def aclose(self) -> None:
        """Close the object if it knows how, and end its thread."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self._thing, "aclose", None) or getattr(self._thing, "close", None)
        try:
            if callable(close):
                await self._run_here(close)
        finally:
            await self._worker.close()


class Adapted(Held):
    """An object with ``generate`` or ``stream``, sync or async, as a model.

    Its methods get the prompt, and of the parameters what their signatures take: ``params``, or single
    ones such as ``temperature``.
    """

    def __init__(self, thing: object, spec: str) -> None:
        super().__init__(thing, spec)
        self.info = ModelInfo(spec or type(thing).__name__, parallel=8, can=frozenset({"proxy"}))

    def stream(self, request: str | Messages | Request) -> Stream:
        """By the object's own ``stream``, else its ``generate`` as one chunk."""
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        streams = getattr(self._thing, "stream", None)
        if callable(streams) and not (request.whole and hasattr(self._thing, "generate")):
            source = await self._run_here(streams, *_arguments(request), **_named(streams, request))
            async with aclosing(self._pieces(source)) as pieces:
                async for piece in pieces:
                    yield str(piece)
            return
        generate: Callable[..., Any] = self._thing.generate  # type: ignore[attr-defined]
        text = await self._run_here(generate, *_arguments(request), **_named(generate, request))
        if not isinstance(text, str):
            raise ProviderError(
                f"{type(self._thing).__name__}.generate returned {type(text).__name__}, not str.",
                hint="Return the generated text.",
            )
        yield str(text)
        if isinstance(text, Completion):
            yield Finish(text.finish, text.usage, text.params, chat=text.chat)

    async def _pieces(self, source: Any) -> AsyncGenerator[object, None]:
        """Read what a stream method returned, and close it however the reading ends."""
        if hasattr(source, "__aiter__"):
            try:
                async for piece in source:
                    yield piece
            finally:
                if hasattr(source, "aclose"):
                    await source.aclose()
            return
        iterator: Iterator[object] = await self._worker.run_to_end(iter, source)
        try:
            while (piece := await self._worker.run_to_end(next, iterator, _END)) is not _END:
                yield piece
        finally:
            if hasattr(iterator, "close"):
                await self._worker.run_to_end(iterator.close)


def _arguments(request: Request) -> tuple[Any, ...]:
    prompt = request.prompt
    return (prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt],)


def _named(function: Callable[..., Any], request: Request) -> dict[str, Any]:
    """Return the parameters that a function's signature takes."""
    given = request.params.given()
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in C, without a signature
        return {}
    if "params" in parameters:
        return {"params": request.params}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}
