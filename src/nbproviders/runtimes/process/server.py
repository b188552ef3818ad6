"""Servers that are started, shared, kept and found again: what a provider of a managed server builds on.

All of it runs on the engine's loop, whoever asks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nbproviders.core import engine
from nbproviders.core.config import Secret
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    ProviderError,
    fresh,
)
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import keeping, locks, output, starting, state
from nbproviders.runtimes.process.starting import Command, Order, Policy, Ready, Running

log = logging.getLogger(__name__)

_WAIT_S = 0.1
_FRESH_S = 1.0  # so long a server that is just ready is left to whoever asked for it


class ManagedServer:
    """One owner's handle of a running server. The last owner to release it ends it, or starts its clock.

    Attributes
    ----------
    base_url
        Such as ``http://127.0.0.1:41234``.
    key
        Goes with each request: ``Authorization: Bearer <key>``. Its ``repr`` is masked.
    pid
        Of the server, and of its process group.
    log_path
        What it printed, at most 5 MB of it; removed when it ends.
    """

    def __init__(self, running: Running) -> None:
        running.owners += 1
        self._running = running
        self._released = False
        record = running.record
        self.what = record.what
        self.identity = record.identity
        self.base_url = record.base_url
        self.key = Secret(record.key)
        self.pid = record.pid
        self.log_path: Path = state.log_of(running.folder)

    def __repr__(self) -> str:
        end = "" if self.alive else ", ended"
        return f"<ManagedServer {self.what} at {self.base_url}, process {self.pid}{end}>"

    @property
    def alive(self) -> bool:
        """Whether the server runs and this handle still owns it."""
        return not self._released and self._running.alive

    @property
    def kept(self) -> bool:
        """Whether it outlives its owners for a while."""
        return self._running.record.keep_s > 0

    async def ended(self, within_s: float) -> bool:
        """Whether the server has ended, or does so within some seconds; awaited on the engine's loop."""
        if self.alive:
            await self._running.channel.event("ended", within_s)
        return not self.alive

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of its output without keys, also after its end."""
        told = self._running.channel.told("ended")
        if told is not None:
            return "\n".join(str(told["tail"]).splitlines()[-lines:])
        return output.tail(self.log_path, lines, [self.key])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold off eviction by others who want the same constraint, while a request is under way.

        Raises
        ------
        ClosedError
            If the server has ended, or this handle was released.
        """
        if not self.alive:
            raise ClosedError(f"{self.what} has ended.", hint="Start it again.")
        self._running.uses += 1
        try:
            yield
        finally:
            self._running.uses -= 1
            self._running.used_s = time.monotonic()

    async def release(self) -> None:
        """Give up owning it; a second time does nothing.

        With the last owner a kept server's clock starts; any other server ends, and nothing is left.
        """
        await engine.default().call(lambda: self._leave(for_all=False))

    async def stop(self) -> None:
        """End the server for everyone, and return when nothing of it is left."""
        await engine.default().call(lambda: self._leave(for_all=True))

    async def _leave(self, *, for_all: bool) -> None:
        running = self._running
        if not self._released:
            self._released = True
            running.owners -= 1
        elif not for_all:
            return
        if not for_all and running.owners:
            return
        _forget(running)
        if for_all or not self.kept:
            await running.end()
        else:
            running.channel.close()


async def start(
    what: str,
    command: Callable[[int, str], Command],
    *,
    ready: Ready,
    timeout_s: float,
    progress: Progress,
    keep: bool = False,
    keep_s: float = 1800.0,
    identity: str = "",
    probe: str = "/health",
    exclusive: str = "",
    policy: Policy = "queue",
    queue_s: float = 3600.0,
    grace_s: float = 10.0,
    log_bytes: int = output.LIMIT_BYTES,
    base_port: int = 0,
    reference: str = "",
) -> ManagedServer:
    """Start a server and return when it is ready; one of that identity that runs is shared.

    Parameters
    ----------
    what
        For messages, such as ``vllm:llama``.
    command
        Called with a free port of 127.0.0.1 and a random key; may be called again with others.
    ready
        Called with base URL and key until it returns True. What it raises means "not yet", unless it is
        one of our errors that no waiting mends.
    timeout_s
        From the server's start until it must be ready.
    keep
        Let the server outlive this process, for `keep_s` seconds without an owner; needs an identity.
        Of those who share it, the one counts who wants it kept longest.
    identity
        What makes two servers the same; empty: this one is never shared.
    probe
        What `find` asks for with the key: a path that the server does not answer without one.
    exclusive
        A constraint that one server at a time satisfies, such as ``cuda:0``, on all of this machine.
    policy
        If another has it: ``queue`` waits up to `queue_s` seconds, ``refuse`` raises, ``evict`` waits as
        well but ends an idle one: not in use here, or kept and without an owner.
    grace_s
        Given to the server to end by itself, before it is killed.
    base_port
        Where the search for a free port begins; 0 chooses at random.
    reference
        What a user writes to have it, for lists of kept servers.

    Raises
    ------
    ProviderError
        If it ended early, with its exit status or signal and its last lines.
    TimeoutError
        If it was not ready in time; it was killed.
    ServiceUnavailableError
        If the constraint is held by another and the policy is to refuse; it is named.
    UnsupportedError
        On Windows.
    """
    if keep and not identity:
        raise ConfigurationError(
            f"{what} shall be kept, but has no identity to be found by.", hint="Pass identity=…"
        )
    if policy not in ("queue", "refuse", "evict"):
        raise ConfigurationError(
            f"The policy {policy!r} is unknown.", hint="Use 'queue', 'refuse' or 'evict'."
        )
    order = Order(
        what, command, ready, timeout_s, keep, keep_s, identity, probe, exclusive, policy, queue_s,
        grace_s, log_bytes, base_port, reference,
    )  # fmt: skip
    return await engine.default().call(lambda: _shared(order, progress))


@dataclass(eq=False)
class _Start:
    """A start under way and how many wait for it."""

    task: asyncio.Task[Running] = field(init=False)
    waiters: int = 0
    phase: str = "starting"

    def say(self, phase: str) -> None:
        self.phase = phase


_running: dict[str, Running] = {}
_starts: dict[str, _Start] = {}


async def _shared(order: Order, progress: Progress) -> ManagedServer:
    """Join the start of this identity, or make one."""
    name = order.identity or f"\0{secrets.token_hex(8)}"
    while (under_way := _starts.get(name)) is not None and not under_way.waiters:
        await asyncio.wait({under_way.task})  # given up by all: it is being undone
    found = _running.get(name)
    if found is not None and found.alive:
        return _handle(found, order)
    if under_way is None:
        under_way = _starts[name] = _Start()
        under_way.task = asyncio.create_task(_run(order, name, under_way))
    under_way.waiters += 1
    try:
        while not under_way.task.done():
            progress.phase = under_way.phase
            progress.check()
            await asyncio.wait({under_way.task}, timeout=_WAIT_S)
        return _handle(_result(under_way.task), order)
    finally:
        under_way.waiters -= 1
        if not under_way.waiters:
            await _undo(under_way.task)


def _handle(running: Running, order: Order) -> ManagedServer:
    """Return a handle for whoever gave an order, who may want it kept for longer than others did."""
    if order.keep:
        running.extend(order.keep_s, order.reference)
    return ManagedServer(running)


def _result(task: asyncio.Task[Running]) -> Running:
    error = task.exception()
    if error is None:
        return task.result()
    raise fresh(error) if isinstance(error, ProviderError) else error


async def _undo(task: asyncio.Task[Running]) -> None:
    """End a start, or its outcome, if nobody took it."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None and not task.result().owners:
        running = task.result()
        _forget(running)
        await running.end()


async def _run(order: Order, name: str, under_way: _Start) -> Running:
    try:
        if not order.keep:
            running = await starting.begin(order, under_way.say, _evict)
        else:
            running = await _found_or_begun(order, under_way)
        _running[name] = running
        return running
    finally:
        del _starts[name]


async def _found_or_begun(order: Order, under_way: _Start) -> Running:
    """Adopt a kept server or start one, while no other process does the same."""
    root = state.root()
    place = locks.place_of(f"identity {order.identity}")
    while not locks.try_lock(root, place):
        under_way.say(f"waiting for {order.what}: another process is starting it")
        await asyncio.sleep(_WAIT_S)
    try:
        adopted = await keeping.adopt(order.identity, order.ready)
        return adopted or await starting.begin(order, under_way.say, _evict)
    finally:
        locks.unlock(root, place)


async def _evict(identifier: str) -> None:
    """End a server of this process, if nobody uses it."""
    now_s = time.monotonic()
    for running in list(_running.values()):
        idle = not running.uses and now_s - running.used_s > _FRESH_S
        if running.record.id == identifier and idle:
            log.info("%s is ended: another needs %s", running.record.what, running.record.exclusive)
            _forget(running)
            await running.end()


def _forget(running: Running) -> None:
    for name in [name for name, one in _running.items() if one is running]:
        del _running[name]


async def find(identity: str, ready: Ready | None = None) -> ManagedServer | None:
    """Return a running server of this identity, this process's or a kept one; None if there is none.

    A kept one must be the process that was written down, and answer a request with its key.

    Parameters
    ----------
    ready
        Called with base URL and key instead of the request to its `probe` path.
    """
    return await engine.default().call(lambda: _find(identity, ready))


async def _find(identity: str, ready: Ready | None) -> ManagedServer | None:
    found = _running.get(identity)
    if found is None or not found.alive:
        found = await keeping.adopt(identity, ready)
        if found is None:
            return None
        _running[identity] = found
    return ManagedServer(found)


def _forked() -> None:
    """Forget the parent's servers: this child is not their owner."""
    _running.clear()
    _starts.clear()


engine.after_fork([_forked])
