"""What ``import nbproviders`` costs over a bare interpreter, and which heavy modules it brings.

Run: python benchmarks/import_time.py
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time

HEAVY = (
    "torch transformers llama_cpp aiohttp pandas matplotlib numpy ipywidgets IPython pydantic ray"
).split()
OTHERS = ("litellm", "openai")


def run_s(code: str, times: int) -> float:
    """Return the median seconds of a whole interpreter that runs this code."""
    taken = []
    for _ in range(times + 1):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken[1:])  # the first one fills the file cache


def main() -> None:
    """Print the cost of ours, and of others that are installed."""
    bare_s = run_s("pass", 15)
    ours_s = run_s("import nbproviders", 15)
    code = f"import sys, nbproviders; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    brought = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(f"bare interpreter: {bare_s * 1e3:.1f} ms")
    print(
        f"import nbproviders: +{(ours_s - bare_s) * 1e3:.1f} ms, heavy modules: {brought or 'none'}"
    )
    for name in OTHERS:
        if importlib.util.find_spec(name) is None:
            print(f"import {name}: not installed")
            continue
        other_s = run_s(f"import {name}", 5)
        print(f"import {name}: +{(other_s - bare_s) * 1e3:.1f} ms", end=", ")
        print(f"{(other_s - bare_s) / max(ours_s - bare_s, 1e-4):.0f} x ours")


if __name__ == "__main__":
    main()
