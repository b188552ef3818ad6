"""Soft leases: open handles, and where each was opened."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nbproviders.core import engine
from nbproviders.residency.entry import Loader


class Lease:
    """A soft lease: an open handle. Its model may be evicted, and comes back at the next call.

    One that is dropped gives itself back, so that a handle lost in a re-run cell leaks nothing.

    Parameters
    ----------
    loader
        Of the model that is held.
    release
        Called once, with the loader and `opened_in`.
    opened_in
        The cell that opened it, such as ``In [5]``; empty outside IPython.
    """

    __slots__ = ("_release", "loader", "opened_in")

    def __init__(
        self, loader: Loader, release: Callable[[Loader, str], None], opened_in: str = ""
    ) -> None:
        self.loader = loader
        self.opened_in = opened_in
        self._release: Callable[[Loader, str], None] | None = release

    @property
    def active(self) -> bool:
        """Whether it was not given back yet."""
        return self._release is not None

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release(self.loader, self.opened_in)

    def __del__(self) -> None:
        release = getattr(self, "_release", None)
        if release is not None:
            engine.default().post_from_finalizer(release, self.loader, self.opened_in)


def here() -> str:
    """Return the cell that is running, such as ``In [5]``; empty outside IPython. Takes no import."""
    module = sys.modules.get("IPython.core.interactiveshell")
    if module is None:
        return ""
    shell = module.InteractiveShell._instance
    if shell is None:
        return ""
    # Not execution_count: newer versions of IPython count the running cell already, older ones do not.
    return f"In [{len(shell.history_manager.input_hist_parsed) - 1}]"
