"""A budget: it holds, it holds nobody up for nothing, and what it refuses it says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import nbproviders as nbp
from nbproviders.comparison import budget as budgets
from nbproviders.comparison.budget import Budget, Budgeted, maybe_charged, most_tokens
from nbproviders.core.completion import Completion
from nbproviders.core.model import generate_all
from nbproviders.core.params import Request
from nbproviders.errors import ConfigurationError, ForeignError, InvalidRequestError
from tests.scripted import PricedModel, in_virtual_time, turns

# What a prompt of one byte may read, and so what a call of one byte and 9 tokens may cost at 0.001 $.
READ = most_tokens(Request("x", nbp.GenerationParams(max_tokens=9))).prompt_tokens
MOST = (READ + 9) * 0.001


def requests(count: int, prompt: str = "x", max_tokens: int = 9) -> list[Request]:
    return [Request(prompt, nbp.GenerationParams(max_tokens=max_tokens), whole=True)] * count


def refused(results: list[Any]) -> list[bool]:
    return [isinstance(one, ConfigurationError) for one in results]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    nbp.unload_all(force=True)


# The budget alone

CALLS = st.lists(
    st.tuples(
        st.integers(1, 40),  # bytes of the prompt
        st.one_of(st.integers(0, 60), st.sampled_from(["late", "broken", "refused", "planted"])),
        st.sampled_from([0.0, 0.1, 1.0, 7.0]),
    ),
    min_size=1,
    max_size=12,
)


def outcome(kind: int | str) -> int | tuple[BaseException, bool]:
    """An answer's tokens, or a failure and whether the service charges for it all the same."""
    if isinstance(kind, int):
        return kind
    broken = nbp.ServiceUnavailableError("broke")
    broken.__cause__ = ForeignError("ServerDisconnectedError", "")
    return {
        "late": (nbp.TimeoutError("late"), True),
        "broken": (broken, True),
        "refused": (nbp.RateLimitError("slowly"), False),
        "planted": (KeyError("a bug"), True),
    }[kind]


@given(
    calls=st.lists(CALLS, min_size=1, max_size=3),
    usd=st.floats(0, 1.5),
    prices=st.lists(st.sampled_from([0.0, 0.001, 0.003]), min_size=3, max_size=3),
    parallel=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
@in_virtual_time
async def test_never_more_than_the_budget(
    calls: list[list[tuple[int, int | str, float]]], usd: float, prices: list[float], parallel: int
) -> None:
    """However calls end, in any order: what was charged is within, and who was refused had to be."""
    budget = Budget(usd)
    models, asked = [], []
    for place, (price, own) in enumerate(zip(prices, calls, strict=False)):
        writes, takes_s = [outcome(kind) for _, kind, _ in own], [s for *_, s in own]
        models.append(
            PricedModel(f"m{place}", price, writes=writes, takes_s=takes_s, parallel=parallel)
        )
        asked.append([requests(1, "x" * size, 50)[0] for size, *_ in own])

    def within(*_: object) -> None:
        assert sum(model.charged_usd for model in models) <= usd + 1e-6
        assert budget.left_usd >= -1e-6

    done = await asyncio.gather(
        *(
            generate_all(Budgeted(m, budget), own, within)
            for m, own in zip(models, asked, strict=True)
        )
    )
    within()
    rest_usd = budget.usd - budget.spent_usd - budget.doubtful_usd
    assert budget.left_usd == pytest.approx(rest_usd)  # nothing stays reserved
    for model, own, results in zip(models, asked, done, strict=True):
        assert len(model.requests) == len(own) - sum(refused(results))
        for request, away in zip(own, refused(results), strict=True):
            most_usd = model.cost(most_tokens(request)).usd
            assert most_usd is not None
            assert not away or most_usd > rest_usd


@in_virtual_time
async def test_calls_at_once_wait_for_what_comes_back() -> None:
    """Ten at once may cost ten times what they do: each waits its turn, none is refused."""
    model = PricedModel(parallel=10, takes_s=[1.0])
    budget = Budget(MOST * 2)
    done = await generate_all(Budgeted(model, budget), requests(10))
    assert not any(refused(done))
    assert budget.spent_usd == pytest.approx(10 * (1 + 5) * 0.001)


@in_virtual_time
async def test_reservations_of_calls_on_their_way_count() -> None:
    """Two fit at once: a third is not sent before one of them is back."""
    model = PricedModel(parallel=5, takes_s=[1.0])
    work = asyncio.ensure_future(generate_all(Budgeted(model, Budget(MOST * 2.5)), requests(5)))
    await turns()
    assert len(model.requests) == 2
    await work
    assert len(model.requests) == 5


@in_virtual_time
async def test_equal_parts_fill_a_budget() -> None:
    """Three calls of a third each: rounding refuses none of them, and the fourth is."""
    model = PricedModel(usd=0.1 / READ, writes=[0])
    model.cost = lambda usage: nbp.Cost(0.1, "known")  # type: ignore[method-assign]
    done = await generate_all(Budgeted(model, Budget(0.3)), requests(4))
    assert refused(done) == [False, False, False, True]


@in_virtual_time
async def test_a_stopped_call_may_have_been_charged() -> None:
    """Cancelled on its way, its reservation is not spent again."""
    budget = Budget(MOST)
    work = asyncio.ensure_future(
        Budgeted(PricedModel(takes_s=[9.0]), budget).generate(requests(1)[0])
    )
    await turns()
    work.cancel()
    await asyncio.wait({work})
    assert (budget.spent_usd, budget.doubtful_usd) == (0, pytest.approx(MOST))
    assert "may have cost up to" in " ".join(budget.notes())


@in_virtual_time
async def test_a_refused_call_gives_its_reservation_back() -> None:
    """A service that says no takes no money: the next call has all of it."""
    model = PricedModel(writes=[(nbp.RateLimitError("slowly"), False), 9])
    budget = Budget(MOST)
    first, second = await generate_all(Budgeted(model, budget), requests(2))
    assert isinstance(first, nbp.RateLimitError)
    assert isinstance(second, Completion)
    assert budget.doubtful_usd == 0


@in_virtual_time
async def test_streams_are_paid_alike() -> None:
    """Read to the end a stream costs what it did; left halfway, all that it might have."""
    model = PricedModel()
    budget = Budget(1.0)
    async with Budgeted(model, budget).stream(requests(1)[0]) as stream:
        assert "".join([chunk async for chunk in stream]) == "xxxxx"
    assert (budget.spent_usd, budget.doubtful_usd) == (pytest.approx(0.006), 0)
    async with Budgeted(model, budget).stream(requests(1)[0]) as stream:
        await anext(stream)
    assert budget.doubtful_usd == pytest.approx(MOST)


@in_virtual_time
async def test_an_answer_that_tells_no_price_keeps_its_reservation() -> None:
    """A service that counts no tokens has not worked for nothing."""
    model = PricedModel()
    budget = Budget(1.0)
    paid = Budgeted(model, budget)
    asked = requests(1)[0]
    whole = model.generate

    async def silent(*arguments: Any, **named: Any) -> Completion:
        completion = await whole(*arguments, **named)
        completion.cost = nbp.Cost(None, "unpriced")
        return completion

    model.generate = silent  # type: ignore[method-assign]
    await paid.generate(asked)
    assert (budget.spent_usd, budget.doubtful_usd) == (0, pytest.approx(MOST))


@pytest.mark.parametrize("usd", [-1, math.nan, math.inf, True, "1", None])
def test_what_is_no_budget_is_refused(usd: Any) -> None:
    """A budget is a number of dollars."""
    with pytest.raises(ConfigurationError, match="budget_usd"):
        Budget(usd)


@pytest.mark.parametrize(
    "text", ["plain words", "ที่นี่", "👩‍🚀" * 9, "YWJjZA==" * 50, "\x00\ud800", "", "a" * 4096]
)
def test_no_tokenizer_reads_more_than_is_reserved(text: str) -> None:
    """Thai, emoji, base64 and half characters: a byte is at least what a token takes."""
    turn = {"role": "user", "content": text}
    params = nbp.GenerationParams(max_tokens=7)
    size = len(text.encode("utf-8", "surrogatepass"))
    plain, chat = most_tokens(Request(text, params)), most_tokens(Request((turn,) * 3, params))
    assert plain.prompt_tokens >= size + 8
    assert chat.prompt_tokens >= 3 * (size + 8)
    assert plain.completion_tokens == chat.completion_tokens == 7


def test_without_a_bound_nobody_knows() -> None:
    """An answer of any length may cost anything."""
    with pytest.raises(ConfigurationError, match="max_tokens"):
        most_tokens(Request("x"))


def failed(kind: type[nbp.ProviderError], cause: str = "") -> nbp.ProviderError:
    error = kind("failed")
    error.__cause__ = ForeignError(cause, "") if cause else None
    return error


@pytest.mark.parametrize(
    ("error", "charged"),
    [
        (failed(nbp.TimeoutError), True),
        (failed(nbp.TimeoutError, "ConnectionTimeoutError"), False),
        (failed(nbp.ServiceUnavailableError, "ServerDisconnectedError"), True),
        (failed(nbp.ServiceUnavailableError, "ClientConnectorError"), False),
        (failed(nbp.ServiceUnavailableError), False),
        (failed(nbp.RateLimitError), False),
        (failed(nbp.InvalidRequestError, "BadRequestError"), False),
        (failed(nbp.AuthenticationError), False),
        (failed(nbp.ProviderError, "KeyError"), True),
    ],
    ids=str,
)
async def test_what_may_have_been_charged(error: nbp.ProviderError, charged: bool) -> None:
    """A late or a broken answer, and what nobody knows; alone, and as one of several members."""
    assert maybe_charged(error) is charged
    router = nbp.Router("first-available")
    router.add_provider(PricedModel("a", writes=[(error, charged)]))
    router.add_provider(PricedModel("b", writes=[(InvalidRequestError("no"), False)]))
    with pytest.raises(nbp.ProviderError) as caught:
        await router.route("x", max_tokens=5)
    assert maybe_charged(caught.value) is charged


# In a comparison


async def test_a_comparison_stops_spending_and_says_so() -> None:
    """What would go beyond is not asked: its cell tells the figures, and what is free goes on."""
    model = PricedModel(writes=[9])
    result = await nbp.compare(
        [model, "echo:y"], ["x"] * 9, {"max_tokens": 9}, budget_usd=MOST + 0.025
    )
    frame = result.frame
    mine = frame[frame["spec"] == "priced:model"]
    assert list(mine["error"].isna()) == [True] * 3 + [False] * 6
    assert len(model.requests) == 3
    assert (
        f"this call may cost ${MOST:.4f}, and of the budget of ${MOST + 0.025:.4f} there is "
        f"${MOST - 0.005:.4f} left." in mine["error"].iloc[3]
    )
    assert frame[frame["spec"] == "echo:y"]["error"].isna().all()
    assert list(mine["cost_usd"][:3]) == pytest.approx([0.01] * 3)
    assert set(mine["cost_kind"].dropna()) == {"known"}
    assert result.cost_usd == pytest.approx(0.03)
    assert f"Budget: $0.0300 of ${MOST + 0.025:.4f} spent." in result.as_text()


async def test_within_a_budget_the_unpriced_are_not_asked() -> None:
    """Of a model of unknown price no cell is sent, and each says what to write."""
    model = PricedModel(usd=None)
    result = await nbp.compare([model, "echo:y"], ["a", "b"], budget_usd=5)
    mine = result.frame[result.frame["spec"] == "priced:model"]
    assert mine["error"].str.contains("allow_unpriced=True").all()
    assert model.requests == []
    assert len(result.failures) == 2


async def test_the_unpriced_may_be_allowed() -> None:
    """Then it is asked, and the result says that its cost is not in the sum."""
    model = PricedModel("odd", usd=None)
    result = await nbp.compare([model], ["a"], budget_usd=0, allow_unpriced=True)
    assert len(model.requests) == 1
    assert "neither in the sum nor in the budget: priced:odd." in result.as_text()


async def test_without_a_budget_nothing_is_refused() -> None:
    """Priced or not, all are asked, and costs are told."""
    result = await nbp.compare([PricedModel("a"), PricedModel("b", usd=None)], ["x"])
    assert result.failures.empty
    assert list(result.frame["cost_kind"]) == ["known", "unpriced"]
    assert "Budget" not in result.as_text()


def test_a_budget_of_nothing_lets_free_models_work() -> None:
    """compare_sync takes it too; references, which know their price once loaded, are free where they are."""
    result = nbp.compare_sync(["echo:a", "transformers:demo-xs"], ["12+30="], budget_usd=0)
    assert result.failures.empty
    assert set(result.frame["cost_kind"]) == {"free"}
    with pytest.raises(ConfigurationError, match="budget_usd"):
        nbp.compare_sync("echo:a", ["x"], budget_usd=-1)


async def test_a_router_of_references_is_opened_for_its_prices() -> None:
    """Before it is asked nobody knows what its members cost; a budget opens them to hear it."""
    router = nbp.Router("round-robin")
    router.add_provider("echo:a")
    router.add_provider(PricedModel(writes=[9]))
    result = await nbp.compare([router], ["x"] * 4, {"max_tokens": 9}, budget_usd=MOST)
    assert list(result.frame["cost_kind"].fillna("")) == ["free", "known", "", ""]


async def test_what_is_replayed_is_not_paid_again(tmp_path: Path) -> None:
    """It shows what it cost when it was recorded, and says that this was then; the budget stays whole."""
    path = tmp_path / "talk.jsonl"
    params = {"max_tokens": 9}
    await nbp.compare([nbp.replay(path, PricedModel())], ["x", "y"], params)
    for mode, model in (("replay", None), ("auto", PricedModel())):
        m = nbp.replay(path, model, mode=mode, cadence=False)  # type: ignore[arg-type]
        result = await nbp.compare([m], ["x", "y"], params, budget_usd=MOST)
        assert result.cost_usd == pytest.approx(0.012)
        assert "$0.0120 of the cost was paid when it was recorded, not now." in result.as_text()
        assert f"Budget: $0 of ${MOST:.4f} spent." in result.as_text()


def test_unconnected_names_are_the_librarys() -> None:
    """The exceptions that mean that nothing was sent are there by these names."""
    import builtins

    import aiohttp

    for name in budgets._UNCONNECTED:
        assert hasattr(aiohttp, name) or hasattr(builtins, name), name
