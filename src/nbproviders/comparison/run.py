"""Running a comparison: model by model, batched, every failure kept to its own cell."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from nbproviders.authoring.progress import Line, bar, doing, first_coming, told_elsewhere
from nbproviders.comparison import costs, grid, schedule, scorers as scoring
from nbproviders.comparison.budget import Budget, Budgeted, replayed
from nbproviders.comparison.comparison import Comparison
from nbproviders.comparison.grid import Contender, Prompt
from nbproviders.core import engine
from nbproviders.core.completion import Completion
from nbproviders.core.model import Model, generate_all
from nbproviders.core.params import GenerationParams, Request
from nbproviders.core.watch import Watch, looking
from nbproviders.errors import ConfigurationError, InvalidRequestError, ProviderError

DEFAULTS = {"temperature": 0.0, "max_tokens": 256}
_SHOW_AFTER_S = 0.5

Row = dict[str, Any]


async def compare(
    models: Any,
    prompts: Any,
    params: GenerationParams | dict[str, Any] | None = None,
    scorers: Sequence[Callable[..., Any]] | Callable[..., Any] = (),
    repeats: int = 1,
    *,
    budget_usd: float | None = None,
    allow_unpriced: bool = False,
    progress: bool = True,
    **named: Any,
) -> Comparison:
    """Ask every model every prompt, and return what they said, measured and scored.

    Parameters
    ----------
    models
        References (``"transformers:demo-m"``), ``provider.model(…)``, clients, handles, or anything with
        ``generate``. A dict gives them names: ``{"lab": one, "hosted": other}``.
    prompts
        Strings, ``(prompt, expected)`` pairs, dicts or a DataFrame with ``prompt`` and ``expected``.
    params
        For all models alike; what is not given is ``temperature=0, max_tokens=256``.
    scorers
        Functions of ``(response, expected)``, sync or async, returning a bool or a number.
    repeats
        How often each prompt is asked; a given seed is raised by one each time.
    budget_usd
        What all of it may cost, in US dollars. A call that might go beyond is not made, and its row says
        so; what costs nothing goes on. The most that a call may cost is counted until its answer is there;
        what the retries of one call cost, if they are charged, is not known here.
    allow_unpriced
        Within a budget, ask models of unknown price too; what they cost is then in no sum.
    progress
        Show a bar if it takes longer than half a second.
    named
        Single parameters by name, as ``generate`` takes them: ``max_tokens=64``. They win over `params`.

    Returns
    -------
    Comparison
        An answer that fails has an ``error``; the others are not touched by it.

    Raises
    ------
    InvalidRequestError, ConfigurationError
        For a grid that cannot be run at all: nothing has run then.
    """
    __tracebackhide__ = True
    budget = None if budget_usd is None else Budget(budget_usd, allow_unpriced=allow_unpriced)
    run = Run.of(models, prompts, _params(params, named), scorers, repeats, budget)
    began_s = time.perf_counter()
    with told_elsewhere(), looking(_Bar(run) if progress else None):
        await run.all()
    return run.result(time.perf_counter() - began_s)


def compare_sync(
    models: Any,
    prompts: Any,
    params: GenerationParams | dict[str, Any] | None = None,
    scorers: Sequence[Callable[..., Any]] | Callable[..., Any] = (),
    repeats: int = 1,
    *,
    budget_usd: float | None = None,
    allow_unpriced: bool = False,
    progress: bool = True,
    timeout_s: float | None = None,
    **named: Any,
) -> Comparison:
    """The same as `compare`, blocking, for scripts; Ctrl-C ends it."""
    __tracebackhide__ = True
    budget = None if budget_usd is None else Budget(budget_usd, allow_unpriced=allow_unpriced)
    # Made here: what a provider's making waits for must not be the engine.
    run = Run.of(models, prompts, _params(params, named), scorers, repeats, budget)
    began_s = time.perf_counter()

    async def work() -> None:
        with told_elsewhere():
            await run.all()

    engine.default().wait(work, timeout_s, _Bar(run) if progress else None)
    return run.result(time.perf_counter() - began_s)


def _params(
    params: GenerationParams | dict[str, Any] | None, named: Mapping[str, Any]
) -> GenerationParams:
    """Return what was given, the named ones before the others; what was not given is not there."""
    given = GenerationParams(**params) if isinstance(params, dict) else params
    if given is not None and not isinstance(given, GenerationParams):
        raise InvalidRequestError(
            f"params must be GenerationParams or a dict, not {type(given).__name__}."
        )
    return GenerationParams(**{**(given.given() if given else {}), **named})


@dataclass
class Run:
    """One comparison on its way: the grid, and the rows that are done."""

    contenders: list[Contender]
    prompts: list[Prompt]
    params: GenerationParams
    scorers: dict[str, Callable[..., Any]]
    repeats: int
    rows: dict[str, list[Row]]
    budget: Budget | None = None
    done: int = 0
    replayed_usd: float = 0.0
    meter: schedule.Meter | None = None

    @classmethod
    def of(
        cls,
        models: Any,
        prompts: Any,
        params: GenerationParams,
        scorers: Any,
        repeats: int,
        budget: Budget | None = None,
    ) -> Run:
        """Return a checked run."""
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
            raise InvalidRequestError(f"repeats={repeats!r} must be a whole number, at least 1.")
        chosen = GenerationParams(**{**DEFAULTS, **params.given()})
        found = grid.contenders(models)
        named = scoring.named(scorers)
        rows: dict[str, list[Row]] = {one.name: [] for one in found}
        return cls(found, grid.prompts(prompts), chosen, named, repeats, rows, budget)

    @property
    def total(self) -> int:
        """Answers in all."""
        return len(self.contenders) * len(self.prompts) * self.repeats

    async def all(self) -> None:
        """Run all models: those that compute here one after another, the others at the same time."""
        __tracebackhide__ = True
        here: list[Contender] = []
        work = []
        self.meter = schedule.Meter(self.contenders)
        for one in schedule.in_order(self.contenders):
            if one.remote:
                work.append(asyncio.ensure_future(self.model(one)))
            else:
                here.append(one)
        try:
            for one, following in zip_longest(here, here[1:]):
                async with schedule.prefetched(following):
                    await self.model(one)
            await asyncio.gather(*work)
        finally:
            for task in work:  # where another has failed, or somebody stopped it all
                task.cancel()

    async def model(self, contender: Contender) -> None:
        """Run all cells of one model, and score them."""
        __tracebackhide__ = True
        requests = self._requests()
        rows = [
            self._row(contender, prompt, repeat)
            for repeat in range(self.repeats)
            for prompt in self.prompts
        ]
        self.rows[contender.name] = rows

        def on_done(place: int, outcome: Completion | ProviderError) -> None:
            rows[place].update(_told(outcome))
            if isinstance(outcome, Completion) and replayed(outcome):
                self.replayed_usd += outcome.cost.usd or 0.0
            self.done += 1

        try:
            await engine.default().call(
                lambda: _generate(contender, requests, on_done, self.budget)
            )
        except ProviderError as error:
            for place, row in enumerate(rows):
                if row["error"] is None and row["finish"] is None:
                    on_done(place, error)
        await self._score(rows)

    def _requests(self) -> list[Request]:
        asked = []
        for repeat in range(self.repeats):
            seed = None if self.params.seed is None else self.params.seed + repeat
            params = self.params.merged(seed=seed) if repeat else self.params
            asked += [Request(prompt.prompt, params, whole=True) for prompt in self.prompts]
        return asked

    def _row(self, contender: Contender, prompt: Prompt, repeat: int) -> Row:
        return {
            **prompt.extra,  # first: a field that is named like a column of ours does not replace it
            "spec": contender.name,
            "provider": contender.provider_name,
            "model": contender.model_name,
            "prompt_id": prompt.place,
            "prompt": prompt.prompt,
            "expected": prompt.expected,
            "repeat": repeat,
            **_NOTHING,
            **{f"score_{name}": None for name in self.scorers},
        }

    async def _score(self, rows: list[Row]) -> None:
        """Score what has no error; a scorer that raises fails its cell alone."""
        good = [row for row in rows if row["error"] is None]
        for name, scorer in self.scorers.items():
            for row in good:
                try:
                    row[f"score_{name}"] = await scoring.apply(scorer, row["text"], row["expected"])
                except Exception as error:  # a user's function; shown in its cell
                    row["error"] = scoring.explain(name, error)

    def result(self, elapsed_s: float) -> Comparison:
        """Return what is done, in the order the models were given."""
        rows = [row for one in self.contenders for row in self.rows[one.name]]
        return Comparison(
            rows,
            score_names=list(self.scorers),
            params=self.params.given(),
            elapsed_s=elapsed_s,
            notes=self._notes(),
            movement=self.meter.read() if self.meter is not None else None,
        )

    def _notes(self) -> list[str]:
        notes = [] if self.budget is None else self.budget.notes()
        if self.replayed_usd:
            notes.append(
                f"{costs.dollars(self.replayed_usd)} of the cost was paid when it was recorded, not now."
            )
        return notes


_NOTHING: Row = {
    "text": None,
    "finish": None,
    "error": None,
    "queue_s": None,
    "ttft_s": None,
    "total_s": None,
    "prompt_tokens": None,
    "cached_tokens": None,
    "completion_tokens": None,
    "tokens_per_s": None,
    "cost_usd": None,
    "cost_kind": None,
    "ignored": None,
}


def _told(outcome: Completion | ProviderError) -> Row:
    if isinstance(outcome, ProviderError):
        return {"error": f"{type(outcome).__name__}: {outcome}"}
    return {
        "text": outcome.text,
        "finish": outcome.finish,
        "queue_s": outcome.queue_s,
        "ttft_s": None if math.isnan(outcome.ttft_s) else outcome.ttft_s,
        "total_s": outcome.total_s,
        "prompt_tokens": outcome.usage.prompt_tokens,
        "cached_tokens": outcome.usage.cached_tokens,
        "completion_tokens": outcome.usage.completion_tokens,
        "tokens_per_s": outcome.tokens_per_s,
        "cost_usd": outcome.cost.usd,
        "cost_kind": outcome.cost.kind,
        "ignored": ", ".join(outcome.ignored),
    }


async def _generate(
    contender: Contender,
    requests: list[Request],
    on_done: Callable[[int, Completion | ProviderError], None],
    budget: Budget | None,
) -> None:
    """Run one model's cells, on the engine."""
    async with _opened(contender) as model:
        paid = model if budget is None else Budgeted(model, budget)
        await generate_all(paid, requests, on_done)


@asynccontextmanager
async def _opened(contender: Contender) -> AsyncIterator[Model]:
    if contender.error is not None:
        raise contender.error
    if contender.model is not None:
        yield contender.model
        return
    if contender.context is None:
        raise ConfigurationError(f"The model {contender.spec!r} cannot be opened.")
    async with contender.context as client:
        yield client.waist


class _Bar(Watch):
    """A progress bar where the caller waits, shown only if there is something to wait for."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loaders = [
            loader for one in run.contenders if (loader := schedule.loader_of(one)) is not None
        ]
        self._began_s = time.perf_counter()
        self._line = Line()

    def look(self) -> None:
        """Bring the bar up to date."""
        elapsed_s = time.perf_counter() - self._began_s
        if elapsed_s <= _SHOW_AFTER_S:
            return
        done, total = self._run.done, self._run.total
        answers = "answer" if total == 1 else "answers"
        coming = first_coming(self._loaders)
        self._line.show(
            f"Comparing  {bar(done / total)}  {done} of {total} {answers}, {elapsed_s:.0f} s"
            + ("" if coming is None else f"; {doing(coming)}")
        )

    def close(self) -> None:
        """Take it away."""
        self._line.show("")
