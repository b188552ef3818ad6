"""Keys that no service knows, made so that a search for one text finds every leak."""

from __future__ import annotations

FAKE = "nbp-fake-key-0123456789abcdef"


def fake(name: str = "") -> str:
    """Return a fake key of this name's own: different for different names, and found by the same search."""
    return f"{FAKE}-{name}" if name else FAKE
