"""What dtypes, quantization and the steps of ``optimized`` cost and gain on this machine.

For demo-m and a random Llama of 20 M parameters: every dtype with every quantization, plain; then each step
of ``optimized`` by itself on each dtype, its bfloat16 step on each quantization, and all steps together.
Told are the bytes that the residency charges, the seconds of the load, and tokens/s of one request alone and
of 16 at once, the best of three rounds after an unmeasured one; and what stepped back, with its reason.
Compilation is asked for by name: by itself it stays off on a CPU. Its cache on disk is a new one, so that
the load pays for it.

Run: python benchmarks/optimizations.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from random_llama import write as random_llama

import nbproviders as nbp

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = (None, "int8", "nf4", "fp4")
OFF = {"bfloat16": False, "flash_attention": False, "compile": False}
TOKENS = 24
ROUNDS = 3
PROMPTS = [f"{10 + i}+{50 - i}=" for i in range(16)]


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give provider, name of the optimization, and load options."""
    for dtype in DTYPES:
        for word in QUANTIZATIONS:
            yield "transformers", "plain", {"dtype": dtype, "quantization": word}
    for word in QUANTIZATIONS:
        yield "optimized", "bfloat16", {**OFF, "bfloat16": True, "quantization": word}
    for dtype in DTYPES:
        yield "optimized", "flash", {**OFF, "flash_attention": True, "dtype": dtype}
    for dtype in DTYPES:
        yield "optimized", "compile", {**OFF, "compile": True, "dtype": dtype}
    yield (
        "optimized",
        "compile",
        {**OFF, "compile": True, "dtype": "bfloat16", "quantization": "nf4"},
    )
    for word in (None, "int8"):
        yield "optimized", "defaults", {"quantization": word}


def speed(model: nbp.SyncClient, prompts: list[str]) -> float:
    """Return the most new tokens a second of some rounds, all prompts at once."""
    best = 0.0
    for number in range(ROUNDS + 1):
        began_s = time.perf_counter()
        answers = model.generate_many(prompts, max_tokens=TOKENS)
        taken_s = time.perf_counter() - began_s
        tokens = sum(answer.usage.completion_tokens for answer in answers)
        best = max(best, tokens / taken_s) if number else 0.0
    return best


def measure(
    title: str, path: Path, provider: str, step: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Return one row of the table."""
    given = {name: value for name, value in options.items() if value is not None}
    row = {
        "model": title,
        "optimization": step,
        "dtype": given.get("dtype", "auto"),
        "quantization": given.get("quantization", "none"),
    }
    began_s = time.perf_counter()
    try:
        with nbp.create_provider(provider).model(str(path), **given) as model:
            row["load_s"] = round(time.perf_counter() - began_s, 2)
            row["bytes"] = sum(nbp.residents()[0].bytes.values())
            row["alone_tokens_per_s"] = round(speed(model, PROMPTS[:1]))
            row["batch_tokens_per_s"] = round(speed(model, PROMPTS))
            row["stepped_back"] = list(model.info.notes)
    except nbp.ProviderError as error:
        row["error"] = error.message
    nbp.unload_all()
    return row


def show(row: dict[str, Any]) -> None:
    """Print one row for people, and what stepped back below it."""
    start = f"{row['model']:8} {row['optimization']:9} {row['dtype']:9} {row['quantization']:5}"
    if "error" in row:
        print(f"{start} failed: {row['error']}", flush=True)
        return
    print(
        f"{start} {row['bytes'] / 2**20:8.2f} {row['load_s']:7.2f} "
        f"{row['alone_tokens_per_s']:8} {row['batch_tokens_per_s']:8}",
        flush=True,
    )
    for note in row["stepped_back"]:
        print(f"         {note}", flush=True)


def main() -> None:
    """Measure both models; print a table, or one JSON list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead")
    options = parser.parse_args()
    rows = []
    if not options.json:
        print(
            f"{'model':8} {'step':9} {'dtype':9} {'quant':5}      MiB  load s   alone     16 (tokens/s)"
        )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "inductor"))
        models = (
            ("demo-m", nbp.demo.path("demo-m")),
            ("llama20m", random_llama(Path(folder, "llama"), ends=False)),
        )
        for title, path in models:
            for provider, step, given in cases():
                rows.append(measure(title, path, provider, step, given))
                if not options.json:
                    show(rows[-1])
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
