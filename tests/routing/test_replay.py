"""Recorded once, answered for ever: at the same pace, labelled as what it is, and never made up."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core.client import Client
from nbproviders.core.completion import FREE, UNPRICED, Cost, Finish, Usage
from nbproviders.core.params import Request
from nbproviders.routing.recording import Recording
from nbproviders.routing.replay import Replay
from tests.scripted import Gate, PricedModel, ScriptedModel, happened, in_virtual_time, settled

SLOW = "echo:echo?delay_s=0.02"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.jsonl"


def content(path: Path) -> str:
    """What is in a file; nothing if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content(path).splitlines()]


async def test_recorded_once_then_from_the_file(path: Path) -> None:
    """The first answer is the model's, the next session's is the file's, and says so."""
    live = await nbp.replay(path, SLOW).generate("a b c", temperature=0)
    assert (live, live.spec) == ("a b c", SLOW)
    model = ScriptedModel()
    m = nbp.replay(path, mode="replay")
    stream = m.stream("a b c", temperature=0)
    assert [chunk async for chunk in stream] == ["a", " b", " c"]
    assert stream.completion.spec == f"replay:{SLOW}"
    done = await m.generate("a b c", temperature=0)
    assert (done, done.spec) == ("a b c", f"replay:{SLOW}")
    assert (done.usage, done.params, done.finish) == (live.usage, live.params, live.finish)
    assert done.total_s == pytest.approx(live.total_s, abs=1e-5)
    assert done.ttft_s == pytest.approx(live.ttft_s, abs=1e-5)
    assert m.spec == f"replay:{SLOW}"
    assert m.info.notes == (f"recorded on {datetime.date.today()} from {SLOW}",)
    assert model.requests == []


async def test_a_file_tells_no_secret_no_folder_and_no_hour(path: Path, tmp_path: Path) -> None:
    """It is one line a completion, for a person to read."""

    class Here(ScriptedModel):
        def __init__(self) -> None:
            super().__init__()
            self.info = type(self.info)(f"test:{tmp_path}/models/m.gguf")

    await nbp.replay(path, Here()).generate("hi")
    broken = ScriptedModel(failure=nbp.InvalidRequestError(f"No {tmp_path}/x, token=abcdefgh"))
    with pytest.raises(nbp.InvalidRequestError):
        await nbp.replay(path, broken).generate("hi")
    text = content(path)
    assert str(tmp_path) not in text
    assert "abcdefgh" not in text
    first, second = lines(path)
    assert (first["model"], first["prompt"], first["occurrence"]) == ("test:m.gguf", "hi", 1)
    assert first["date"] == datetime.date.today().isoformat()
    assert second["error"]["message"] == "No x, token=****"


async def test_the_second_time_is_another_answer(path: Path) -> None:
    """Repeats are kept apart and come back in their order; used up, they begin again."""

    class Counting(ScriptedModel):
        def stream(self, request: Any) -> Any:
            return super().stream(f"answer {len(self.requests)}")

    model = Counting()
    m = nbp.replay(path, model)
    assert [await m.generate("x") for _ in range(3)] == ["answer 0", "answer 1", "answer 2"]
    again = nbp.replay(path, mode="replay")
    assert [await again.generate("x") for _ in range(5)] == [
        f"answer {number}" for number in (0, 1, 2, 0, 1)
    ]
    more = nbp.replay(path, model)
    assert [await more.generate("x") for _ in range(4)][2:] == ["answer 2", "answer 3"]


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.5},
        {"raw": True},
        {"logprobs": False, "max_tokens": 3},
        {"stop": "x"},
    ],
)
async def test_another_way_to_ask_is_another_request(path: Path, asked: dict[str, Any]) -> None:
    """Parameters and the chat template decide what a model says."""
    await nbp.replay(path, "echo:echo").generate("x y")
    with pytest.raises(nbp.InvalidRequestError, match="It has this prompt, but with") as told:
        await nbp.replay(path).generate("x y", **asked)
    name = "chat" if "raw" in asked else list(asked)[-1]
    assert f"{name}=None, not" in told.value.hint


async def test_what_is_missing_is_told_with_what_is_near(path: Path) -> None:
    """The prompt, the nearest one, and what to do."""
    await nbp.replay(path, "echo:echo").generate("Translate: the cat sat")
    m = nbp.replay(path)
    with pytest.raises(nbp.InvalidRequestError, match="'Translate: the cat sits'") as told:
        await m.generate("Translate: the cat sits")
    assert "The nearest that it has: 'Translate: the cat sat'" in told.value.hint
    with pytest.raises(nbp.InvalidRequestError, match="none of them like it"):
        await m.chat([{"role": "user", "content": "12345"}])


async def test_auto_asks_only_what_is_missing(path: Path) -> None:
    """And replay asks nothing, though there is a model."""
    await nbp.replay(path, ScriptedModel()).generate("x")
    model = ScriptedModel()
    m = nbp.replay(path, model)
    assert await m.generate_many(["x", "y"]) == ["x", "y"]
    assert [request.prompt for request in model.requests] == ["y"]
    # Asked for in chunks, though only the whole was wanted: the pace is to be recorded.
    assert not model.requests[0].whole
    closed = nbp.replay(path, model, mode="replay")
    assert await closed.generate_many(["x", "y"]) == ["x", "y"]
    with pytest.raises(nbp.InvalidRequestError, match="'z'"):
        await closed.generate("z")
    assert len(model.requests) == 1


async def test_recording_again_replaces(path: Path) -> None:
    """In the mode for it, everything is asked."""
    await nbp.replay(path, ScriptedModel()).generate("x")
    model = ScriptedModel()
    assert await nbp.replay(path, model, mode="record").generate("x") == "x"
    assert (len(model.requests), len(lines(path))) == (1, 2)
    assert len({line["occurrence"] for line in lines(path)}) == 1


async def test_models_are_kept_apart(path: Path) -> None:
    """One model's answers are never told as another's."""
    for name in ("echo:a", "echo:b"):
        await nbp.replay(path, name).generate("x")
    done = await nbp.replay(path, "echo:b", mode="replay").generate("x")
    assert done.spec == "replay:echo:b"
    with pytest.raises(nbp.ConfigurationError, match="several models: echo:a, echo:b"):
        nbp.replay(path)
    with pytest.raises(nbp.InvalidRequestError, match="recorded from echo:a, echo:b"):
        await nbp.replay(path, "echo:c", mode="replay").generate("x")


async def test_the_recorded_models_provider_need_not_be_there(path: Path) -> None:
    """A recording is opened where nothing else is installed; only what is missing is then an error."""
    nbp.register_provider("far", type(nbp.create_provider("echo")))
    await nbp.replay(path, "far:m").generate("x")
    nbp.unregister_provider("far")
    for mode in ("replay", "auto"):
        m = nbp.replay(path, "far:m", mode=mode)  # type: ignore[arg-type]
        assert (await m.generate("x")).spec == "replay:far:m"
    with pytest.raises(nbp.ConfigurationError, match="Unknown provider 'far'"):
        await m.generate("y")
    with pytest.raises(nbp.ConfigurationError, match="Unknown provider 'far'"):
        nbp.replay(path, "far:m", mode="record")


async def test_what_a_wrong_prompt_brought_is_recorded_too(path: Path) -> None:
    """It would be the same tomorrow; that a service was down, or a key wrong, would not."""
    for kind, kept in [
        (nbp.InvalidRequestError, True),
        (nbp.UnsupportedError, True),
        (nbp.ServiceUnavailableError, False),
        (nbp.AuthenticationError, False),
    ]:
        own = path.with_name(kind.__name__)
        with pytest.raises(kind):
            await nbp.replay(own, ScriptedModel(failure=kind("no", hint="why"))).generate("x")
        assert bool(content(own)) is kept
        if kept:
            with pytest.raises(kind, match="no\nwhy"):
                await nbp.replay(own).generate("x")


async def test_what_failed_is_asked_again_in_its_place(path: Path) -> None:
    """A failure leaves no gap: the next answer is the first one recorded."""
    model = ScriptedModel(failure=nbp.ServiceUnavailableError("down"))
    m = nbp.replay(path, model)
    with pytest.raises(nbp.ServiceUnavailableError):
        await m.generate("x")
    model._failure = None
    assert await m.generate("x") == "x"
    assert [line["occurrence"] for line in lines(path)] == [1]


async def test_stopped_halfway_nothing_is_recorded(path: Path) -> None:
    """Half an answer is none."""
    gate = Gate()
    model = ScriptedModel(gate=gate)
    m = nbp.replay(path, model)
    task = asyncio.ensure_future(m.generate("a b"))
    await happened(gate.reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await happened(model.cancelled)
    settled()
    assert content(path) == ""
    gate.open()
    assert await m.generate("a b") == "a b"
    assert [line["occurrence"] for line in lines(path)] == [1]


class Endless(ScriptedModel):
    """Writes one word and never another."""

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        try:
            yield "a"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_a_stream_that_is_left_is_not_recorded(path: Path) -> None:
    """Nor is its model kept busy."""
    model = Endless()
    async with nbp.replay(path, model).stream("x") as stream:
        assert await anext(stream) == "a"
    await happened(model.cancelled)
    settled()
    assert content(path) == ""


def made(path: Path, pace: float) -> Replay:
    """A replay of one completion: chunks after 2 and 5 seconds, its end after 6."""
    told = {
        "nbproviders_recording": 1,
        "date": "2026-01-31",
        "model": "test:m",
        "spec": "test:m",
        "prompt": "x",
        "params": {},
        "chat": None,
        "logprobs": False,
        "occurrence": 1,
        "chunks": [[2, "a"], [5, "b"]],
        "end_s": 6,
    }
    path.write_text(json.dumps(told) + "\n", encoding="utf-8")
    return Replay(Recording(path), None, "replay", pace)


@pytest.mark.parametrize(
    ("pace", "expected"), [(1.0, [2, 5, 6]), (0.5, [1, 2.5, 3]), (0.0, [0] * 3)]
)
def test_the_pace_is_the_recorded_one(path: Path, pace: float, expected: list[float]) -> None:
    """Or faster, or at once; also for who reads only the end."""

    @in_virtual_time
    async def check() -> None:
        loop, times = asyncio.get_running_loop(), []
        async with made(path, pace).stream("x") as stream:
            async for _ in stream:
                times.append(loop.time())
        assert [*times, loop.time()] == pytest.approx(expected)
        began_s = loop.time()
        assert await made(path, pace).generate("x") == "ab"
        assert loop.time() - began_s == pytest.approx(expected[-1])

    check()


def test_stop_works_while_it_waits(path: Path) -> None:
    """Between two recorded chunks."""

    @in_virtual_time
    async def check() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await made(path, 1.0).generate("x")
        assert loop.time() == pytest.approx(3)

    check()


async def test_cadence_and_speed_are_the_callers(path: Path) -> None:
    """Of the client too; a recording of ten seconds is read at once."""
    made(path, 1.0)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await nbp.replay(path, cadence=False).generate("x") == "ab"
    assert await nbp.replay(path, speed=1000).generate("x") == "ab"
    assert loop.time() - began_s < 2


async def test_it_is_compared_and_routed_like_any_model(path: Path) -> None:
    """A recording in a comparison beside a live model, recorded from a router and asked by one."""
    source = nbp.Router("first-available")
    source.add_provider("echo:a")
    prompts = ["x", "y"]
    recorded = await nbp.compare(nbp.replay(path, source), prompts, repeats=2, progress=False)
    assert recorded.frame["error"].isna().all()
    assert {(line["model"], line["spec"]) for line in lines(path)} == {
        ("router:first-available", "echo:a")
    }
    m = nbp.replay(path, cadence=False)
    assert isinstance(m, Client)
    result = await nbp.compare([m, "echo:b"], prompts, repeats=2, progress=False)
    assert result.frame["error"].isna().all()
    assert set(result.frame["spec"]) == {"replay:router:first-available", "echo:b"}
    routed = nbp.Router()
    routed.add_provider(m)
    asked = {"temperature": 0, "max_tokens": 256}
    assert (await routed.route("x", **asked)).spec == "replay:echo:a"


async def test_a_recorded_answer_tells_what_it_cost_then(path: Path) -> None:
    """Its cost and what was ignored are kept; asking costs nothing where nothing is asked."""
    model = PricedModel()
    m = nbp.replay(path, model)
    cost = (await m.generate("x", max_tokens=9)).cost
    assert m.waist.cost(Usage(1, 1)) == model.cost(Usage(1, 1))
    again = nbp.replay(path, cadence=False)
    assert (
        (await again.generate("x", max_tokens=9)).cost
        == cost
        == Cost(pytest.approx(0.006), "known")
    )
    assert again.waist.cost(Usage(1, 1)) == FREE
    assert nbp.replay(path, "echo:a").waist.cost(Usage(1, 1)) == UNPRICED  # it may be asked


async def test_probabilities_are_recorded(path: Path) -> None:
    """As they were told; a request with them is another than one without."""
    pytest.importorskip("transformers")
    live = await nbp.replay(path, "transformers:demo-xs").generate(
        "1+1=", logprobs=True, max_tokens=3
    )
    m = nbp.replay(path, cadence=False)
    done = await m.generate("1+1=", logprobs=True, max_tokens=3)
    assert done.tokens == live.tokens != ()
    assert "logprobs" in m.info.can


async def test_closing_gives_back_what_it_opened(path: Path) -> None:
    """And nothing that was handed in."""
    m = nbp.replay(path, "echo:echo")
    await m.generate("x")
    assert [r.handles for r in nbp.residents()] == [1]
    m.close()
    assert [r.handles for r in nbp.residents()] == [0]
    with pytest.raises(nbp.ClosedError, match="nbp.replay"):
        await m.generate("x")
    async with nbp.model("echo:echo") as given:
        nbp.replay(path, given).close()
        assert not given.closed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "both"}, "auto, record, replay"),
        ({"speed": 0}, "speed=0"),
        ({}, "There is no recording"),
        ({"mode": "record"}, "a model is needed"),
        ({"model": 3}, "is no model"),
    ],
)
def test_a_wrong_option_is_told(path: Path, options: dict[str, Any], told: str) -> None:
    """Before anything is asked."""
    with pytest.raises(nbp.ConfigurationError, match=told):
        nbp.replay(path, **options)
