"""How long a model's first token takes behind a server that is started, and behind one that was kept.

Run: python benchmarks/servers.py

Each is measured in a fresh Python, as after a restart of the kernel: from the call that opens the model,
nbproviders imported, to the first token of a stream. The servers and what they leave are this program's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import nbproviders as nbp
from nbproviders.runtimes.process import server, state
from nbproviders.runtimes.process.keeping import kept

PROMPT = "12+30="


async def kernel(reference: str) -> None:
    """Open a model, tell seconds to its first token and the server's process, and end abruptly."""
    began_s = time.perf_counter()
    m = await nbp.load(reference)
    async for _ in m.stream(PROMPT, temperature=0):
        break
    first_s = time.perf_counter() - began_s
    print(json.dumps({"first_s": first_s, "pid": kept()[0].pid}), flush=True)
    os._exit(0)  # as a kernel that is restarted: it gives nothing back


def first_token(reference: str) -> dict[str, float]:
    """Return what a fresh kernel measured."""
    ran = subprocess.run(
        [sys.executable, __file__, "--kernel", reference], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(ran.stdout)
    return found


async def end_kept() -> None:
    """End the servers that were kept."""
    for one in kept():
        found = await server.find(one.identity)
        if found is not None:
            await found.stop()


def measure(reference: str, times: int) -> tuple[list[float], list[float]]:
    """Return seconds to the first token, cold and adopted."""
    cold, adopted = [], []
    for _ in range(times):
        try:
            started, found = first_token(reference), first_token(reference)
        finally:
            asyncio.run(end_kept())
        assert started["pid"] == found["pid"], "the kept server was not found"
        cold.append(started["first_s"])
        adopted.append(found["first_s"])
    return cold, adopted


def main() -> None:
    """Print both for each provider, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo-m")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--kernel", metavar="REFERENCE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernel:
        asyncio.run(kernel(options.kernel))
    print(f"{options.model}, first token, median of {options.times}:")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[state.STATE_VARIABLE] = folder
        for name in ("llama-server", "transformers-serve"):
            info = nbp.list_available()[name]
            if not info.available:
                print(f"  {name:<20}{info.reason}")
                continue
            runs = measure(f"{name}:{options.model}?keep=true", options.times)
            cold_s, adopted_s = map(statistics.median, runs)
            print(
                f"  {name:<20}cold {cold_s:6.2f} s   adopted {adopted_s:6.3f} s"
                f"   ratio {cold_s / adopted_s:6.1f}"
            )


if __name__ == "__main__":
    main()
