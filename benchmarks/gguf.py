"""GGUF models here, and the same file in bare llama-cpp-python, in one process.

Run: python benchmarks/gguf.py [file …]

Measured: tokens a second of one request, 64 prompts through a comparison against one by one, and the time to
the first token of a second request that begins like the first. Rounds of both sides alternate, so that what
else the machine does falls on both; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp

import nbproviders as nbp

ROUNDS = 9
TOKENS = 200
PROMPTS = 64
PROMPT_TOKENS = 16
PREFIX_TOKENS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="GGUF files (default: demo-m F16)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    files = options.files or [nbp.demo.gguf_path("demo-m") / "demo-m-F16.gguf"]
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            print(f"\n{file.name}")
            tireless = endless(file, Path(scratch))
            single(tireless, options.rounds)
            many(tireless, options.rounds)
            shared(tireless, options.rounds)


def endless(file: Path, scratch: Path) -> Path:
    """Return a copy whose texts go on to their limit: demo-m ends after some letters, too soon to time.

    Its end token is called otherwise and is no end token any more, for both sides.
    """
    raw = file.read_bytes()
    if b"<|end|>" in raw:
        raw = raw.replace(b"<|end|>", b"<|on!|>")
        key = b"tokenizer.ggml.eos_token_id"
        place = raw.index(key) + len(key) + 4
        raw = raw[:place] + struct.pack("<I", 0) + raw[place + 4 :]
    copy = scratch / file.name
    copy.write_bytes(raw)
    return copy


def bare(file: Path, n_ctx: int) -> Any:
    """Return llama-cpp-python's object as its documentation makes one."""
    return llama_cpp.Llama(str(file), n_ctx=n_ctx, verbose=False)


def single(file: Path, rounds: int) -> None:
    """One request after another, greedy, each with a new beginning."""
    n_ctx = 512 if trained(file) >= 512 else 256
    tokens = min(TOKENS, n_ctx - 40)
    llama = bare(file, n_ctx)
    with nbp.model(f"llama-cpp:{file}?n_ctx={n_ctx}&chat=false") as m:

        def ours(i: int) -> float:
            done = m.generate(beginning(i), temperature=0, max_tokens=tokens)
            assert done.usage.completion_tokens
            return done.usage.completion_tokens

        def theirs(i: int) -> float:
            done = llama.create_completion(beginning(i), temperature=0, max_tokens=tokens)
            return done["usage"]["completion_tokens"]

        mine, other = alternate(ours, theirs, rounds * 3)
    print(f"  one request: ours {mine:,.0f} tokens/s, bare {other:,.0f}: ratio {mine / other:.2f}")
    llama.close()


def many(file: Path, rounds: int) -> None:
    """A comparison of 64 prompts against one by one."""
    n_ctx, tokens = 256, 40
    llama = bare(file, n_ctx)
    prompts = [beginning(i) for i in range(PROMPTS)]
    reference = f"llama-cpp:{file}?n_ctx={n_ctx}&chat=false"
    texts: dict[str, list[str]] = {}

    def ours(_: int) -> float:
        result = nbp.compare_sync([reference], prompts, {"max_tokens": tokens}, progress=False)
        assert result.frame["error"].isna().all()
        texts["ours"] = list(result.frame["text"])
        return float(result.frame["completion_tokens"].sum())

    def theirs(_: int) -> float:
        done = [
            llama.create_completion(prompt, temperature=0, max_tokens=tokens) for prompt in prompts
        ]
        texts["bare"] = [one["choices"][0]["text"] for one in done]
        return float(sum(one["usage"]["completion_tokens"] for one in done))

    ours(0)  # loads
    mine, other = alternate(ours, theirs, max(rounds // 2, 3))
    same = sum(a == b for a, b in zip(texts["ours"], texts["bare"], strict=True))
    print(
        f"  {PROMPTS} prompts: ours {mine:,.0f} tokens/s, bare one by one {other:,.0f}: ratio "
        f"{mine / other:.2f}; texts equal {same} of {PROMPTS}"
    )
    llama.close()


def shared(file: Path, rounds: int) -> None:
    """Time to the first token: a beginning of 400 tokens that is new, and one that is known."""
    n_ctx = max(512, trained(file))
    cold, warm, cached = [], [], 0
    with nbp.model(f"llama-cpp:{file}?n_ctx={n_ctx}&chat=false") as m:
        # All of them before: measuring a text's tokens leaves them known.
        for prefix in [long_text(m, i) for i in range(rounds + 1)][:-1]:
            first = m.generate(prefix + " one", max_tokens=1, temperature=0)
            second = m.generate(prefix + " two", max_tokens=1, temperature=0)
            cold.append(first.ttft_s)
            warm.append(second.ttft_s)
            cached = second.usage.cached_tokens
    a, b = statistics.median(cold) * 1e3, statistics.median(warm) * 1e3
    print(
        f"  first token with {cached} tokens known: {b:.1f} ms, cold {a:.1f} ms: {a / b:.1f} x sooner"
    )


def alternate(
    ours: Callable[[int], float], theirs: Callable[[int], float], rounds: int
) -> tuple[float, float]:
    """Return the medians of what each does in a second."""
    rates: tuple[list[float], list[float]] = ([], [])
    ours(-1), theirs(-1)
    for i in range(rounds):
        sides = [(0, ours), (1, theirs)]
        for place, side in sides if i % 2 else reversed(sides):
            began_s = time.perf_counter()
            count = side(i)
            rates[place].append(count / (time.perf_counter() - began_s))
    return statistics.median(rates[0]), statistics.median(rates[1])


def beginning(i: int) -> str:
    names = "Tom Lily Ben Mia Max Sue Tim Anna".split()
    things = "ball tree dog cake boat star hat frog".split()
    return f"{names[i % 8]} had a {things[(i // 8) % 8]}. One day"


def long_text(m: nbp.SyncClient, i: int) -> str:
    """Return a text of about 400 tokens that begins differently for each i."""
    text = f"{i} "
    while len(m.score("", text, raw=True).tokens) < PREFIX_TOKENS:
        text += beginning(len(text)) + ". "
    return text


def trained(file: Path) -> int:
    from nbproviders.runtimes.gguf.header import read_header

    return int(read_header(file).get("context_length", 512))


if __name__ == "__main__":
    main()
