"""One request on its way: what is sent and when, where it ends, what is told of it at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from nbproviders.core.completion import Finish
from nbproviders.core.engine import Mailbox
from nbproviders.core.params import GenerationParams, Request
from nbproviders.core.tokens import Token
from nbproviders.errors import InvalidRequestError
from nbproviders.runtimes.batching import Ticket
from nbproviders.runtimes.rows import Row, continuation_ids, effective, held_back, stop_at

EOS = 0
# What each token writes: bytes, so that a character may take several tokens, and a token several characters.
PIECES = {1: b"a", 2: b"b", 3: b"bc", 4: "é".encode()[:1], 5: "é".encode()[1:], 6: "日本".encode()}
PIECES |= {7: b" ", 8: "🙂".encode()[:2], 9: "🙂".encode()[2:], 10: b"\xff", 11: b"abcab"}
PIECES |= {12: "é".encode()[1:] + b"b"}


def decode(ids: Sequence[int]) -> str:
    return b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")


class Direct:
    """A mailbox that calls at once."""

    def post(self, function: Callable[..., object], *arguments: object) -> bool:
        function(*arguments)
        return True


def row(*, whole: bool = False, logprobs: bool = False, room: int = 100, **given: Any) -> Row:
    request = Request("", GenerationParams(**given), whole=whole, logprobs=logprobs)
    ticket = Ticket(request, cast(Mailbox, Direct()))
    ticket.arrived_s = 10.0
    return Row(ticket, [1, 2, 3], effective(request.params, 0.0, room), chat=True, began_s=11.0)


def feed(one: Row, tokens: Sequence[int]) -> list[object]:
    """Generate tokens as an engine does, until the row ends; return all that was delivered."""
    for now_s, token in enumerate(tokens, 12):
        known = len(one.new_ids)
        reason = one.take(token, frozenset({EOS}), now_s)
        if one.ticket.request.logprobs and len(one.new_ids) > known:
            one.tokens.append(Token(decode([token]), token, -1.0))
        if reason is not None:
            one.finish(reason, decode(one.new_ids), now_s, True)
        elif one.watched:
            one.advance(decode, now_s, True)
        if one.ended:
            break
    return list(one.ticket._items)


def split(items: list[object]) -> tuple[list[str], Finish]:
    *chunks, finish = items
    assert isinstance(finish, Finish)
    assert all(isinstance(chunk, str) for chunk in chunks)
    return cast(list[str], chunks), finish


def ended(one: Row, tokens: Sequence[int]) -> tuple[list[str], Finish]:
    return split(feed(one, tokens))


@pytest.mark.parametrize(
    ("tokens", "chunks"),
    [
        ([1, 2, 3], ["a", "b", "bc"]),
        ([1, 4, 5, 2], ["a", "é", "b"]),
        ([8, 9, 6], ["🙂", "日本"]),
        ([4, 12, 1], ["éb", "a"]),
        ([7, 7, 1], [" ", " ", "a"]),
        ([10, 1], ["\ufffda"]),
        ([1, 4], ["a", "\ufffd"]),
    ],
    ids=["plain", "two tokens", "two characters", "and more", "blanks", "no text", "cut"],
)
def test_whole_characters_come_as_they_are_known(tokens: list[int], chunks: list[str]) -> None:
    """However tokens divide them; together they are the text, whichever way it is read."""
    sent, finish = ended(row(), [*tokens, EOS])
    assert sent == chunks
    assert finish.reason == "stop"
    whole, _ = ended(row(whole=True), [*tokens, EOS])
    assert "".join(whole) == "".join(chunks) == decode(tokens)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [
        ([1, 2, 1], ["b"], "a"),
        ([1, 2, 2, 3, 1], ["bbbc"], "a"),
        ([1, 2, 2, 2, 1], ["bbbc"], "abbba"),
        ([11, 11], ["bca"], "a"),
        ([11, 11], ["x", "cab", "bc"], "a"),
        ([1, 4, 5, 1], ["é"], "a"),
        ([1, 4, 5, 2, 1], ["éb"], "a"),
        ([1, 4, 12, 1], ["éb"], "a"),
        ([2, 6, 1], ["本"], "b日"),
        ([1, 8, 9, 1], ["🙂a"], "a"),
        ([2, 2, 1, 2], ["ab"], "bb"),
        ([1], ["a"], ""),
    ],
)
def test_a_stop_string_cuts_wherever_it_begins(
    tokens: list[int], stop: list[str], text: str, whole: bool
) -> None:
    """In the middle of a token, over several, of characters that take two; never a part of it is sent."""
    one = row(whole=whole, stop=stop)
    sent, finish = ended(one, [*tokens, EOS])
    assert "".join(sent) == text
    assert finish.reason == "stop"
    at_limit, finish = ended(row(whole=whole, stop=stop, max_tokens=len(tokens)), tokens)
    assert "".join(at_limit) == text
    assert finish.reason == ("stop" if stop_at(decode(tokens), stop) is not None else "length")


def test_what_could_become_a_stop_string_is_sent_when_it_cannot_any_more() -> None:
    """Not before, and no later."""
    one = row(stop=["bbx"])
    one.take(1, frozenset(), 12)
    one.advance(decode, 12, True)
    for token, items in ((2, ["a"]), (2, ["a"]), (2, ["a", "b"]), (1, ["a", "b", "bba"])):
        one.take(token, frozenset(), 12)
        one.advance(decode, 12, True)
        assert list(one.ticket._items) == items


@pytest.mark.parametrize(
    ("tokens", "stop", "kept"),
    [
        ([1, 2, 1, 1], "b", [1]),
        ([1, 11], "ca", [1, 11]),
        ([1, 2, 2, 1], "bb", [1]),
        ([1, 4, 5, 1], "a", []),
        ([2, 4, 5, 1], "a", [2, 4, 5]),
        ([2, 4, 5, 1], "é", [2]),
        ([2, 6, 1], "本", [2, 6]),
        ([1], "a", []),
    ],
)
def test_probabilities_are_told_of_what_is_in_the_text(
    tokens: list[int], stop: str, kept: list[int]
) -> None:
    """Tokens that lie behind the cut are not; usage counts all that were generated."""
    for how in ({}, {"max_tokens": len(tokens)}):
        _, finish = ended(row(stop=stop, logprobs=True, **how), tokens)
        assert [token.id for token in finish.tokens] == kept
        assert finish.usage.completion_tokens >= len(kept)
    _, whole = ended(row(logprobs=True, stop="zz"), [*tokens, EOS])
    assert [token.id for token in whole.tokens] == tokens


def test_the_end_tells_what_happened() -> None:
    """Tokens, times from where the computation began, and the parameters that were used."""
    one = row(temperature=0.5, seed=3, max_tokens=50)
    one.cached_tokens = 2
    _, finish = ended(one, [1, 2, EOS])
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (3, 2)
    assert (finish.usage.cached_tokens, finish.usage.total_tokens) == (2, 5)
    assert (finish.queue_s, finish.ttft_s, finish.total_s) == (1.0, 1.0, 3.0)
    assert finish.params is not None
    assert finish.params.given() == {
        "temperature": 0.5,
        "top_p": 1.0,
        "max_tokens": 50,
        "seed": 3,
    }
    assert finish.chat


def test_an_end_at_once_is_an_empty_text() -> None:
    """The first token ends it: no chunk, no token."""
    sent, finish = ended(row(), [EOS])
    assert (sent, finish.usage.completion_tokens, finish.reason) == ([], 0, "stop")


def test_a_limit_ends_with_its_last_token() -> None:
    """Which is in the text."""
    sent, finish = ended(row(max_tokens=2), [1, 2, 2])
    assert ("".join(sent), finish.reason, finish.usage.completion_tokens) == ("ab", "length", 2)


def test_a_cancelled_row_ends_with_its_next_token() -> None:
    """And says so."""
    one = row()
    assert one.take(1, frozenset(), 12) is None
    one.ticket.cancelled = True
    assert one.take(2, frozenset(), 13) == "cancelled"


def test_a_row_can_fail_by_itself() -> None:
    """With an error of its own, that holds no frames."""
    one = row()
    error = InvalidRequestError("no", hint="why")
    one.fail(error)
    [told] = one.ticket._items
    assert isinstance(told, InvalidRequestError)
    assert told is not error
    assert (str(told), one.ended, one.ticket.ended) == (str(error), True, True)


# Effective parameters


@pytest.mark.parametrize(
    ("given", "recommended", "wanted"),
    [
        ({}, 0.0, {"temperature": 0.0, "top_p": 1.0, "max_tokens": 40}),
        ({"temperature": 0.0}, 0.9, {"temperature": 0.0, "top_p": 1.0, "max_tokens": 40}),
        ({"max_tokens": 7, "stop": "x"}, 0.0, {"max_tokens": 7, "stop": ("x",)}),
        ({"max_tokens": 70}, 0.0, {"max_tokens": 40}),
        ({"seed": 5, "top_p": 0.5}, 0.0, {"seed": 5, "top_p": 0.5}),
    ],
)
def test_defaults_are_filled_in(
    given: dict[str, Any], recommended: float, wanted: dict[str, Any]
) -> None:
    """A limit is never more than there is room for; greedy needs no seed."""
    found = effective(GenerationParams(**given), recommended, 40)
    assert wanted.items() <= found.model_dump().items()
    assert "seed" in given or found.seed is None


def test_sampling_without_a_seed_draws_one() -> None:
    """Another each time, and it is told."""
    seeds = {effective(GenerationParams(), 0.7, 9).seed for _ in range(4)}
    assert len(seeds) == 4
    assert None not in seeds


# Continuations

# Words are tokens with the blank before them; alone, a text begins with a blank that is not in it.
WORDS = [
    "▁once",
    "▁on",
    "ce",
    "▁and",
    "▁",
    "and",
    "s",
    "▁s",
    "\n",
    ":",
    "on",
    "\n\n",
    ":s",
    "\nand",
]


def sentencepiece(text: str) -> list[int]:
    """Encode as SentencePiece does: a blank before the text, then the longest pieces first."""
    rest, found = "▁" + text.replace(" ", "▁") if text else "", [99]
    while rest:
        best = max((word for word in WORDS if rest.startswith(word)), key=len)
        found.append(WORDS.index(best))
        rest = rest[len(best) :]
    return found


@pytest.mark.parametrize(
    ("prompt", "continuation", "pieces"),
    [
        ("once", " and", ["▁and"]),
        ("on", "ce", ["ce"]),
        ("once", "s", ["s"]),
        ("on", "ces", ["ce", "s"]),
        ("", "once", ["▁once"]),
        ("on", "ceand", ["ce", "and"]),
    ],
)
def test_a_continuation_is_what_was_written(
    prompt: str, continuation: str, pieces: list[str]
) -> None:
    """Also where its beginning would merge with the prompt's end: no blank is put before it."""
    ids = continuation_ids(sentencepiece, prompt, sentencepiece(prompt), continuation)
    assert [WORDS[i] for i in ids] == pieces


def test_a_continuation_of_nothing_is_the_beginning_of_a_text() -> None:
    """Behind a beginning token that the vocabulary does not put there by itself."""
    ids = continuation_ids(lambda text: sentencepiece(text)[1:], "", [99], "once")
    assert [WORDS[i] for i in ids] == ["▁once"]


def test_a_continuation_that_merges_with_anything_is_taken_alone() -> None:
    """Where every text before it changes its tokens, its own are all there is."""

    def merging(text: str) -> list[int]:
        return [len(text)]

    assert continuation_ids(merging, "ab", [2], "cde") == [3]


def test_where_a_stop_string_begins() -> None:
    """The earliest of several; none is none."""
    assert stop_at("abcabc", ["ca", "bc"]) == 1
    assert stop_at("abc", ["x"]) is None
    assert stop_at("abc", []) is None
    assert [held_back("xab", [stop]) for stop in ("abc", "bd", "b", "xabxx", "q")] == [
        2,
        1,
        0,
        3,
        0,
    ]
    assert held_back("", ["ab"]) == 0
