"""The clauses in their order, and how one is asked: on a thread of its own, for a bounded time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import threading
import traceback
from collections.abc import Awaitable, Callable
from unittest import SkipTest

from nbproviders.testing import answers, callers, failing, freeing, lifecycle, sharing, stopping
from nbproviders.testing.report import Row
from nbproviders.testing.subject import Breach, Subject

Clause = Callable[[Subject], Awaitable[None] | None]
_GRACE_S = 5.0
_MODULES = (lifecycle, sharing, callers, failing, stopping, answers, freeing)
CLAUSES: dict[str, Clause] = {
    clause.__name__: clause for module in _MODULES for clause in module.CLAUSES
}


def promise(name: str) -> str:
    """Return what a clause promises, in one sentence."""
    return (CLAUSES[name].__doc__ or "").strip()


def ask(name: str, subject: Subject) -> Row:
    """Ask one clause of a provider, and free what it left."""
    try:
        row = _asked(name, subject)
    finally:
        subject.clear()
    if row.outcome == "failed":
        gc.collect()  # the leases of handles that it left
    return row


def _asked(name: str, subject: Subject) -> Row:
    try:
        _on_a_thread(lambda: _kept(CLAUSES[name], subject), subject.timeout_s + _GRACE_S)
    except SkipTest as reason:
        return Row(name, promise(name), "skipped", str(reason))
    except Breach as breach:
        return _failed(name, subject, breach.came, breach.todo)
    except (Exception, asyncio.CancelledError, SystemExit) as error:  # the provider's: it is told
        came = f"{type(error).__name__}: {error}{_place(error)}"
        return _failed(name, subject, came, "See that the call works by itself first.")
    return Row(name, promise(name), "ok")


def _kept(clause: Clause, subject: Subject) -> None:
    if inspect.iscoroutinefunction(clause):
        asyncio.run(_within(clause, subject))
    else:
        clause(subject)


async def _within(clause: Callable[[Subject], Awaitable[None]], subject: Subject) -> None:
    try:
        async with asyncio.timeout(subject.timeout_s) as bound:
            await clause(subject)
    except TimeoutError:
        if bound.expired():
            raise _late(subject) from None
        raise


def _late(subject: Subject) -> Breach:
    return Breach(
        f"It did not end within {subject.timeout_s:g} s.",
        "Look for a lock that is held across an await, or raise timeout_s.",
    )


def _on_a_thread(work: Callable[[], None], timeout_s: float) -> None:
    """Run something where no event loop runs, and raise what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # handed over whole; raised by the one who waits
            raised.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="contract", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise Breach(
            f"It did not end within {timeout_s:g} s, and could not be stopped.",
            "Look for blocking calls inside async code, and for waits without end.",
        )
    if raised:
        raise raised.pop()


def _failed(name: str, subject: Subject, came: str, todo: str) -> Row:
    for secret in subject.secrets:
        came = came.replace(secret, "****")
    return Row(name, promise(name), "failed", came, todo)


def _place(error: BaseException) -> str:
    """Return where in the author's code an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
