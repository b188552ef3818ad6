"""One batch through ``generate()`` of transformers: rows stop, stream and cancel by themselves."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbproviders.core.completion import FinishReason
from nbproviders.core.tokens import Token
from nbproviders.runtimes.probabilities import token_text
from nbproviders.runtimes.rows import Row
from nbproviders.runtimes.sampling import Draw, Sampler

if TYPE_CHECKING:
    import torch

PREFILL_CHUNK_TOKENS = 512


class Abandoned(Exception):
    """Every row of the batch was cancelled while it was being computed."""


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
        self._watched = [row for row in rows if row.watched]
        self._logits: torch.Tensor | None = None
        began_s = time.perf_counter()
        for row in rows:
            row.began_s = began_s

    def count_tokens(self) -> int:
        """Return how many tokens all rows have together, those that fill them up among them."""
        width = max(len(row.ids) for row in self.rows)
        written = max(len(row.new_ids) for row in self.rows)
        return len(self.rows) * (width + written)

    def check(self, *_: object, **__: object) -> None:
        """Raise `Abandoned` if nobody wants any row; a forward hook calls it at each chunk."""
        if all(row.ticket.cancelled or row.ended for row in self.rows):
            raise Abandoned

    def keep(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Keep the logits of this step, ``(rows, vocabulary)``, as they came from the model."""
        self._logits = scores.clone()  # a sampler after this writes into them
        return scores

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Return which rows are done, ``(rows,) bool``, after each new token."""
        import torch

        now_s = time.perf_counter()
        finished: list[tuple[Row, FinishReason]] = []
        for place, (row, token) in enumerate(
            zip(self.rows, input_ids[:, -1].tolist(), strict=True)
        ):
            if row.ended:
                continue
            known = len(row.new_ids)
            reason = row.take(token, self._eos_ids, now_s)
            if len(row.new_ids) > known:
                self._note(row, place, token)
            if reason is not None:
                finished.append((row, reason))
        self._finish(finished, now_s)
        for row in self._watched:
            if not row.ended:
                row.advance(self._decode, now_s, self._batch_invariant)
        return torch.tensor([row.ended for row in self.rows], device=input_ids.device)

    def _note(self, row: Row, place: int, token: int) -> None:
        """Keep the token's probability, from the distribution before any sampler."""
        logits = self._logits
        if logits is None or not row.ticket.request.logprobs:
            return
        own = logits[place].float()
        logprob = float(own[token] - own.logsumexp(-1))
        row.tokens.append(Token(token_text(self._tokenizer, token), token, logprob))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _finish(self, finished: list[tuple[Row, FinishReason]], now_s: float) -> None:
        if not finished:
            return
        texts = self._tokenizer.batch_decode(
            [row.new_ids for row, _ in finished], skip_special_tokens=True
        )
        for (row, reason), text in zip(finished, texts, strict=True):
            row.finish(reason, text, now_s, self._batch_invariant)

    def cancel_rest(self) -> None:
        """End every row that has not ended: the batch was abandoned."""
        now_s = time.perf_counter()
        for row in self.rows:
            if not row.ended:
                row.end("cancelled", row.text, now_s, self._batch_invariant)


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
    chunked = width > PREFILL_CHUNK_TOKENS and takes_chunks(model)
    config.prefill_chunk_size = PREFILL_CHUNK_TOKENS if chunked else None
    draws = [
        Draw(row.params.temperature or 0.0, row.params.top_p or 1.0, row.params.seed or 0)
        for row in rows
    ]
    processors: list[Any] = []
    if any(row.ticket.request.logprobs for row in rows):
        processors.append(batch.keep)  # before the sampler, which changes them
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


def takes_chunks(model: Any) -> bool:
    """Whether a prompt can be computed in chunks, each continuing the cache of those before.

    An encoder reads all of its text at once; in chunks, ``generate()`` of transformers 5.23 cuts its mask to
    one column and the text is wrong. Models with a state of their own take no cache.
    """
    if model.config.is_encoder_decoder:
        return False
    return "past_key_values" in inspect.signature(model.forward).parameters


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
