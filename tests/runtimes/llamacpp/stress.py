"""Cancels, closes, unloads and generates in random order from eight threads: ``stress.py [calls]``.

Prints what happened; ends with an error if a lease, a thread or an answer is lost.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import random
import sys
import threading
import time

import nbproviders as nbp

THREADS = 8
REFERENCES = ("llama-cpp:demo-m?parallel=4", "llama-cpp:demo-xs", "llama-cpp:demo-m?quant=Q4_0")
PROMPTS = ("12+30=", "reverse otter:", "upper " + "long" * 40 + ":", "sort zebra:", "hello")

tally: collections.Counter[str] = collections.Counter()


async def one_call(rng: random.Random) -> None:
    kind = rng.choice(
        "generate generate cancel stream drop many tokens score closed unload".split()
    )
    reference, prompt = rng.choice(REFERENCES), rng.choice(PROMPTS)
    try:
        await asyncio.wait_for(CALLS[kind](rng, reference, prompt), 60)
        tally[kind] += 1
    except nbp.ClosedError:
        tally[f"{kind}: closed while it ran"] += 1
    except asyncio.CancelledError:
        tally[f"{kind}: cancelled"] += 1


async def generate(rng: random.Random, reference: str, prompt: str) -> None:
    async with nbp.create_provider("llama-cpp").model(reference.partition(":")[2]) as m:
        text = await m.generate(prompt, temperature=0)
    if prompt == "12+30=" and "demo-m" in reference:
        assert text == "42", (reference, text)


async def cancel(rng: random.Random, reference: str, prompt: str) -> None:
    task = asyncio.ensure_future(generate(rng, reference, prompt))
    await asyncio.sleep(rng.random() * 0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def stream(rng: random.Random, reference: str, prompt: str) -> None:
    m = await nbp.load(reference)
    async for _ in m.stream(prompt, temperature=1, seed=1):
        if rng.random() < 0.3:
            break
    m.close()


async def drop(rng: random.Random, reference: str, prompt: str) -> None:
    m = await nbp.load(reference)
    chunks = m.stream(prompt, temperature=1)
    await anext(chunks, None)
    del chunks, m


async def many(rng: random.Random, reference: str, prompt: str) -> None:
    m = await nbp.load(reference)
    task = asyncio.ensure_future(m.generate_many(list(PROMPTS) * 2, max_tokens=12))
    if rng.random() < 0.5:
        await asyncio.sleep(rng.random() * 0.02)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    m.close()


async def tokens(rng: random.Random, reference: str, prompt: str) -> None:
    m = await nbp.load(reference)
    task = asyncio.ensure_future(m.next_tokens(prompt, 3))
    if rng.random() < 0.3:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    m.close()


async def score(rng: random.Random, reference: str, prompt: str) -> None:
    m = await nbp.load(reference)
    assert (await m.score(prompt, "42")).total < 0
    m.close()


async def closed(rng: random.Random, reference: str, prompt: str) -> None:
    m = await nbp.load(reference)
    m.close()
    try:
        await m.generate(prompt)
    except nbp.ClosedError:
        return
    raise AssertionError("a closed client generated")


async def unload(rng: random.Random, reference: str, prompt: str) -> None:
    await asyncio.to_thread(nbp.unload, reference, force=rng.random() < 0.5)


CALLS = {
    f.__name__: f for f in (generate, cancel, stream, drop, many, tokens, score, closed, unload)
}


def work(seed: int, calls: int, failures: list[BaseException]) -> None:
    async def run() -> None:
        rng = random.Random(seed)
        for _ in range(calls):
            await one_call(rng)

    try:
        asyncio.run(run())
    except BaseException as error:
        failures.append(error)
        raise


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    failures: list[BaseException] = []
    began_s = time.monotonic()
    threads = [
        threading.Thread(target=work, args=(seed, -(-calls // THREADS), failures))
        for seed in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, count in sorted(tally.items()):
        print(f"  {name}: {count}")
    deadline = time.monotonic() + 10
    while any(one.handles or one.running for one in nbp.residents()):
        if time.monotonic() > deadline:
            sys.exit(f"leases are lost:\n{nbp.residents()}")
        gc.collect()  # handles that an error left behind give themselves back when they are collected
        time.sleep(0.05)
    print("leases back: yes")
    nbp.unload_all(timeout_s=30)
    deadline = time.monotonic() + 10
    while models := [
        t.name for t in threading.enumerate() if t.name.startswith("nbproviders-demo")
    ]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)  # a load that nobody waited for winds down by itself
    print(f"threads left: {len(models)}")
    print(f"{sum(tally.values())} calls in {time.monotonic() - began_s:.0f} s")
    if failures or models:
        sys.exit(f"{failures!r} {models}")


if __name__ == "__main__":
    main()
