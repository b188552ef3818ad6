"""An evaluation of dotevals over several models, as a `Comparison`.

Each model is leased while its rows run. dotevals keeps the results as it always does, by a name made of all
that decides them: two models, or two states of an evaluation, never answer for each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, islice
from typing import Any

from nbproviders.authoring.progress import Line, bar
from nbproviders.comparison import grid, rows
from nbproviders.comparison.comparison import Comparison
from nbproviders.comparison.evaluators import awaits, driven, mended, require_dotevals
from nbproviders.comparison.grid import Contender
from nbproviders.comparison.rows import Row, Seen
from nbproviders.comparison.watched import Watched
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.spec import canonical
from nbproviders.errors import ConfigurationError, ProviderError, mapped

_SHOW_AFTER_S = 0.5
_REFRESH_S = 0.1
_MOST_CHARACTERS = 60  # of a model's name within that of a file


async def evaluate(
    evaluation: Any,
    models: Any,
    *,
    argument: str | None = None,
    samples: int | None = None,
    experiment: str | None = None,
    storage: Any = None,
    progress: bool = True,
    **given: Any,
) -> Comparison:
    """Run an evaluation of dotevals (``@foreach``, ``@batch``) with each model, and compare what they did.

    An ``async def`` gets a `Client` and runs on this loop; a plain function gets a `SyncClient` and runs on a
    thread of its own.

    Parameters
    ----------
    evaluation
        The decorated function. It may return a bool, or what a scorer of ours returns.
    models
        References, clients, handles, or anything with ``generate``; a dict gives them names.
    argument
        The parameter that takes the model; by default the only one that is no column and not in `given`.
    samples
        Most rows to run.
    experiment
        A name under which it is kept, and taken up: rows that are done are not run again as long as the
        function, the rows and the model are the same; they come back without texts and times. Open
        clients are asked anew. By default a new name each time.
    storage
        Where, as dotevals has it; by default ``json://.dotevals``.
    progress
        Show a bar if it takes longer than half a second.
    **given
        Values for further parameters of the function.

    Returns
    -------
    Comparison
        A row for each model and item. What the models wrote, how long it took and what it cost is told for
        rows that asked through the client; ``error`` says why a row failed, or why its model did.

    Raises
    ------
    ConfigurationError
        If dotevals is missing, or this cannot be run: nothing has run then.
    """
    __tracebackhide__ = True
    run = Run.of(evaluation, models, argument, given, samples, experiment, storage)
    began_s = time.perf_counter()
    for contender in sorted(run.contenders, key=_absent):  # before they leave for the others
        await run.model(contender, shown=progress)
    return run.result(time.perf_counter() - began_s)


def evaluate_sync(
    evaluation: Any, models: Any, *, timeout_s: float | None = None, **options: Any
) -> Comparison:
    """The same as `evaluate`, blocking, for scripts; Ctrl-C ends it."""
    found = grid.contenders(
        models
    )  # here: what a provider's making waits for must not be the engine
    return engine.default().wait(lambda: evaluate(evaluation, found, **options), timeout_s)


@dataclass
class Run:
    """One evaluation on its way over its models, and the rows that are done."""

    evaluation: Any
    contenders: list[Contender]
    argument: str
    given: dict[str, Any]
    samples: int | None
    experiment: str
    storage: Any
    rows: dict[str, list[Row]] = field(default_factory=dict)
    score_names: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        evaluation: Any,
        models: Any,
        argument: str | None,
        given: dict[str, Any],
        samples: int | None,
        experiment: str | None,
        storage: Any,
    ) -> Run:
        """Return a checked run."""
        require_dotevals()
        from dotevals.evaluation import Evaluation

        if not isinstance(evaluation, Evaluation):
            raise ConfigurationError(
                f"{evaluation!r:.60} ({type(evaluation).__name__}) is no evaluation of dotevals.",
                hint="Decorate the function: @foreach('prompt,expected', rows).",
            )
        chosen = _argument(evaluation, argument, given)
        named = experiment or f"nbp_{datetime.now():%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:8]}"
        own = mended(evaluation)
        own.dataset = _rows(evaluation, samples)
        return cls(own, grid.contenders(models), chosen, dict(given), samples, named, storage)

    async def model(self, contender: Contender, *, shown: bool) -> None:
        """Run all rows with one model."""
        __tracebackhide__ = True
        waits = awaits(self.evaluation)
        try:
            client, watched = await _opened(contender, sync=not waits)
        except ProviderError as error:
            self._fail(contender, error)
            return
        watching = _Watching(watched, each=self.evaluation.executor_name == "foreach")
        label = f"Evaluating {contender.name}"
        try:
            records = await _followed(
                self._evaluated(contender, client, watching, waits), watching, label, shown=shown
            )
        except ProviderError as error:
            if not self.rows:  # most likely it goes so for all: nothing is lost yet
                raise
            self._fail(contender, error)  # such as a full disk
            return
        finally:
            client.close()
        found = {record.item_id: record for record in records}  # of a row run again, the last
        told = [
            rows.of_record(contender, found[place], watching.seen.get(place, ()))
            for place in sorted(found)
        ]
        self.rows[contender.name] = [one for one, _ in told]
        for _, names in told:
            self.score_names.update(names)

    async def _evaluated(
        self, contender: Contender, client: Any, watching: _Watching, waits: bool
    ) -> list[Any]:
        """Return what dotevals recorded."""
        from dotevals.sessions import SessionManager

        with mapped(f"dotevals could not run {self.evaluation.__name__}"):
            work = self.evaluation(
                session_manager=SessionManager(
                    self._name(contender), self.experiment, self.storage
                ),
                samples=self.samples,
                progress_manager=watching,
                **{self.argument: client, **self.given},
            )
            summary = await (work if waits else asyncio.to_thread(driven, work))
            return list(summary.results)

    def _name(self, contender: Contender) -> str:
        """Return a name that only the same function, rows and model have.

        Without ``/``, behind which dotevals does not find what was done before.
        """
        loaded = None if contender.context is None else contender.context.loader.key.digest
        evaluation = self.evaluation
        function = inspect.unwrap(evaluation.eval_fn)
        try:
            if loaded is None:  # a model that is open already says nothing of what it is made of
                raise TypeError
            text = canonical(
                {
                    "function": [function.__module__, inspect.getsource(function)],
                    "run": [evaluation.executor_name, evaluation.executor_kwargs],
                    "rows": [evaluation.column_spec, evaluation.dataset],
                    "given": self.given,
                    "model": [contender.name, contender.spec, loaded],
                }
            )
            digest = hashlib.sha256(text.encode()).hexdigest()
        except (TypeError, OSError):  # what has no canonical form is like nothing else
            digest = uuid.uuid4().hex
        model = re.sub(r"[^\w.-]+", "_", contender.name)[:_MOST_CHARACTERS]
        return f"{evaluation.__name__}-{model}-{digest[:16]}"

    def _fail(self, contender: Contender, error: ProviderError) -> None:
        from dotevals.executors.base import format_data

        told = f"{type(error).__name__}: {error}"
        done = self.rows[contender.name] = []
        for place, item in enumerate(self.evaluation.dataset[: self.samples]):
            try:
                columns = format_data(item, self.evaluation.column_names)
            except ValueError:  # fewer values than columns
                columns = {}
            done.append(rows.of_failure(contender, place, columns, told))

    def result(self, elapsed_s: float) -> Comparison:
        """Return what is done, in the order the models were given."""
        return Comparison(
            [row for one in self.contenders for row in self.rows[one.name]],
            score_names=list(self.score_names),
            params={},
            elapsed_s=elapsed_s,
            notes=[f"dotevals has it as experiment {self.experiment}."],
        )


def _rows(evaluation: Any, samples: int | None) -> list[Any]:
    """Return the rows to run; a generator, which may be endless, stays as good as it was."""
    given = evaluation.dataset
    if iter(given) is not given:
        return list(given)
    taken = list(islice(given, samples))
    evaluation.dataset = taken if samples is None else chain(taken, given)
    return taken


def _argument(evaluation: Any, argument: str | None, given: dict[str, Any]) -> str:
    """Return the parameter that takes the model, all others being known."""
    parameters = inspect.signature(evaluation.eval_fn).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = [p for p in named if p.name not in (*evaluation.column_names, *given)]
    chosen = [p.name for p in free if p.default is p.empty]
    if argument is not None:
        missing = [name for name in chosen if name != argument]
        if argument in [p.name for p in free] and not missing:
            return argument
        wrong = f"lacks {', '.join(missing)}" if missing else f"has no free parameter {argument!r}"
        raise ConfigurationError(
            f"The evaluation {evaluation.__name__} {wrong}.",
            hint="Give its further parameters by name: nbp.evaluate(evaluation, models, name=…).",
        )
    if len(chosen) != 1:
        raise ConfigurationError(
            f"Which parameter of {evaluation.__name__} takes the model? "
            f"Those that are no columns: {', '.join(chosen) or 'none'}.",
            hint='Say so: argument="model"; and give the others by name.',
        )
    return chosen[0]


async def _opened(contender: Contender, *, sync: bool) -> tuple[Client | SyncClient, Watched]:
    """Return a client of a model, closed by whoever gets it, and what notes its answers."""
    if contender.error is not None:
        raise contender.error
    owner = None if contender.context is None else await contender.context.open()
    model = contender.model if owner is None else owner.waist
    if model is None:
        raise ConfigurationError(f"The model {contender.spec!r} cannot be opened.")
    watched = Watched(model)
    release = owner.close if owner is not None else _nothing
    return (SyncClient if sync else Client)(watched, release), watched


def _absent(contender: Contender) -> bool:
    return contender.context is not None and not contender.context.resident


def _nothing() -> None:
    """Leave a model open that somebody else has opened."""


class _Watching:
    """What dotevals tells of its progress; it also sorts what was seen to the rows it belongs to."""

    def __init__(self, watched: Watched, *, each: bool) -> None:
        self._watched, self._each = watched, each
        self._stopped = threading.Event()
        self.done, self.total = 0, 0
        self.seen: dict[int, Seen] = {}

    def stop(self) -> None:
        """Have the evaluation end after the row that it is at."""
        self._stopped.set()

    def start_evaluation(
        self, evaluation_name: str, total_items: int | None = None, dataset_info: Any = None
    ) -> None:
        """The rows begin."""
        self.total = total_items or 0

    def update_evaluation_progress(
        self, evaluation_name: str, completed_count: int | None = None, result: Any = None
    ) -> None:
        """A row is done: what was seen since the one before is its own."""
        self.done += 1
        if self._each and result is not None:
            self.seen[result.item_id] = self._watched.taken()
        if self._stopped.is_set():
            raise asyncio.CancelledError  # not an Exception, which would be noted as a row's error


async def _followed(work: Any, watching: _Watching, label: str, *, shown: bool) -> Any:
    """Wait for a model's rows, and show how far they are."""
    __tracebackhide__ = True
    task = asyncio.ensure_future(work)
    began_s = time.perf_counter()
    with Line() as line:
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REFRESH_S)
                elapsed_s = time.perf_counter() - began_s
                if shown and watching.total and elapsed_s > _SHOW_AFTER_S:
                    done, total = watching.done, watching.total
                    line.show(f"{label}  {bar(done / total)}  {done} of {total} rows")
        except asyncio.CancelledError:
            watching.stop()
            task.cancel()
            raise
    return task.result()
