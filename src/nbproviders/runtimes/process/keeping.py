"""Servers that outlive their kernel: found again, checked, adopted, listed."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nbproviders.errors import ProviderError, ServiceUnavailableError
from nbproviders.runtimes.process import channel, state
from nbproviders.runtimes.process.starting import Ready, Running, end

log = logging.getLogger(__name__)

_ANSWER_S = 5.0
_HUNG_GRACE_S = 1.0
_POLL_S = 0.02


async def adopt(identity: str, ready: Ready | None) -> Running | None:
    """Become an owner of a kept server; None if none of this identity runs and answers."""
    root = state.root()
    for record in state.records(root):
        if record.identity != identity or not record.alive:
            continue
        line = channel.connect(record.control, secret=record.secret, do="own")
        if line is None:
            continue
        with ExitStack() as undo:
            undo.callback(
                line.close
            )  # also if the waiting is cancelled: else it had an owner for ever
            line.listen()
            owned = await line.event("owned", _ANSWER_S)
            if owned is None or owned["id"] != record.id:
                continue
            if await _agrees(record, ready):
                undo.pop_all()
                return Running(None, record, line, root)
            if not owned["owners"]:
                log.warning("%s was kept but does not answer; it is ended.", record.what)
                await end(line, root, _HUNG_GRACE_S)
    return None


async def _agrees(record: state.Record, ready: Ready | None) -> bool:
    """Whether a kept server answers a request with its key."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            if ready is not None:
                return await ready(record.base_url, record.key)
            return await answers(record.base_url, record.key, record.probe)
    except Exception as error:  # the border to the provider's check
        log.info("%s does not answer: %s", record.what, type(error).__name__)
        return False


async def answers(base_url: str, key: str, path: str = "/health") -> bool:
    """Whether a server answers a request for a path and does not refuse the key.

    What it answers else does not matter: some fail on a path that proves their key all the same.
    """
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(base_url + path) as answer,
        ):
            return answer.status not in (401, 403, 502, 503)
    except aiohttp.ClientError:
        return False


@dataclass(frozen=True, slots=True)
class Kept:
    """What is told of a kept server.

    Attributes
    ----------
    owners
        How many processes own it.
    left_s
        Seconds until it ends; None while it has an owner.
    reference
        What it was opened by, and is found by again; empty if that is not known.
    """

    what: str
    identity: str
    pid: int
    base_url: str
    log_path: Path
    owners: int
    left_s: float | None
    id: str
    reference: str


def kept() -> list[Kept]:
    """Return the kept servers of this user on this machine; blocks for some milliseconds."""
    found = []
    root = state.root()
    for record in state.records(root):
        if not record.control or not record.alive:
            continue
        try:
            told = channel.ask(record.control, secret=record.secret, do="state")
        except ServiceUnavailableError:  # it ended in this moment
            continue
        path = state.log_of(root / record.id)
        shown = (record.what, record.identity, record.pid, record.base_url, path)
        found.append(Kept(*shown, told["owners"], told["left_s"], record.id, record.reference))
    return found


async def stop(one: Kept, grace_s: float = 10.0) -> None:
    """End a kept server for everyone, and return when nothing of it is left.

    Its guardian is asked to, by the secret that only its record has: no process is signalled from here, so
    none can be mistaken for it.

    Parameters
    ----------
    grace_s
        Given to the server to end by itself, before it is killed.

    Raises
    ------
    ProviderError
        If it does not end.
    """
    root = state.root()
    record = next((each for each in state.records(root) if each.id == one.id), None)
    if record is None:  # it has ended meanwhile
        return
    line = channel.connect(record.control, secret=record.secret, do="own")
    if line is not None:
        line.listen()
        await line.event("owned", _ANSWER_S)
        await end(line, root, grace_s)
    until_s = time.monotonic() + _ANSWER_S
    while record.guarded:  # the last it does is to close the connection
        if time.monotonic() > until_s:
            raise ProviderError(
                f"{one.what} (process {one.pid}) does not end.",
                hint=f"Its guardian is process {record.guardian}: with that it would end, too.",
            )
        await asyncio.sleep(_POLL_S)
