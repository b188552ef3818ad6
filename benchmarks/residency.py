"""How long re-entering a resident model takes, against loading it again; and what sleep and wake cost.

A random Llama goes to each device there is, sleeps and wakes. What it takes is set against a plain copy of
as many bytes, against reading its files, and against ``from_pretrained`` again, all measured in turns on the
same machine, files in the page cache. Without an accelerator a virtual device stands in for one: its speed
is given, and says nothing of a real one's.

Run: python benchmarks/residency.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbproviders as nbp

GB = 1e9
VIRTUAL = "NBPROVIDERS_VIRTUAL"


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


# Sleep and wake


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Note the seconds of a block."""
    began_s = time.perf_counter()
    yield
    into.append(time.perf_counter() - began_s)


def write(folder: Path, hidden: int) -> int:
    """Write a random Llama, 5 layers deep, and return bytes of its weights."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import write_llama

    write_llama(folder, hidden=hidden, layers=5)
    return (folder / "model.safetensors").stat().st_size


class Traffic:
    """Bytes that move while it watches, by other accounts than the model's own.

    Attributes
    ----------
    read
        By system calls, as Linux counts them for this process; None elsewhere. What is mapped does not count.
    copied
        To a device, as what copies to one is given them.
    """

    def __init__(self) -> None:
        self.read: int | None = 0
        self.copied = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count a block's, too."""
        from nbproviders.runtimes import transfers

        lanes = (transfers.Lane, transfers.VirtualLane, transfers.CudaLane)
        puts = [lane.put for lane in lanes]
        for lane, put in zip(lanes, puts, strict=True):
            lane.put = self._counted(put)  # type: ignore[method-assign]
        begun, again = read_bytes(), read_bytes()
        try:
            yield
        finally:
            ended = read_bytes()
            for lane, put in zip(lanes, puts, strict=True):
                lane.put = put  # type: ignore[method-assign]
        if begun is None or again is None or ended is None or self.read is None:
            self.read = None
        else:  # less what asking takes
            self.read += max(ended - again - (again - begun), 0)

    def _counted(self, put: Callable[..., Any]) -> Callable[..., Any]:
        def counted(lane: Any, target: Any, source: Any) -> Any:
            self.copied += source.nbytes
            return put(lane, target, source)

        return counted

    def __str__(self) -> str:
        read = "?" if self.read is None else f"{self.read:,}"
        return f"{read} bytes read, {self.copied:,} copied"


def read_bytes() -> int | None:
    """Return the bytes that this process has read so far; None where nobody counts them."""
    try:
        told = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return None
    return int(told.split("rchar:")[1].split()[0])


class Yardstick:
    """What sleeping and waking are measured by.

    Parameters
    ----------
    folder, device
        Of the model.
    size_bytes
        Of its weights.
    """

    def __init__(self, folder: Path, device: str, size_bytes: int) -> None:
        import torch

        from nbproviders.runtimes.hostcopy import HostBuffer
        from nbproviders.runtimes.slab import Slab

        self.folder, self.device, self.size = folder, device, size_bytes
        self.copies: list[float] = []
        self.reads: list[float] = []
        self.pretrained: list[float] = []
        self._host = HostBuffer(size_bytes, device=device)
        self._host.bytes.fill_(1)
        self._slab = Slab(device, size_bytes)
        self._slab.bytes.fill_(1)  # the first touch of memory may cost more than the copy
        self._torch = torch

    def measure(self) -> None:
        """One turn of each."""
        self._copy()
        with timed(self.reads):
            buffer = memoryview(bytearray(16 * 2**20))
            with (self.folder / "model.safetensors").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        self._load_again()

    def _copy(self) -> None:
        """Copy as many bytes, from page-locked memory where there is such, all at once."""
        from nbproviders.runtimes import transfers

        if self.device == "cpu":
            with timed(self.copies):
                self._slab.bytes.copy_(self._host.bytes)
        elif self.device.startswith("cuda"):
            self._torch.cuda.synchronize()
            with timed(self.copies):
                self._slab.bytes.copy_(self._host.bytes, non_blocking=True)
                self._torch.cuda.synchronize()
        else:
            with timed(self.copies), transfers.lane(self.device, lambda: None) as lane:
                for begin in range(0, self.size, lane.chunk_bytes):
                    part = slice(begin, begin + lane.chunk_bytes)
                    lane.put(self._slab.bytes[part], self._host.bytes[part])

    def _load_again(self) -> None:
        """Load as one would without a residency; on a virtual device all tensors go through its lane."""
        from transformers import AutoModelForCausalLM

        from nbproviders.runtimes import transfers

        with timed(self.pretrained):
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self._torch.float32)
            if self.device.startswith(("cuda", "mps")):
                model.to(self.device)
            elif self.device == "cpu":
                touch(model)
            else:
                with transfers.lane(self.device, lambda: None) as lane:
                    for tensor in model.parameters():  # from_pretrained leaves them in plain order
                        lane.put(self._torch.empty_like(tensor), tensor.detach())
            if self.device.startswith("cuda"):
                self._torch.cuda.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self._host.free()
        self._slab.free()


def touch(model: Any) -> None:
    """Read every weight once, as a first token does: a mapping is only then in memory."""
    for tensor in model.parameters():
        tensor.detach().sum()


async def move(folder: Path, device: str, host: bool, rounds: int, size: int) -> None:
    """Load, put to sleep and wake in turns with the yardstick, and print what it took."""
    from nbproviders.providers.transformers import TransformersProvider
    from nbproviders.residency.progress import Progress
    from nbproviders.runtimes.threads import Worker

    provider, yardstick = TransformersProvider(), Yardstick(folder, device, size)
    loads: list[float] = []
    sleeps: list[float] = []
    wakes: list[float] = []
    first: list[float] = []
    once, later, source = Traffic(), Traffic(), ""
    for turn in range(rounds):
        progress, worker = Progress(), Worker("benchmark")
        progress.host_bytes = 2 * size if host else 0
        key = provider.resolve(f"{folder}?device={device}&dtype=float32")
        with timed(loads):
            model: Any = await worker.run(provider.load, key, progress)
        if turn == 0 and "sleep" not in model.info.can:
            print(f"{device}: does not sleep: {model.info.notes}")
            return
        with once.watched(), timed(first):
            await model.sleep(Progress())
        await model.wake(Progress())
        for _ in range(3):
            with later.watched(), timed(sleeps):
                await model.sleep(Progress())
            with timed(wakes):
                source = (await model.wake(Progress())).source
                if device == "cpu":
                    await worker.run(touch, model.raw)
            yardstick.measure()
        if turn == 0:
            print(f"{device}, {size / 2**20:.0f} MiB, woken from its {source}:")
        await model.aclose()
        await worker.close()
    yardstick.close()
    middle = statistics.median
    print(f"  first sleep {middle(first) * 1e3:.1f} ms; {rounds} times: {once}")
    print(f"  sleep {middle(sleeps) * 1e3:.1f} ms; {len(sleeps)} times: {later}")
    tell(yardstick, loads, wakes)


def tell(
    yardstick: Yardstick,
    loads: list[float],
    wakes: list[float],
) -> None:
    """Print medians, each beside what it is measured by."""
    middle = statistics.median
    size, copy_s, read_s = yardstick.size, middle(yardstick.copies), middle(yardstick.reads)
    wake_s, again_s = middle(wakes), middle(yardstick.pretrained)
    print(
        f"  wake {wake_s * 1e3:.0f} ms, {size / wake_s / GB:.2f} GB/s; plain copy "
        f"{copy_s * 1e3:.0f} ms, {size / copy_s / GB:.2f} GB/s: {copy_s / wake_s:.2f} of its rate"
    )
    print(
        f"  load {middle(loads) * 1e3:.0f} ms; reading the file {read_s * 1e3:.0f} ms: "
        f"{read_s / middle(loads):.2f} of its rate"
    )
    print(
        f"  from_pretrained and to the device again {again_s * 1e3:.0f} ms: "
        f"waking is {again_s / wake_s:.1f} x as fast"
    )


def moving(hidden: int, rounds: int) -> None:
    """Print what sleep and wake cost on each device there is."""
    import torch

    os.environ.setdefault(VIRTUAL, "virtual:0=16GiB@1GiB/s")
    places = [("cpu", False)]
    if torch.cuda.is_available():
        places += [("cuda:0", True), ("cuda:0", False)]
    else:
        places += [("virtual:0", True), ("virtual:0", False)]
    with tempfile.TemporaryDirectory() as temporary:
        size = write(Path(temporary), hidden)
        for device, host in places:
            asyncio.run(move(Path(temporary), device, host, rounds, size))


def warm(model: str, times: int) -> None:
    """Print what re-entering costs, and what loading again does."""
    ours = asyncio.run(re_enter(model, times))
    theirs = load_again(model, 10)
    print(f"re-enter {model}, {times} times:")
    print(f"  p50 {percentile(ours, 0.5) * 1e6:.1f} us   p99 {percentile(ours, 0.99) * 1e6:.1f} us")
    print(f"from_pretrained, 10 times: median {statistics.median(theirs) * 1e3:.1f} ms")
    print(f"ratio of medians: {statistics.median(theirs) / percentile(ours, 0.5):,.0f} x")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo-m")
    parser.add_argument("--times", type=int, default=20_000)
    parser.add_argument("--hidden", type=int, default=1280, help="1280: a model of 427 MB")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    parts: list[Callable[[], None]] = [
        lambda: warm(options.model, options.times),
        lambda: moving(options.hidden, options.rounds),
    ]
    for part in parts:
        part()


if __name__ == "__main__":
    main()
