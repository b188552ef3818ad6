"""Rows of a comparison out of what dotevals recorded and what the model was seen to answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nbproviders.comparison.cells import ORDER
from nbproviders.comparison.grid import Contender
from nbproviders.core.completion import Completion
from nbproviders.core.params import Request
from nbproviders.errors import scrub

Row = dict[str, Any]
Seen = Sequence[tuple[Request, Completion]]


def of_record(contender: Contender, record: Any, seen: Seen) -> tuple[Row, dict[str, None]]:
    """Return the row of one record of dotevals, and the names of its scores.

    Parameters
    ----------
    contender
        The model.
    record
        What dotevals recorded: the item, its scores or its error.
    seen
        Requests and completions of this item, in their order; empty if none was seen.
    """
    scores = {one.name: one.value for one in record.scores}
    counted = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    told = dict(record.dataset_row or {})
    row = {
        **{name: value for name, value in scores.items() if name not in counted},
        **_item(contender, record.item_id, told),
        **(_measured([completion for _, completion in seen]) if seen else {}),
        "error": None if record.error is None else scrub(record.error),
        **{f"score_{name}": value for name, value in counted.items()},
    }
    asked = record.prompt
    if asked is None and seen:
        asked = seen[-1][0].prompt
    if asked is not None and "prompt" not in told:
        row["prompt"] = asked
    if record.model_response is not None:
        row["text"] = record.model_response
    if row["expected"] is None:
        wanted = (one.metadata.get("expected") for one in record.scores)
        row["expected"] = next((one for one in wanted if one is not None), None)
    return row, dict.fromkeys(counted)


def of_failure(contender: Contender, place: int, told: Mapping[str, Any], error: str) -> Row:
    """Return the row of an item that was never asked, since its model failed."""
    return {**_item(contender, place, told), "error": error}


def _item(contender: Contender, place: int, told: Mapping[str, Any]) -> Row:
    """Return what a row tells of its model and item, its columns included."""
    first = next(iter(told.values()), None)
    return {
        # A column that is named like one of ours does not replace it.
        **{name: value for name, value in told.items() if name not in ORDER},
        "spec": contender.name,
        "provider": contender.provider_name,
        "model": contender.model_name,
        "prompt_id": place,
        "prompt": told.get("prompt", first),
        "expected": told.get("expected"),
        "repeat": 0,
    }


def _measured(completions: Sequence[Completion]) -> Row:
    """Return what the answers of one item took, all together; the text is the last one's."""
    last = completions[-1]
    usages = [one.usage for one in completions]
    costs = [one.cost for one in completions]
    total_s = math.fsum(one.total_s for one in completions)
    written = sum(usage.completion_tokens for usage in usages)
    ttft_s = completions[0].ttft_s
    alone = len(completions) == 1
    known = [cost.usd for cost in costs if cost.usd is not None]
    return {
        "text": last.text,
        "finish": last.finish,
        "queue_s": math.fsum(one.queue_s for one in completions),
        "ttft_s": None if math.isnan(ttft_s) else ttft_s,
        "total_s": total_s,
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": written,
        "tokens_per_s": last.tokens_per_s if alone else written / total_s if total_s else None,
        "cost_usd": math.fsum(known) if len(known) == len(costs) else None,
        "cost_kind": next((c.kind for c in costs if c.kind != "free"), "free"),
        "ignored": ", ".join(dict.fromkeys(name for one in completions for name in one.ignored)),
    }
