"""Promises of what is kept of loads: each with what was told before, and estimates learn of it."""

from __future__ import annotations

import asyncio
import time

import pytest

import nbproviders as nbp
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.history import Measured
from nbproviders.runtimes import measuring
from tests.scripted import BOUND_S


def kept(count: int) -> tuple[Measured, ...]:
    """Return what is kept once so many loads were; they are written a moment later."""
    until_s = time.monotonic() + BOUND_S
    while len(measuring.history().records()) < count and time.monotonic() < until_s:
        asyncio.run(asyncio.sleep(0.01))
    return measuring.history().records()


def test_each_load_is_kept_with_its_estimate() -> None:
    """Weights of a real model are told to the byte; options and prompts are not kept."""
    pytest.importorskip("torch")
    nbp.load_sync("transformers:demo-s?parallel=3").close()
    [one] = kept(1)
    assert (one.spec, one.device, one.architecture) == (
        "transformers:demo-s",
        "cpu",
        "LlamaForCausalLM",
    )
    assert one.error == 0
    assert one.weights_bytes == one.measured_weights_bytes > 250_000
    assert one.measured_peak_bytes is None
    nbp.unload_all()
    nbp.load_sync("transformers:demo-s?parallel=3").close()
    assert len(kept(2)) == 2
    assert measuring.history().p95_error("LlamaForCausalLM", "cpu") == 0


def test_estimates_learn_what_computing_took() -> None:
    """A workspace that was told too low three times is told higher; of another kind of model nothing."""
    told = Estimate(
        weights={"npu:0": 100},
        cache={"npu:0": 20},
        workspace={"npu:0": 10},
        architecture="Known",
        context_tokens=64,
    )
    assert measuring.corrected(told) is told
    for _ in range(3):
        measuring.history().add(
            Measured(time.time(), "lab:x", "Known", "npu:0", 100, 20, 10, 100, 150, 64, 64)
        )
    better = measuring.corrected(told)
    assert 22 <= better.workspace["npu:0"] <= 30  # towards the 30 that it took
    assert (better.weights, better.cache) == (told.weights, told.cache)
    other = Estimate(weights={"npu:0": 100}, workspace={"npu:0": 10}, architecture="Other")
    assert measuring.corrected(other) is other


def test_what_has_no_architecture_is_not_kept() -> None:
    """An author's plain mapping says nothing that could be learned."""
    measuring.remember("echo:echo", Estimate.of({"cpu": 5}), {"cpu": 5})
    assert measuring.history().records() == ()
