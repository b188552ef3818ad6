"""`transformers-serve`: the server that comes with transformers, started here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.core.spec import ResourceKey
from nbproviders.providers.servers import ServerProvider
from nbproviders.providers.transformers import meant
from nbproviders.runtimes import checkpoints


class TransformersServeProvider(ServerProvider):
    """Starts ``transformers serve``. It knows no keys, so it stands behind a door of ours that does.

    Parameters
    ----------
    **defaults
        Options for every model of this provider.
    """

    name = "transformers-serve"
    program = ("-m", "transformers.cli.transformers", "serve")
    packages = ("transformers", "torch", "fastapi", "uvicorn")
    extra = "transformers-serve"
    probe = "/health"
    gate = True
    can = frozenset({"chat", "proxy"})
    options: ClassVar[dict[str, Option]] = {
        **ServerProvider.options,
        "device": Option((str,), "auto", "cpu, cuda:0 …, or auto: the best there is."),
        "dtype": Option((str,), "auto", "auto (the checkpoint's), float32, bfloat16 …"),
        "quantization": Option((str,), None, "bnb-4bit or bnb-8bit."),
        "attn_implementation": Option((str,), None, "sdpa, eager, flash_attention_2 …"),
        "continuous_batching": Option((bool,), False, "Compute requests together; for GPUs."),
        "trust_remote_code": Option((bool,), False, "Run code that comes with the model."),
    }

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        key, watched = super()._key(meant(model), values)
        folder = checkpoints.folder_of(key.model, None)
        if values["base_url"] or folder is None or not folder.is_dir():
            return key, watched
        revision = checkpoints.revision_of(folder)
        placed = str(folder.resolve()) if checkpoints.is_local(key.model) else key.model
        return (
            ResourceKey(key.origin, placed, key.options, revision, key.values),
            checkpoints.watched(folder),
        )

    def _arguments(self, model: str, values: Mapping[str, Any], port: int) -> Sequence[str]:
        told = [model, "--host", "127.0.0.1", "--port", str(port)]
        for name in ("device", "dtype", "quantization", "attn_implementation"):
            if values[name] is not None:
                told += [f"--{name.replace('_', '-')}", str(values[name])]
        for name in ("continuous_batching", "trust_remote_code"):
            if values[name]:
                told.append(f"--{name.replace('_', '-')}")
        return told
