"""A llama.cpp context: sequences of equal size, what each remembers, and one evaluation at a time."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbproviders.errors import ProviderError
from nbproviders.runtimes.llamacpp.native import Abort, library, new_context

if TYPE_CHECKING:
    import numpy as np

CELL_STEP = 256  # llama.cpp rounds a sequence's cells up to this
_BUFFER = re.compile(r"(\S+)\s+(KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")


class Aborted(Exception):
    """An evaluation was stopped by its `Abort`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How contexts of a model are made.

    Attributes
    ----------
    n_ctx
        Most tokens of one sequence.
    n_batch
        Most tokens of one evaluation.
    n_threads
        Cores to compute with.
    flash_attn
        Flash attention; None leaves it to llama.cpp, which takes it wherever it can.
    short_heads
        Whether a single sequence is faster without.
    type_k, type_v
        ggml types of the cached keys and values.
    offload
        Whether layers are on a GPU.
    """

    n_ctx: int
    n_batch: int
    n_threads: int
    flash_attn: bool | None
    short_heads: bool
    type_k: int
    type_v: int
    offload: bool

    def flash(self, sequences: int) -> bool | None:
        """Return whether a context of so many uses flash attention; None leaves it to llama.cpp."""
        if self.flash_attn is None and self.short_heads and sequences == 1:
            return False
        return self.flash_attn


class Context:
    """Some sequences with their cached keys and values.

    Parameters
    ----------
    model
        Pointer to the model.
    vocabulary_size
        Logits of each output.
    settings
        How it computes.
    sequences, cells
        How many, and how many tokens each can hold.
    abort
        Stops an evaluation.

    Attributes
    ----------
    known
        For each sequence, the tokens whose keys and values are cached.
    as_alone
        Whether it computes exactly as one of a single sequence would.
    bytes
        What llama.cpp said it allocated, by its names of devices.
    """

    def __init__(
        self,
        model: Any,
        vocabulary_size: int,
        settings: Settings,
        sequences: int,
        cells: int,
        abort: Abort,
    ) -> None:
        self._native = library()
        self.sequences, self.cells = sequences, cells
        params = _params(self._native, settings, sequences, cells)
        self._pointer, lines = new_context(model, params)
        self.bytes = _allocated(lines)
        self.as_alone = settings.flash(sequences) is settings.flash(1)
        self._abort = abort  # native code reads it as long as there is a context
        abort.watch(self._pointer)
        self._memory = self._native.llama_get_memory(self._pointer)
        self._size = vocabulary_size
        self._batch = _Batch(self._native, settings.n_batch)
        self._threads = settings.n_threads
        self.known: list[list[int]] = [[] for _ in range(sequences)]

    def use_threads(self, count: int) -> None:
        """Compute with so many cores from now on."""
        if count != self._threads:
            self._threads = count
            self._native.llama_set_n_threads(self._pointer, count, count)

    def evaluate(
        self, tokens: Sequence[int], places: Sequence[tuple[int, int]], outputs: Sequence[int]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Evaluate tokens of any sequences together.

        Parameters
        ----------
        tokens
            At most ``n_batch``, those of one sequence in their order.
        places
            ``(sequence, position)`` of each.
        outputs
            Places in `tokens` whose logits are wanted.

        Returns
        -------
        numpy.ndarray
            ``(outputs, vocabulary) float32``; overwritten by the next evaluation.

        Raises
        ------
        Aborted
            If it was stopped; nothing of it is remembered.
        ProviderError
            If llama.cpp cannot.
        """
        import numpy as np

        self._batch.fill(tokens, places, outputs)
        code = self._native.llama_decode(self._pointer, self._batch.struct)
        if code:
            self._forget_rest({sequence for sequence, _ in places})
            if code == 2:
                raise Aborted
            raise ProviderError(f"llama.cpp could not evaluate {len(tokens)} tokens (code {code}).")
        for token, (sequence, _) in zip(tokens, places, strict=True):
            self.known[sequence].append(token)
        if not outputs:
            return np.empty((0, self._size), np.float32)
        found = self._native.llama_get_logits(self._pointer)
        return np.ctypeslib.as_array(found, shape=(len(outputs), self._size))

    def _forget_rest(self, sequences: set[int]) -> None:
        for sequence in sequences:
            self.keep(sequence, len(self.known[sequence]))

    def keep(self, sequence: int, count: int) -> int:
        """Forget all but the first tokens of a sequence; return how many are left.

        A recurrent model cannot go back: it forgets all.
        """
        if self._native.llama_memory_seq_rm(self._memory, sequence, count, -1):
            del self.known[sequence][count:]
        else:
            self._native.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self.known[sequence].clear()
        return len(self.known[sequence])

    def copy(self, source: int, target: int, count: int) -> int:
        """Have a sequence remember the first tokens of another; return how many it does."""
        if not count:
            return self.keep(target, 0)
        self._native.llama_memory_seq_rm(self._memory, target, -1, -1)
        # All of it: between sequences with cells of their own, llama.cpp copies nothing less.
        self._native.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.known[target] = list(self.known[source])
        return self.keep(target, count)

    def close(self) -> None:
        """Free it; a second time does nothing."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._native.llama_free(pointer)


def _params(native: Any, settings: Settings, sequences: int, cells: int) -> Any:
    params = native.llama_context_default_params()
    params.n_ctx = sequences * cells
    params.n_batch = params.n_ubatch = settings.n_batch
    params.n_seq_max = sequences
    params.kv_unified = False  # each has cells of its own: attention then sees no others'
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.type_k, params.type_v = settings.type_k, settings.type_v
    params.no_perf = True
    params.offload_kqv = settings.offload
    flash = settings.flash(sequences)
    params.flash_attn_type = -1 if flash is None else int(flash)
    return params


def _allocated(lines: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for device, _, size in _BUFFER.findall("".join(lines)):
        found[device] = found.get(device, 0) + round(float(size) * 2**20)
    return found


class _Batch:
    """The arrays that ``llama_decode`` reads, filled anew for each evaluation."""

    def __init__(self, native: Any, size: int) -> None:
        import numpy as np

        self.token = np.zeros(size, np.int32)
        self.position = np.zeros(size, np.int32)
        self.sequence = np.zeros(size, np.int32)
        self.output = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        # For each token a pointer to its sequence's number: one list of one.
        self._pointers: Any = self.sequence.ctypes.data + np.arange(size, dtype=np.uintp) * 4
        self.struct = native.llama_batch()
        fields: dict[str, Any] = {
            "token": self.token,
            "pos": self.position,
            "n_seq_id": self._ones,
            "seq_id": self._pointers,
            "logits": self.output,
        }
        types = dict(type(self.struct)._fields_)
        for name, array in fields.items():
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, types[name]))

    def fill(
        self, tokens: Sequence[int], places: Sequence[tuple[int, int]], outputs: Sequence[int]
    ) -> None:
        count = len(tokens)
        self.token[:count] = tokens
        self.sequence[:count] = [sequence for sequence, _ in places]
        self.position[:count] = [position for _, position in places]
        self.output[:count] = 0
        self.output[list(outputs)] = 1
        self.struct.n_tokens = count
