"""Statistics that hold at notebook sizes; numbers from rows, no drawing.

An interval is over prompts: repeats of one prompt are not independent and count as one trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Z_95 = 1.959963984540054
TOO_FEW = 10
TIMINGS = ("ttft_s", "total_s", "tokens_per_s")
TOKENS = ("prompt_tokens", "completion_tokens")
_NORMAL_FROM = 10_000  # degrees of freedom from which t and the normal agree to four figures


def wilson(right: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a rate (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    Chosen because it keeps its promise on small samples: simulated coverage of a nominal 95 % is .91 at
    n=5 and .96 at n=20, where the textbook interval has .39 and .87.

    Parameters
    ----------
    right
        Successes; a fraction, if each of `n` prompts was asked several times.
    n
        Trials, at least 1.
    z
        Normal quantile.

    Examples
    --------
    >>> tuple(round(x, 3) for x in wilson(8, 10))
    (0.49, 0.943)
    """
    share = right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not put 0 of n or n of n a hair outside its own interval.
    low, high = (middle - half) / scale, (middle + half) / scale
    return max(min(low, share), 0.0), min(max(high, share), 1.0)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t.

    None for fewer than two values, and where all are equal: no spread was seen, which is not certainty.

    Examples
    --------
    >>> low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> round(low, 3), round(high, 3)
    (1.037, 4.963)
    """
    import numpy as np

    if len(values) < 2 or min(values) == max(values):
        return None
    mean, n = float(np.mean(values)), len(values)
    half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """Return the t within which 95 % of Student's distribution lie, on both sides of 0.

    The share is a finite sum for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4);
    its root is found by bisection on the angle arctan(t / sqrt(freedom)).
    """
    import numpy as np

    if freedom > _NORMAL_FROM:
        return Z_95
    steps = np.arange(freedom % 2 + 1, freedom - 1, 2)
    factors = np.concatenate([[1.0], np.cumprod(steps / (steps + 1))])
    low, high = 0.0, math.pi / 2
    while high - low > 1e-14:
        angle = (low + high) / 2
        powers = math.cos(angle) ** (2 * np.arange(len(factors)))
        total = math.sin(angle) * float(factors @ powers)
        if freedom % 2:
            odd = total * math.cos(angle) if freedom > 1 else 0.0
            total = 2 / math.pi * (angle + odd)
        low, high = (angle, high) if total < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def is_rate(values: pd.Series[Any]) -> bool:
    """Whether scores are right or wrong, nothing between."""
    return bool(values.dropna().isin([0, 1]).all())


def trials(prompt_ids: pd.Series[Any]) -> pd.Series[Any]:
    """Return what tells prompts apart; an id may be of any kind, also one that cannot be hashed."""
    return prompt_ids.map(repr)


def summarise(frame: pd.DataFrame, score_names: list[str], by: str | None = None) -> pd.DataFrame:
    """Return one row for each model, in the order of the frame.

    Parameters
    ----------
    frame
        Tidy rows of a comparison.
    score_names
        Scorers, whose columns are ``score_<name>``.
    by
        A further column to split by, such as ``task``.

    Returns
    -------
    pandas.DataFrame
        ``n`` answers, ``errors``, for each scorer its mean over what was said (``_low`` and ``_high`` bound
        it at 95 %: by Wilson where scores are right or wrong, else by Student's t, missing where that
        cannot tell), medians of the timings in seconds, tokens in all, and ``cost_usd``, the sum of what is
        known of it, missing if nothing is.
    """
    import pandas as pd

    keys = ["spec"] if by is None else ["spec", by]
    # Judged over all models: one that happens to score only 0 and 1 is bounded like the others.
    rates = {name: is_rate(frame[f"score_{name}"]) for name in score_names}
    rows = []
    for place, part in frame.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, place, strict=True))
        row["n"], row["errors"] = len(part), int(part["error"].notna().sum())
        for name in score_names:
            row |= _scored(part, name, rate=rates[name])
        row |= {f"median_{name}": part[name].astype(float).median() for name in TIMINGS}
        row |= {name: int(part[name].fillna(0).sum()) for name in TOKENS}
        row["cost_usd"] = part["cost_usd"].astype(float).sum(min_count=1)
        rows.append(row)
    bounded = [end for name in score_names for end in (name, f"{name}_low", f"{name}_high")]
    medians = [f"median_{name}" for name in TIMINGS]
    return pd.DataFrame(
        rows, columns=[*keys, "n", "errors", *bounded, *medians, *TOKENS, "cost_usd"]
    )


def _scored(part: pd.DataFrame, name: str, *, rate: bool) -> dict[str, float]:
    scored = part[part[f"score_{name}"].notna()]
    each = scored[f"score_{name}"].astype(float).groupby(trials(scored["prompt_id"])).mean()
    bounds = None
    if rate and len(each):
        bounds = wilson(float(each.sum()), len(each))
    elif len(each):
        bounds = t_interval(each.tolist())
    low, high = bounds or (math.nan, math.nan)
    return {name: float(each.mean()), f"{name}_low": low, f"{name}_high": high}


def verdict(frame: pd.DataFrame) -> str:
    """Return a line that says if there is too little to tell models apart; empty if there is enough."""
    n = trials(frame["prompt_id"]).nunique()
    if n < TOO_FEW and frame["spec"].nunique() > 1:
        prompts = "1 prompt is" if n == 1 else f"{n} prompts are"
        return f"{prompts} too few to rank models: take {TOO_FEW} or more."
    return ""
