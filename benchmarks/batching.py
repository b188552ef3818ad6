"""What `compare` costs over a batch loop written by hand, and what batching gains over one by one.

Three ways to answer the same prompts with the same weights, in one process, tokenizing and decoding
included, after one unmeasured round of each: ours through ``nbp.compare``; (a) a left-padded batch loop
around ``generate`` with the same batch size; (b) one ``generate`` after another. Texts must equal those
of (b).

Run: python benchmarks/batching.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from random_llama import write as random_llama

import nbproviders as nbp


class ByHand:
    """What a user would write with transformers alone."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.max_tokens = max_tokens

    def batch(self, prompts: list[str]) -> list[str]:
        """Answer prompts in one left-padded batch."""
        import torch

        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
            )
            for p in prompts
        ]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        return list(
            self.tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
        )

    def batches(self, prompts: list[str], size: int) -> list[str]:
        """Answer prompts batch by batch."""
        return [
            text for i in range(0, len(prompts), size) for text in self.batch(prompts[i : i + size])
        ]


def ours(spec: str, prompts: list[str], max_tokens: int) -> list[str]:
    """Answer prompts through `compare`."""
    result = nbp.compare_sync([spec], prompts, {"max_tokens": max_tokens}, progress=False)
    frame = result.frame
    assert frame["error"].isna().all(), frame["error"].dropna().iloc[0]
    return list(frame["text"])


def timed(function: Callable[[], Any], times: int) -> tuple[float, Any]:
    """Return the median seconds of a call after a first unmeasured one, and its result."""
    result = function()
    taken = []
    for _ in range(times):
        began_s = time.perf_counter()
        result = function()
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken), result


def measure(title: str, path: Path, spec: str, options: argparse.Namespace, tokens: int) -> None:
    """Print the three times and the two ratios for one model."""
    tasks = nbp.demo.tasks(options.prompts // len(nbp.demo.TASKS) + 20)
    prompts = [task["prompt"] for task in tasks]
    step = len(prompts) / options.prompts
    prompts = [prompts[int(i * step)] for i in range(options.prompts)]
    hand = ByHand(path, tokens)
    with nbp.model(spec) as model:
        size = model.info.parallel
        ours_s, ours_texts = timed(lambda: ours(spec, prompts, tokens), options.times)
    batch_s, _ = timed(lambda: hand.batches(prompts, size), options.times)
    few = prompts if options.prompts <= 256 else prompts[:256]
    single_s, single_texts = timed(lambda: hand.batches(few, 1), 1)
    single_s *= len(prompts) / len(few)
    same = sum(a == b for a, b in zip(ours_texts, single_texts, strict=False))
    print(f"{title}: {len(prompts)} prompts, up to {tokens} new tokens, batches of {size}")
    print(f"  ours {ours_s:.3f} s   (a) by hand {batch_s:.3f} s   (b) one by one {single_s:.3f} s")
    print(f"  speed: {batch_s / ours_s:.2f} of (a), {single_s / ours_s:.1f} x (b)")
    print(f"  texts identical to (b): {same} of {len(few)}")


def main() -> None:
    """Measure a 20 M-parameter model, where compute shows, and demo-m, where overhead shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    measure("demo-m", nbp.demo.path("demo-m"), "transformers:demo-m", options, 16)
    with tempfile.TemporaryDirectory() as folder:
        path = random_llama(Path(folder))
        measure("random Llama", path, f"transformers:{path}", options, 16)
        nbp.unload_all()


if __name__ == "__main__":
    main()
