"""One server from its command to its first answer; whatever goes wrong on the way, nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nbproviders.errors import (
    ConfigurationError,
    ForeignError,
    ProviderError,
    ServiceUnavailableError,
    TimeoutError,
    foreign,
    mapped,
    scrub,
)
from nbproviders.runtimes.process import output, ports, state
from nbproviders.runtimes.process.channel import Channel, ask, errors_of, launch

Policy = Literal["queue", "refuse", "evict"]
Ready = Callable[[str, str], Awaitable[bool]]

_TRIES = 3
_POLL_S = 0.1
_TURN_POLL_S = 0.2
_GUARDIAN_S = 10.0
_SILENT_S = 60.0
_SHOWN_LINES = 20


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started.

    Parameters
    ----------
    argv
        Program and arguments; no shell.
    env
        Added to the kernel's environment; what is None there is taken out of it. The place for a key: other
        users of the machine can read arguments.
    gate
        Whether the server knows no keys, so that ours are checked before it.
    """

    argv: Sequence[str]
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    gate: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What `server.start` was asked for."""

    what: str
    command: Callable[[int, str], Command]
    ready: Ready
    timeout_s: float
    keep: bool
    keep_s: float
    identity: str
    probe: str
    exclusive: str
    policy: Policy
    queue_s: float
    grace_s: float
    log_bytes: int
    base_port: int
    reference: str


class Running:
    """A server that is ready, and how many in this process own it and use it."""

    def __init__(self, order: Order | None, record: state.Record, channel: Channel, root: Path):
        self.record = record
        self.channel = channel
        self.grace_s = order.grace_s if order is not None else 10.0
        self.root = root
        self.owners = 0
        self.uses = 0
        self.used_s = time.monotonic()
        self._ending = False

    @property
    def folder(self) -> Path:
        """Where its log is."""
        return self.root / self.record.id

    @property
    def alive(self) -> bool:
        """Whether it still runs, and nobody is ending it."""
        over = self._ending or self.channel.over
        return not over and self.channel.told("ended") is None

    def extend(self, keep_s: float, reference: str) -> None:
        """Let a kept server live without an owner for so long, if that is longer than it does."""
        if 0 < self.record.keep_s < keep_s:
            self.record = replace(self.record, keep_s=keep_s, reference=reference)
            self.channel.send(do="extend", keep_s=keep_s, reference=reference)

    async def end(self) -> None:
        """End it for everyone, and return when nothing of it is left."""
        self._ending = True
        await end(self.channel, self.root, self.grace_s)


async def end(channel: Channel, root: Path, grace_s: float) -> None:
    """End a server through its guardian; should that be gone or stuck, without it."""
    channel.send(do="end", grace_s=grace_s)
    await channel.event("over", grace_s + _GUARDIAN_S)
    if not channel.over:
        channel.kill()
        await channel.event("over", _GUARDIAN_S)
    if channel.told("ended") is None:
        state.records(root)  # buries what a guardian left that was killed
    channel.close()


async def begin(
    order: Order, say: Callable[[str], None], evict: Callable[[str], Awaitable[None]]
) -> Running:
    """Start a server and wait until it is ready; on another port if its own was taken meanwhile.

    Parameters
    ----------
    say
        Told what is being done.
    evict
        Ends the server of an id in this process, if it is idle.
    """
    root = state.root()
    for _ in range(_TRIES):
        with ports.reserve(root, order.base_port) as port:
            try:
                return await _attempt(order, root, port.port, say, evict)
            except _PortTakenError:
                continue
    raise ServiceUnavailableError(
        f"{order.what} found its port taken by another program, {_TRIES} times.",
        hint="Does its command use the port that it is given?",
    )


class _PortTakenError(Exception):
    """Another program was quicker."""


async def _attempt(
    order: Order,
    root: Path,
    port: int,
    say: Callable[[str], None],
    evict: Callable[[str], Awaitable[None]],
) -> Running:
    key = secrets.token_urlsafe(32)
    with mapped(f"The command of {order.what} cannot be made"):
        command = order.command(port, key)
    folder = state.new_folder(root)
    async with AsyncExitStack() as undo:
        undo.callback(state.remove, folder)
        channel = launch(folder)
        undo.push_async_callback(end, channel, root, 0)
        running = await _Attempt(order, command, port, key, folder, channel, say, evict).run()
        undo.pop_all()
        return running


@dataclass(frozen=True, slots=True)
class _Attempt:
    order: Order
    command: Command
    port: int
    key: str
    folder: Path
    channel: Channel
    say: Callable[[str], None]
    evict: Callable[[str], Awaitable[None]]

    async def run(self) -> Running:
        self.channel.listen()
        self.channel.send(
            folder=str(self.folder),
            what=self.order.what,
            exclusive=self.order.exclusive,
            log_bytes=self.order.log_bytes,
            key=self.key,
            port=self.port,
            gate=self.command.gate,
            argv=[str(one) for one in self.command.argv],
            env={k: v for k, v in {**os.environ, **self.command.env}.items() if v is not None},
        )
        started = await self._turn()
        base_url = f"http://{ports.LOOPBACK}:{started['gate'] or self.port}"
        await self._until_ready(base_url)
        record = state.Record(
            id=self.folder.name,
            what=self.order.what,
            pid=started["pid"],
            exclusive=self.order.exclusive,
            identity=self.order.identity,
            base_url=base_url,
            key=self.key,
            probe=self.order.probe,
            keep_s=self.order.keep_s if self.order.keep else 0,
            reference=self.order.reference,
        )
        if self.order.keep:
            known = ("identity", "base_url", "key", "probe", "keep_s", "reference")
            self.channel.send(do="keep", record={name: getattr(record, name) for name in known})
            if await self.channel.event("kept", _GUARDIAN_S) is None:
                raise self._ended_early()
        return Running(self.order, record, self.channel, self.folder.parent)

    async def _turn(self) -> dict[str, Any]:
        """Wait until the server was started: at once, or when what excludes it is gone."""
        began_s = time.monotonic()
        while True:
            started = await self.channel.event("started", _TURN_POLL_S)
            if started is not None:
                return started
            if self._over:
                raise self._ended_early()
            busy = self.channel.told("busy")
            waited_s = time.monotonic() - began_s
            if busy is None and waited_s < _SILENT_S:
                continue
            if busy is None:
                raise ProviderError(f"The guardian of {self.order.what} does not answer.")
            holder = f"{busy['what']} (process {busy['pid']})"
            name = self.order.exclusive
            if self.order.policy == "refuse":
                raise ServiceUnavailableError(
                    f"{name!r} takes one server at a time, and {holder} has it.",
                    hint="Stop that one, or ask with the policy 'queue' or 'evict'.",
                )
            if waited_s > self.order.queue_s:
                raise TimeoutError(
                    f"{self.order.what} waited {self.order.queue_s:g} s for {name!r}, which {holder} has.",
                    hint="Stop that one, or give it longer: queue_s=…",
                )
            self.say(f"waiting for {name}: {holder} has it")
            if self.order.policy == "evict":
                await self._evict(busy["holder"])

    async def _evict(self, holder: str) -> None:
        """End an idle holder: one of this process, or a kept one that nobody owns."""
        await self.evict(holder)
        for record in state.records(self.folder.parent):
            if record.id == holder and record.control:
                with suppress(ServiceUnavailableError):  # gone: that is what we want
                    await asyncio.to_thread(ask, record.control, secret=record.secret, do="evict")

    async def _until_ready(self, base_url: str) -> None:
        until_s = time.monotonic() + self.order.timeout_s
        failure: _NotReady | None = None
        while True:
            self.say(f"starting {self.order.what}: {self._tail(1)}".removesuffix(": "))
            asking = asyncio.ensure_future(self.order.ready(base_url, self.key))
            ended = asyncio.ensure_future(self.channel.event("ended"))
            try:
                left_s = max(until_s - time.monotonic(), 0)
                await asyncio.wait(
                    {asking, ended}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                if ended.done() or self._over:
                    raise self._ended_early()
                if asking.done():
                    ready, failure = _answer(asking)
                    if ready:
                        return
            finally:
                for task in (asking, ended):
                    task.cancel()
                await asyncio.gather(asking, ended, return_exceptions=True)
            if time.monotonic() >= until_s:
                raise self._late(failure)
            await self.channel.event("ended", min(_POLL_S, until_s - time.monotonic()))

    @property
    def _over(self) -> bool:
        return self.channel.over or self.channel.told("ended") is not None

    def _tail(self, lines: int) -> str:
        return output.tail(state.log_of(self.folder), lines, [self.key])

    def _late(self, failure: _NotReady | None) -> TimeoutError:
        # That nobody answers yet is what "not ready" says already.
        telling = failure is not None and (failure.answered or ports.taken(self.port))
        why = f" When asked, it failed: {failure.text.rstrip('.')}." if failure and telling else ""
        error = TimeoutError(
            f"{self.order.what} was not ready within {self.order.timeout_s:g} s."
            f"{why}{_said(self._tail(_SHOWN_LINES))}",
            hint="If it was still loading, give it longer: start_timeout_s=…",
        )
        error.__cause__ = None if failure is None else failure.cause
        return error

    def _ended_early(self) -> Exception:
        """Return the error of a server that ended by itself before it was ready."""
        told = self.channel.told("ended")
        if told is None:
            why = output.tail(errors_of(self.folder), 5, [self.key])
            return ProviderError(f"The guardian of {self.order.what} ended.{_said(why)}")
        if told["failure"]:
            return ConfigurationError(
                f"{self.order.what} cannot be started: {told['failure']}.",
                hint="Is its program installed? Its command and its interpreter can be overridden.",
            )
        text = told["tail"]
        if ports.taken(self.port) or ports.says_taken(text):
            return _PortTakenError()
        return ProviderError(
            f"{self.order.what} ended before it was ready: {how_it_ended(told['status'])}.{_said(text)}",
            hint="Its last lines tell why, if it told anything.",
        )


@dataclass(frozen=True, slots=True)
class _NotReady:
    """Why a check failed.

    Attributes
    ----------
    answered
        Whether it says more than that the server could not be reached yet, as far as its class tells.
    """

    text: str
    cause: ForeignError
    answered: bool


def _answer(asking: asyncio.Future[bool]) -> tuple[bool, _NotReady | None]:
    """Return what the caller's check says; one that cannot reach the server yet raises."""
    try:
        return asking.result(), None
    except ProviderError as error:
        if not error.retryable:
            raise
        return False, _NotReady(scrub(error.message), foreign(error), answered=False)
    except Exception as error:  # the border to the provider's check; told when time is over
        return False, _NotReady(str(foreign(error)), foreign(error), answered=True)


def _said(text: str) -> str:
    lines = "\n".join(text.splitlines()[-_SHOWN_LINES:])
    return f" It said at last:\n{lines}" if lines else " It said nothing."


def how_it_ended(status: int | None) -> str:
    """Return an exit status in words."""
    if status is None:
        return "it was never started"
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-status).name} (signal {-status})"
    return f"killed by signal {-status}"
