"""What is estimated before a model is loaded, and what it then takes on the CPU, over many architectures.

Run: python benchmarks/estimates.py [--hidden 512] [--layers 8] [--context 2048] [--dtype float32] [name …]

Weights are the bytes of the loaded model's tensors; cache and workspace together are the peak of torch's CPU
allocator, by its profiler, while a text as long as the context is computed.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nbproviders.runtimes import checkpoints, estimating
from tests import architectures

MB = 1e6
HEADER = "architecture       weights MB        computing MB  error     of all  share   estimated in"


def compared(
    name: str, folder: Path, model_class: str, dtype: str
) -> tuple[float, float, float, bool]:
    """Print one line; return the error of computing, of all, the seconds, and whether weights are equal."""
    wanted = estimating.Wanted(folder, checkpoints.revision_of(folder), model_class, dtype)
    began_s = time.perf_counter()
    told = estimating.expected(wanted, "cpu")
    took_s = time.perf_counter() - began_s
    weights, peak = architectures.measured(folder, model_class, dtype, told.context_tokens or 0)
    exact = told.weights["cpu"] == weights
    computing = told.reserve["cpu"] / peak - 1
    whole = told["cpu"] / (weights + peak) - 1
    told_weights = f"{told.weights['cpu'] / MB:8.2f} {'exact' if exact else f'{weights / MB:.2f}'}"
    told_peak = f"{told.reserve['cpu'] / MB:8.2f} {peak / MB:8.2f}"
    share = peak / (weights + peak)
    print(
        f"{name:15} {told_weights:>16} {told_peak:>19} {computing:+7.2%} {whole:+8.2%} {share:6.0%}"
        f" {took_s:8.2f} s {'; '.join(told.notes)}",
        flush=True,
    )
    return computing, whole, took_s, exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    makers = architectures.configs(options.hidden, options.layers, options.context)
    print(HEADER)
    found = []
    for name in options.names or makers:
        with tempfile.TemporaryDirectory() as scratch:
            model_class = architectures.write(makers[name](), Path(scratch), options.dtype)
            found.append(compared(name, Path(scratch), model_class, options.dtype))
    for place, what in enumerate(("computing", "all")):
        errors = sorted(abs(one[place]) for one in found)
        p95 = errors[math.ceil(0.95 * len(errors)) - 1]
        print(f"error of {what}: p95 {p95:.2%}, worst {errors[-1]:.2%}")
    print(f"weights exact: {sum(one[3] for one in found)} of {len(found)}")


if __name__ == "__main__":
    main()
