"""Promises of evaluations of dotevals over several models in a notebook."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.comparison import evaluation
from nbproviders.comparison.evaluators import driven
from nbproviders.errors import ConfigurationError, ProviderError
from tests.scripted import happened

dotevals = pytest.importorskip("dotevals", reason="dotevals is not installed")

ROWS = [("12+30=", "42"), ("upper owl:", "OWL"), ("reverse cat:", "tac")]
contains = nbp.as_evaluator(nbp.contains)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """dotevals writes where it is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def plain(rows: Any = ROWS) -> Any:
    """Return a plain evaluation; not at module level, where dotevals' plugin would collect it."""

    @dotevals.foreach("prompt,expected", rows)
    def eval_plain(prompt: str, expected: str, m: nbp.SyncClient) -> Any:
        response = m.generate(prompt, max_tokens=20)
        return dotevals.Result(
            nbp.as_evaluator(nbp.exact_match)(response, expected),
            contains(response, expected),
            model_response=response,
            prompt=f"asked: {prompt}",
        )

    return eval_plain


def waiting(rows: Any = ROWS) -> Any:
    """Return an async evaluation that ends with a bool."""

    @dotevals.foreach("question,expected,task", rows)
    async def eval_waiting(question: str, expected: str, task: str, model: nbp.Client) -> bool:
        first = await model.generate(question)
        return nbp.exact_match(await model.generate(first), expected)

    return eval_waiting


async def test_a_generator_of_rows_is_not_used_up() -> None:
    """Rows that are made one by one serve every model and each further run; endless ones are not drained."""

    def rows(count: int | None) -> Any:
        yield from (
            (str(n), str(n)) for n in (itertools.count() if count is None else range(count))
        )

    async def asked(prompt: str, expected: str, m: Any) -> bool:
        return bool(await m.generate(prompt) == expected)

    few = dotevals.foreach("prompt,expected", rows(3))(asked)
    for _ in range(2):
        frame = (await nbp.evaluate(few, ["echo:a", "echo:b"])).frame
        assert len(frame) == 6
    endless = dotevals.foreach("prompt,expected", rows(None))(asked)
    for samples in (2, 4):
        frame = (await nbp.evaluate(endless, ["echo:a"], samples=samples)).frame
        assert list(frame["prompt"]) == [str(n) for n in range(samples)]


async def test_results_that_cannot_be_stored_cost_their_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where dotevals fails for one model, such as at a full disk, the rows of the others stay."""
    named = evaluation.Run._name
    monkeypatch.setattr(
        evaluation.Run,
        "_name",
        lambda run, one: named(run, one) if one.name == "echo:a" else "no/such/\0place",
    )

    @dotevals.foreach("prompt,expected", [("x", "x")])
    async def asked(prompt: str, expected: str, m: Any) -> bool:
        return bool(await m.generate(prompt) == expected)

    frame = (await nbp.evaluate(asked, ["echo:a", "echo:b"])).frame.set_index("spec")
    assert frame["error"].isna().to_dict() == {"echo:a": True, "echo:b": False}
    assert "dotevals could not run" in frame["error"]["echo:b"]


async def test_rows() -> None:
    """Each model has a row for each item: prompt, answer, scores by name, times and tokens."""
    result = await nbp.evaluate(plain(), ["echo:a", "transformers:demo-m"])
    assert isinstance(result, nbp.Comparison)
    assert result.models == ["echo:a", "transformers:demo-m"]
    assert result.score_names == ["exact_match", "contains"]
    right = result.frame[result.frame["spec"] == "transformers:demo-m"]
    assert list(right["text"]) == ["42", "OWL", "tac"]
    assert list(right["prompt"]) == ["12+30=", "upper owl:", "reverse cat:"]
    assert list(right["expected"]) == ["42", "OWL", "tac"]
    assert list(right["score_exact_match"]) == [1, 1, 1]
    assert (right["completion_tokens"] > 0).all()
    assert (right["total_s"] >= right["ttft_s"]).all()
    assert list(right["cost_kind"]) == ["free"] * 3
    assert list(result.summary()["exact_match"]) == [0, 1]
    assert "demo-m" in result.as_text()
    assert result.chart().png()
    assert "<table" in result._repr_mimebundle_()["text/html"]


async def test_it_stays_as_it_is() -> None:
    """The evaluation itself is not touched: dotevals runs it as before."""
    evaluation = plain()
    before = dict(vars(evaluation))
    await nbp.evaluate(evaluation, "echo:a")
    assert vars(evaluation) == before


async def test_async_evaluation() -> None:
    """An async one gets a client to await; a bool counts as correct, columns come along, calls add up."""
    rows = [("a b", "a b", "one"), ("c", "d", "two")]
    frame = (await nbp.evaluate(waiting(rows), ["echo:a", "echo:b"])).frame
    assert list(frame["score_correct"]) == [1, 0, 1, 0]
    assert list(frame["task"]) == ["one", "two"] * 2
    assert list(frame["prompt"]) == ["a b", "c"] * 2
    assert list(frame["completion_tokens"]) == [4, 2] * 2
    assert list(frame["text"]) == ["a b", "c"] * 2


async def test_named_models() -> None:
    """Models in a dict are told apart by their names, though they are called alike."""
    result = await nbp.evaluate(plain(), {"one": "echo:a", "other": "echo:a"}, samples=1)
    assert result.models == ["one", "other"]
    assert list(result.frame["model"]) == ["a", "a"]


async def test_failures_stay_in_their_cells() -> None:
    """A row that raises, and a model that cannot load, fail their own cells and say why."""
    models = ["echo:a?fail_rate=0.5", "transformers:/no/where", "echo:b"]
    rows = [(f"prompt {number}", "") for number in range(8)]
    frame = (await nbp.evaluate(plain(rows), models, samples=6)).frame
    counts = frame["error"].notna().groupby(frame["spec"], sort=False).sum().to_dict()
    assert 0 < counts["echo:a?fail_rate=0.5"] < 6
    assert counts["transformers:/no/where"] == 6
    assert counts["echo:b"] == 0
    lost = frame[frame["spec"] == "transformers:/no/where"]
    assert lost["error"].str.contains("no folder").all()
    assert list(lost["prompt"]) == [prompt for prompt, _ in rows[:6]]
    assert len(frame) == 18


async def test_nothing_is_mixed_up() -> None:
    """Runs in the same second never take each other's results; an experiment goes on where it was."""
    asked: list[str] = []

    @dotevals.foreach("prompt", [("x",), ("y",)])
    def eval_counted(prompt: str, m: nbp.SyncClient) -> Any:
        asked.append(f"{m.model} {prompt}")
        return dotevals.Result(True, f"{m.model} says {m.generate(prompt)}")

    async def texts(*models: str, **named: Any) -> list[str]:
        return list((await nbp.evaluate(eval_counted, models, **named)).frame["text"])

    assert await texts("echo:a") == ["a says x", "a says y"]
    assert await texts("echo:b") == ["b says x", "b says y"]
    assert await texts("echo:a") == ["a says x", "a says y"]
    assert len(asked) == 6
    assert await texts("echo:org/a", experiment="mine") == ["org/a says x", "org/a says y"]
    asked.clear()
    more = await texts("echo:org/a", "echo:org/a?seed=1", experiment="mine")
    assert more == ["org/a says x", "org/a says y"] * 2
    assert asked == ["org/a x", "org/a y"]  # of the other options only

    @dotevals.foreach("prompt", [("x",), ("y",)])
    def eval_counted(prompt: str, m: nbp.SyncClient) -> Any:  # noqa: F811  # its cell was changed
        return dotevals.Result(True, f"now {m.model} says {m.generate(prompt)}")

    assert await texts("echo:org/a", experiment="mine") == ["now org/a says x", "now org/a says y"]


async def test_what_is_open_is_asked_itself(folder: Path) -> None:
    """Open clients and objects are evaluated as they are, stay open, and are never taken from before."""

    class Own:
        name = "first"

        async def generate(self, prompt: str) -> str:
            return f"{self.name} {prompt}"

    async with nbp.model("echo:a") as client:
        for name in ("first", "second"):
            Own.name = name
            result = await nbp.evaluate(
                plain([("x", "x")]), [client, Own()], experiment="e", storage="json://kept"
            )
            assert list(result.frame["text"]) == ["x", f"{name} x"]
        assert await client.generate("still open") == "still open"
    assert names(folder / "kept") == ["e"]


async def test_rows_of_another_form() -> None:
    """A row with too few values fails alone, whether its model runs or cannot be loaded."""
    frame = (await nbp.evaluate(plain([("a", "a"), ("b",)]), ["echo:a", "transformers:/no"])).frame
    assert list(frame["error"].notna()) == [False, True, True, True]
    assert "1 values but 2 columns" in frame["error"][1]
    assert frame["prompt"].isna().tolist() == [False, True, False, True]


async def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is told while it runs: which model, and how many rows are done."""
    shown: list[str] = []
    monkeypatch.setattr("nbproviders.comparison.evaluation._SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(
        "nbproviders.comparison.evaluation.Line.show", lambda line, text: shown.append(text)
    )
    await nbp.evaluate(plain([("x y", "x y")] * 3), {"slow": "echo:a?delay_s=0.05"})
    assert any("Evaluating slow" in text and "of 3 rows" in text for text in shown)
    shown.clear()
    await nbp.evaluate(plain([("x y", "x y")] * 3), "echo:a?delay_s=0.05", progress=False)
    assert not any(shown)


async def test_generators_and_batches() -> None:
    """Rows of a generator are the same for every model; a batch's rows are told as far as it tells them."""

    @dotevals.batch("prompt,expected", (row for row in [("a", "a"), ("b", "x")]), batch_size=2)
    def eval_batch(prompt: list[str], expected: list[str], m: nbp.SyncClient) -> Any:
        texts = m.generate_many(prompt)
        return [
            dotevals.Result(contains(text, right), text)
            for text, right in zip(texts, expected, strict=True)
        ]

    frame = (await nbp.evaluate(eval_batch, ["echo:a", "echo:b"])).frame
    assert list(frame["text"]) == ["a", "b"] * 2
    assert list(frame["score_contains"]) == [1, 0] * 2
    assert frame["completion_tokens"].isna().all()


async def test_further_parameters() -> None:
    """The model goes where it is told to; other parameters are given by name."""

    @dotevals.foreach("prompt", [("x",)])
    def eval_more(prompt: str, suffix: str, m: nbp.SyncClient, loud: bool = False) -> Any:
        return dotevals.Result(m.generate(prompt) + suffix == "x!", str(loud))

    result = await nbp.evaluate(eval_more, "echo:a", argument="m", suffix="!", loud=True)
    assert list(result.frame["score_correct"]) == [1]
    assert list((await nbp.evaluate(eval_more, "echo:a", suffix="!")).frame["text"]) == ["False"]
    for options, words in [
        ({}, "Which parameter of eval_more takes the model[?].*suffix, m"),
        ({"argument": "m"}, "lacks suffix"),
        ({"argument": "other", "suffix": "", "m": 1}, "has no free parameter 'other'"),
        ({"suffix": "", "m": 1}, "none"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            await nbp.evaluate(eval_more, "echo:a", **options)


@pytest.mark.parametrize("models", [[], ["echo:a", "echo:a"], ["nothing:a"]])
async def test_models_are_checked_first(models: list[str], folder: Path) -> None:
    """None, one twice or an unknown one is refused before anything runs."""
    with pytest.raises(ConfigurationError):
        await nbp.evaluate(plain(), models)
    assert ".dotevals" not in names(folder)


async def test_no_evaluation() -> None:
    """A plain function is refused, with what to write."""
    with pytest.raises(ConfigurationError, match="no evaluation of dotevals.\n.*@foreach"):
        await nbp.evaluate(test_no_evaluation, "echo:a")


async def test_without_dotevals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dotevals is missing, what to install is told."""
    monkeypatch.setitem(sys.modules, "dotevals.evaluation", None)
    with pytest.raises(ConfigurationError, match='pip install "dotevals>=0.28.3,<0.29"'):
        await nbp.evaluate(plain, "echo:a")
    with pytest.raises(ConfigurationError, match="pip install"):
        nbp.as_evaluator(nbp.contains)


async def test_a_storage_that_is_none() -> None:
    """What fails in dotevals itself comes out as an error of ours."""
    with pytest.raises(ProviderError, match="dotevals could not run eval_plain: .*nothing"):
        await nbp.evaluate(plain(), "echo:a", storage="nothing://x")
    assert [one.handles for one in nbp.residents()] == [0]


def test_blocking() -> None:
    """evaluate_sync does the same in a script, for both kinds."""
    assert list(nbp.evaluate_sync(plain(), "echo:a").frame["text"]) == [row[0] for row in ROWS]
    rows = [("a", "a", "t")]
    result = nbp.evaluate_sync(waiting(rows), ["echo:a", "echo:b"], progress=False, timeout_s=60)
    assert list(result.frame["score_correct"]) == [1, 1]


async def test_stop() -> None:
    """Stopped, it returns at once; a plain evaluation ends after the row it is at, its model given back."""
    began, go_on, asked = threading.Event(), threading.Event(), []

    @dotevals.foreach("prompt", [("x",), ("y",), ("z",)])
    def eval_long(prompt: str, m: nbp.SyncClient) -> bool:
        asked.append(prompt)
        began.set()
        go_on.wait(10)
        return True

    task = asyncio.ensure_future(nbp.evaluate(eval_long, "echo:a"))
    await happened(began)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [one.handles for one in nbp.residents()] == [0]
    before = threading.active_count()
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert threading.active_count() < before
    assert asked == ["x"]


def test_as_evaluator() -> None:
    """A scorer becomes a score of its name, in dotevals' own form; one of the response alone works too."""
    score = contains("It is 42.", "42")
    assert (score.name, score.value) == ("contains", True)
    assert score.metadata == {"result": "It is 42.", "expected": "42"}
    assert [metric.__name__ for metric in score.metrics] == ["accuracy"]

    def words(response: str) -> int:
        return len(response.split())

    assert nbp.as_evaluator(words)("a b c").value == 3
    with pytest.raises(ValueError, match="neither a bool nor a number"):
        nbp.as_evaluator(str.upper)("a")
    with pytest.raises(ConfigurationError, match="must be functions, not int"):
        nbp.as_evaluator(3)  # type: ignore[arg-type]


async def test_an_async_scorer() -> None:
    """One made of an async scorer is awaited."""

    async def judged(response: str, expected: str) -> bool:
        await asyncio.sleep(0)
        return response == expected

    assert (await nbp.as_evaluator(judged)("a", "a")).value is True


async def test_results_that_are_none() -> None:
    """What is neither score nor bool nor text is an error of its row, and ends nothing else."""

    @dotevals.foreach("prompt", [("x",), ("y",)])
    def eval_strange(prompt: str, m: nbp.SyncClient) -> Any:
        return dotevals.Result({"x": 1}) if prompt == "x" else dotevals.Result(True, "a", "b")

    frame = (await nbp.evaluate(eval_strange, "echo:a")).frame
    assert frame["error"].str.startswith("InvalidResultError").all()
    assert "score_correct" not in frame


def test_driven_refuses_to_wait() -> None:
    """A coroutine that would need a loop is refused, and closed."""
    closed = []

    async def waits() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(ConfigurationError, match="must be async itself"):
        driven(waits())
    assert closed == [True]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    nbp.unload_all(force=True)
