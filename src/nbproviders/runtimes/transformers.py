"""A loaded transformers model and its tokenizer, as a `Model`."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from typing import Any

from nbproviders.core.model import ModelInfo
from nbproviders.core.params import Message
from nbproviders.core.tokens import Token
from nbproviders.errors import ClosedError, UnsupportedError
from nbproviders.residency.progress import Progress
from nbproviders.residency.sleeping import Transfer
from nbproviders.runtimes import decoding, probabilities, quantization
from nbproviders.runtimes.devices import release_cached, suit_threads
from nbproviders.runtimes.local import LocalModel, Stop
from nbproviders.runtimes.peaks import Peaks, Tell
from nbproviders.runtimes.placement import Placement
from nbproviders.runtimes.rows import Row
from nbproviders.runtimes.slab import empty, tensor_bytes, tensors_of
from nbproviders.runtimes.threads import Worker

_UNBOUNDED_TOKENS = 1_000_000  # tokenizers say 1e30 for "no limit"
_FALLBACK_ROOM_TOKENS = 512
_SMALL_BYTES = 2**20


class TransformersModel(LocalModel):
    """Generates with one persistent thread; concurrent requests go in left-padded batches.

    Parameters
    ----------
    model
        A ``PreTrainedModel`` that can ``generate``, causal or seq2seq.
    tokenizer
        Its tokenizer; a missing pad token falls back to the end token.
    worker
        The thread that it was loaded on.
    spec
        Its reference.
    parallel
        Most requests in one batch; None chooses by size.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        worker: Worker,
        *,
        spec: str = "",
        parallel: int | None = None,
    ) -> None:
        import torch

        self._model, self._tokenizer = model.eval(), tokenizer
        self._eos_ids = _eos_ids(model, tokenizer)
        self._pad_id = _pad_id(tokenizer, self._eos_ids)
        # Padding and batch size change float sums; only float32 on a CPU gave equal texts throughout.
        plain = model.dtype is torch.float32 and not quantization.is_quantized(model)
        self._exact = plain and model.device.type == "cpu"
        self._parameters = sum(p.numel() for p in model.parameters())
        limit = parallel or _parallel(self._parameters)
        super().__init__(worker, limit)
        self._placement: Placement | None = None
        self._peaks = Peaks(str(model.device))
        can = {"next_tokens", "score", "logprobs"}
        if getattr(tokenizer, "chat_template", None):
            can.add("chat")
        self.info = ModelInfo(
            spec=spec or str(getattr(model, "name_or_path", "") or type(model).__name__),
            parallel=limit,
            memory_bytes=tensor_bytes(model),
            context_tokens=context_tokens(model.config, tokenizer),
            can=frozenset(can),
        )

    @property
    def raw(self) -> object:
        """The transformers model."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._tokenizer

    async def sleep(self, progress: Progress) -> Transfer:
        """Give the device's memory back. See `Sleeps`.

        No weights are written anywhere. On a CPU the first time compares them with their files, and so reads
        those once.

        Raises
        ------
        UnsupportedError
            If the weights could not come back as they are: they stay.
        ClosedError
            If it is unloaded by force meanwhile: they stay as well, until it is closed.
        """
        return await self._worker.run_to_end(self._put_to_sleep, progress)

    async def wake(self, progress: Progress) -> Transfer:
        """Have the weights on the device again, each bit as it was. Cancelled, it stays asleep.

        Raises
        ------
        ProviderError
            If what they come from is gone or has changed, or there is no room: it stays asleep, too.
        """
        return await self._worker.run_to_end(self._woken, progress, on_cancel=progress.cancel)

    def on_peak(self, tell: Tell) -> None:
        """Have what computing takes beside the weights told, each time it is more than ever."""
        self._peaks.tell = tell

    # On the worker's thread from here on

    def settle(self, placement: Placement) -> None:
        """Take over where the weights are, and with it whether they can sleep."""
        self._placement = placement
        can, notes = self.info.can, self.info.notes
        if placement.reason:
            notes = (
                *notes,
                f"leaves memory by being freed and is loaded again: {placement.reason}",
            )
        else:
            can |= {"sleep"}
        self.info = dataclasses.replace(
            self.info, memory_bytes=placement.held, can=can, notes=notes
        )

    def _put_to_sleep(self, progress: Progress) -> Transfer:
        return self._told_of(self._movable().sleep(progress))

    def _woken(self, progress: Progress) -> Transfer:
        return self._told_of(self._movable().wake(progress))

    def _movable(self) -> Placement:
        super()._require_open()
        if self._placement is None:
            raise UnsupportedError(
                f"{self.info.spec} cannot sleep: it was not loaded by a provider.",
                hint="Close it instead.",
            )
        return self._placement

    def _told_of(self, transfer: Transfer) -> Transfer:
        self.info = dataclasses.replace(self.info, memory_bytes=dict(transfer.held))
        return transfer

    def _require_open(self) -> None:
        super()._require_open()
        if self._placement is not None and self._placement.asleep:
            raise ClosedError(f"{self.info.spec} is asleep.", hint="Wake it first.")

    def warm_up(self) -> None:
        """Generate one token, so that the first request does not pay for lazy imports and page faults.

        What is wrong with a model then fails its load, not somebody's first prompt.
        """
        import torch

        config = decoding.plain_config(self._model, self._pad_id, self._eos_ids)
        config.max_new_tokens = 1
        ids = torch.tensor([[self._pad_id]], device=self._model.device)
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )

    def _generate(self, rows: list[Row]) -> None:
        self._suit(len(rows))
        invariant = self._exact or rows[0].ticket.request.alone
        batch = decoding.Batch(rows, self._tokenizer, self._eos_ids, invariant)
        config = decoding.plain_config(self._model, self._pad_id, self._eos_ids)
        with self._peaks.computing(batch.count_tokens):
            decoding.generate(self._model, batch, self._pad_id, config)

    def _next_tokens(self, ids: list[int], k: int, stop: Stop) -> tuple[Token, ...]:
        self._suit(1)
        return probabilities.next_tokens(self._model, self._tokenizer, ids, k, stop.check)

    def _scored(self, ids: list[int], continuation: list[int], stop: Stop) -> tuple[Token, ...]:
        self._suit(1)
        return probabilities.score(self._model, self._tokenizer, ids, continuation, stop.check)

    def _suit(self, rows: int) -> None:
        if self._model.device.type == "cpu":
            suit_threads(self._parameters * rows)

    def _free(self) -> None:
        if self._placement is not None:
            self._placement.free()
        free_tensors(self._model)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # Not verbose: a prompt that is too long is refused with both numbers.
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _templated(self, turns: Sequence[Message]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True
            )
        )

    @property
    def _beginning(self) -> int | None:
        found: int | None = self._tokenizer.bos_token_id
        return found

    @property
    def _temperature(self) -> float:
        own = self._model.generation_config
        return float(own.temperature or 1.0) if own.do_sample else 0.0

    def _continued(self, text: str, chat: bool, ids: list[int], continuation: str) -> list[int]:
        if self._model.config.is_encoder_decoder:  # the decoder's text begins anew
            return self._encode(continuation, special=False)
        return super()._continued(text, chat, ids, continuation)

    def _room(self, prompt_tokens: int) -> int:
        if self._model.config.is_encoder_decoder:
            return self.info.context_tokens or _FALLBACK_ROOM_TOKENS
        return super()._room(prompt_tokens)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every token that ends a text: the generation config's and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ids = own if isinstance(own, list) else [own]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _pad_id(tokenizer: Any, eos_ids: frozenset[int]) -> int:
    """Return what fills prompts up; masked out, so any token serves where none is meant for it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if token is not None:
            return int(token)
    return min(eos_ids, default=0)


def context_tokens(config: Any, tokenizer: Any = None) -> int | None:
    """Return the most tokens a model's config, else its tokenizer, allows; None if unbounded."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"):
        found = getattr(text, name, None)
        if isinstance(found, int) and found > 0:
            return found
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _UNBOUNDED_TOKENS else None


def _parallel(parameters: int) -> int:
    """Choose a batch size: small models gain from large batches, large ones fill the machine sooner."""
    return 128 if parameters < 100e6 else 32 if parameters < 3e9 else 16


def free_tensors(model: Any) -> None:
    """Give back the memory of every parameter and buffer, though the module may live on.

    A notebook keeps modules alive in tracebacks and ``Out``; what they hold is empty afterwards.
    """
    tensors = tensors_of(model)
    for tensor in tensors:
        tensor.grad = None
    freed = empty([*tensors, *_aliases(model, tensors)])
    if freed > _SMALL_BYTES:  # half a second in a large process; one that slept has nothing to find
        gc.collect()
    release_cached()


def _aliases(model: Any, tensors: Sequence[Any]) -> list[Any]:
    """Return tensors that modules and parameters have as plain attributes, as quantized layers do."""
    import torch

    owners = [*model.modules(), *tensors]
    owners += [vars(one)["quant_state"] for one in tensors if "quant_state" in vars(one)]
    found = [
        value for owner in owners if hasattr(owner, "__dict__") for value in vars(owner).values()
    ]
    return [value for value in found if type(value) is torch.Tensor]
