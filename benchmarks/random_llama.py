"""A model for benchmarks that is larger than the demo models: its weights are random."""

from __future__ import annotations

import sys
from pathlib import Path

HIDDEN, LAYERS, CONTEXT = 512, 6, 512


def write(folder: Path, *, ends: bool = True) -> Path:
    """Write a 20 M-parameter Llama with the demo tokenizer; if it does not `ends`, its texts have no end."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import llama_bytes, write_llama

    print(f"random Llama: {llama_bytes(HIDDEN, LAYERS) / 4e6:.1f} M parameters")
    return write_llama(folder, hidden=HIDDEN, layers=LAYERS, context=CONTEXT, ends=ends)
