"""One request on its way through an engine: effective parameters, stop strings, text as tokens come.

Shared by every engine that computes tokens itself, so that a stop string, a limit or a cancellation means
the same whichever weights answer. Knows nothing of an engine but how it turns tokens into text.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nbproviders.core.completion import FREE, Finish, FinishReason, Usage
from nbproviders.core.params import GenerationParams
from nbproviders.core.tokens import Token
from nbproviders.errors import ProviderError, fresh
from nbproviders.runtimes.batching import Ticket

Decode = Callable[[Sequence[int]], str]

# What a continuation is tokenised behind, if not behind its prompt: what hardly any vocabulary has a longer
# token for. The first that stays apart is taken.
_ANCHORS = ("\n", ":", "0")


@dataclass(slots=True)
class Row:
    """One request on its way.

    Attributes
    ----------
    ticket
        Where its text goes.
    ids
        Prompt tokens.
    params
        Effective parameters: temperature, top_p, max_tokens and seed are given.
    chat
        Whether the prompt went through the chat template.
    began_s, first_s
        When its computation began, and when its first token was there (``time.perf_counter``).
    new_ids, tokens
        What was generated; with probabilities, if they were asked for. A stop string cuts the latter as it
        cuts the text.
    cached_tokens
        How many prompt tokens did not have to be computed.
    """

    ticket: Ticket
    ids: list[int]
    params: GenerationParams
    chat: bool
    began_s: float = 0.0
    first_s: float | None = None
    new_ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    cached_tokens: int = 0
    ended: bool = False
    text: str = ""
    _sent: int = 0
    _begins: list[int] = field(default_factory=list)  # where in the text each token does
    _from_id: int = 0
    _to_id: int = 0

    @property
    def watched(self) -> bool:
        """Whether its text must be known as it grows: somebody reads along, or a stop string may come."""
        return bool(self.params.stop) or not self.ticket.request.whole

    def take(self, token: int, eos_ids: frozenset[int], now_s: float) -> FinishReason | None:
        """Add a token that was generated; return why the row ends with it, if it does."""
        if self.first_s is None:
            self.first_s = now_s
        if token in eos_ids:
            return "stop"
        self.new_ids.append(token)
        self._begins.append(len(self.text))
        if self.ticket.cancelled:
            return "cancelled"
        return "length" if len(self.new_ids) >= (self.params.max_tokens or 0) else None

    def advance(self, decode: Decode, now_s: float, batch_invariant: bool) -> None:
        """Decode what is new, send what is safe, and end the row at a stop string."""
        # From a few tokens back: a token's text can depend on the one before it.
        known = decode(self.new_ids[self._from_id : self._to_id])
        both = decode(self.new_ids[self._from_id :])
        if len(both) <= len(known) or both.endswith("\ufffd"):  # the middle of a character
            return
        self.text += both[len(known) :]
        self._from_id, self._to_id = self._to_id, len(self.new_ids)
        cut = stop_at(self.text, self.params.stop)
        if cut is not None:
            self._end_at(cut, self.text, now_s, batch_invariant)
        elif not self.ticket.request.whole:
            safe = len(self.text) - held_back(self.text, self.params.stop)
            if safe > self._sent:
                self.ticket.emit(self.text[self._sent : safe])
                self._sent = safe

    def finish(self, reason: FinishReason, text: str, now_s: float, batch_invariant: bool) -> None:
        """End the row with its whole text, cut at a stop string if there is one in it."""
        cut = stop_at(text, self.params.stop)
        if cut is not None:
            self._end_at(cut, text, now_s, batch_invariant)
        else:
            self.end(reason, text, now_s, batch_invariant)

    def _end_at(self, cut: int, text: str, now_s: float, batch_invariant: bool) -> None:
        del self.tokens[bisect_left(self._begins, cut) :]
        self.end("stop", text[:cut], now_s, batch_invariant)

    def fail(self, error: ProviderError) -> None:
        """End the row, alone of its batch, with an error."""
        self.ended = True
        self.ticket.fail(fresh(error))

    def end(self, reason: FinishReason, text: str, now_s: float, batch_invariant: bool) -> None:
        """Deliver the rest of the text and the end."""
        self.ended = True
        first_s = now_s if self.first_s is None else self.first_s
        finish = Finish(
            reason=reason,
            usage=Usage(len(self.ids), len(self.new_ids), self.cached_tokens),
            params=self.params,
            queue_s=max(self.began_s - self.ticket.arrived_s, 0.0),
            ttft_s=first_s - self.began_s,
            total_s=now_s - self.began_s,
            chat=self.chat,
            batch_invariant=batch_invariant,
            tokens=tuple(self.tokens),
            cost=FREE,
        )
        self.ticket.end(text[self._sent :], finish)


def effective(params: GenerationParams, default_temperature: float, room: int) -> GenerationParams:
    """Return the parameters with every default filled in, and a seed drawn if one is needed."""
    temperature = default_temperature if params.temperature is None else params.temperature
    seed = params.seed
    if temperature > 0 and seed is None:
        seed = secrets.randbelow(2**31)
    return params.model_copy(
        update={
            "temperature": temperature,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "max_tokens": min(params.max_tokens or room, room),
            "seed": seed,
        }
    )


def continuation_ids(
    encode: Callable[[str], list[int]], prompt: str, prompt_ids: list[int], continuation: str
) -> list[int]:
    """Return the tokens of a continuation as they follow the prompt's.

    Tokenised together where that leaves the prompt's tokens as they are (a tokenizer may write a word's
    beginning differently after other text); else behind another text, since a model continues tokens, not
    text, and alone many tokenizers begin a text with a blank that is not in it.

    Parameters
    ----------
    encode
        From text to tokens, as the prompt was encoded.
    prompt, prompt_ids
        The prompt's text, templates applied, and its tokens.
    continuation
        What comes after it.
    """
    whole = encode(prompt + continuation)
    if len(whole) > len(prompt_ids) and whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    for anchor in _ANCHORS if prompt else ():
        before, both = encode(anchor), encode(anchor + continuation)
        if len(both) > len(before) and both[: len(before)] == before:
            return both[len(before) :]
    beginning = encode("")
    alone = encode(continuation)
    return alone[len(beginning) :] if alone[: len(beginning)] == beginning else alone


def stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Return where the earliest stop string begins."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return min(places) if places else None


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many last characters could still turn out to begin a stop string."""
    for count in range(min(len(text), max(map(len, stop), default=1) - 1), 0, -1):
        if any(s.startswith(text[-count:]) for s in stop):
            return count
    return 0
