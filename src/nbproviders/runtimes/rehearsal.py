"""A model's computing, rehearsed without memory: what would live at once, by storages born and gone.

The model is built of fake tensors of torch, which have shapes and devices and no bytes. They choose kernels
that a CPU would; on the meta device, attention falls back to the whole matrix of scores, which real kernels
do not keep.
"""

from __future__ import annotations

import inspect
import logging
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbproviders.errors import InsufficientMemoryError, ProviderError, UnsupportedError, mapped
from nbproviders.runtimes.decoding import PREFILL_CHUNK_TOKENS, plain_config

if TYPE_CHECKING:
    import torch

_FLASH_COLUMNS = 512
_FAKE_LOG = "torch._subclasses.fake_tensor"


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes of the cache with a full context, and of all that lives beside it and the weights at the peak."""

    cache_bytes: int
    workspace_bytes: int


class TooLongError(ProviderError):
    """The rehearsal would take longer than what it tells is worth."""


class Live:
    """Counts the bytes of storages between their birth and their end.

    Parameters
    ----------
    known
        Tensors that are there before, and not counted.
    most_operations
        After so many it gives up.
    """

    def __init__(self, known: list[Any], most_operations: int) -> None:
        import torch
        from torch._subclasses import fake_tensor

        # Kept: another storage could get the same address.
        self._known = {s._cdata: s for s in (tensor.untyped_storage() for tensor in known)}
        self._living: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._left = most_operations
        self._tensor = torch.Tensor
        self._values_asked = fake_tensor.DataDependentOutputException
        self._shape_asked = fake_tensor.DynamicOutputShapeException
        self._stand_ins = _stand_ins()
        self.now_bytes = 0
        self.peak_bytes = 0

    def run(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run one of torch's operations, and count what it returns.

        Raises
        ------
        TooLongError
            After too many of them.
        """
        self._left -= 1
        if self._left < 0:
            raise TooLongError("The model computes in too many steps to rehearse them.")
        stand_in = self._stand_ins.get(function)
        try:
            made = (
                stand_in(self, *arguments, **named) if stand_in else function(*arguments, **named)
            )
        except self._values_asked:  # is no token masked, is every row done? In a single row, yes
            return True
        except self._shape_asked:
            made = _most_places(function, arguments)
        if isinstance(made, self._tensor):
            self.see(made)
        elif isinstance(made, tuple | list):
            for tensor in made:
                if isinstance(tensor, self._tensor):
                    self.see(tensor)
        return made

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known or place in self._living:
            return
        count = storage.nbytes()
        self._living[place] = count, weakref.ref(storage, lambda _: self._gone(place))
        self.now_bytes += count
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def _gone(self, place: int) -> None:
        self.now_bytes -= self._living.pop(place)[0]

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        self.peak_bytes = self.now_bytes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See every operation of this thread."""
        from torch.utils._python_dispatch import TorchDispatchMode

        run = self.run

        class Watching(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                return run(func, args, kwargs or {})

        with Watching():  # type: ignore[no-untyped-call]
            yield


def _most_places(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the places of what is not zero as if nothing were: the most there can be."""
    import torch

    if function is not torch.ops.aten.nonzero.default:
        raise UnsupportedError(f"{function} makes as much as its input's values say.")
    asked = arguments[0]
    return asked.new_empty((asked.numel(), asked.dim()), dtype=torch.long)


def _stand_ins() -> Mapping[Any, Callable[..., Any]]:
    """Return what stands in for operations whose fake form is wrong, or hides what the real one takes."""
    import torch

    aten = torch.ops.aten
    return {
        aten._safe_softmax.default: _safe_softmax,
        aten._grouped_mm.default: _grouped_mm,
        aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention,
    }


def _safe_softmax(live: Live, scores: Any, dim: int, dtype: Any = None) -> Any:
    """As ATen's: which scores are masked is looked at after the softmax, beside both."""
    import torch

    made = torch.softmax(scores, dim, dtype=dtype)
    live.see(made)
    live.see(scores.eq(-float("inf")))
    return made


def _grouped_mm(live: Live, rows: Any, experts: Any, *_: Any, **__: Any) -> Any:
    """The fake one takes bfloat16 only; a CPU computes in float32 too."""
    return rows.new_empty((*rows.shape[:-1], experts.shape[-1]))


def _flash_attention(live: Live, query: Any, *rest: Any, **named: Any) -> Any:
    """As ATen's for a CPU (``cpu_flash_attention``), with what each of its threads computes in."""
    import torch

    aten = torch.ops.aten
    made = aten._scaled_dot_product_flash_attention_for_cpu.default(query, *rest, **named)
    live.see(made[0])
    length, wide = query.shape[-2:]
    rows = min(256 if length >= 768 else 64 if length >= 192 else 32, length)
    scores = rows * min(_FLASH_COLUMNS, rest[0].shape[-2])
    own_bytes = 4 * (scores + 2 * rows + rows * wide)
    if query.itemsize < 4:  # the scores once more, rounded
        own_bytes += query.itemsize * scores
    live.see(query.new_empty(torch.get_num_threads() * own_bytes, dtype=torch.uint8))
    return made


# The model


@contextmanager
def faked() -> Iterator[None]:
    """Have tensors made on this thread be fake, as if on a CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logging.getLogger(_FAKE_LOG).addFilter(_quiet)
    with FakeTensorMode():
        yield


def _quiet(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("failed while attempting to run meta")


def build(config: Any, model_class: str, dtype: str, trusted: bool = False) -> Any:
    """Return a model without memory, in the dtypes it would be loaded in; call it within `faked`.

    Let no model load meanwhile: transformers changes torch's default dtype, for the whole process.
    """
    import torch
    import transformers

    maker = getattr(transformers, model_class)
    model = maker.from_config(config, dtype=dtype, trust_remote_code=trusted).eval()
    # As transformers loads them (`build_glob_alternation`): some weights stay in float32.
    kept = [name.replace("*", ".*") for name in model._get_dtype_plan(getattr(torch, dtype))]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and any(re.search(one, name) for one in kept):
            tensor.data = tensor.data.float()
    return model


def rehearse(model: Any, tokens: int, most_operations: int) -> Taken:
    """Return what one text of so many tokens takes, as `decoding` computes it; call it within `faked`.

    Parameters
    ----------
    model
        Of `build`.
    tokens
        Of the text; of a seq2seq model, of the prompt and again of the answer.
    most_operations
        After so many it gives up.

    Raises
    ------
    TooLongError
        Then.
    """
    import torch

    def watched(part: Callable[[Any, int, Live], Taken]) -> Taken:
        live = Live([*model.parameters(), *model.buffers()], most_operations)
        # Not inference_mode: in there, operations that are made of others are not taken apart.
        with torch.no_grad(), live.watching():
            return part(model, tokens, live)

    if model.config.is_encoder_decoder:
        return watched(_answered)
    if takes_cache(model):
        try:
            with mapped("rehearsal"):
                return watched(_continued)
        except (TooLongError, InsufficientMemoryError):
            raise
        except ProviderError:  # it takes no cache but its own
            pass
    return watched(_begun)


def takes_cache(model: Any) -> bool:
    """Whether a prompt can be computed in chunks, which continue a cache."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def _continued(model: Any, tokens: int, live: Live) -> Taken:
    """The last chunks of a prefill, with a cache that was filled at one go."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    chunk = PREFILL_CHUNK_TOKENS
    filled = (tokens // chunk - 1) * chunk  # what is left is the last whole chunk, and the rest
    # A sliding window keeps the storage of the chunk before: there, that one has to have its real length.
    slides = any(getattr(layer, "is_sliding", False) for layer in cache.layers)
    given = {"past_key_values": cache, "use_cache": True}
    if model._supports_logits_to_keep():
        given["logits_to_keep"] = 1
    for begin, end in ((0, filled - chunk), (filled - chunk, filled)) if slides else ((0, filled),):
        if end > 0:
            model(ids[:, begin:end], **given)
    live.forget_peak()
    _generate(model, ids, past_key_values=cache)
    return _taken(live, cache)


def _begun(model: Any, tokens: int, live: Live) -> Taken:
    """A whole prompt at one go."""
    import torch

    ids = torch.zeros(1, tokens, dtype=torch.long)
    made = _generate(model, ids, whole=True)
    return _taken(live, getattr(made, "past_key_values", getattr(made, "cache_params", None)))


def _answered(model: Any, tokens: int, live: Live) -> Taken:
    """The encoder with a whole prompt; then the decoder with the last token of a whole answer."""
    import torch

    ids = torch.zeros(1, tokens, dtype=torch.long)
    # No mask: a single row is not padded, and transformers then leaves it out, which it asks real values for.
    given = {"encoder_outputs": model.get_encoder()(input_ids=ids), "use_cache": True}
    begun = _taken(live, model(decoder_input_ids=ids[:, :1], **given).past_key_values)
    cache = model(decoder_input_ids=ids[:, 1:], **given).past_key_values
    live.forget_peak()
    model(decoder_input_ids=ids[:, :1], past_key_values=cache, **given)
    ended = _taken(live, cache)
    peak = max(one.cache_bytes + one.workspace_bytes for one in (begun, ended))
    return Taken(ended.cache_bytes, peak - ended.cache_bytes)


def _generate(model: Any, ids: Any, whole: bool = False, **given: Any) -> Any:
    import torch

    config = plain_config(model, 0, frozenset())
    config.max_new_tokens, config.return_dict_in_generate = 1, True
    if not whole and ids.shape[1] > PREFILL_CHUNK_TOKENS:
        config.prefill_chunk_size = PREFILL_CHUNK_TOKENS
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        **given,
    )


def _taken(live: Live, cache: Any) -> Taken:
    count = _storage_bytes(_tensors(cache))
    return Taken(count, max(live.peak_bytes - count, 0))


def weights_bytes(model: Any) -> int:
    """Return bytes of parameters and buffers, each storage once."""
    return _storage_bytes([*model.parameters(), *model.buffers()])


def _storage_bytes(tensors: list[Any]) -> int:
    storages = {s._cdata: s for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(held: Any, depth: int = 6) -> list[Any]:
    """Return the tensors in a cache, of whatever class: in its attributes, lists and mappings."""
    import torch

    if isinstance(held, torch.Tensor):
        return [held]
    if isinstance(held, Mapping):
        parts = list(held.values())
    elif isinstance(held, list | tuple):
        parts = list(held)
    else:
        parts = list(getattr(held, "__dict__", {}).values())
    return [tensor for part in parts if depth for tensor in _tensors(part, depth - 1)]
