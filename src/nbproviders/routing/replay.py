"""`replay`: a model that answers from a file what was recorded once, at the pace at which it came.

For lessons and demonstrations without a key, a network or a GPU, and for tests of what is built on models.
"""

from __future__ import annotations

import asyncio
import datetime
import difflib
import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nbproviders import errors, registry
from nbproviders.core.client import Client
from nbproviders.core.completion import FREE, Cost, Finish, Usage, finish_of
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import (
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    UnsupportedError,
    fresh,
    mapped,
)
from nbproviders.routing.recording import Recording, Take, key_of, portable, portable_text
from nbproviders.routing.reference import Referred, as_model
from nbproviders.routing.streams import AnsweredStream, Answering

Mode = Literal["auto", "record", "replay"]
_MODES = ("auto", "record", "replay")
# What is wrong with the request itself. A missing key or a busy service is not: tomorrow it may do.
_LASTING = (InvalidRequestError, UnsupportedError)
_PARALLEL = 32
_LOOKED_AT = 500


def replay(
    path: str | os.PathLike[str],
    model: Any = None,
    *,
    mode: Mode = "auto",
    cadence: bool = True,
    speed: float = 1.0,
) -> Client:
    """Return a client that answers from a recording, and records what it asks a model.

    Parameters
    ----------
    path
        A JSON Lines file, one completion a line. It holds prompts and answers, but no key, no folder of
        this machine and no time of day, so it can be committed.
    model
        What is recorded: a reference, a client, a model or a router. Without one, the model that the
        file was recorded from.
    mode
        ``auto``: what is in the file comes from there, the rest is asked and recorded. ``record``: all is
        asked and recorded again. ``replay``: nothing is asked.
    cadence
        Let the text come at the pace at which it came then; else at once.
    speed
        How much faster: 2 is twice as fast.

    Returns
    -------
    Client
        A completion from the file has the recorded timings and the cost of then (it costs nothing now),
        and ``spec`` is ``replay:<reference>``; one that
        was just recorded has its own. The n-th request of its kind gets the n-th recorded answer. Where
        nothing may be asked and they are used up, they begin again.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, if there is neither a recording nor a model, or if the file was
        recorded from several models and none is named.
    """
    if mode not in _MODES:
        raise ConfigurationError(f"Unknown mode {mode!r}.", hint=f"Modes: {', '.join(_MODES)}.")
    if not isinstance(speed, (int, float)) or not speed > 0:
        raise ConfigurationError(f"speed={speed!r} must be above 0.", hint="2 is twice as fast.")
    recording = Recording(Path(path).expanduser())
    made = Replay(recording, model, mode, 1 / speed if cadence else 0.0)
    return Client(made, made.close, f"Open it again: m = nbp.replay({str(path)!r}, …)")


class Replay(Model):
    """A recording as a model; see `replay`.

    Parameters
    ----------
    recording
        The file.
    given
        What is recorded; None: nothing is asked.
    mode
        As for `replay`.
    pace
        Seconds for each recorded second; 0: all at once.
    """

    def __init__(self, recording: Recording, given: Any, mode: Mode, pace: float) -> None:
        self._recording, self._mode, self._pace = recording, mode, pace
        self._asked: Counter[str] = Counter()
        self._model: Model | None = None
        self._failure: ProviderError | None = None
        self._owned = False
        self._source = self._chosen(given)

    def _chosen(self, given: Any) -> str:
        """Find the model and return its reference, without folders."""
        if given is None:
            return self._recorded_one()
        if self._mode == "replay" and isinstance(given, (str, ModelSpec)):
            return portable(_normalised(given))  # its provider need not be installed
        try:
            self._model = as_model(given)
        except ProviderError as error:
            if self._mode == "record" or not isinstance(given, (str, ModelSpec)):
                raise
            self._failure = error  # told by the first request that is not in the file
            return portable(_normalised(given))
        self._owned = isinstance(self._model, Referred) and self._model is not given
        return portable(self._model.info.spec)

    def _recorded_one(self) -> str:
        path, found = self._recording.path, self._recording.models
        if self._mode == "record" or not found:
            lacking = "" if self._mode == "record" else f"There is no recording in {path}, and "
            raise ConfigurationError(
                f"{lacking or 'To record, '}a model is needed.",
                hint=f'Record one: nbp.replay({str(path)!r}, "transformers:demo-m")',
            )
        if len(found) > 1:
            raise ConfigurationError(
                f"{path} was recorded from several models: {', '.join(found)}.",
                hint=f"Name one: nbp.replay({str(path)!r}, {found[0]!r}, mode='replay')",
            )
        return found[0]

    @property
    def info(self) -> ModelInfo:  # type: ignore[override]  # read anew: it records and the model loads
        """The recorded reference; when it was recorded is in the notes."""
        takes = [take for take in self._recording.takes if take.model == self._source]
        notes = dict.fromkeys(f"recorded on {take.date} from {take.spec}" for take in takes)
        can = {"chat"} | ({"logprobs"} if any(take.logprobs for take in takes) else set())
        told = ModelInfo("", _PARALLEL) if self._model is None else self._model.info
        asks = self._mode != "replay"
        return ModelInfo(
            f"replay:{self._source}",
            parallel=told.parallel if asks else _PARALLEL,
            context_tokens=told.context_tokens,
            can=frozenset(can | (told.can & {"logprobs"} if asks else set())),
            notes=tuple(notes),
        )

    def cost(self, usage: Usage) -> Cost:
        """Nothing where nothing is asked; else the model's, for the file may lack the request."""
        if self._mode == "replay" or self._model is None:
            return FREE
        return self._model.cost(usage)

    async def open(self) -> None:
        """Open the model, if it is a reference that may be asked: then its price is known."""
        if self._mode != "replay" and isinstance(self._model, Referred):
            await self._model.open()

    def stream(self, request: str | Messages | Request) -> Stream:
        """Stream from the file, or from the model while it is recorded."""
        asked = as_request(request)
        told = Answering(self.info.spec)
        return AnsweredStream(self._run(asked, told), asked, told)

    async def _run(self, request: Request, told: Answering) -> AsyncGenerator[str | Finish, None]:
        key = key_of(request)
        self._asked[key] += 1
        number = self._asked[key]
        answered = False
        try:
            take = self._found(key, number)
            if take is not None:
                source = self._replayed(take, told)
            else:
                source = self._recorded(self._able(request), request, number, told)
            async with aclosing(source):
                async for item in source:
                    answered = isinstance(item, Finish)
                    yield item
        finally:
            # What was not answered is asked again under its number, unless another came after it.
            if not answered and self._asked[key] == number:
                self._asked[key] -= 1

    def _found(self, key: str, number: int) -> Take | None:
        takes = self._recording.of(self._source, key)
        if self._mode == "record" or not takes:
            return None
        if self._mode == "replay" or self._model is None:
            known = sorted(takes)
            number = known[(number - 1) % len(known)]
        return takes.get(number)

    async def _replayed(self, take: Take, told: Answering) -> AsyncGenerator[str | Finish, None]:
        told.spec = f"replay:{take.spec}"
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for at_s, text in take.chunks:
            await asyncio.sleep(max(at_s * self._pace - (loop.time() - began_s), 0))
            yield text
        await asyncio.sleep(max(take.end_s * self._pace - (loop.time() - began_s), 0))
        if take.error is not None:
            raise _again(*take.error)
        yield take.finish or Finish()

    async def _recorded(
        self, model: Model, request: Request, number: int, told: Answering
    ) -> AsyncGenerator[str | Finish, None]:
        """Ask the model, hand its text on, and write it down when it is whole."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        chunks: list[tuple[float, str]] = []
        # Also for who reads only the end: the pace is to be recorded.
        stream = model.stream(replace(request, whole=False))
        try:
            with mapped(model.info.spec):
                async with aclosing(stream):
                    async for chunk in stream:
                        chunks.append((loop.time() - began_s, str(chunk)))
                        yield chunk
        except _LASTING as error:
            take = self._take(request, number, chunks, loop.time() - began_s, self._source)
            await self._write(replace(take, error=_told(error, model.info.spec, self._source)))
            raise
        end = stream.completion
        take = self._take(request, number, chunks, loop.time() - began_s, portable(end.spec))
        if end.finish != "cancelled":
            await self._write(replace(take, finish=finish_of(end)))
        told.spec = end.spec
        yield finish_of(end)

    def _take(
        self,
        request: Request,
        number: int,
        chunks: list[tuple[float, str]],
        end_s: float,
        spec: str,
    ) -> Take:
        return Take(
            model=self._source,
            spec=spec,
            date=datetime.date.today().isoformat(),
            prompt=request.prompt,
            params=request.params.given(),
            chat=request.chat,
            logprobs=request.logprobs,
            occurrence=number,
            chunks=tuple(chunks),
            end_s=end_s,
        )

    async def _write(self, take: Take) -> None:
        """Append to the file; on a thread, since another process may be writing."""
        await asyncio.to_thread(self._recording.append, take)

    def _able(self, request: Request) -> Model:
        """Return the model to ask.

        Raises
        ------
        InvalidRequestError
            If none may be asked, saying what the recording has that is like the request.
        """
        if self._failure is not None:
            raise fresh(self._failure)
        if self._model is not None and self._mode != "replay":
            return self._model
        raise InvalidRequestError(
            f"The recording {self._recording.path} of {self._source} has no answer to "
            f"{_short(request.prompt)}.",
            hint=f"{self._nearest(request)} To record it, give the model, with mode='auto'.",
        )

    def _nearest(self, request: Request) -> str:
        takes = [take for take in self._recording.takes if take.model == self._source]
        if not takes:
            models = ", ".join(self._recording.models) or "nothing"
            return f"It was recorded from {models}."
        for take in reversed(takes):
            if take.prompt == request.prompt:
                return f"It has this prompt, but with {_differences(take, request)}."
        texts = {_text(take.prompt)[:_LOOKED_AT]: take.prompt for take in takes[-_LOOKED_AT:]}
        close = difflib.get_close_matches(_text(request.prompt)[:_LOOKED_AT], texts, n=1)
        if not close:
            return f"It has {len(takes)} others, none of them like it."
        return f"The nearest that it has: {_short(texts[close[0]])}."

    def close(self) -> None:
        """Give back the model, if it was opened here."""
        if self._owned and isinstance(self._model, Referred):
            self._model.close()

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()


def _normalised(reference: str | ModelSpec) -> str:
    """Return a reference as its model would tell it, whether or not its provider is there."""
    if isinstance(reference, ModelSpec):
        return reference.text
    try:
        return ModelSpec.parse(reference, registry.names()).text
    except ConfigurationError:
        return reference


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def _short(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    return f"{text!r:.80}"


def _differences(take: Take, request: Request) -> str:
    """Say in what a recorded request of the same prompt is another."""
    had = {**take.params, "chat": take.chat, "logprobs": take.logprobs}
    asked = {**request.params.given(), "chat": request.chat, "logprobs": request.logprobs}
    names = [name for name in {**had, **asked} if had.get(name) != asked.get(name)]
    return ", ".join(f"{name}={had.get(name)!r}, not {asked.get(name)!r}" for name in names)


def _told(error: ProviderError, spec: str, source: str) -> tuple[str, str, str]:
    def told(text: str) -> str:
        return portable_text(text.replace(spec, source))

    return type(error).__name__, told(error.message), told(error.hint)


def _again(kind: str, message: str, hint: str) -> ProviderError:
    """Return a recorded error; one of a kind that is not known here any more is a `ProviderError`."""
    found = getattr(errors, kind, None)
    if not isinstance(found, type) or not issubclass(found, ProviderError):
        found = ProviderError
    return found(message, hint=hint)
