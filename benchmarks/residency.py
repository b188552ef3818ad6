"""How long re-entering a resident model takes, against loading it again with transformers.

Run: python benchmarks/residency.py
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import nbproviders as nbp


def percentile(sorted_s: list[float], share: float) -> float:
    """Return the value below which this share of the samples lies."""
    return sorted_s[min(int(len(sorted_s) * share), len(sorted_s) - 1)]


async def re_enter(name: str, times: int) -> list[float]:
    """Return seconds of each ``async with provider.model(name)`` on a resident model, sorted."""
    provider = nbp.create_provider("transformers")
    async with provider.model(name) as model:
        await model.generate("12+30=")
    taken = []
    for _ in range(times):
        began_s = time.perf_counter()
        async with provider.model(name):
            pass
        taken.append(time.perf_counter() - began_s)
    return sorted(taken)


def load_again(name: str, times: int) -> list[float]:
    """Return seconds of each ``from_pretrained`` of model and tokenizer, sorted; imports excluded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = nbp.demo.path(name)
    taken = []
    for _ in range(times + 1):
        began_s = time.perf_counter()
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        AutoTokenizer.from_pretrained(path)
        taken.append(time.perf_counter() - began_s)
    return sorted(taken[1:])  # the first one warms the libraries up


def main() -> None:
    """Print both, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo-m")
    parser.add_argument("--times", type=int, default=20_000)
    options = parser.parse_args()
    ours = asyncio.run(re_enter(options.model, options.times))
    theirs = load_again(options.model, 10)
    print(f"re-enter {options.model}, {options.times} times:")
    print(f"  p50 {percentile(ours, 0.5) * 1e6:.1f} us   p99 {percentile(ours, 0.99) * 1e6:.1f} us")
    print(f"from_pretrained, 10 times: median {statistics.median(theirs) * 1e3:.1f} ms")
    print(f"ratio of medians: {statistics.median(theirs) / percentile(ours, 0.5):,.0f} x")


if __name__ == "__main__":
    main()
