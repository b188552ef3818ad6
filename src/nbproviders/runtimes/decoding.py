"""One batch through ``generate()`` of transformers: rows stop, stream and cancel by themselves."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbproviders.core.completion import Finish, FinishReason, Usage
from nbproviders.core.params import GenerationParams
from nbproviders.runtimes.batching import Ticket
from nbproviders.runtimes.sampling import Draw, Sampler

if TYPE_CHECKING:
    import torch

PREFILL_CHUNK_TOKENS = 512


class Abandoned(Exception):
    """Every row of the batch was cancelled while it was being computed."""


@dataclass(slots=True)
class Row:
    """One request on its way through a batch.

    Attributes
    ----------
    ticket
        Where its text goes.
    ids
        Prompt tokens.
    params
        Effective parameters: temperature, top_p, max_tokens and seed are given.
    chat
        Whether the prompt went through the chat template.
    """

    ticket: Ticket
    ids: list[int]
    params: GenerationParams
    chat: bool
    sent: int = 0
    text: str = ""
    from_id: int = 0
    to_id: int = 0
    ended: bool = False
    new_ids: list[int] = field(default_factory=list)


def effective(params: GenerationParams, default_temperature: float, room: int) -> GenerationParams:
    """Return the parameters with every default filled in, and a seed drawn if one is needed."""
    temperature = default_temperature if params.temperature is None else params.temperature
    seed = params.seed
    if temperature > 0 and seed is None:
        seed = secrets.randbelow(2**31)
    return params.model_copy(
        update={
            "temperature": temperature,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "max_tokens": min(params.max_tokens or room, room),
            "seed": seed,
        }
    )


class Batch:
    """Rows that are generated together; passed to ``generate()`` as its stopping criterion.

    Parameters
    ----------
    rows
        What is generated.
    tokenizer
        Turns tokens back into text.
    eos_ids
        Tokens that end a text.
    batch_invariant
        Told in each completion.
    """

    def __init__(
        self, rows: Sequence[Row], tokenizer: Any, eos_ids: frozenset[int], batch_invariant: bool
    ) -> None:
        self.rows = rows
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._batch_invariant = batch_invariant
        self._began_s = time.perf_counter()
        self._first_s: float | None = None
        self._start: int | None = None
        self._watched = [row for row in rows if row.params.stop or not row.ticket.request.whole]
        self._ended = 0

    def check(self, *_: object, **__: object) -> None:
        """Raise `Abandoned` if nobody wants any row; a forward hook calls it at each chunk."""
        if all(row.ticket.cancelled or row.ended for row in self.rows):
            raise Abandoned

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Return which rows are done, ``(rows,) bool``, after each new token."""
        import torch

        now_s = time.perf_counter()
        if self._first_s is None:
            self._first_s, self._start = now_s, input_ids.shape[1] - 1
        assert self._start is not None
        count = input_ids.shape[1] - self._start
        last = input_ids[:, -1].tolist()
        finished: list[tuple[Row, FinishReason]] = []
        for row, token in zip(self.rows, last, strict=True):
            if row.ended:
                continue
            reason: FinishReason | None = None
            if token in self._eos_ids:
                reason = "stop"
            else:
                row.new_ids.append(token)
                if row.ticket.cancelled:
                    reason = "cancelled"
                elif count >= (row.params.max_tokens or 0):
                    reason = "length"
            if reason is not None:
                finished.append((row, reason))
        self._finish(finished, now_s)
        for row in self._watched:
            if not row.ended:
                self._advance(row, now_s)
        return torch.tensor([row.ended for row in self.rows], device=input_ids.device)

    def _advance(self, row: Row, now_s: float) -> None:
        """Decode what is new of a row that streams or has stop strings."""
        # From a few tokens back: a token's text can depend on the one before it.
        known = self._decode(row.new_ids[row.from_id : row.to_id])
        both = self._decode(row.new_ids[row.from_id :])
        if len(both) <= len(known) or both.endswith("\ufffd"):  # the middle of a character
            return
        row.text += both[len(known) :]
        row.from_id, row.to_id = row.to_id, len(row.new_ids)
        cut = _stop_at(row.text, row.params.stop)
        if cut is not None:
            self._end(row, "stop", row.text[:cut], now_s)
        elif not row.ticket.request.whole:
            safe = len(row.text) - _held_back(row.text, row.params.stop)
            if safe > row.sent:
                row.ticket.emit(row.text[row.sent : safe])
                row.sent = safe

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _finish(self, finished: list[tuple[Row, FinishReason]], now_s: float) -> None:
        if not finished:
            return
        texts = self._tokenizer.batch_decode(
            [row.new_ids for row, _ in finished], skip_special_tokens=True
        )
        for (row, reason), text in zip(finished, texts, strict=True):
            cut = _stop_at(text, row.params.stop)
            if cut is not None:
                self._end(row, "stop", text[:cut], now_s)
            else:
                self._end(row, reason, text, now_s)

    def _end(self, row: Row, reason: FinishReason, text: str, now_s: float) -> None:
        row.ended = True
        first_s = now_s if self._first_s is None else self._first_s
        finish = Finish(
            reason=reason,
            usage=Usage(len(row.ids), len(row.new_ids)),
            params=row.params,
            queue_s=max(self._began_s - row.ticket.arrived_s, 0.0),
            ttft_s=first_s - self._began_s,
            total_s=now_s - self._began_s,
            chat=row.chat,
            batch_invariant=self._batch_invariant,
        )
        row.ticket.end(text[row.sent :], finish)

    def cancel_rest(self) -> None:
        """End every row that has not ended: the batch was abandoned."""
        now_s = time.perf_counter()
        for row in self.rows:
            if not row.ended:
                self._end(row, "cancelled", row.text, now_s)


def _stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Return where the earliest stop string begins."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return min(places) if places else None


def _held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many last characters could still turn out to begin a stop string."""
    for count in range(min(len(text), max(map(len, stop), default=1) - 1), 0, -1):
        if any(s.startswith(text[-count:]) for s in stop):
            return count
    return 0


def generate(model: Any, batch: Batch, pad_id: int, config: Any) -> None:
    """Run a batch to its end; every row's ticket is ended.

    Parameters
    ----------
    model
        A transformers model with ``generate``.
    batch
        The rows.
    pad_id
        Fills prompts up, on the left.
    config
        Its generation config; see `plain_config`.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    rows = batch.rows
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row.ids)) + row.ids for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    config.max_new_tokens = max(row.params.max_tokens or 1 for row in rows)
    # A batch that fits one chunk is prefilled at once: the chunked way costs a second code path.
    config.prefill_chunk_size = PREFILL_CHUNK_TOKENS if width > PREFILL_CHUNK_TOKENS else None
    draws = [
        Draw(row.params.temperature or 0.0, row.params.top_p or 1.0, row.params.seed or 0)
        for row in rows
    ]
    processors = []
    if any(draw.temperature > 0 for draw in draws):
        processors.append(Sampler(draws, model.device))
    hook = model.register_forward_pre_hook(batch.check)
    try:
        with torch.inference_mode():
            model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([batch]),
            )
    except Abandoned:
        pass
    finally:
        hook.remove()
    batch.cancel_rest()


def plain_config(model: Any, pad_id: int, eos_ids: frozenset[int]) -> Any:
    """Return a generation config without any sampler or penalty that was not asked for.

    ``generate()`` fills what is None from the checkpoint's own config, so each is set to do nothing.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        pad_token_id=pad_id,
        eos_token_id=sorted(eos_ids) or None,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
    )
