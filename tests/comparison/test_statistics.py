"""Statistics agree with published values and claim no more than the data holds."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from nbproviders.comparison.statistics import (
    is_rate,
    summarise,
    t_interval,
    t_quantile,
    verdict,
    wilson,
)


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17,
# table I, method 3.
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombe(right: int, n: int, low: float, high: float) -> None:
    """The interval is the published one to four figures."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_wilson_stays_within_the_possible(n: int) -> None:
    """Bounds are shares, hold the rate between them, and mirror each other."""
    for right in {0, 1, n}:
        low, high = wilson(right, n)
        assert 0 <= low <= right / n <= high <= 1
        assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


# Any table of Student's t, two-sided 95 %.
@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_t_agrees_with_tables(freedom: int, t: float) -> None:
    """Quantiles are those of the tables to three decimals."""
    assert t_quantile(freedom) == pytest.approx(t, abs=5e-4)


def test_t_interval_by_hand() -> None:
    """Of 1 to 5 it is 3 plus and minus 2.776 times sqrt(2.5 / 5)."""
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((1.0371, 4.9629), abs=5e-4)


def test_t_becomes_the_normal() -> None:
    """With very many values the quantile falls to the normal one without a jump."""
    assert t_quantile(10_000) == pytest.approx(t_quantile(10_001), abs=5e-4)
    assert t_quantile(10**9) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5, 0.5]])
def test_no_spread_gives_no_interval(values: list[float]) -> None:
    """Fewer than two values, or equal ones, say nothing of their uncertainty."""
    assert t_interval(values) is None


def frame(*cells: dict[str, Any]) -> pd.DataFrame:
    base = {
        "spec": "a",
        "prompt_id": 0,
        "error": None,
        "ttft_s": 0.1,
        "total_s": 0.2,
        "tokens_per_s": 5.0,
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "cost_usd": 0.5,
        "score_s": 1.0,
    }
    return pd.DataFrame([{**base, **cell} for cell in cells])


def test_repeats_are_one_trial() -> None:
    """Asking each of ten prompts five times narrows no interval: n is the number of prompts."""
    once = frame(*({"prompt_id": i, "score_s": float(i < 7)} for i in range(10)))
    often = pd.concat([once] * 5)
    (one,), (many,) = (summarise(f, ["s"]).to_dict("records") for f in (once, often))
    assert (one["s_low"], one["s_high"]) == (many["s_low"], many["s_high"]) == wilson(7, 10)
    assert many["n"] == 50


def test_prompts_weigh_the_same() -> None:
    """A prompt asked more often than another does not weigh more in the mean."""
    cells = [{"prompt_id": 0, "score_s": 1.0}] * 3 + [{"prompt_id": 1, "score_s": 0.0}]
    assert summarise(frame(*cells), ["s"])["s"].tolist() == [0.5]


def test_other_scores_are_bounded_by_t() -> None:
    """Scores between 0 and 1 get a t interval; a single one gets none."""
    cells = [{"prompt_id": i, "score_s": v} for i, v in enumerate((0.1, 0.2, 0.6))]
    (row,) = summarise(frame(*cells), ["s"]).to_dict("records")
    assert (row["s_low"], row["s_high"]) == t_interval([0.1, 0.2, 0.6])
    (row,) = summarise(frame(cells[0]), ["s"]).to_dict("records")
    assert math.isnan(row["s_low"])


def test_models_are_bounded_alike() -> None:
    """A model whose graded scores happen to be 0 and 1 is not taken for right or wrong."""
    cells = [{"spec": "a", "prompt_id": i, "score_s": float(i % 2)} for i in range(4)]
    cells += [{"spec": "b", "prompt_id": i, "score_s": 0.1 * i} for i in range(4)]
    rows = summarise(frame(*cells), ["s"]).to_dict("records")
    assert (rows[0]["s_low"], rows[0]["s_high"]) == t_interval([0, 1, 0, 1])


def test_failed_cells_count_and_are_not_scored() -> None:
    """A failure is counted beside the mean, which is over what was scored; its times are no times."""
    failed = {"error": "x", "score_s": None, "total_s": None, "completion_tokens": None}
    failed["cost_usd"] = None
    cells = [{"prompt_id": 0}, {"prompt_id": 1, **failed}]
    (row,) = summarise(frame(*cells), ["s"]).to_dict("records")
    assert (row["n"], row["errors"], row["s"], row["median_total_s"]) == (2, 1, 1.0, 0.2)
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) == (6, 1, 0.5)


def test_models_keep_their_order() -> None:
    """Rows come in the order of the frame, not of the alphabet."""
    rows = summarise(frame({"spec": "b"}, {"spec": "a"}, {"spec": "c"}), ["s"])
    assert rows["spec"].tolist() == ["b", "a", "c"]


def test_empty_has_its_columns() -> None:
    """Without rows the summary is empty and has the same columns."""
    full = frame({"prompt_id": 0})
    assert list(summarise(full.iloc[:0], ["s"])) == list(summarise(full, ["s"]))


@pytest.mark.parametrize(("ids", "few"), [(range(9), True), (range(10), False), ([[1]] * 20, True)])
def test_too_few_prompts_are_told(ids: Any, few: bool) -> None:
    """Below ten prompts models are not to be ranked, however often each was asked."""
    cells = [{"spec": spec, "prompt_id": i} for spec in "ab" for i in ids]
    assert ("too few to rank" in verdict(frame(*cells))) is few


def test_one_model_needs_no_rank() -> None:
    """A single model is not warned about a ranking."""
    assert verdict(frame({"prompt_id": 0})) == ""


def test_rates_are_right_or_wrong() -> None:
    """Only 0 and 1 make a rate; what is missing does not matter."""
    assert is_rate(pd.Series([0, 1.0, None]))
    assert not is_rate(pd.Series([0, 0.5]))
