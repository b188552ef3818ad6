"""What an examination found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    area
        Where it belongs: ``packages``, ``machine``, ``notebook``, ``providers``, ``keys``, ``places``.
    name
        What was looked at.
    said
        What is there. Never a key.
    state
        ``problem``: something that should work does not. ``note``: worth knowing, such as an extra that is
        not installed.
    hint
        What to do; empty if there is nothing to be done.
    """

    area: str
    name: str
    said: str
    state: State = "ok"
    hint: str = ""
