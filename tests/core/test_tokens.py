"""Tokens and scores as values; models that know them and models that do not."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator

import pytest

from nbproviders.core.client import Client, SyncClient
from nbproviders.core.completion import Completion, Finish
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request, as_request
from nbproviders.core.tokens import Score, Token, token_frame
from nbproviders.errors import InvalidRequestError, ProviderError, UnsupportedError

HALF, QUARTER = Token("a", 1, math.log(0.5)), Token("b", 2, math.log(0.25))


class Knowing(Model):
    """Finds "a" and "b" likely, whatever was asked."""

    info = ModelInfo("test:knowing", can=frozenset({"next_tokens", "score"}))

    def stream(self, request: str | Messages | Request) -> Stream:
        asked = as_request(request)
        return Stream(self._run(), asked, self.info.spec)

    async def _run(self) -> AsyncGenerator[str | Finish, None]:
        yield "ab"
        yield Finish(tokens=(HALF, QUARTER))

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        if request.prompt == "break":
            raise KeyError("foreign")
        return (HALF, QUARTER)[:k]

    async def score(self, request: Request, continuation: str) -> Score:
        return Score((HALF, QUARTER), self.info.spec, 3)

    async def aclose(self) -> None: ...


class Plain(Model):
    """Knows nothing of tokens."""

    info = ModelInfo("test:plain")

    def stream(self, request: str | Messages | Request) -> Stream:
        raise NotImplementedError

    async def aclose(self) -> None: ...


def client(model: Model) -> Client:
    return Client(model, lambda: None)


def test_score_adds_up() -> None:
    """The total is the logarithm of the product; perplexity its geometric mean upside down."""
    score = Score((HALF, QUARTER))
    assert math.exp(score.total) == pytest.approx(0.125)
    assert score.perplexity == pytest.approx(0.125**-0.5)
    assert score.text == "ab"
    assert math.isnan(Score(()).perplexity)


@pytest.mark.parametrize("logprob", [-710.0, -1e9, -math.inf])
def test_an_impossible_text_has_infinite_perplexity(logprob: float) -> None:
    """Rather than none: more than a float holds is no error; just below that it is a number."""
    assert Score((HALF, Token("x", 2, 2 * logprob))).perplexity == math.inf
    assert Token("x", 2, logprob).probability < 1e-300
    assert math.isfinite(Score((Token("x", 2, -709.0),)).perplexity)


def test_frame_has_a_row_for_each_token_and_fixed_types() -> None:
    """Also an empty one has its columns, so that code after it needs no special case."""
    frame = Score((HALF, QUARTER), "test:m").frame
    assert list(frame.columns) == ["token", "id", "probability", "logprob"]
    assert frame["probability"].tolist() == pytest.approx([0.5, 0.25])
    assert frame.attrs["spec"] == "test:m"
    empty = token_frame(())
    assert list(empty.dtypes.astype(str)) == list(frame.dtypes.astype(str))


async def test_client_returns_a_frame_of_next_tokens() -> None:
    """Async and blocking give the same."""
    frame = await client(Knowing()).next_tokens("x", k=1)
    assert frame["token"].tolist() == ["a"]
    assert SyncClient(Knowing(), lambda: None).next_tokens("x", k=1).equals(frame)


async def test_client_scores_a_continuation() -> None:
    """Async and blocking give the same."""
    score = await client(Knowing()).score("x", "ab")
    assert (score.text, score.prompt_tokens) == ("ab", 3)
    assert SyncClient(Knowing(), lambda: None).score("x", "ab") == score


async def test_a_model_that_does_not_know_tokens_says_so() -> None:
    """Never None: an error that names who can."""
    with pytest.raises(UnsupportedError, match="which tokens may come next") as told:
        await client(Plain()).next_tokens("x")
    assert "llama-cpp" in told.value.hint
    with pytest.raises(UnsupportedError, match="how likely"):
        await client(Plain()).score("x", "y")


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
async def test_a_wrong_count_is_refused(k: object) -> None:
    """With its value."""
    with pytest.raises(InvalidRequestError, match="k="):
        await client(Knowing()).next_tokens("x", k)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", None, 3])
async def test_an_empty_continuation_is_refused(text: object) -> None:
    """There is nothing to score."""
    with pytest.raises(InvalidRequestError, match="continuation"):
        await client(Knowing()).score("x", text)  # type: ignore[arg-type]


async def test_a_foreign_exception_becomes_ours() -> None:
    """As everywhere."""
    with pytest.raises(ProviderError, match="KeyError"):
        await client(Knowing()).next_tokens("break")


async def test_a_completion_carries_its_tokens() -> None:
    """What the backend told at the end is on the completion."""
    done: Completion = await client(Knowing()).generate("x", logprobs=True)
    assert done.tokens == (HALF, QUARTER)
