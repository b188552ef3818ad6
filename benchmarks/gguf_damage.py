"""Damage a GGUF file at random, many times, to see whether anything that we accept kills the process.

Each damaged file goes through the checks that a provider makes. What they accept is loaded and used by a
long-lived worker that stands for the notebook's kernel: it must never die.

Run: python benchmarks/gguf_damage.py [model.gguf] [--times 500] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from nbproviders.errors import ModelAccessError
from nbproviders.runtimes.gguf.header import Header, read_files
from nbproviders.runtimes.gguf.trial import ensure_loadable

PROMPT = "Once upon a time, there was a little girl. 12 + 30 = 42! Здравствуй 你好 🙂\n\t"
SETTINGS = {"n_ctx": 256, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1}
EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    65_535,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 40,
    1 << 63,
)
Damage = Callable[[bytearray, int, random.Random], str]
_VALUE_BYTES = {"u8": 1, "i8": 1, "bool": 1, "u16": 2, "i16": 2, "u64": 8, "i64": 8, "f64": 8}


def truncate(data: bytearray, end: int, chance: random.Random) -> str:
    """Cut the file off."""
    del data[chance.randrange(end) :]
    return "truncated"


def flip_bits(data: bytearray, end: int, chance: random.Random) -> str:
    """Turn one to eight bits over."""
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return "bits flipped"


def set_bytes(data: bytearray, end: int, chance: random.Random) -> str:
    """Write a few random bytes in a row."""
    at = chance.randrange(end)
    count = min(chance.randint(1, 16), len(data) - at)
    data[at : at + count] = chance.randbytes(count)
    return "bytes set"


def set_number(data: bytearray, end: int, chance: random.Random) -> str:
    """Write a number that code rarely expects."""
    at = chance.randrange(end)
    width = chance.choice((4, 8))
    number = chance.choice(EXTREMES) % (1 << 8 * width)
    data[at : at + width] = number.to_bytes(width, "little")[: max(len(data) - at, 0)]
    return "number set"


def splice(data: bytearray, end: int, chance: random.Random) -> str:
    """Copy a block over another place, or in between, or take it out."""
    at, count = chance.randrange(end), chance.choice((1, 4, 8, 32, 64, 512, 4096))
    from_ = chance.randrange(len(data))
    kind = chance.choice(("over", "between", "out"))
    block = data[from_ : from_ + count]
    if kind == "over":
        data[at : at + len(block)] = block
    elif kind == "between":
        data[at:at] = block
    else:
        del data[at : at + count]
    return f"block spliced {kind}"


DAMAGES: tuple[Damage, ...] = (truncate, flip_bits, set_bytes, set_number, splice)


def set_value(data: bytearray, header: Header, chance: random.Random) -> str:
    """Give a metadata key another value of its type: the file stays well-formed."""
    keys = [key for key, kind in header.types.items() if kind != "str" and "arr" not in kind]
    key = chance.choice(keys)
    name = key.encode()
    at = data.index(len(name).to_bytes(8, "little") + name) + 8 + len(name) + 4
    width = _VALUE_BYTES.get(header.types[key], 4)
    near = int.from_bytes(data[at : at + width], "little") + chance.randint(-3, 3)
    number = chance.choice((chance.choice(EXTREMES), near, chance.getrandbits(8 * width)))
    data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return f"value of {key}"


def set_entry(data: bytearray, header: Header, chance: random.Random) -> str:
    """Give one item of a metadata array another value, or one token the text of another."""
    keys = [
        key for key, kind in header.types.items() if kind.startswith("arr") and header.metadata[key]
    ]
    key = chance.choice(keys)
    name, items = key.encode(), header.metadata[key]
    at = data.index(len(name).to_bytes(8, "little") + name) + 8 + len(name) + 4 + 4 + 8
    index = chance.randrange(len(items))
    if header.types[key] != "arr[str]":
        data[at + 4 * index : at + 4 * index + 4] = chance.choice(
            (chance.choice(EXTREMES) % (1 << 32), chance.getrandbits(32))
        ).to_bytes(4, "little")
        return f"entry of {key}"
    texts = [item.encode("utf-8", "surrogateescape") for item in items]
    at += sum(8 + len(text) for text in texts[:index])
    length = len(texts[index])
    same = [text for text in texts if len(text) == length] if length else [b""]
    data[at + 8 : at + 8 + length] = chance.choice((chance.choice(same), chance.randbytes(length)))
    return f"entry of {key}"


def damaged(source: bytes, header: Header, chance: random.Random) -> tuple[str, bytes]:
    """Return a name of what was done, and the file; half of it is done to the header."""
    data = bytearray(source)
    way = chance.random()
    if way < 0.15:
        return set_value(data, header, chance), bytes(data)
    if way < 0.25:
        return set_entry(data, header, chance), bytes(data)
    if way < 0.5:
        return chance.choice(DAMAGES)(data, header.data_offset, chance), bytes(data)
    return chance.choice(DAMAGES)(data, len(data), chance), bytes(data)


class Kernel:
    """A long-lived process that loads and uses files, and should survive all of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None

    def use(self, path: Path) -> str:
        """Return ``"used"``, ``"refused: …"``, or ``"died: …"``; after that a new one is started."""
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
        assert self._process.stdin
        assert self._process.stdout
        assert self._errors
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer:
            return answer
        status = self._process.wait()
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - 400, 0))
        words = self._errors.read().decode("utf-8", "replace")
        self.close()
        return f"died: status {status}, {words}"

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._errors is not None:
            for stream in (self._process.stdin, self._process.stdout, self._errors):
                if stream is not None:
                    stream.close()
            self._process.wait()
        self._process = self._errors = None


def work() -> None:
    """Be the kernel: load and use each file whose path is read, and say how it went."""
    import llama_cpp

    for line in sys.stdin:
        try:
            model = llama_cpp.Llama(line.strip(), verbose=False, **SETTINGS)
            tokens = model.tokenize(PROMPT.encode(), add_bos=True, special=True)
            # Weights may be damaged, so any token may come: all kinds of sampling must stand that.
            for settings in ({"temp": 0.0}, {"temp": 1.0, "top_p": 0.9}):
                made = [
                    t for t, _ in zip(model.generate(tokens, **settings), range(4), strict=False)
                ]
                model.detokenize(made)
            model.close()
            print("used", flush=True)
        except Exception as error:  # what Python can catch is what the kernel survives
            print(f"refused: {type(error).__name__} {error}".replace("\n", " "), flush=True)


def judge(path: Path, kernel: Kernel) -> tuple[str, str]:
    """Return a verdict on one file and its reason, as a provider comes to it."""
    try:
        files = read_files(path)
        ensure_loadable(files)
    except ModelAccessError as error:
        where = "by the trial" if "a trial in another process" in error.message else "by us"
        return f"refused {where}", error.message
    answer = kernel.use(path)
    return {"u": "loaded", "r": "refused by llama.cpp", "d": "DIED"}[answer[0]], answer


def files(source: Path, times: int, randoms: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield what was done and the bytes, of damaged files and of ones that never were GGUF."""
    data = source.read_bytes()
    (header,) = read_files(source)
    for index in range(times):
        yield damaged(data, header, random.Random(f"{seed}.{index}"))
    for index in range(randoms):
        chance = random.Random(f"{seed}.random.{index}")
        start = b"GGUF\x03\x00\x00\x00" if index % 2 else b""
        yield "random bytes", start + chance.randbytes(chance.randrange(20_000))


def run(
    source: Path, times: int, randoms: int, seed: int, keep: Path | None = None
) -> Counter[str]:
    """Judge all files, print what surprises, and return how often each verdict was reached."""
    tally: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    kernel = Kernel()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NBPROVIDERS_CACHE"] = folder
        for index, (what, data) in enumerate(files(source, times, randoms, seed)):
            path = Path(folder) / f"{index}.gguf"
            path.write_bytes(data)
            verdict, reason = judge(path, kernel)
            tally[verdict] += 1
            if verdict == "DIED":
                print(f"{index}: {what}: {reason}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{index}.gguf").write_bytes(data)
            short = re.sub(
                r"'[^']*'|b'[^']*'|[\d,]*\d|\([^)]*\)", "…", reason.partition(".gguf")[2]
            )[:90]
            reasons[f"{verdict}: {short if verdict.startswith('refused') else ''}"] += 1
            path.unlink()
    kernel.close()
    for reason, count in reasons.most_common(40):
        print(f"  {count:5}  {reason}")
    return tally


def main() -> None:
    """Print the tally; end with status 1 if the worker ever died."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--randoms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="put the files that killed the worker here")
    parser.add_argument(
        "--vocab", choices=["spm", "bpe"], default="bpe", help="of the written model"
    )
    parser.add_argument("--arch", default="llama", help="of the written model")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    with tempfile.TemporaryDirectory() as folder:
        source = options.model
        if source is None:
            sys.path[0] = str(Path(__file__).parents[1])  # in place of this folder
            from tests.gguf_files import write_llama_gguf

            source = Path(folder) / "model.gguf"
            write_llama_gguf(source, arch=options.arch, vocab=options.vocab, dtype="Q8_0")
        began_s = time.monotonic()
        tally = run(source, options.times, options.randoms, options.seed, options.keep)
    print(f"{sum(tally.values())} files in {time.monotonic() - began_s:.0f} s")
    for verdict, count in sorted(tally.items()):
        print(f"{count:6}  {verdict}")
    sys.exit(1 if tally["DIED"] else 0)


if __name__ == "__main__":
    main()
