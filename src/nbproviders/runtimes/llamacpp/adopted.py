"""A ``llama_cpp.Llama`` that somebody else made, as a `Model`."""

from __future__ import annotations

from typing import Any

from nbproviders.errors import ClosedError, ProviderError
from nbproviders.runtimes.llamacpp import devices
from nbproviders.runtimes.llamacpp.context import CELL_STEP, Settings
from nbproviders.runtimes.llamacpp.model import LlamaCppModel, Loaded
from nbproviders.runtimes.llamacpp.native import library
from nbproviders.runtimes.llamacpp.scheduler import Limits
from nbproviders.runtimes.threads import Worker

_SEQUENCES = 8


def adopt(llama: Any, worker: Worker, spec: str = "") -> LlamaCppModel:
    """Return a model over the weights of a ``Llama``, with a context of its own.

    The object's own context stays its owner's: whoever uses both disturbs neither. Closing the model closes
    the object, and makes any later call of it an error instead of the end of the process.

    Raises
    ------
    ProviderError
        If it is closed already, or holds a vocabulary alone.
    """
    native = library()
    pointer = getattr(getattr(llama, "_model", None), "model", None)
    context = getattr(llama, "_ctx", None)
    hollow = bool(getattr(getattr(llama, "model_params", None), "vocab_only", False))
    if not pointer or hollow or context is None or not getattr(context, "ctx", None):
        raise ProviderError(
            f"The llama_cpp.Llama of {spec or 'this provider'} has no model in it.",
            hint="Return one that is open, and not made with vocab_only=True.",
        )
    given = llama.context_params
    n_ctx = int(native.llama_n_ctx_seq(context.ctx))
    settings = Settings(
        n_ctx=n_ctx,
        n_batch=min(int(given.n_batch) or 512, 2048),
        n_threads=int(given.n_threads) or devices.cores(),
        flash_attn=None if given.flash_attn_type < 0 else bool(given.flash_attn_type),
        short_heads=False,
        type_k=int(given.type_k),
        type_v=int(given.type_v),
        offload=devices.offloads() and llama.model_params.n_gpu_layers != 0,
    )
    rounded = -(-n_ctx // CELL_STEP) * CELL_STEP
    metadata = dict(getattr(llama, "metadata", None) or {})
    loaded = Loaded(
        pointer=pointer,
        free=lambda: _close(llama),
        parameters=int(native.llama_model_n_params(pointer)),
        memory_bytes={"cpu": int(native.llama_model_size(pointer))},
        template=str(metadata.get("tokenizer.chat_template", "")),
        raw=llama,
    )
    limits = Limits(rounded, min(_SEQUENCES, settings.n_batch), n_ctx, settings.n_batch)
    model = LlamaCppModel(loaded, worker, settings, limits, spec=spec)
    model.warm_up()
    return model


def _close(llama: Any) -> None:
    """Close it for good: native code behind a closed object ends the process at the next call."""
    llama.close()
    llama.__class__ = _closed_class()


def _closed_class() -> type:
    """Return the class of a closed ``Llama``: any use of it is our error."""
    import llama_cpp

    class ClosedLlama(llama_cpp.Llama):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("__"):
                return object.__getattribute__(self, name)
            raise ClosedError(
                f"This llama_cpp.Llama was closed with its model ({name!r} was asked of it).",
                hint="Open the model again, and call its own methods.",
            )

        def __call__(self, *_: Any, **__: Any) -> Any:
            return self.create_completion  # raises

        def __del__(self) -> None:
            """Nothing is left to close."""

    return ClosedLlama
