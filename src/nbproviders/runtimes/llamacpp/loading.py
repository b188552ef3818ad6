"""From checked files and options to a model in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nbproviders.residency.memory import size_text
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.gguf.header import Header
from nbproviders.runtimes.llamacpp import devices
from nbproviders.runtimes.llamacpp.context import Settings
from nbproviders.runtimes.llamacpp.model import LlamaCppModel, Loaded
from nbproviders.runtimes.llamacpp.native import library, load_weights, logger
from nbproviders.runtimes.llamacpp.plan import CACHE_TYPES, Plan, plan
from nbproviders.runtimes.threads import Worker

# Measured on a CPU, 200 tokens in one sequence: with heads of 8 flash attention takes twice as long, of 32 as
# long, of 64 two thirds. Sequences together are faster with it, up to three times.
_SHORT_HEAD = 32
_WEIGHTS = re.compile(r"(\S+) model buffer size =\s+([\d.]+) MiB")


def planned(files: Sequence[Header], options: Mapping[str, Any]) -> Plan:
    """Return what a model takes with a provider's load options."""
    names = ("n_ctx", "n_batch", "parallel", "type_k", "type_v")
    given = {name: options[name] for name in names if options[name] is not None}
    flash = _flash(options)
    if flash is None:  # so a single sequence computes, with the whole context
        flash = _head_length(files[0]) >= _SHORT_HEAD
    return plan(files, **given, flash_attn=flash)


def expected_bytes(files: Sequence[Header], options: Mapping[str, Any]) -> dict[str, int]:
    """Return bytes on each device before loading."""
    whole = planned(files, options)
    total = whole.weights_bytes + whole.cache_bytes + whole.workspace_bytes
    there = list(devices.accelerators())
    share = _offloaded(options["n_gpu_layers"], whole.layers) if there else 0.0
    found = {"cpu": round(total * (1 - share))}
    for name in there:  # llama.cpp splits layers over all of them
        found[name] = round(total * share / len(there))
    return {device: size for device, size in found.items() if size}


def cache_notes(whole: Plan) -> tuple[str, ...]:
    """Return what the cache is counted for, where that is more than one text."""
    if whole.cache_bytes <= whole.alone_bytes:
        return ()
    texts, cells = whole.limits.sequences, whole.limits.cells
    return (
        f"the cache is counted as it is for {texts} texts at once, {cells:,} tokens together; "
        f"for one alone (parallel=1) it takes {size_text(whole.alone_bytes)}",
    )


def _offloaded(wanted: int | None, layers: int) -> float:
    if wanted is None or wanted < 0:
        return 1.0
    return min(wanted / (layers + 1), 1.0)


def load(
    files: Sequence[Header], options: Mapping[str, Any], worker: Worker, progress: Progress
) -> LlamaCppModel:
    """Load checked files; called on the model's thread.

    Raises
    ------
    ModelAccessError
        If llama.cpp cannot.
    InsufficientMemoryError
        If there is no room for the context.
    """
    whole = planned(files, options)
    wanted = options["n_gpu_layers"]
    offload = devices.offloads() and wanted != 0
    total = sum(file.size for file in files)
    pointer, lines = load_weights(
        files[0].path,
        gpu_layers=(-1 if wanted is None else wanted) if offload else 0,
        total_bytes=total,
        progress=progress,
    )
    settings = _settings(files[0], options, whole, offload)
    loaded = Loaded(
        pointer=pointer,
        free=lambda: library().llama_model_free(pointer),
        parameters=whole.parameters,
        memory_bytes=_measured(lines) or {"cpu": whole.weights_bytes},
        exact=_exact(files, options) and not offload,
        template=_text(files[0], "tokenizer.chat_template"),
        temperature=_temperature(files[0]),
        notes=_notes(files[0], whole, wanted, offload),
    )
    with ExitStack() as undo:
        undo.callback(loaded.free)
        model = LlamaCppModel(
            loaded, worker, settings, whole.limits, chat_format=options["chat_format"]
        )
        undo.pop_all()
        undo.callback(model.free)  # it frees what was loaded as well
        progress.report(total, total, "warming up")
        model.warm_up(whole.cache_bytes - whole.alone_bytes)
        undo.pop_all()
    return model


def _settings(header: Header, options: Mapping[str, Any], whole: Plan, offload: bool) -> Settings:
    """Return how contexts are made with a provider's load options."""
    return Settings(
        n_ctx=whole.limits.n_ctx,
        n_batch=whole.limits.n_batch,
        n_threads=options["n_threads"] or devices.cores(),
        flash_attn=_flash(options),
        short_heads=_head_length(header) < _SHORT_HEAD and not offload,
        type_k=CACHE_TYPES[options["type_k"]],
        type_v=CACHE_TYPES[options["type_v"]],
        offload=offload,
    )


def _flash(options: Mapping[str, Any]) -> bool | None:
    """Return whether to use flash attention; None leaves that to llama.cpp."""
    given: bool | None = options["flash_attn"]
    if given is None and options["type_k"] == options["type_v"] == "f32":
        return False  # who asks for float32 wants it exact; flash attention computes in halves
    return given


def _head_length(header: Header) -> int:
    heads = header.get("attention.head_count")
    heads = max(heads) if isinstance(heads, tuple) and heads else heads
    told = header.get("attention.key_length")
    return int(told or header.get("embedding_length", 0) // (heads or 1))


def _measured(lines: list[str]) -> dict[str, int]:
    """Return what llama.cpp says the weights take, by our names of devices."""
    found: dict[str, int] = {}
    for name, size in _WEIGHTS.findall("".join(lines)):
        device = devices.our_name(name)
        found[device] = found.get(device, 0) + round(float(size) * 2**20)
    return found


def _exact(files: Sequence[Header], options: Mapping[str, Any]) -> bool:
    plain = options["type_k"] == options["type_v"] == "f32" and not options["flash_attn"]
    return plain and all(tensor.type == "F32" for file in files for tensor in file.tensors)


def _text(header: Header, key: str) -> str:
    found = header.metadata.get(key, "")
    return found if isinstance(found, str) else ""


def _temperature(header: Header) -> float:
    """Return what the file recommends for sampling; 0, greedy, if nothing."""
    found = header.metadata.get("general.sampling.temp", 0.0)
    return float(found) if isinstance(found, float) and 0 <= found <= 2 else 0.0


def _notes(header: Header, whole: Plan, wanted: int | None, offload: bool) -> tuple[str, ...]:
    """Return what a person should know of this load; each is logged too."""
    notes = []
    if wanted and not offload:
        notes.append(
            f"n_gpu_layers={wanted}: this build of llama.cpp has no GPU support; all on the CPU"
        )
    trained = header.get("context_length")
    if isinstance(trained, int) and whole.limits.n_ctx > trained:
        notes.append(
            f"n_ctx={whole.limits.n_ctx}: the model was trained for {trained} tokens; later text may suffer"
        )
    for note in notes:
        logger.warning("%s", note)
    return tuple(notes)
