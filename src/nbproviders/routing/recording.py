"""A file of recorded completions: JSON Lines, one completion a line, safe to read, append and commit.

A line holds what was asked, what was answered and when each piece came, in seconds from the call. It holds no
key, no folder of the machine and no time of day. Knows no model; `replay` does.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbproviders import errors
from nbproviders.core.completion import Cost, Finish, Usage
from nbproviders.core.params import GenerationParams, Message, Request, as_request
from nbproviders.core.tokens import Token
from nbproviders.errors import ConfigurationError, ProviderError, scrub

VERSION = 1
_MARK = "nbproviders_recording"
# A folder in a reference: after a colon, an equals sign or a quote, up to the last part.
_FOLDER = re.compile(
    r'(?:^|(?<=[:="\[,]))(?<!https:)(?<!http:)(?:[A-Za-z]:|~|\.{1,2})?[\\/][^?&=,"]*[\\/](?=[^\\/])'
)
# The same in a sentence, where a blank ends a path and a colon may belong to a URL.
_FOLDER_IN_TEXT = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:|~|\.{1,2})?[\\/](?:[^\s\\/'\"]+[\\/])+")


@dataclass(frozen=True, slots=True)
class Take:
    """One recorded completion, or an error that asking again would not change.

    Attributes
    ----------
    model, spec
        The reference that was asked, and the one that answered; they differ for a router.
    date
        The day it was recorded, ``2026-01-31``.
    prompt, params, chat, logprobs
        What was asked: text or messages, the parameters that were given, and how.
    occurrence
        Which one it is of equal requests, from 1.
    chunks
        ``(seconds from the call, text)``.
    end_s
        When it ended, in seconds from the call.
    finish
        The end; None if it failed.
    error
        ``(kind, message, hint)`` if it failed.
    """

    model: str
    spec: str
    date: str
    prompt: str | tuple[Message, ...]
    params: Mapping[str, Any]
    chat: bool | None
    logprobs: bool
    occurrence: int
    chunks: tuple[tuple[float, str], ...]
    end_s: float
    finish: Finish | None = None
    error: tuple[str, str, str] | None = None

    @property
    def key(self) -> str:
        """What makes requests equal."""
        return key_of(
            Request(self.prompt, GenerationParams(**self.params), self.chat), self.logprobs
        )


def key_of(request: Request, logprobs: bool | None = None) -> str:
    """Return what makes requests equal: prompt or messages, the given parameters, and how to ask."""
    told = request.logprobs if logprobs is None else logprobs
    asked = [request.prompt, request.params.given(), request.chat, told]
    return json.dumps(asked, sort_keys=True)


class Recording:
    """A file of takes, as it was when it was opened and with what was added since.

    Parameters
    ----------
    path
        The file; it need not exist.

    Raises
    ------
    ConfigurationError
        If it cannot be read, saying which line is wrong. A half line at its end is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.takes: list[Take] = []
        self._by_key: dict[tuple[str, str], dict[int, Take]] = {}
        self._lock = threading.Lock()
        if not path.parent.is_dir():
            raise ConfigurationError(f"The folder of the recording {path} does not exist.")
        for take in _read(path):
            self._keep(take)

    @property
    def models(self) -> tuple[str, ...]:
        """The references that were asked, in the order of the file."""
        return tuple(dict.fromkeys(take.model for take in self.takes))

    def of(self, model: str, key: str) -> Mapping[int, Take]:
        """Return the takes of a model's request, by occurrence."""
        return self._by_key.get((model, key), {})

    def _keep(self, take: Take) -> None:
        self.takes.append(take)
        self._by_key.setdefault((take.model, take.key), {})[take.occurrence] = take

    def append(self, take: Take) -> None:
        """Write a take at the end of the file, whole, whoever else is writing.

        Raises
        ------
        ProviderError
            If the file cannot be written.
        """
        line = _line(take)
        with self._lock:
            try:
                with _opened(self.path) as file:
                    _append(file, line)
            except OSError as error:
                raise ProviderError(
                    f"The recording {self.path} cannot be written: {error.strerror}.",
                    hint="See that there is room, and that the file may be written.",
                ) from errors.foreign(error)
            self._keep(take)


def portable(spec: str) -> str:
    """Return a reference without the folders of this machine."""
    return scrub(_FOLDER.sub("", spec))


def portable_text(text: str) -> str:
    """Return a message without keys and without the folders of this machine."""
    return scrub(_FOLDER_IN_TEXT.sub("", text))


# Reading


def _read(path: Path) -> Iterator[Take]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(
            f"The recording {path} cannot be read: {error.strerror}."
        ) from errors.foreign(error)
    *lines, last = content.split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            if number > len(lines):
                return  # whoever wrote it did not come to its end; the next one who writes mends it
            raise ConfigurationError(
                f"Line {number} of the recording {path} is no JSON.", hint="Delete the line."
            ) from None
        yield _take(found, f"Line {number} of the recording {path}")


def _take(found: Any, where: str) -> Take:
    version = found.get(_MARK) if isinstance(found, dict) else None
    if not isinstance(version, int):
        raise ConfigurationError(f"{where} is no recorded completion.", hint="Delete the line.")
    if version > VERSION:
        raise ConfigurationError(
            f"{where} is of version {version}; this nbproviders reads up to {VERSION}.",
            hint="Upgrade nbproviders.",
        )
    try:
        error, end = found.get("error"), found.get("finish")
        return Take(
            model=str(found["model"]),
            spec=str(found["spec"]),
            date=str(found["date"]),
            prompt=as_request(found["prompt"]).prompt,
            params=GenerationParams(**found["params"]).given(),
            chat=found["chat"],
            logprobs=bool(found["logprobs"]),
            occurrence=int(found["occurrence"]),
            chunks=tuple((float(at_s), str(text)) for at_s, text in found["chunks"]),
            end_s=float(found["end_s"]),
            finish=None if end is None else _finish(end),
            error=None if error is None else (error["kind"], error["message"], error["hint"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{where} is incomplete: {type(error).__name__} {error}", hint="Delete the line."
        ) from None


def _finish(found: Mapping[str, Any]) -> Finish:
    values = dict(found)
    values["usage"] = Usage(**values["usage"])
    values["params"] = GenerationParams(**values["params"])
    values["tokens"] = tuple(Token(*token) for token in values["tokens"])
    values["cost"] = Cost(**values["cost"])
    values["ignored"] = tuple(values["ignored"])
    return Finish(**values)


# Writing


def _line(take: Take) -> bytes:
    told: dict[str, Any] = {
        _MARK: VERSION,
        "date": take.date,
        "model": take.model,
        "spec": take.spec,
        "prompt": take.prompt,
        "params": dict(take.params),
        "chat": take.chat,
        "logprobs": take.logprobs,
        "occurrence": take.occurrence,
        "chunks": [[round(at_s, 6), text] for at_s, text in take.chunks],
        "end_s": round(take.end_s, 6),
    }
    if take.finish is not None:
        told["finish"] = _told(take.finish)
    if take.error is not None:
        told["error"] = dict(zip(("kind", "message", "hint"), take.error, strict=True))
    try:
        return json.dumps(told, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which only an escape can write
        return json.dumps(told).encode() + b"\n"


def _told(end: Finish) -> dict[str, Any]:
    params = (end.params or GenerationParams()).given()
    usage = end.usage
    return {
        "reason": end.reason,
        "usage": {name: getattr(usage, name) for name in Usage.__slots__},
        "params": params,
        "queue_s": round(end.queue_s, 6),
        "ttft_s": _seconds(end.ttft_s),
        "total_s": _seconds(end.total_s),
        "chat": end.chat,
        "batch_invariant": end.batch_invariant,
        "reasoning": end.reasoning,
        "cost": {"usd": end.cost.usd, "kind": end.cost.kind},
        "ignored": list(end.ignored),
        "tokens": [[token.text, token.id, token.logprob] for token in end.tokens],
    }


def _seconds(time_s: float | None) -> float | None:
    """Return a time as JSON has it, which knows no "not a number"."""
    return None if time_s is None or math.isnan(time_s) else round(time_s, 6)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file to be appended to, alone among all processes."""
    binary = getattr(os, "O_BINARY", 0)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | binary, 0o644)
    try:
        with _locked(file):
            yield file
    finally:
        os.close(file)


@contextmanager
def _locked(file: int) -> Iterator[None]:
    if sys.platform == "win32":
        import msvcrt

        # A byte far behind any content: this lock would keep readers from the bytes that it covers.
        os.lseek(file, 2**40, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            os.lseek(file, 2**40, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file
        yield


def _append(file: int, line: bytes) -> None:
    """Write a line behind the last whole one; if that fails, leave the file as it was."""
    end = _mended(file)
    with ExitStack() as undo:
        undo.callback(os.ftruncate, file, end)
        written = 0
        while written < len(line):
            written += os.write(file, line[written:])
        undo.pop_all()


def _mended(file: int) -> int:
    """Cut off a half line at the end, or end a whole one, and return the file's size."""
    size = os.lseek(file, 0, os.SEEK_END)
    tail, start = b"", size
    while start and b"\n" not in tail:
        step = min(1 << 16, start)
        start -= step
        os.lseek(file, start, os.SEEK_SET)
        tail = os.read(file, step) + tail
    tail = tail.rpartition(b"\n")[2]
    if not tail:
        return size
    try:
        json.loads(tail)
    except ValueError:
        os.ftruncate(file, size - len(tail))
        return size - len(tail)
    return size + os.write(file, b"\n")
