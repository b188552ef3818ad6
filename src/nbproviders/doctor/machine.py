"""Processor, memory and accelerators, and whether torch sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nbproviders.doctor.finding import Finding
from nbproviders.doctor.packages import imported
from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import BUDGET_VARIABLE, parse_budget, probe_cpu, size_text
from nbproviders.runtimes.devices import cuda_count

_AREA = "machine"
_LITTLE_BYTES = 2 * 2**30


def examine() -> Iterator[Finding]:
    """Yield a finding for the processor, memory, the budget, and accelerators."""
    yield Finding(_AREA, "processor", f"{os.cpu_count()} cores")
    memory = probe_cpu()
    free = f"{size_text(memory.free_bytes)} of {size_text(memory.total_bytes)} free"
    if memory.free_bytes < _LITTLE_BYTES:
        hint = "Small models only. Unload others: nbp.unload_all(); end other kernels."
        yield Finding(_AREA, "memory", free, "note", hint)
    else:
        yield Finding(_AREA, "memory", free)
    yield from _budget()
    yield _accelerator()


def _budget() -> Iterator[Finding]:
    text = os.environ.get(BUDGET_VARIABLE, "")
    if not text:
        return
    try:
        parse_budget(text)
    except ConfigurationError as error:
        yield Finding(_AREA, BUDGET_VARIABLE, error.message, "problem", error.hint or "")
    else:
        yield Finding(_AREA, BUDGET_VARIABLE, text)


def _accelerator() -> Finding:
    torch = imported("torch")
    count = cuda_count()
    if torch.get("devices"):
        return Finding(_AREA, "accelerator", f"{', '.join(torch['devices'])}, seen by torch")
    if torch.get("mps"):
        return Finding(_AREA, "accelerator", "Apple GPU, seen by torch")
    if not count:
        return Finding(_AREA, "accelerator", "none; models compute on the processor", "note")
    cards = f"{count} NVIDIA GPU{'s' if count > 1 else ''}"
    if "error" in torch:
        return Finding(_AREA, "accelerator", f"{cards}; torch cannot be imported", "note")
    if torch.get("cuda_build") is None:
        hint = "Install the build for CUDA: see https://pytorch.org/get-started/locally."
        return Finding(
            _AREA, "accelerator", f"{cards}, but torch is the CPU build", "problem", hint
        )
    hint = "Is the driver new enough for that CUDA? nvidia-smi tells which one it knows."
    said = f"{cards}, but torch, built for CUDA {torch['cuda_build']}, does not see it"
    return Finding(_AREA, "accelerator", said, "problem", hint)
