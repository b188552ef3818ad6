"""What dotevals calls: evaluations whose plain answers count, and our scorers as its evaluators.

It knows dotevals' functions and results, and nothing of models. dotevals is imported when first used.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from nbproviders.comparison import scorers as scoring
from nbproviders.errors import ConfigurationError

CORRECT = "correct"  # the score of an evaluation that returns True or False


def as_evaluator(scorer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a scorer as an evaluator of dotevals: a function that returns a ``Score``.

    ``return nbp.as_evaluator(nbp.contains)(response, answer)`` ends an evaluation with a score of that name.
    One made of an async scorer is awaited.

    Parameters
    ----------
    scorer
        A function of ``(response, expected)``, or of the response alone, returning a bool or a number.

    Raises
    ------
    ConfigurationError
        If it is no function, or dotevals is not installed.
    """
    require_dotevals()
    ((name, judge),) = scoring.named(scorer).items()

    async def judged(result: Any, expected: Any = None) -> Any:
        told = {"result": str(result), "expected": expected}
        return _score(name, await scoring.apply(judge, result, expected), told)

    if inspect.iscoroutinefunction(scorer):
        judged.__name__ = name
        return judged

    def judged_now(result: Any, expected: Any = None) -> Any:
        return driven(judged(result, expected))

    judged_now.__name__ = name
    return judged_now


def _score(name: str, value: float | bool, metadata: dict[str, Any] | None = None) -> Any:
    from dotevals.metrics import accuracy
    from dotevals.results import Score

    return Score(name, value, [accuracy()], metadata or {})


def require_dotevals() -> None:
    """Check that dotevals is there.

    Raises
    ------
    ConfigurationError
        If not.
    """
    try:
        import dotevals.evaluation  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"This needs dotevals 0.28, which cannot be imported: {error}.",
            hint='Install it: pip install "dotevals>=0.28.3,<0.29"',
        ) from None


def mended(evaluation: Any) -> Any:
    """Return an evaluation of its own, whose function may return a bool, or a Result of a text.

    dotevals takes scores only. A bool becomes the score ``correct``; a text among the scores of a
    ``Result``, which would end its whole session, becomes that result's ``model_response``.
    """
    made = copy.copy(evaluation)
    function = evaluation.eval_fn
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def returning(*arguments: Any, **named: Any) -> Any:
            return _as_result(await function(*arguments, **named))

        made.eval_fn = returning
    else:

        @functools.wraps(function)
        def returning_now(*arguments: Any, **named: Any) -> Any:
            return _as_result(function(*arguments, **named))

        made.eval_fn = returning_now
    made.resolved_fixtures = {}
    return made


def _as_result(returned: Any) -> Any:
    from dotevals.exceptions import InvalidResultError
    from dotevals.results import Result, Score

    if isinstance(returned, bool):
        return _score(CORRECT, returned)
    if isinstance(returned, list):  # of a batch
        return [_as_result(one) for one in returned]
    if not isinstance(returned, Result):
        return returned
    scores: list[Any] = []
    text = returned.model_response
    for one in returned.scores:
        if isinstance(one, bool):
            scores.append(_score(CORRECT, one))
        elif isinstance(one, str) and text is None:
            text = str(one)
        elif isinstance(one, Score):
            scores.append(one)
        else:  # here, and so an error of its row; stored, it would end the whole session
            raise InvalidResultError("eval_fn", type(one))
    return Result(*scores, model_response=text, prompt=returned.prompt)


def awaits(evaluation: Any) -> bool:
    """Whether running an evaluation needs an event loop; dotevals' own executors do for async ones only."""
    return inspect.iscoroutinefunction(evaluation.eval_fn) or evaluation.executor_name not in (
        "foreach",
        "batch",
    )


def driven(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing, without a loop."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise ConfigurationError("A scorer or evaluation that awaits something must be async itself.")
