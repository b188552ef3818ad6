"""What the rows of a comparison cost, and what their models left out, in words and sums."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_FEWEST_DECIMALS = 4
_MOST_DECIMALS = 9


def total_usd(rows: Iterable[Row]) -> float | None:
    """Return the sum of what is known and estimated; None if nobody knows any of it."""
    told = [row for row in rows if row.get("cost_kind") is not None]
    priced = [row["cost_usd"] for row in told if row["cost_kind"] in ("known", "estimated")]
    if not priced and any(row["cost_kind"] == "unpriced" for row in told):
        return None
    return math.fsum(priced)


def told(rows: Sequence[Row]) -> bool:
    """Whether anything cost something, or may have."""
    return any(row.get("cost_kind") not in (None, "free") for row in rows)


def line(rows: Sequence[Row]) -> str:
    """Return what they cost in a line; empty if all were free."""
    if not told(rows):
        return ""
    kinds = Counter(row.get("cost_kind") for row in rows)
    usd = total_usd(rows)
    doubts = [
        f"{kinds[kind]:,} {'answer' if kinds[kind] == 1 else 'answers'} {kind}"
        for kind in ("estimated", "unpriced")
        if kinds[kind]
    ]
    text = f"Cost: {'unknown' if usd is None else dollars(usd)}"
    return f"{text} ({', '.join(doubts)})." if doubts else f"{text}."


def left_out(rows: Iterable[Row]) -> list[str]:
    """Return a line for each model that did not take a parameter."""
    names: dict[str, dict[str, None]] = {}
    for row in rows:
        found = names.setdefault(str(row["spec"]), {})
        found.update(dict.fromkeys(filter(None, (row.get("ignored") or "").split(", "))))
    return [f"{spec} took no {', '.join(found)}." for spec, found in names.items() if found]


def dollars(usd: float) -> str:
    """Return an amount with as many decimals as it takes to see it.

    Examples
    --------
    >>> dollars(0.0123), dollars(0.0000364), dollars(1234.5), dollars(0)
    ('$0.0123', '$0.000036', '$1,234.50', '$0')
    """
    if not usd:
        return "$0"
    if usd >= 1:
        return f"${usd:,.2f}"
    return f"${usd:.{_decimals(usd)}f}"


def form(amounts: Iterable[float]) -> str:
    """Return a format specification for amounts below each other, in which each can be seen.

    Examples
    --------
    >>> form([0.5, 0.0000364]), form([])
    (',.6f', ',.4f')
    """
    seen = [_decimals(usd) for usd in amounts if usd > 0]
    return f",.{max(seen, default=_FEWEST_DECIMALS)}f"


def _decimals(usd: float) -> int:
    """Return how many decimals show two figures of an amount."""
    return min(max(_FEWEST_DECIMALS, 1 - math.floor(math.log10(usd))), _MOST_DECIMALS)
