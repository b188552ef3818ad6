"""What comes back from a model: chunks while it writes, and the completion at the end.

Both are text first (``str`` subclasses), so scorers, f-strings and old code take them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from nbproviders.core.params import GenerationParams
from nbproviders.core.tokens import Token

FinishReason = Literal["stop", "length", "cancelled", "filtered"]
Pricing = Literal["free", "known", "estimated", "unpriced"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as the model itself counted them.

    Attributes
    ----------
    prompt_tokens, completion_tokens
        Tokens that went in, and that came out.
    cached_tokens
        How many of the prompt's were known from an earlier request and not computed again.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request costs.

    Attributes
    ----------
    usd
        US dollars; None if nobody knows.
    kind
        ``free``: computed here. ``known``: from the price list, for the tokens that the service counted.
        ``estimated``: from a price that may not be this model's, or for tokens counted here.
        ``unpriced``: it is not free, and in no price list.
    """

    usd: float | None
    kind: Pricing


FREE = Cost(0.0, "free")
UNPRICED = Cost(None, "unpriced")


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a stream: what a backend tells beside the text.

    Attributes
    ----------
    reason
        ``stop``: the model ended or met a stop string; ``length``: its limit; ``cancelled``; ``filtered``:
        the service withheld or cut the text.
    usage
        Tokens, where known.
    params
        The values that were really used: defaults filled in, the seed that was drawn.
    queue_s
        Seconds from the call to the start of its computation.
    ttft_s, total_s
        Seconds from the start of its computation to the first token, and to the last.
        None: the stream measures them as its reader sees them. Not a number: the text came whole, and
        nobody saw when it began.
    chat
        Whether the prompt went through a chat template.
    batch_invariant
        Whether the text is guaranteed to be the same alone and in any batch.
    reasoning
        Text the model wrote for itself; never part of the completion.
    tokens
        Each token with its probability, if the request asked for ``logprobs``.
    cost
        Of this request.
    ignored
        Names of parameters that were asked for and that the service does not take.
    """

    reason: FinishReason = "stop"
    usage: Usage = Usage()
    params: GenerationParams | None = None
    queue_s: float = 0.0
    ttft_s: float | None = None
    total_s: float | None = None
    chat: bool = False
    batch_invariant: bool = True
    reasoning: str = ""
    tokens: tuple[Token, ...] = ()
    cost: Cost = UNPRICED
    ignored: tuple[str, ...] = ()


class Chunk(str):
    """A piece of text as it was generated."""

    __slots__ = ()


class Completion(str):
    """The whole text of one generation, with what is known about it.

    Attributes
    ----------
    usage
        `Usage`: prompt and completion tokens.
    queue_s, ttft_s, total_s
        Seconds spent waiting; from there to the first token (not a number, where a text came whole); and
        to the last.
    finish
        ``stop``, ``length``, ``cancelled`` or ``filtered``.
    params
        `GenerationParams` that were really used.
    spec
        The model reference it came from.
    chat
        Whether the prompt went through a chat template.
    batch_invariant
        Whether the text is guaranteed to be the same alone and in any batch.
    reasoning
        Text the model wrote for itself; not scored.
    tokens
        Each token with its probability (`Token`); empty unless asked for by ``logprobs=True``.
    cost
        `Cost` of this request, in US dollars, and how well it is known.
    ignored
        Names of parameters that were asked for and that the service does not take.
    """

    usage: Usage
    queue_s: float
    ttft_s: float
    total_s: float
    finish: FinishReason
    params: GenerationParams
    spec: str
    chat: bool
    batch_invariant: bool
    reasoning: str
    tokens: tuple[Token, ...]
    cost: Cost
    ignored: tuple[str, ...]

    def __new__(
        cls,
        text: str = "",
        *,
        end: Finish | None = None,
        params: GenerationParams | None = None,
        spec: str = "",
        ttft_s: float = 0.0,
        total_s: float = 0.0,
    ) -> Self:
        """Make one of a text and its `Finish`; timings that the end does not tell are given."""
        self = super().__new__(cls, text)
        end = end or Finish()
        self.usage = end.usage
        self.queue_s = end.queue_s
        self.ttft_s = ttft_s if end.ttft_s is None else end.ttft_s
        self.total_s = total_s if end.total_s is None else end.total_s
        self.finish = end.reason
        self.params = end.params or params or GenerationParams()
        self.spec = spec
        self.chat = end.chat
        self.batch_invariant = end.batch_invariant
        self.reasoning = end.reasoning
        self.tokens = end.tokens
        self.cost = end.cost
        self.ignored = end.ignored
        return self

    @property
    def text(self) -> str:
        """The text as a plain ``str``."""
        return str.__str__(self)

    @property
    def tokens_per_s(self) -> float | None:
        """Completion tokens a second of computation; None where it cannot be told."""
        if self.total_s <= 0 or not self.usage.completion_tokens:
            return None
        return self.usage.completion_tokens / self.total_s


def finish_of(completion: Completion) -> Finish:
    """Return the end of a stream that was read, for a stream that hands it on."""
    return Finish(
        reason=completion.finish,
        usage=completion.usage,
        params=completion.params,
        queue_s=completion.queue_s,
        ttft_s=completion.ttft_s,
        total_s=completion.total_s,
        chat=completion.chat,
        batch_invariant=completion.batch_invariant,
        reasoning=completion.reasoning,
        tokens=completion.tokens,
        cost=completion.cost,
        ignored=completion.ignored,
    )
