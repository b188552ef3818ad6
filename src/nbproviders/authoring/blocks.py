"""What each task or thread that entered a block leaves it with."""

from __future__ import annotations

from typing import Generic, TypeVar

from nbproviders.errors import ClosedError

T = TypeVar("T")


class Blocks(Generic[T]):
    """Entered at once by several tasks or threads, each leaves with what it was given."""

    def __init__(self) -> None:
        self._given: dict[object, list[T]] = {}

    def enter(self, who: object, given: T) -> T:
        """Note what was given to a task or thread."""
        self._given.setdefault(who, []).append(given)
        return given

    def leave(self, who: object) -> T:
        """Return what was given last to a task or thread.

        Raises
        ------
        ClosedError
            If nobody is inside.
        """
        # A fixture may be left by another task than entered it: then the oldest is meant.
        place = who if who in self._given else next(iter(self._given), who)
        if place not in self._given:
            raise ClosedError("This block was left more often than it was entered.")
        inside = self._given[place]
        given = inside.pop()
        if not inside:
            del self._given[place]
        return given
