"""The calls of a router's members: who was asked, how it ended, and the error that tells of all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from nbproviders.core.model import Model
from nbproviders.errors import InvalidRequestError, ProviderError, UnsupportedError, fresh, scrub
from nbproviders.routing.health import Health
from nbproviders.routing.reference import Referred

Outcome = Literal["answered", "failed", "stopped"]
# What these tell is the request's fault, and nothing of the member's health.
_BLAMELESS = (InvalidRequestError, UnsupportedError)


class Member:
    """One model of a router."""

    def __init__(self, name: str, model: Model, window: int) -> None:
        self.name = name
        self.model = model
        self.health = Health(window)
        self.removed = False

    def close(self) -> None:
        """Give back what the router itself opened; anything else is its owner's."""
        self.removed = True
        if isinstance(self.model, Referred):
            self.model.close()


@dataclass(frozen=True, slots=True)
class Decision:
    """One call of a member.

    Attributes
    ----------
    time_s
        When it began, in seconds since the router was made.
    strategy
        Of the router.
    member
        Who was asked.
    outcome
        ``answered``, ``failed``, or ``stopped`` by the caller.
    error
        The kind of the error; None without one.
    total_s
        How long it took.
    fell_back_from
        Who had failed before, in the same request; None if it was the first.
    """

    time_s: float
    strategy: str
    member: str
    outcome: Outcome
    error: str | None
    total_s: float
    fell_back_from: str | None


class Call:
    """One call of a member, from its beginning to its one end.

    Parameters
    ----------
    member
        Who is asked.
    clock
        The router's.
    fell_back_from
        Who had failed before it.
    """

    def __init__(
        self, member: Member, clock: Callable[[], float], fell_back_from: str | None
    ) -> None:
        self.member = member
        self._clock = clock
        self._fell_back_from = fell_back_from
        self._began_s = self._asked_s = clock()
        member.health.began(self._began_s)

    def opened(self) -> None:
        """Count the time from now on: what was a load says nothing of how quick it answers."""
        self._asked_s = self._clock()

    def ended(
        self, outcome: Outcome, error: ProviderError | None, strategy: str, since_s: float
    ) -> Decision:
        """Tell the member's health, and return what is written down."""
        now_s = self._clock()
        good = {"answered": True, "failed": False, "stopped": None}[outcome]
        if isinstance(error, _BLAMELESS):
            good = None
        self.member.health.ended(now_s, good=good, took_s=now_s - self._asked_s)
        return Decision(
            time_s=self._began_s - since_s,
            strategy=strategy,
            member=self.member.name,
            outcome=outcome,
            error=None if error is None else type(error).__name__,
            total_s=now_s - self._began_s,
            fell_back_from=self._fell_back_from,
        )


def summary(failures: Sequence[tuple[str, ProviderError]]) -> ProviderError:
    """Return the last of some members' errors; its message lists all, its ``errors`` holds them."""
    error = fresh(failures[-1][1])
    told = [_told(name, one) for name, one in failures]
    if len(failures) == 1:
        prefix = f"{failures[0][0]}: "
        error.args = (scrub(prefix + error.message.removeprefix(prefix)),)
    else:
        last = "all failed" if error.retryable else "the last of them is not one to fall back from"
        error.args = (scrub(f"{len(told)} members were asked, {last}:\n" + "\n".join(told)),)
        error.hint = ""  # each stands with its member
    # One that was tried again to the end is not to be tried again from outside.
    error.final = any(one.final for _, one in failures)
    vars(error)["errors"] = tuple((name, fresh(one)) for name, one in failures)
    return error


def _told(name: str, error: ProviderError) -> str:
    hint = "".join(f"\n  {line}" for line in error.hint.splitlines())
    return f"{name}: {type(error).__name__}: {error.message}{hint}"


def unused(name: str, taken: Collection[str]) -> str:
    """Return a name, numbered if it is taken."""
    number, chosen = 1, name
    while chosen in taken:
        number += 1
        chosen = f"{name} #{number}"
    return chosen
