"""Running a comparison: every failure stays in its own cell, and order is the one that was given."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring import progress
from tests.scripted import BOUND_S, Gate, ScriptedModel, ScriptedProvider, happened
from tests.services.keys import FAKE

PROMPTS = [("12+30=", "42"), ("upper owl:", "OWL"), ("reverse cat:", "tac")]


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    yield
    nbp.unload_all(force=True)


async def test_every_model_answers_every_prompt_in_order() -> None:
    """Rows are models by repeats by prompts, in the order given, each with text, times and tokens."""
    specs = ["echo:b", "transformers:demo-m", "echo:a"]
    result = await nbp.compare(specs, PROMPTS, scorers=[nbp.exact_match], repeats=2)
    frame = result.frame
    assert list(frame["spec"].unique()) == specs
    assert list(frame["prompt_id"][:6]) == [0, 1, 2, 0, 1, 2]
    assert list(frame["repeat"][:6]) == [0, 0, 0, 1, 1, 1]
    right = frame[frame["spec"] == "transformers:demo-m"]
    assert list(right["text"]) == ["42", "OWL", "tac"] * 2
    assert right["score_exact_match"].astype(float).mean() == 1
    assert not frame[frame["provider"] == "echo"]["score_exact_match"].astype(bool).any()
    assert frame["error"].isna().all()
    for column in ("queue_s", "ttft_s", "total_s", "prompt_tokens", "completion_tokens"):
        assert (frame[column].astype(float) >= 0).all(), column
    assert (right["ttft_s"] <= right["total_s"]).all()


async def test_a_failing_cell_leaves_the_others_alone() -> None:
    """With a provider that fails for some prompts only those cells have an error."""
    prompts = [f"prompt {i}" for i in range(40)]
    frame = (await nbp.compare(["echo:x?fail_rate=0.3", "echo:y"], prompts)).frame
    failed = frame[frame["error"].notna()]
    assert 0 < len(failed) < 40
    assert set(failed["spec"]) == {"echo:x?fail_rate=0.3"}
    assert failed["text"].isna().all()
    assert failed["error"].str.startswith("ServiceUnavailableError").all()
    rest = frame[frame["error"].isna()]
    assert (rest["text"] == rest["prompt"]).all()


async def test_a_model_that_cannot_load_fails_its_own_cells() -> None:
    """A model that is not there costs its cells; the other model is compared all the same."""
    frame = (await nbp.compare(["transformers:/no/where", "echo:y"], ["a", "b"])).frame
    lost = frame[frame["spec"] == "transformers:/no/where"]
    assert lost["error"].str.contains("no folder").all()
    assert list(frame[frame["spec"] == "echo:y"]["text"]) == ["a", "b"]


async def test_a_prompt_that_is_too_long_fails_alone() -> None:
    """A prompt beyond one model's context fails there, and is answered by the other."""
    frame = (await nbp.compare(["transformers:demo-xs", "echo:y"], ["12+30=", "x" * 400])).frame
    assert list(frame["error"].notna()) == [False, True, False, False]
    assert "256" in frame["error"].dropna().iloc[0]


async def test_a_scorer_that_raises_fails_its_cell_and_says_so() -> None:
    """A bug in a scorer is told in the cell concerned; the answer is kept."""

    def fussy(response: str, expected: str) -> bool:
        if response == "b":
            raise KeyError("planted")
        return True

    frame = (await nbp.compare("echo:y", [("a", "a"), ("b", "b")], scorers=fussy)).frame
    assert list(frame["text"]) == ["a", "b"]
    assert frame["error"].isna()[0]
    assert "fussy" in frame["error"][1]
    assert "planted" in frame["error"][1]


async def test_scorers_may_be_async_and_run_on_the_callers_loop() -> None:
    """An async scorer can use what belongs to the caller's loop."""
    here = asyncio.get_running_loop()

    async def same_loop(response: str, expected: str) -> bool:
        return asyncio.get_running_loop() is here

    frame = (await nbp.compare("echo:y", [("a", "a")], scorers=[same_loop])).frame
    assert bool(frame["score_same_loop"][0])


async def test_defaults_are_greedy_and_bounded_for_all() -> None:
    """Every model is asked with temperature 0 and at most 256 tokens unless told otherwise."""
    words = " ".join("word" for _ in range(300))
    frame = (await nbp.compare("echo:y", [words])).frame
    assert frame["completion_tokens"][0] == 256
    assert frame["finish"][0] == "length"
    short = await nbp.compare("echo:y", [words], {"max_tokens": 5})
    assert short.frame["completion_tokens"][0] == 5
    assert short.params["temperature"] == 0


async def test_repeats_of_a_sampled_comparison_differ_and_can_be_repeated() -> None:
    """A given seed is raised for each repeat, so that repeats differ and the whole can be repeated."""
    params = nbp.GenerationParams(temperature=2.0, seed=5, max_tokens=8)
    runs = [
        (await nbp.compare("transformers:demo-xs?chat=false", ["zz"], params, repeats=4)).frame
        for _ in range(2)
    ]
    assert list(runs[0]["text"]) == list(runs[1]["text"])
    assert runs[0]["text"].nunique() > 1


async def test_clients_handles_objects_and_contexts_are_models() -> None:
    """Whatever has the waist can be compared."""

    class Shout:
        def generate(self, prompt: str) -> str:
            return prompt.upper()

    provider = nbp.create_provider("echo")
    handle = await provider.setup("h")
    async with provider.model("c") as client:
        models = [client, handle, provider.model("d"), Shout()]
        frame = (await nbp.compare(models, ["a b"])).frame
    assert list(frame["text"]) == ["a b", "a b", "a b", "A B"]
    await handle.teardown()


async def test_models_elsewhere_are_asked_at_the_same_time() -> None:
    """Those that compute here run one after another, and while they do those elsewhere are asked."""
    gates = {name: Gate() for name in ("here", "next", "one", "two")}
    models = {name: ScriptedModel(gate=gate) for name, gate in gates.items()}
    for name in ("one", "two"):
        models[name].info = replace(models[name].info, remote=True)
    work = asyncio.ensure_future(nbp.compare(models, ["a"]))
    for name in ("here", "one", "two"):
        await happened(gates[name].reached)
    assert not gates["next"].reached.is_set()
    gates["here"].open()
    await happened(gates["next"].reached)
    for gate in gates.values():
        gate.open()
    frame = (await work).frame
    assert list(frame["spec"]) == list(models)
    assert frame["error"].isna().all()


async def test_models_elsewhere_alone() -> None:
    """A comparison of services only needs none that computes here."""
    models = {name: ScriptedModel() for name in ("one", "two")}
    for model in models.values():
        model.info = replace(model.info, remote=True)
    frame = (await nbp.compare(models, ["a", "b"])).frame
    assert list(frame["text"]) == ["a", "b", "a", "b"]


async def test_stopping_stops_those_elsewhere_too() -> None:
    """None of the models that were asked at the same time goes on when the comparison is stopped."""
    models = {name: ScriptedModel(gate=Gate()) for name in ("here", "one", "two")}
    for name in ("one", "two"):
        models[name].info = replace(models[name].info, remote=True)
    work = asyncio.ensure_future(nbp.compare(models, ["a"]))
    for model in models.values():
        assert model._gate is not None
        await happened(model._gate.reached)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    for model in models.values():
        await happened(model.cancelled)


def test_who_computes_elsewhere() -> None:
    """A service does, what answers at this machine's own address does not, and no local provider."""
    assert nbp.create_provider("openai", api_key=FAKE).model("m").remote
    assert not nbp.create_provider("openai", base_url="http://localhost:1/v1").model("m").remote
    assert not nbp.create_provider("openai").model("m?base_url=http://127.0.0.1:1/v1").remote
    assert not nbp.create_provider("ollama", base_url="http://localhost:1").model("m").remote
    assert not nbp.create_provider("echo").model("m").remote
    assert not nbp.create_provider("transformers").model("demo-m").remote


async def test_models_called_alike_are_told_apart_by_names() -> None:
    """A dict names its models: in rows, tables and failures; provider and model stay what they are."""
    one, other = nbp.create_provider("echo"), nbp.create_provider("echo")
    models = {"here": one.model("x"), "there": other.model("x"), "gone": "transformers:/no/where"}
    result = await nbp.compare(models, ["ab"])
    frame = result.frame
    assert list(frame["spec"]) == list(models)
    assert list(frame["text"][:2]) == ["ab", "ab"]
    assert list(frame["provider"]) == ["echo", "echo", "transformers"]
    assert list(frame["model"]) == ["x", "x", "/no/where"]
    assert "Failed: gone: ModelAccessError" in repr(result)
    assert "there" in result._repr_mimebundle_()["text/html"]


async def test_each_failing_model_says_why_once() -> None:
    """Under the table stands the first failure of each model, and how many more it has."""
    shown = repr(
        await nbp.compare(["echo:y", "transformers:/a", "transformers:/b"], ["1", "2", "3"])
    )
    for path in ("/a", "/b"):
        assert shown.count(f"Failed: transformers:{path}: ModelAccessError") == 1
    assert shown.count("(and 2 more)") == 2
    assert "Failed: echo:y" not in shown


async def test_a_bug_in_somebodys_model_is_kept_to_its_cell() -> None:
    """An object whose generate raises anything costs its cells, with the type told."""

    class Broken:
        def generate(self, prompt: str) -> str:
            if prompt == "b":
                raise ZeroDivisionError("planted")
            return prompt

    frame = (await nbp.compare([Broken(), "echo:y"], ["a", "b"])).frame
    assert list(frame["error"].notna()) == [False, True, False, False]
    assert "ZeroDivisionError" in frame["error"][1]


@pytest.mark.parametrize("wrong", [{"max_tokens": -1}, {"temperature": 9}, {"tempreture": 1}])
async def test_wrong_parameters_are_refused_before_anything_runs(wrong: dict[str, Any]) -> None:
    """A parameter out of bounds or misspelt is refused with its name."""
    with pytest.raises(nbp.InvalidRequestError, match=next(iter(wrong))):
        await nbp.compare("echo:y", ["a"], wrong)
    with pytest.raises(nbp.InvalidRequestError, match=next(iter(wrong))):
        await nbp.compare("echo:y", ["a"], **wrong)
    assert nbp.residents() == []


@pytest.mark.parametrize(
    "params", [None, {"max_tokens": 9, "seed": 5}, nbp.GenerationParams(seed=5)]
)
async def test_single_parameters_by_name(params: Any) -> None:
    """As generate takes them; they win over the others, which stay."""
    result = await nbp.compare("echo:y", ["a b c d"], params, max_tokens=2)
    expected = {"temperature": 0.0, "max_tokens": 2} | ({"seed": 5} if params else {})
    assert {name: result.params[name] for name in expected} == expected
    again = nbp.compare_sync("echo:y", ["a b c d"], params, max_tokens=2)
    assert again.params == result.params


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True])
async def test_wrong_repeats_are_refused(repeats: Any) -> None:
    """Repeats are a whole number, at least one."""
    with pytest.raises(nbp.InvalidRequestError, match="repeats"):
        await nbp.compare("echo:y", ["a"], repeats=repeats)


def test_compare_sync_works_without_a_loop_and_gives_back_its_leases() -> None:
    """In a script the blocking form does the same, and holds nothing afterwards."""
    frame = nbp.compare_sync(["echo:y"], ["a"]).frame
    assert list(frame["text"]) == ["a"]
    assert [(r.handles, r.running) for r in nbp.residents()] == [(0, 0)]


async def test_compare_sync_works_inside_a_running_loop() -> None:
    """In a notebook's running loop the blocking form works too, without patching the loop."""
    assert list(nbp.compare_sync(["echo:y"], ["a"]).frame["text"]) == ["a"]


async def test_a_cancelled_comparison_holds_nothing() -> None:
    """Cancelling a comparison ends it at once and frees its models."""
    task = asyncio.ensure_future(nbp.compare("echo:y?delay_s=60", ["a b"] * 3))
    while not nbp.residents() or not nbp.residents()[0].running:
        await asyncio.sleep(0)  # it runs on another loop; there is no event here
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert nbp.unload_all(timeout_s=10) == 0


async def test_a_service_beside_a_local_model() -> None:
    """One table holds both; what a service cannot tell is missing, and not zero."""
    from tests.services.keys import FAKE
    from tests.services.openai import OpenAIServer

    with OpenAIServer(key=FAKE) as server:
        there = nbp.create_provider("openai", api_key=FAKE, base_url=server.base_url)
        models = [there.model("gpt-x"), there.model("gpt-x?stream=true"), "transformers:demo-m"]
        frame = (await nbp.compare(models, PROMPTS)).frame
    whole, streamed, local = (frame[frame["spec"] == spec] for spec in frame["spec"].unique())
    assert list(whole["text"]) == list(streamed["text"]) == [prompt for prompt, _ in PROMPTS]
    assert list(local["text"]) == [right for _, right in PROMPTS]
    assert whole["ttft_s"].isna().all()
    assert (streamed["ttft_s"].astype(float) <= streamed["total_s"].astype(float)).all()
    assert frame["error"].isna().all()
    assert set(frame["cost_kind"]) == {"free"}


async def test_the_bar_tells_which_model_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Awaited or blocking it says how many answers are there, and who is loading; then it goes away."""
    shown: list[str] = []
    there = threading.Event()

    def show(line: Any, text: str) -> None:
        shown.append(text)
        if "loading" in text:
            there.set()

    class Slow(ScriptedProvider):
        hold = there  # it loads until the bar has said so

    monkeypatch.setattr("nbproviders.comparison.run._SHOW_AFTER_S", 0.0)
    monkeypatch.setattr("nbproviders.comparison.run.Line.show", show)
    models = {"quick": ScriptedModel(), "slow": Slow().model("big")}
    async with asyncio.timeout(BOUND_S):
        assert (await nbp.compare(models, ["a"])).failures.empty
    nbp.unload_all()
    awaited, told = list(shown), next(text for text in shown if "loading" in text)
    assert "1 of 2 answers" in told
    assert "loading slow:big" in told
    assert awaited[-1] == ""
    shown.clear()
    there.clear()
    assert nbp.compare_sync(models, ["a"], timeout_s=BOUND_S).failures.empty
    assert any("loading slow:big" in text for text in shown)
    assert shown[-1] == ""


async def test_without_progress_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """progress=False shows no bar, awaited or blocking, and lets no call inside it show a line."""
    shown: list[str] = []
    monkeypatch.setattr("nbproviders.comparison.run._SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(
        "nbproviders.comparison.run.Line.show", lambda line, text: shown.append(text)
    )

    def quiet(text: str) -> bool:
        return progress.watch_opening([]) is None

    prompts = ["a b c d e"]
    result = await nbp.compare("echo:a?delay_s=0.05", prompts, scorers=quiet, progress=False)
    assert list(result.frame["score_quiet"]) == [True]
    nbp.compare_sync("echo:a?delay_s=0.05", prompts, progress=False)
    assert not shown


@pytest.mark.parametrize("blocking", [False, True])
async def test_scorers_that_wait_for_models_show_no_line(blocking: bool) -> None:
    """A comparison has its own, whichever way it is called."""
    shown: list[object] = []

    def judged(text: str, expected: str | None) -> float:
        shown.append(progress.watch_opening([]))
        return 1.0

    prompts = [("a", "a")]
    if blocking:
        await asyncio.to_thread(nbp.compare_sync, {"m": ScriptedModel()}, prompts, scorers=judged)
    else:
        await nbp.compare({"m": ScriptedModel()}, prompts, scorers=judged)
    assert shown == [None]
