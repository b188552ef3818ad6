"""Promises of the turns that models take in a comparison: nothing is brought in twice, and it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

import nbproviders as nbp
from nbproviders.comparison import grid, schedule
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey
from nbproviders.residency.progress import Progress
from tests.scripted import BOUND_S, ScriptedProvider

pytest.importorskip("torch")

MODELS = ["transformers:demo-xs", "transformers:demo-s", "transformers:demo-m"]


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    nbp.unload_all()
    yield
    nbp.set_memory()
    nbp.unload_all()


def order(models: list[str]) -> list[str]:
    return [one.spec for one in schedule.in_order(grid.contenders(models))]


def test_those_in_memory_first_then_those_asleep() -> None:
    """So none is evicted for another before its turn; what has to be loaded keeps its order."""
    nbp.load_sync(MODELS[2]).close()
    nbp.load_sync(MODELS[1]).close()
    nbp.sleep(MODELS[1])
    cold = ["echo:b", "echo:a", MODELS[0]]
    assert order([*cold, *MODELS[1:]]) == [MODELS[2], MODELS[1], *cold]
    assert order(cold) == cold


def test_a_client_counts_as_what_it_holds() -> None:
    """A client whose model sleeps does not come before a model that is ready."""
    asleep, ready = nbp.load_sync(MODELS[0]), nbp.load_sync(MODELS[1])
    nbp.sleep(MODELS[0])
    found = schedule.in_order(grid.contenders([asleep, ready]))
    assert [one.spec for one in found] == [MODELS[1], MODELS[0]]
    asleep.close()
    ready.close()


def test_each_model_comes_once_whatever_the_budget() -> None:
    """With room for one of three, repeats and many prompts move each model's weights once."""
    largest = max(nbp.will_it_fit(spec).fit.estimate["cpu"] for spec in MODELS)
    nbp.set_memory(f"cpu={largest + 200_000}")
    prompts = ["12+30=", "reverse otter:", "upper cat:"]
    result = nbp.compare_sync(MODELS, prompts, repeats=2)
    assert not result.frame["error"].notna().any()
    moved = result.movement
    assert moved is not None
    assert (moved.loads, moved.least_loads) == (3, 3)
    assert moved.moved_bytes == moved.least_bytes > 3_000_000
    assert "3 loads, 3.6 MiB" in repr(result)
    assert "the least there can be" in repr(result)
    again = nbp.compare_sync(MODELS, prompts).movement
    assert again is not None
    assert again.loads == again.least_loads == 2  # the last of them was still there


def test_one_model_under_several_names_runs_at_one_go() -> None:
    """Names that differ in how it is asked, not in what is loaded, share its one load."""
    plain = f"{MODELS[0]}?chat=false"
    assert order([plain, MODELS[1], MODELS[0]]) == [plain, MODELS[0], MODELS[1]]


def test_nothing_moved_is_not_told() -> None:
    """Where all were in memory there is no line about it."""
    nbp.load_sync(MODELS[0]).close()
    result = nbp.compare_sync(MODELS[:1], ["12+30="])
    assert result.movement is None
    assert "moved" not in repr(result)


def test_more_than_the_least_is_told() -> None:
    """The line says how much was needed."""
    moved = schedule.Movement(3, 3 * 2**20, 2, 2 * 2**20)
    assert str(moved) == ("3 loads, 3.0 MiB moved into memory; at least 2 and 2.0 MiB were needed.")


class Reading(ScriptedProvider):
    """Reads ahead until it is told to stop; each load but the first finds that ended."""

    ahead: ClassVar[list[str]] = []
    asked: ClassVar[threading.Event] = threading.Event()
    ended: ClassVar[list[str]] = []

    def prefetch(self, key: ResourceKey, progress: Progress) -> None:
        self.ahead.append(key.model)
        self.asked.set()
        try:
            while True:
                progress.check()
        finally:
            self.ended.append(key.model)
            if key.model == "c":
                raise OSError("the disk is gone")

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        if key.model != "d":
            assert self.asked.wait(BOUND_S)
            assert key.model in self.ended
        return super().load(key, progress)


class Fetching(ScriptedProvider):
    """What it loads is brought here first; the third is not to be had."""

    steps: ClassVar[list[tuple[str, str]]] = []

    def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
        self.steps.append(("download", key.model))
        if key.model == "c":
            raise OSError("no network")

    def prefetch(self, key: ResourceKey, progress: Progress) -> None:
        self.steps.append(("read ahead", key.model))

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        self.steps.append(("load", key.model))
        return super().load(key, progress)


def test_the_next_one_is_downloaded_while_this_one_runs() -> None:
    """Before it is read ahead; its own load finds it here. What cannot be had is told in its own cell."""
    nbp.register_provider("fetching", Fetching)
    try:
        result = nbp.compare_sync([f"fetching:{name}" for name in "abc"], ["x"])
    finally:
        nbp.unregister_provider("fetching")
    of_b = [step for step, name in Fetching.steps if name == "b"]
    assert of_b == ["download", "read ahead", "download", "load"]
    assert [step for step, name in Fetching.steps if name == "c"] == ["download", "download"]
    assert list(result.frame["error"].notna()) == [False, False, True]
    assert "no network" in result.frame["error"].iloc[-1]


def test_the_next_one_is_read_while_this_one_runs() -> None:
    """Reading ends before its own load begins; its failure is nobody's; those in memory need none."""
    nbp.register_provider("reading", Reading)
    try:
        nbp.load_sync("reading:d").close()
        models = [f"reading:{name}" for name in "dabc"]
        result = nbp.compare_sync(models, ["x"])
        assert not result.frame["error"].notna().any()
        assert Reading.ahead == ["a", "b", "c"]
        assert Reading.ended == ["a", "b", "c"]
    finally:
        nbp.unregister_provider("reading")
