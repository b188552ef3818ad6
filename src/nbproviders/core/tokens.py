"""Tokens with their probabilities: what may come next, and how likely a given text is.

A capability that not every backend has: `KnowsTokens` is its protocol, and asking a model without it raises
`UnsupportedError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from nbproviders.core.params import Request

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Token:
    """One token, and how likely the model found it after everything before it.

    Attributes
    ----------
    text
        What it writes; a piece of a character reads ``<0xE2>``.
    id
        Its number in the model's vocabulary; -1 where a service does not tell it.
    logprob
        Natural logarithm of its probability, from the model's own distribution: without temperature or
        any sampler.
    """

    text: str
    id: int
    logprob: float

    @property
    def probability(self) -> float:
        """Between 0 and 1."""
        return math.exp(self.logprob)


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a given continuation of a prompt.

    Attributes
    ----------
    tokens
        The continuation's tokens, each given the prompt and the tokens before it.
    spec
        The model reference.
    prompt_tokens
        Tokens of the prompt, chat template included.
    """

    tokens: tuple[Token, ...]
    spec: str = ""
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        """The continuation as its tokens write it."""
        return "".join(token.text for token in self.tokens)

    @property
    def total(self) -> float:
        """The natural logarithm of the probability of the whole continuation."""
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def perplexity(self) -> float:
        """The geometric mean of one over each token's probability; 1 is certainty.

        Infinite where it is more than a float holds; not a number without any token.
        """
        if not self.tokens:
            return math.nan
        try:
            return math.exp(-self.total / len(self.tokens))
        except OverflowError:
            return math.inf

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each token: ``token``, ``id``, ``probability``, ``logprob``."""
        return token_frame(self.tokens, self.spec)


def token_frame(tokens: Sequence[Token], spec: str = "") -> pd.DataFrame:
    """Return tokens as a DataFrame with columns ``token``, ``id``, ``probability``, ``logprob``.

    ``frame.attrs["spec"]`` tells which model it came from.
    """
    import pandas as pd

    frame = pd.DataFrame(
        {
            "token": pd.Series([token.text for token in tokens], dtype="str"),
            "id": pd.Series([token.id for token in tokens], dtype="int64"),
            "probability": pd.Series([token.probability for token in tokens], dtype="float64"),
            "logprob": pd.Series([token.logprob for token in tokens], dtype="float64"),
        }
    )
    frame.attrs["spec"] = spec
    return frame


@runtime_checkable
class KnowsTokens(Protocol):
    """What a model with the capabilities ``next_tokens``, ``score`` and ``logprobs`` has besides."""

    async def next_tokens(self, request: Request, k: int) -> tuple[Token, ...]:
        """Return the `k` most likely next tokens after a prompt, most likely first."""

    async def score(self, request: Request, continuation: str) -> Score:
        """Return how likely a continuation of a prompt is, token by token."""
