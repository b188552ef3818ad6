"""Promises of peaks: what computing took beside the weights, told where nothing else can have taken it."""

from __future__ import annotations

import threading

import pytest

import nbproviders as nbp
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.history import Measured
from nbproviders.runtimes import measuring, peaks
from nbproviders.runtimes.peaks import Peaks
from tests.scripted import BOUND_S

LENGTH = 64


class Allocator:
    """Counts as torch's does: what is allocated, and the most that ever was."""

    def __init__(self, allocated: int) -> None:
        self.allocated = self.peak = allocated

    def take(self, count: int) -> None:
        """Allocate so much and free it again."""
        self.peak = max(self.peak, self.allocated + count)

    def counts(self, device: str) -> tuple[int, int]:
        return self.allocated, self.peak


@pytest.fixture
def allocator() -> Allocator:
    return Allocator(1000)


@pytest.fixture
def told() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def watch(allocator: Allocator, told: list[tuple[int, int]]) -> Peaks:
    made = Peaks("npu:0", allocator.counts)
    made.tell = lambda count, tokens: told.append((count, tokens))
    return made


def test_only_new_peaks_are_told(watch: Peaks, allocator: Allocator, told: list[object]) -> None:
    """The first computation is, a smaller one after it not, a larger one again."""
    for count in (300, 200, 300, 450):
        with watch.computing(lambda: LENGTH):
            allocator.take(count)
    assert told == [(300, LENGTH), (450, LENGTH)]


def test_a_peak_of_before_hides_what_is_below(
    watch: Peaks, allocator: Allocator, told: list[object]
) -> None:
    """Nothing is reset: the peak is the user's, too."""
    allocator.take(5000)
    with watch.computing(lambda: LENGTH):
        allocator.take(300)
    assert told == []
    assert allocator.peak == 6000


def test_what_failed_is_not_told(watch: Peaks, allocator: Allocator, told: list[object]) -> None:
    """Nor does it disturb the next one."""

    def fail() -> None:
        with watch.computing(lambda: LENGTH):
            allocator.take(300)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with watch.computing(lambda: LENGTH):
        allocator.take(400)
    assert told == [(400, LENGTH)]


def test_weights_allocated_meanwhile_are_no_peak(
    watch: Peaks, allocator: Allocator, told: list[object]
) -> None:
    """A slab made on the device, by a load or a wake beside it; one on another device does not matter."""
    with watch.computing(lambda: LENGTH):
        peaks.disturb("npu:0")
        allocator.take(300)
    assert told == []
    with watch.computing(lambda: LENGTH):
        peaks.disturb("npu:1")
        allocator.take(400)
    assert told == [(400, LENGTH)]


@pytest.mark.parametrize("first", [True, False], ids=["began first", "began second"])
def test_two_at_once_are_not_told(
    watch: Peaks, allocator: Allocator, told: list[object], first: bool
) -> None:
    """Their sum would be each one's."""
    entered, left = threading.Event(), threading.Event()
    other = Peaks("npu:0", allocator.counts)
    other.tell = lambda count, tokens: None

    def compute() -> None:
        with other.computing(lambda: LENGTH):
            entered.set()
            left.wait(BOUND_S)

    thread = threading.Thread(target=compute)
    if not first:
        thread.start()
        entered.wait(BOUND_S)
    with watch.computing(lambda: LENGTH):
        if first:
            thread.start()
            entered.wait(BOUND_S)
        allocator.take(300)
        left.set()
        thread.join()
    assert told == []


def estimate() -> Estimate:
    return Estimate(
        weights={"npu:0": 1000},
        cache={"npu:0": 100},
        workspace={"npu:0": 100},
        architecture="Counted",
        context_tokens=LENGTH,
    )


def test_estimates_learn_of_peaks(watch: Peaks, allocator: Allocator) -> None:
    """A computation that took three times the workspace makes later estimates higher, step by step."""
    watch.tell = lambda count, tokens: measuring.remember(
        "lab:x", estimate(), {"npu:0": 1000}, count, tokens
    )
    with watch.computing(lambda: LENGTH):
        allocator.take(400)  # the cache's 100 and 300 to compute in
    better = measuring.corrected(estimate())
    assert 150 < better.workspace["npu:0"] < 300
    [one] = measuring.history().records()
    assert one.measured_peak_bytes == 1400
    assert one.error == pytest.approx(1200 / 1400 - 1)


def test_more_text_than_was_estimated_with_teaches_nothing() -> None:
    """A large batch takes more, and was not what the estimate is of."""
    measuring.remember("lab:x", estimate(), {"npu:0": 1000}, 4000, 10 * LENGTH)
    assert measuring.history().records() == ()


def kept() -> list[Measured]:
    """Return what was measured of computing; loads are kept as well, a moment later."""
    return [one for one in measuring.history().records() if one.measured_peak_bytes is not None]


def test_a_real_model_tells_its_peaks(
    allocator: Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its own estimate, with the tokens of its prompt and of what it wrote."""
    pytest.importorskip("torch")

    def counts(device: str) -> tuple[int, int]:
        told = allocator.counts(device)
        allocator.take(700_000)  # between the first asking and the second
        return told

    monkeypatch.setitem(peaks._counts, "cpu", counts)
    with nbp.load_sync("transformers:demo-s") as m:
        answer = m.generate("12+30=", max_tokens=3)
        m.generate("12+30=", max_tokens=3)
    [one] = kept()
    assert one.measured_peak_bytes == one.measured_weights_bytes + 700_000
    usage = answer.usage
    assert one.measured_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (one.spec, one.architecture) == ("transformers:demo-s", "LlamaForCausalLM")


@pytest.mark.gpu
def test_a_gpu_counts_its_peaks() -> None:
    """The cache of a text, and what computing it takes, are counted by torch itself."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with nbp.load_sync("transformers:demo-s?device=cuda:0") as m:
        m.generate("12+30=" * 20, max_tokens=8)
    [first, *_] = kept()
    assert first.measured_peak_bytes is not None
    assert first.measured_peak_bytes > first.measured_weights_bytes
    assert first.measured_tokens > 8
