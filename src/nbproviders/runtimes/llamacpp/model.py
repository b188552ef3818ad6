"""A GGUF model in memory, as a `Model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nbproviders.core.model import ModelInfo
from nbproviders.core.params import Message
from nbproviders.core.tokens import Token
from nbproviders.runtimes.batching import Ticket
from nbproviders.runtimes.llamacpp.chat import Template
from nbproviders.runtimes.llamacpp.choosing import logprobs
from nbproviders.runtimes.llamacpp.context import Aborted, Context, Settings
from nbproviders.runtimes.llamacpp.devices import our_name
from nbproviders.runtimes.llamacpp.native import Abort
from nbproviders.runtimes.llamacpp.pace import Pace
from nbproviders.runtimes.llamacpp.scheduler import Limits, Scheduler
from nbproviders.runtimes.llamacpp.vocabulary import Vocabulary
from nbproviders.runtimes.local import LocalModel, Stop
from nbproviders.runtimes.rows import Row
from nbproviders.runtimes.threads import Worker

_LOGITS_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loaded weights, and what their file tells.

    Attributes
    ----------
    pointer
        The model, for llama.cpp.
    free
        Frees it; called once, on the model's thread.
    parameters
        How many weights there are.
    memory_bytes
        What they take on each device.
    exact
        Whether weights and cache are float32 on a CPU, where a text is the same in any batch.
    template
        The file's chat template; empty if it has none.
    temperature
        What the file recommends for sampling; 0 is greedy.
    notes
        What a person should know of the load.
    raw
        The object to hand out; None if there is none but the model itself.
    """

    pointer: Any
    free: Callable[[], object]
    parameters: int
    memory_bytes: dict[str, int]
    exact: bool = False
    template: str = ""
    temperature: float = 0.0
    notes: tuple[str, ...] = ()
    raw: object = None


class LlamaCppModel(LocalModel):
    """Generates on one persistent thread; concurrent requests share evaluations and beginnings.

    Parameters
    ----------
    loaded
        The weights.
    worker
        The thread that they were loaded on.
    settings
        How contexts are made.
    limits
        How large they may become.
    chat_format
        A template of llama.cpp's by name, instead of the file's.
    spec
        Its reference.
    """

    _too_long = "Shorten the prompt, or open the model with a larger n_ctx."

    def __init__(
        self,
        loaded: Loaded,
        worker: Worker,
        settings: Settings,
        limits: Limits,
        *,
        chat_format: str | None = None,
        spec: str = "",
    ) -> None:
        self._loaded, self._settings, self._limits = loaded, settings, limits
        self._vocabulary = words = Vocabulary(loaded.pointer)
        begin = "" if words.beginning is None else words.shown(words.beginning)
        end = "" if words.end is None else words.shown(words.end)
        self._template = Template(loaded.template, chat_format, begin, end)
        self._abort = Abort()
        self._scheduler = Scheduler(
            limits=limits,
            make=self._make_context,
            decode=words.decode,
            shown=words.shown,
            eos_ids=words.eos_ids,
            pace=Pace(settings.n_threads),
            parameters=loaded.parameters,
            invariant=loaded.exact,
            abort=self._abort,
        )
        super().__init__(worker, limits.sequences)
        can = {"next_tokens", "score", "logprobs"} | ({"chat"} if self._template else set())
        self.info = ModelInfo(
            spec=spec,
            parallel=limits.sequences,
            memory_bytes=dict(loaded.memory_bytes),
            context_tokens=limits.n_ctx,
            can=frozenset(can),
            notes=loaded.notes,
        )

    @property
    def raw(self) -> object:
        """The ``llama_cpp.Llama`` this was made of, if there was one; else this model.

        Weights that were loaded here have no such object: called after they are freed, it would end the
        process.
        """
        return self._loaded.raw or self

    def _hurry(self) -> None:
        self._abort.set()

    # On the worker's thread from here on

    def warm_up(self, more_bytes: int = 0) -> None:
        """Evaluate one token in a whole context, so that what is wrong fails the load; measure it.

        Parameters
        ----------
        more_bytes
            How much larger than that the cache may become.
        """
        begin = self._vocabulary.beginning or 0
        for _ in self._logits([begin], 1, Stop(), need=self._limits.n_ctx):
            pass
        taken = dict(self._loaded.memory_bytes)
        assert self._scheduler.context is not None
        for name, size in self._scheduler.context.bytes.items():
            device = our_name(name)
            taken[device] = taken.get(device, 0) + size
        largest = max(taken, key=lambda device: taken[device])
        taken[largest] += max(more_bytes, 0)
        self.info = replace(self.info, memory_bytes=taken)

    def free(self) -> None:
        """Free context and weights; called once, on the model's thread."""
        self._scheduler.close()
        self._loaded.free()

    def _free(self) -> None:
        self.free()

    def _make_context(self, sequences: int, cells: int) -> Context:
        size = self._vocabulary.size
        return Context(self._loaded.pointer, size, self._settings, sequences, cells, self._abort)

    def _compute(self, rows: list[Row], taken: list[Ticket]) -> None:
        def more(room: int) -> list[Row]:
            return [] if self._others_wait else self._rows(self._batcher.take(room), taken)

        self._scheduler.run(rows, more)

    def _generate(self, rows: list[Row]) -> None:
        self._scheduler.run(rows, lambda _: ())

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return self._vocabulary.encode(text, special=special)

    def _templated(self, turns: Sequence[Message]) -> str:
        return self._template.render(turns, self.info.spec)

    @property
    def _beginning(self) -> int | None:
        return self._vocabulary.beginning

    @property
    def _temperature(self) -> float:
        return self._loaded.temperature

    def _next_tokens(self, ids: list[int], k: int, stop: Stop) -> tuple[Token, ...]:
        for logits in self._logits(ids, 1, stop):
            found = logprobs(logits)
        best = (-found).argsort(kind="stable")[:k].tolist()
        return tuple(Token(self._vocabulary.shown(i), i, float(found[i])) for i in best)

    def _scored(self, ids: list[int], continuation: list[int], stop: Stop) -> tuple[Token, ...]:
        rows = self._logits([*ids, *continuation[:-1]], len(continuation), stop)
        return tuple(
            Token(self._vocabulary.shown(i), i, float(logprobs(logits)[i]))
            for i, logits in zip(continuation, rows, strict=True)
        )

    def _logits(self, ids: Sequence[int], keep: int, stop: Stop, need: int = 0) -> Iterator[Any]:
        """Give the logits of the last `keep` tokens one by one, ``(vocabulary,) float32``."""
        context = self._scheduler.context_for([max(len(ids) + 1, need)], alone=True)
        context.keep(0, 0)  # as if nothing had been asked before
        step = self._limits.n_batch
        if keep > 1:  # llama.cpp keeps all wanted logits of one evaluation
            step = max(min(step, _LOGITS_BYTES // (4 * self._vocabulary.size)), 1)
        first = len(ids) - keep  # whose logits are to be given next
        while (begin := len(context.known[0])) < len(ids):
            self._abort.clear()
            stop.check()
            chunk = ids[begin : begin + step]
            places = [(0, begin + i) for i in range(len(chunk))]
            outputs = range(max(first - begin, 0), len(chunk))
            try:
                found = self._scheduler.evaluate(context, chunk, places, outputs)
            except Aborted:  # by whoever is gone: seen at the check, or another that ended before
                continue
            first = max(first, begin + len(chunk))
            yield from found
