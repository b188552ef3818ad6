"""dotevals under pytest, mended from outside: each evaluation runs while its fixtures live.

dotevals 0.28 runs evaluations when the session has ended and its fixtures are torn down, hands them every
fixture there is, and gives those of the last parameter to all. Here each item gets an evaluation of its own
with the fixtures that it names, runs in its turn like a test, and fails if a row of it failed.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Sequence
from importlib import metadata
from typing import Any

import pytest

from nbproviders.errors import scrub

KNOWN = "0.28."
_MOST_SHOWN = 3


def mend(config: pytest.Config) -> None:
    """Mend the dotevals of this run, if it is a version that is known."""
    try:
        version = metadata.version("dotevals")
    except metadata.PackageNotFoundError:  # it runs from a folder that nobody installed
        version = "of an unknown version"
    made: object = Mending(config) if version.startswith(KNOWN) else Unknown(version)
    config.pluginmanager.register(made, "nbproviders-dotevals")


class Unknown:
    """Says that this dotevals is left as it is."""

    def __init__(self, version: str) -> None:
        self._version = version

    def pytest_report_header(self) -> str:
        """Say so, once."""
        return (
            f"nbproviders: dotevals {self._version} is left as it is; "
            f"{KNOWN}x is known, whose evaluations run while their fixtures live"
        )


class Mending:
    """The hooks that put evaluations in their place."""

    def __init__(self, config: pytest.Config) -> None:
        self._waiting: list[pytest.Item] = config._dotevals_items  # type: ignore[attr-defined]

    def pytest_report_header(self, config: pytest.Config) -> str | None:
        """Say that ``-C`` has no effect."""
        if not config.getoption("concurrent", False):
            return None
        return "nbproviders: -C has no effect, each evaluation runs while its fixtures live"

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Give each item an evaluation of its own."""
        if isinstance(item, pytest.Function) and _is_evaluation(item.obj):
            from nbproviders.comparison.evaluators import mended

            item.obj = mended(item.obj)

    @pytest.hookimpl(trylast=True)  # after dotevals, which puts the item off
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Run an evaluation now."""
        __tracebackhide__ = True
        if item not in self._waiting or not isinstance(item, pytest.Function):
            return  # a test, or a dotevals that runs it by itself
        self._waiting.remove(item)
        evaluation = item.obj
        named = inspect.signature(evaluation.eval_fn).parameters
        evaluation.resolved_fixtures = {
            name: value
            for name, value in item.funcargs.items()
            if name in named and name not in evaluation.column_names
        }
        _run(item, _evaluated(item))
        _judge(item.config._evaluation_results[item.name].results)  # type: ignore[attr-defined]


def _is_evaluation(thing: object) -> bool:
    from dotevals.evaluation import Evaluation

    return isinstance(thing, Evaluation)


def _evaluated(item: pytest.Function) -> Coroutine[Any, Any, None]:
    from dotevals.runner import Runner

    option = item.config.getoption
    runner = Runner(
        experiment_name=option("--experiment"),
        samples=option("--samples"),
        storage=option("--storage"),
        concurrent=False,
        results_dict=item.config._evaluation_results,  # type: ignore[attr-defined]
    )
    running: Coroutine[Any, Any, None] = runner.run_evaluations([item])
    return running


def _run(item: pytest.Function, work: Coroutine[Any, Any, None]) -> None:
    """Run to its end; on the loop of the item's fixtures, if those are async."""
    __tracebackhide__ = True
    from nbproviders.comparison.evaluators import awaits, driven

    if not awaits(item.obj):
        driven(work)  # without a loop, where Ctrl-C would only be seen after the last row
        return
    loop = _loop_of_fixtures(item)
    if loop is None:
        # With a factory, it does not take the place of the thread's current loop.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(work)
        return
    task = loop.create_task(work)
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        raise


def _loop_of_fixtures(item: pytest.Function) -> asyncio.AbstractEventLoop | None:
    """Return the loop on which a plugin set the item's async fixtures up; None if it has none."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [one.func for found in fixtures for one in found]
    if not any(map(inspect.iscoroutinefunction, functions)) and not any(
        map(inspect.isasyncgenfunction, functions)
    ):
        return None
    try:  # both plugins make their runner's loop the thread's current one, as asyncio.Runner does
        loop = asyncio.get_event_loop_policy().get_event_loop()
    except RuntimeError:
        return None
    return None if loop.is_closed() else loop


def _judge(records: Sequence[Any]) -> None:
    """Fail the test if rows failed; dotevals itself only counts them as wrong."""
    failed = [record for record in records if record.error is not None]
    if not failed:
        return
    lines = [f"{len(failed)} of {len(records)} rows failed:"]
    for record in failed[:_MOST_SHOWN]:
        asked = ", ".join(f"{name}={value!r:.60}" for name, value in record.dataset_row.items())
        lines.append(f"  row {record.item_id} ({asked}): {record.error}")
    if len(failed) > _MOST_SHOWN:
        lines.append("  …")
    pytest.fail(scrub("\n".join(lines)), pytrace=False)
