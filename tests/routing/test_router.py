"""A router: who answers, who steps in, what is told, and what it never does."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring.service import BaseProvider
from nbproviders.core import engine
from nbproviders.core.completion import FREE, UNPRICED, Cost, Finish, Usage
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.retry import Retry
from nbproviders.residency import residency as residencies
from nbproviders.routing.health import HALF_LIFE_S, STRATEGIES
from tests.scripted import Gate, PricedModel, ScriptedModel, happened, in_virtual_time, settled


class Named(Model):
    """Answers with its name in two pieces; before each it may fail, and each may take its time."""

    def __init__(
        self,
        name: str,
        *,
        fails: Exception | None = None,
        between: Exception | None = None,
        took_s: float = 0.0,
        gate: Gate | None = None,
    ) -> None:
        self.info = ModelInfo(
            f"test:{name}", parallel=2, context_tokens=100, can=frozenset({"chat"})
        )
        self.name, self.fails, self.between = name, fails, between
        self.took_s, self.gate = took_s, gate
        self.asked = self.closed = self.cancelled = 0

    def stream(self, request: str | Messages | Request) -> Stream:
        asked = as_request(request)
        return Stream(self._run(), asked, self.info.spec)

    async def _run(self) -> AsyncGenerator[str | Finish, None]:
        self.asked += 1
        try:
            if self.gate is not None:
                await self.gate.passed()
            await asyncio.sleep(self.took_s)
            if self.fails is not None:
                raise self.fails
            yield self.name
            await asyncio.sleep(self.took_s)
            if self.between is not None:
                raise self.between
            yield "!"
            yield Finish("length", Usage(3, 2))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def aclose(self) -> None:
        self.closed += 1


def down(text: str = "down") -> nbp.ServiceUnavailableError:
    return nbp.ServiceUnavailableError(text)


def router(*members: Any, strategy: str = "first-available", **options: Any) -> nbp.Router:
    made = nbp.Router(strategy, **options)
    for member in members:
        made.add_provider(member, member.name if isinstance(member, Named) else None)
    return made


async def test_round_robin_is_fair_under_concurrency() -> None:
    """64 calls at once over four members: sixteen each, however long each takes."""
    members = [Named(name, took_s=0.001 * place) for place, name in enumerate("abcd")]
    made = router(*members, strategy="round-robin")
    done = await asyncio.gather(*(made.route("x") for _ in range(64)))
    assert [member.asked for member in members] == [16] * 4
    assert Counter(one.spec for one in done) == {f"test:{name}": 16 for name in "abcd"}


async def test_the_completion_is_the_members() -> None:
    """Text, end and usage as they came, and the reference of who answered."""
    done = await router(Named("a")).route("x", temperature=0)
    assert (done, done.spec, done.finish, done.usage) == ("a!", "test:a", "length", Usage(3, 2))
    assert isinstance(done, nbp.Completion)
    stream = router(Named("a", fails=down()), Named("b")).client().stream("x")
    assert [chunk async for chunk in stream] == ["b", "!"]
    assert (stream.completion.spec, stream.completion.finish) == ("test:b", "length")


@pytest.mark.parametrize("error", [down(), nbp.TimeoutError("x"), nbp.RateLimitError("x")])
@pytest.mark.parametrize("final", [True, False])
async def test_another_steps_in_where_that_may_help(error: nbp.ProviderError, final: bool) -> None:
    """Also for what the member has retried to its end."""
    error.final = final
    first, second = Named("a", fails=error), Named("b")
    assert await router(first, second).route("x") == "b!"
    assert "".join([c async for c in router(first, second).client().stream("x")]) == "b!"


@pytest.mark.parametrize(
    "error", [nbp.AuthenticationError("x"), nbp.InvalidRequestError("x"), KeyError("x")]
)
async def test_what_its_user_must_know_is_told_at_once(error: Exception) -> None:
    """A wrong key or prompt is not hidden by another member's answer."""
    first, second = Named("a", fails=error), Named("b")
    kind = type(error) if isinstance(error, nbp.ProviderError) else nbp.ProviderError
    with pytest.raises(kind, match=r"^a: "):
        await router(first, second).route("x")
    with pytest.raises(kind, match=r"^a: "):
        [c async for c in router(first, second).client().stream("x")]
    assert second.asked == 0


async def test_when_all_fail_all_are_told() -> None:
    """One error with everybody's, of the last one's kind, without secrets and without frames."""
    members = [
        Named("a", fails=nbp.RateLimitError("slow down", retry_after_s=7)),
        Named("b", fails=down("api_key=sk-abcdefgh12 refused")),
    ]
    with pytest.raises(nbp.ServiceUnavailableError) as told:
        await router(*members).route("x")
    assert "a: RateLimitError: slow down" in str(told.value)
    assert "b: ServiceUnavailableError: api_key=****" in str(told.value)
    assert [(name, type(e).__name__) for name, e in told.value.errors] == [  # type: ignore[attr-defined]
        ("a", "RateLimitError"),
        ("b", "ServiceUnavailableError"),
    ]
    assert all(e.__traceback__ is None for _, e in told.value.errors)  # type: ignore[attr-defined]


async def test_what_to_do_is_told_for_each_member() -> None:
    """The hint of every member stands under its error, once; that of a single one is the error's own."""
    members = [
        Named("a", fails=nbp.RateLimitError("slow down", hint="Ask later.")),
        Named("b", fails=nbp.ServiceUnavailableError("gone", hint="Is it running?\nSee its log.")),
    ]
    with pytest.raises(nbp.ServiceUnavailableError) as told:
        await router(*members).route("x")
    assert str(told.value).splitlines()[1:] == [
        "a: RateLimitError: slow down",
        "  Ask later.",
        "b: ServiceUnavailableError: gone",
        "  Is it running?",
        "  See its log.",
    ]
    assert [one.hint for _, one in told.value.errors] == [  # type: ignore[attr-defined]
        "Ask later.",
        "Is it running?\nSee its log.",
    ]
    with pytest.raises(nbp.RateLimitError) as alone:
        await router(members[0]).route("x")
    assert str(alone.value) == "a: slow down\nAsk later."


async def test_a_wrong_key_ends_the_search_and_lists_who_failed_before() -> None:
    """Its kind, and both messages."""
    members = [Named("a", fails=down()), Named("b", fails=nbp.AuthenticationError("bad key"))]
    third = Named("c")
    with pytest.raises(nbp.AuthenticationError, match=r"(?s)a: Service.*b: Auth.*bad key"):
        await router(*members, third).route("x")
    assert third.asked == 0


async def test_two_answers_are_never_mixed() -> None:
    """After the first chunk an error is told, and nobody else is asked."""
    first, second = Named("a", between=down("cut")), Named("b")
    stream = router(first, second).client().stream("x")
    assert await anext(stream) == "a"
    with pytest.raises(nbp.ServiceUnavailableError, match="a: cut"):
        await anext(stream)
    assert (stream.text, second.asked) == ("a", 0)
    made = router(first, second)
    assert await made.route("x") == "b!"  # a whole text has no first chunk: nothing was shown yet


async def test_without_members_it_says_what_to_write() -> None:
    """Not an index error."""
    with pytest.raises(nbp.ConfigurationError, match="add_provider"):
        await nbp.Router().route("x")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strategy": "fastest"}, "round-robin, random, first-available, best-available"),
        ({"window": 0}, "window=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
    ],
)
def test_a_wrong_option_is_told(options: Any, told: str) -> None:
    """With the value, and what there is."""
    with pytest.raises(nbp.ConfigurationError, match=told):
        nbp.Router(**options)


def test_what_is_no_member_is_refused() -> None:
    """A name that is taken, an unknown provider, a thing that cannot answer, the router itself."""
    made = router(Named("a"))
    for wrong, told in [
        (("echo:x", "a"), "has a member 'a' already"),
        (("nobody:x",), "Unknown provider 'nobody'"),
        ((3,), "is no model"),
        ((made,), "member of itself"),
        ((made.client(),), "member of itself"),
    ]:
        with pytest.raises(nbp.ConfigurationError, match=told):
            made.add_provider(*wrong)
    with pytest.raises(nbp.ConfigurationError, match="Members: a"):
        made.remove_provider("b")
    assert made.members == ("a",)


def test_equal_members_get_names_of_their_own() -> None:
    """Two keys of one service are two members."""
    made = nbp.Router()
    assert [made.add_provider("echo:echo") for _ in range(3)] == [
        "echo:echo",
        "echo:echo #2",
        "echo:echo #3",
    ]


async def test_a_reference_is_loaded_when_first_asked_and_given_back() -> None:
    """Adding loads nothing; removing and closing end the router's leases, and the model stays usable."""
    made = router("echo:a", "echo:b", strategy="round-robin")
    assert residencies.default().residents() == []
    assert await made.route("x") == "x"
    assert len(residencies.default().residents()) == 1
    assert await made.route("x") == "x"
    assert [r.handles for r in residencies.default().residents()] == [1, 1]
    made.remove_provider("echo:a")
    assert sorted(r.handles for r in residencies.default().residents()) == [0, 1]
    await made.aclose()
    await made.aclose()
    assert [r.handles for r in residencies.default().residents()] == [0, 0]
    with pytest.raises(nbp.ClosedError, match="Make another Router"):
        await made.route("x")


async def test_many_at_once_open_a_reference_once() -> None:
    """One lease, whoever comes while it opens."""
    made = router("echo:a")
    await asyncio.gather(*(made.route("x") for _ in range(10)))
    assert [r.handles for r in residencies.default().residents()] == [1]


async def test_what_was_handed_in_is_never_closed() -> None:
    """Models, clients and providers belong to who made them."""
    model = Named("a")
    async with nbp.model("echo:echo") as m:
        made = router(model, m)
        await made.aclose()
        assert (model.closed, m.closed) == (0, False)


class Service(BaseProvider):
    """Answers with the thread and the loop it was asked on."""

    left = 0

    async def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
        return threading.current_thread().name

    async def health_check(self) -> bool:
        return True

    async def __aexit__(self, *_: object) -> None:
        self.left += 1


async def test_an_instance_is_run_on_the_engine_and_kept() -> None:
    """From any loop and any thread, the same one."""
    provider = Service(ProviderConfig(name="mine", model="m"))
    made = router(provider)
    assert made.members == ("mine:m",)
    here = await made.route("x")
    there = await asyncio.to_thread(lambda: asyncio.run(made.route("x")))
    blocking = await asyncio.to_thread(made.route_sync, "x")
    assert {here, there, blocking} == {"nbproviders-engine"}
    await made.aclose()
    assert provider.left == 0


async def test_routers_are_models() -> None:
    """Inside a router, a comparison and a client; of the members it tells what all of them can."""
    inner = router(Named("a", fails=down()), Named("b"), name="inner")
    outer = router(inner, strategy="random", seed=1)
    assert (await outer.route("x")).spec == "test:b"
    assert inner.info.spec == "router:inner"
    assert (inner.info.parallel, inner.info.context_tokens) == (4, 100)
    assert inner.info.can == {"chat"}
    result = await nbp.compare([inner, outer, "echo:echo"], ["x", "y"], progress=False)
    texts = result.frame.groupby("spec")["text"].apply(list).to_dict()
    assert texts == {
        "router:inner": ["b!", "b!"],
        "router:random": ["b!", "b!"],
        "echo:echo": ["x", "y"],
    }
    m = outer.client()
    assert await m.generate_many(["x", "y"]) == ["b!", "b!"]
    assert await m.chat("x", system="Be brief.") == "b!"
    with pytest.raises(nbp.UnsupportedError):
        await m.next_tokens("x")
    m.close()
    with pytest.raises(nbp.ClosedError, match="router.client"):
        await m.generate("x")


async def test_retries_do_not_multiply() -> None:
    """What members retried to the end is not tried again around the router."""
    member = Named("a", fails=down())
    made = router(Retry(member, 1, first_wait_s=0.001))
    with pytest.raises(nbp.ServiceUnavailableError):
        await Retry(made, 3, first_wait_s=0.001).generate("x")
    assert member.asked == 2


async def test_the_unhealthy_are_passed_over_until_time_has_gone() -> None:
    """By the router's own clock."""
    now = [0.0]
    first, second = Named("a", fails=down()), Named("b")
    made = router(first, second, clock=lambda: now[0])
    for _ in range(5):
        assert await made.route("x") == "b!"
    assert (first.asked, second.asked) == (1, 5)
    first.fails = None
    now[0] = HALF_LIFE_S * 2
    assert await made.route("x") == "a!"


async def test_a_wrong_prompt_does_not_make_a_member_unhealthy() -> None:
    """It is the prompt's fault."""
    first, second = Named("a", fails=nbp.InvalidRequestError("too long")), Named("b")
    made = router(first, second)
    for _ in range(3):
        with pytest.raises(nbp.InvalidRequestError):
            await made.route("x")
    assert (first.asked, second.asked) == (3, 0)


@in_virtual_time
async def test_best_available_learns_who_is_quick() -> None:
    """In virtual time: each is tried, then the quickest gets the calls, and the others a look in between."""
    members = [Named("slow", took_s=5), Named("quick", took_s=1), Named("mid", took_s=2)]
    loop = asyncio.get_running_loop()
    made = router(*members, strategy="best-available", clock=loop.time)
    for _ in range(60):
        async with made.stream("x") as stream:
            [c async for c in stream]
    slow, quick, mid = (member.asked for member in members)
    assert quick > 50
    assert 1 < slow < 6
    assert 1 < mid < 6


@in_virtual_time
async def test_a_hanging_member_is_left_for_the_next() -> None:
    """Within the time it was given, and its call is cancelled; later chunks have the same time."""
    hanging, quick = Named("a", took_s=100), Named("b")
    loop = asyncio.get_running_loop()
    made = router(hanging, quick, timeout_s=3)
    async with made.stream("x") as stream:
        assert [c async for c in stream] == ["b", "!"]
    assert (loop.time(), hanging.cancelled) == (3, 1)
    slow = Named("c", took_s=2.5)
    async with router(slow, timeout_s=3).stream("x") as stream:
        assert [c async for c in stream] == ["c", "!"]
    with pytest.raises(nbp.TimeoutError, match=r"a: No answer within 3 s"):
        await anext(router(hanging, timeout_s=3).stream("x"))


async def test_a_late_call_is_cancelled() -> None:
    """A whole completion has the same time, and what is late does not go on in secret."""
    gate = Gate()
    late = ScriptedModel(gate=gate)
    made = router(late, Named("b"), timeout_s=0.05)
    assert await made.route("x") == "b!"
    await happened(late.cancelled)
    assert made.history()["error"].fillna("").tolist() == ["TimeoutError", ""]
    with pytest.raises(nbp.TimeoutError, match=r"No answer within 0\.05 s"):
        await router(ScriptedModel(gate=gate), timeout_s=0.05).route("x")


async def test_a_member_that_blocks_a_thread_does_not_hold_the_next() -> None:
    """What cannot be cancelled is left behind."""
    go = threading.Event()

    class Blocking:
        def generate(self, prompt: str) -> str:
            assert go.wait(10)
            return "late"

    made = router(Blocking(), Named("b"), timeout_s=0.05)
    try:
        assert await made.route("x") == "b!"
    finally:
        go.set()


async def test_stopping_a_route_stops_the_member() -> None:
    """And says nothing of its health; the decision is kept."""
    gate = Gate()
    model = ScriptedModel(gate=gate)
    made = router(model)
    task = asyncio.ensure_future(made.route("x"))
    await happened(gate.reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await happened(model.cancelled)
    settled()
    assert made.history()["outcome"].tolist() == ["stopped"]
    gate.open()
    assert await made.route("x") == "x"


async def test_a_dropped_stream_stops_the_member() -> None:
    """Without being told to close; the decision is kept."""

    class Endless(ScriptedModel):
        async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
            try:
                yield "a"
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    model = Endless()
    made = router(model)
    stream = made.client().stream("x")
    assert await anext(stream) == "a"
    del stream
    gc.collect()
    await happened(model.cancelled)
    settled()
    assert made.history()["outcome"].tolist() == ["stopped"]


async def test_history_tells_each_call() -> None:
    """Who was asked, how it ended, and from whom it fell back; never a prompt."""
    now = iter(range(100))
    made = router(Named("a", fails=down()), Named("b"), clock=lambda: float(next(now)))
    assert list(made.history().columns) == (
        "time_s strategy member outcome error total_s fell_back_from".split()
    )
    assert made.history().empty
    await made.route("a secret prompt")
    frame = made.history()
    assert frame["member"].tolist() == ["a", "b"]
    assert frame["outcome"].tolist() == ["failed", "answered"]
    assert frame["error"].fillna("").tolist() == ["ServiceUnavailableError", ""]
    assert frame["fell_back_from"].fillna("").tolist() == ["", "a"]
    assert frame["total_s"].tolist() == [1, 1]
    assert frame["time_s"].is_monotonic_increasing
    assert "secret" not in frame.to_string()


async def test_a_call_may_cost_what_the_dearest_member_takes() -> None:
    """Free beside free is free; the dearest counts; with one of unknown price nobody knows."""
    usage = Usage(3, 2)
    made = router(PricedModel("free", 0.0), Named("a"))
    assert router().cost(usage) == made.cost(usage) == UNPRICED
    made.remove_provider("a")
    assert made.cost(usage) == FREE
    made.add_provider(PricedModel("dear", 0.5))
    made.add_provider(PricedModel("cheap", 0.25))
    assert made.cost(usage) == Cost(2.5, "known")
    made.add_provider("echo:a")
    assert made.cost(usage) == UNPRICED  # not opened yet
    await engine.default().call(made.open)
    assert made.cost(usage) == Cost(2.5, "known")
    await made.aclose()


async def test_history_is_bounded() -> None:
    """The last thousand."""
    made = router(Named("a"))
    await made.client().generate_many(["x"] * 1100)
    assert len(made.history()) == 1000


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_members_come_and_go_while_others_answer(strategy: str) -> None:
    """From other threads, with calls under way: nothing is lost, and no call fails for it."""
    made = router(Named("stays"), strategy=strategy, seed=3)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            made.add_provider("echo:comes", "comes")
            made.remove_provider("comes")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(10):
            done = await asyncio.gather(*(made.route("x") for _ in range(20)))
            assert {str(one) for one in done} <= {"stays!", "x"}
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_it_says_what_it_is() -> None:
    """Its strategy and members; an empty one too."""
    assert repr(router(Named("a"), Named("b"))) == "<router:first-available: a, b>"
    assert repr(nbp.Router()) == "<router:round-robin: no members>"
