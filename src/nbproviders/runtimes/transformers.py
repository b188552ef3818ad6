"""A loaded transformers model and its tokenizer, as a `Model`."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nbproviders.core.completion import Finish, Usage
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.core.tokens import Score, Token
from nbproviders.errors import (
    ClosedError,
    InvalidRequestError,
    ProviderError,
    foreign,
    fresh,
    mapped,
)
from nbproviders.runtimes import decoding, probabilities
from nbproviders.runtimes.batching import Batcher, Ticket
from nbproviders.runtimes.devices import release_cached, suit_threads
from nbproviders.runtimes.rows import Row, continuation_ids, effective
from nbproviders.runtimes.threads import Worker

T = TypeVar("T")

_UNBOUNDED_TOKENS = 1_000_000  # tokenizers say 1e30 for "no limit"
_FALLBACK_ROOM_TOKENS = 512


class TransformersModel(Model):
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

        self._model, self._tokenizer, self._worker = model.eval(), tokenizer, worker
        self._eos_ids = _eos_ids(model, tokenizer)
        self._pad_id = _pad_id(tokenizer, self._eos_ids)
        self._context_tokens = context_tokens(model.config, tokenizer)
        own = model.generation_config
        self._temperature = float(own.temperature or 1.0) if own.do_sample else 0.0
        # Padding and batch size change float sums; only float32 on a CPU gave equal texts throughout.
        self._exact = model.dtype is torch.float32 and model.device.type == "cpu"
        self._parameters = sum(p.numel() for p in model.parameters())
        limit = parallel or _parallel(self._parameters)
        self._batcher = Batcher(worker, self._run_batch, limit)
        self._closed = False
        can = {"next_tokens", "score", "logprobs"}
        if getattr(tokenizer, "chat_template", None):
            can.add("chat")
        self.info = ModelInfo(
            spec=spec or str(getattr(model, "name_or_path", "") or type(model).__name__),
            parallel=limit,
            memory_bytes=tensor_bytes(model),
            context_tokens=self._context_tokens,
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

    def stream(self, request: str | Messages | Request) -> Stream:
        """Generate; requests made together are computed together."""
        asked = as_request(request)
        return Stream(self._batcher.read(asked), asked, self.info.spec)

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        """Return the most likely next tokens, from one pass over the prompt."""
        return await self._told(self._next_tokens, request, k)

    async def score(self, request: Request, continuation: str) -> Score:
        """Return how likely a continuation is, from one pass over both."""
        return await self._told(self._score, request, continuation)

    async def _told(self, function: Callable[..., T], *arguments: Any) -> T:
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise ClosedError("Nobody waits for it any more.")

        return await self._worker.run_to_end(function, *arguments, check, on_cancel=stop.set)

    async def aclose(self) -> None:
        """Free the weights for real, whoever still holds the module, and end the thread."""
        if self._closed:
            return
        self._closed = True
        await self._worker.run(free_tensors, self._model)
        await self._worker.close()

    # On the worker's thread from here on

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

    def _next_tokens(
        self, request: Request, k: int, check: Callable[[], None]
    ) -> tuple[Token, ...]:
        ids, _ = self._encode(request)
        self._room(len(ids))
        self._suit(1)
        return probabilities.next_tokens(self._model, self._tokenizer, ids, k, check)

    def _score(self, request: Request, continuation: str, check: Callable[[], None]) -> Score:
        text, chat = self._rendered(request)
        ids = self._ids(text, chat)
        if self._model.config.is_encoder_decoder:
            more = self._ids(continuation, chat=True)  # the decoder's text begins anew
        else:
            more = continuation_ids(lambda t: self._raw_ids(t, chat), text, ids, continuation)
            self._room(len(ids) + len(more) - 1)
        self._suit(1)
        tokens = probabilities.score(self._model, self._tokenizer, ids, more, check)
        return Score(tokens, self.info.spec, len(ids))

    def _suit(self, rows: int) -> None:
        if self._model.device.type == "cpu":
            suit_threads(self._parameters * rows)

    def _run_batch(self, tickets: Sequence[Ticket]) -> None:
        try:
            rows = [row for ticket in tickets if (row := self._row(ticket)) is not None]
            if rows:
                self._generate(rows)
        except BaseException as error:  # whatever it is, each request must be told
            told = error if isinstance(error, ProviderError) else None
            for ticket in tickets:
                failure = told or ProviderError(f"{self.info.spec} failed: {foreign(error)}")
                failure.__cause__ = failure.__cause__ or foreign(error)
                ticket.fail(fresh(failure))

    def _generate(self, rows: list[Row]) -> None:
        self._suit(len(rows))
        invariant = self._exact or rows[0].ticket.request.alone
        batch = decoding.Batch(rows, self._tokenizer, self._eos_ids, invariant)
        config = decoding.plain_config(self._model, self._pad_id, self._eos_ids)
        with mapped(self.info.spec):
            decoding.generate(self._model, batch, self._pad_id, config)

    def _row(self, ticket: Ticket) -> Row | None:
        """Return a request ready to run; None if it was cancelled or cannot be run."""
        if ticket.cancelled:
            ticket.end("", Finish("cancelled", Usage()))
            return None
        try:
            with mapped(self.info.spec):
                ids, chat = self._encode(ticket.request)
                room = self._room(len(ids))
        except ProviderError as error:
            ticket.fail(fresh(error))
            return None
        params = effective(ticket.request.params, self._temperature, room)
        return Row(ticket, ids, params, chat)

    def _encode(self, request: Request) -> tuple[list[int], bool]:
        text, chat = self._rendered(request)
        return self._ids(text, chat), chat

    def _ids(self, text: str, chat: bool) -> list[int]:
        return self._raw_ids(text, chat) or self._beginning()

    def _raw_ids(self, text: str, chat: bool) -> list[int]:
        # Not verbose: a prompt that is too long is refused below, with both numbers.
        return list(self._tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"])

    def _rendered(self, request: Request) -> tuple[str, bool]:
        """Return the prompt's text, and whether it went through the chat template."""
        template = getattr(self._tokenizer, "chat_template", None)
        prompt = request.prompt
        if isinstance(prompt, str) and (not template or request.chat is False):
            return prompt, False
        if not template:
            raise InvalidRequestError(
                f"{self.info.spec} has no chat template, so it cannot take messages.",
                hint="Give plain text instead: m.generate(text).",
            )
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        ), True

    def _beginning(self) -> list[int]:
        """What an empty text stands for: the beginning token alone."""
        begin = self._tokenizer.bos_token_id
        if begin is None:
            raise InvalidRequestError(
                f"{self.info.spec} has no beginning token, so an empty prompt says nothing to it.",
                hint="Give it some text.",
            )
        return [begin]

    def _room(self, prompt_tokens: int) -> int:
        if self._model.config.is_encoder_decoder:
            return self._context_tokens or _FALLBACK_ROOM_TOKENS
        if self._context_tokens is None:
            return _FALLBACK_ROOM_TOKENS
        if prompt_tokens >= self._context_tokens:
            raise InvalidRequestError(
                f"The prompt has {prompt_tokens} tokens; {self.info.spec} has a context of "
                f"{self._context_tokens}, and at least one must stay free for the answer.",
                hint="Shorten the prompt, or choose a model with a longer context.",
            )
        return self._context_tokens - prompt_tokens


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


def tensor_bytes(model: Any) -> dict[str, int]:
    """Return bytes of parameters and buffers on each device, shared storage counted once."""
    seen: set[tuple[str, int]] = set()
    total: dict[str, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        place = (str(tensor.device), storage.data_ptr())
        if place in seen and place[1]:
            continue
        seen.add(place)
        device = "cpu" if tensor.device.type == "cpu" else str(tensor.device)
        total[device] = total.get(device, 0) + tensor.numel() * tensor.element_size()
    return total


def free_tensors(model: Any) -> None:
    """Give back the memory of every parameter and buffer, though the module may live on.

    A notebook keeps modules alive in tracebacks and ``Out``; what they hold is empty afterwards.
    """
    import torch

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            tensor.grad = None
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            if storage.resizable():
                storage.resize_(0)
    gc.collect()
    release_cached()
