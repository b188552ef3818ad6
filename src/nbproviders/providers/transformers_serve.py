"""`transformers-serve`: the server that comes with transformers, started here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import ConfigurationError
from nbproviders.providers.servers import Placed, ServerProvider
from nbproviders.providers.speakers import Speaker, TransformersSpeaker
from nbproviders.providers.transformers import meant
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import checkpoints, hub

_QUANTIZATIONS = ("bnb-4bit", "bnb-8bit")


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
    requirement = ("transformers[serving]", "transformers-serve")
    speaker = TransformersSpeaker
    probe = "/health"
    gate = True
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
        if values["quantization"] not in (None, *_QUANTIZATIONS):
            raise ConfigurationError(
                f"quantization={values['quantization']!r} is not one of {', '.join(_QUANTIZATIONS)}.",
                hint="Other forms are for the provider transformers.",
            )
        folder = checkpoints.folder_of(key.model, None)
        if values["base_url"] or folder is None or not folder.is_dir():
            return key, watched
        revision = checkpoints.revision_of(folder)
        placed = str(folder.resolve()) if checkpoints.is_local(key.model) else key.model
        return (
            ResourceKey(key.origin, placed, key.options, revision, key.values),
            checkpoints.watched(folder),
        )

    def _placed(self, key: ResourceKey, progress: Progress) -> Placed:
        """Refuse early what is not there: the server tries an unreachable Hub until its time is over."""
        if not key.values["command"]:  # which may run where other models are
            progress.phase = "checking access"
            _require_access(key.model)
        return Placed(key.model)

    async def _context(self, placed: Placed, speaker: Speaker) -> int | None:
        """Return what the configuration says, which is here by now."""
        return await asyncio.to_thread(_trained, placed.model)

    def _arguments(self, placed: Placed, values: Mapping[str, Any], port: int) -> Sequence[str]:
        told = [placed.model, "--host", "127.0.0.1", "--port", str(port)]
        for name in ("device", "dtype", "quantization", "attn_implementation"):
            if values[name] is not None:
                told += [f"--{name.replace('_', '-')}", str(values[name])]
        for name in ("continuous_batching", "trust_remote_code"):
            if values[name]:
                told.append(f"--{name.replace('_', '-')}")
        return told


def _require_access(model: str) -> None:
    """Check what `transformers serve` is told to load: a folder, or a Hub id, perhaps with ``@revision``."""
    if model.endswith(".gguf"):  # ``repository:file``, which may be here without the rest
        return
    if not checkpoints.is_local(model):
        name, _, revision = model.partition("@")
        hub.require_access(name, revision, whole=True)
    elif not Path(model).expanduser().exists():
        checkpoints.require_weights(Path(model).expanduser(), model)  # says so


def _trained(model: str) -> int | None:
    """Return how many tokens a checkpoint that is here was trained for; None if it does not say."""
    folder = checkpoints.folder_of(model, None)
    try:
        told = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):  # the server's own trouble, and it runs
        return None
    for values in (told.get("text_config") or {}, told):
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"):
            if isinstance(values.get(name), int):
                return int(values[name])
    return None
