"""Every reader of a protocol, given any JSON: it returns what it promises, or raises one of our errors."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings, strategies as st

from nbproviders.core.completion import FinishReason, Usage
from nbproviders.core.tokens import Token
from nbproviders.errors import ProviderError
from nbproviders.providers import yandexgpt
from nbproviders.runtimes import chat_completions
from nbproviders.runtimes.anthropic_messages import Answer as Message
from nbproviders.runtimes.http.values import MOST_TOKENS, logprob, parsed
from nbproviders.runtimes.ollama import server
from nbproviders.runtimes.ollama.answers import Answer as Lines

Read = Callable[[Any], object]
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), math.inf, math.nan, 2**64])
)
WORDS = st.one_of(
    st.sampled_from(
        ["text", "thinking", "stop", "tool_use", "error", "code", "1e999", "nan", "9" * 5000]
    ),
    st.text(max_size=5),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
NAMES = st.sampled_from(
    "choices message delta content text thinking type usage logprobs tokens token_logprobs index "
    "finish_reason result alternatives status error code models name digest done done_reason".split()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(NAMES | WORDS, inner, max_size=4)
    ),
    max_leaves=12,
)

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "id": 7}]}
CHOICE = {
    "index": 0,
    "message": {"content": "a", "refusal": None, "reasoning_content": "b"},
    "finish_reason": "stop",
    "logprobs": LOGPROBS,
}
PLAIN = {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5]}}
BLOCKS = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}]
LINE = {
    "message": {"content": "a", "thinking": "b"},
    "logprobs": [{"token": "a", "logprob": -0.5}],
    "done": True,
    "done_reason": "stop",
    "eval_count": 2,
    "total_duration": 5,
}
YANDEX = {
    "alternatives": [{"message": {"text": "a"}, "status": "ALTERNATIVE_STATUS_FINAL"}],
    "usage": {"inputTextTokens": "3", "completionTokens": "2"},
}


def sound(text: Any) -> None:
    assert isinstance(text, str)


def counted(usage: Usage | None) -> None:
    for number in (usage.prompt_tokens, usage.completion_tokens) if usage else ():
        assert type(number) is int
        assert 0 <= number <= 3 * MOST_TOKENS


def ended(reason: Any) -> None:
    assert reason is None or reason in get_args(FinishReason)


def listed(tokens: tuple[Token, ...]) -> None:
    for token in tokens:
        sound(token.text)
        assert math.isnan(token.logprob) or 0 <= token.probability <= 1


def chat(value: Any) -> None:
    piece = chat_completions.read(value, "x")
    sound(piece.text)
    sound(piece.reasoning)
    counted(piece.usage)
    ended(piece.reason)
    listed(piece.tokens)


def message(value: Any) -> None:
    answer = Message("x")
    sound(answer.whole(value))
    sound(answer.reasoning)
    counted(answer.usage)
    ended(answer.reason)


def event(value: Any) -> None:
    answer = Message("x")
    sound(answer.event(value))
    counted(answer.usage)
    ended(answer.reason)


def line(value: Any) -> None:
    answer = Lines("x", 0.0)
    sound(answer.take(value, 1.0))
    counted(answer._usage)
    ended(answer.reason)
    listed(tuple(answer._tokens))


def yandex(value: Any) -> None:
    answer = yandexgpt._Answer("x")
    sound(answer.take(value))
    counted(answer.usage)
    ended(answer.reason)


def shown(value: Any) -> None:
    server.shown(value, "x")


def pulled(value: Any) -> None:
    state = server.Pull()
    state.take(value, "x")
    assert state.status.isprintable()
    assert len(state.status) <= 80


def tagged(value: Any) -> None:
    assert all(name.isprintable() for name in server.listed(value, "x"))


CASES: dict[str, tuple[Read, Any]] = {
    "chat": (chat, {"choices": [CHOICE], "usage": USAGE}),
    "plain": (chat, {"choices": [PLAIN], "usage": USAGE}),
    "message": (
        message,
        {"content": BLOCKS, "stop_reason": "end_turn", "usage": {"input_tokens": 3}},
    ),
    "start": (event, {"type": "message_start", "message": {"usage": {"input_tokens": 3}}}),
    "delta": (event, {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}),
    "end": (event, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}}),
    "line": (line, LINE),
    "yandex": (yandex, {"result": YANDEX}),
    "yandex error": (yandex, {"code": 3, "message": "no"}),
    "tags": (tagged, {"models": [{"name": "a:latest"}]}),
    "ps": (lambda value: server.loaded(value, "x"), {"models": [{"name": "a", "size": 3}]}),
    "show": (shown, {"model_info": {"a.context_length": 5}, "capabilities": ["completion"]}),
    "pull": (pulled, {"status": "pulling", "digest": "d", "total": 5, "completed": 3}),
    "version": (server.tells_probabilities, {"version": "0.12.11"}),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, one in inner:
        yield from places(one, (*path, name))


def put(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    made = at = copy.deepcopy(value)
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = other
    return made


def tried(read: Read, value: Any) -> None:
    told = ""
    try:
        read(value)
    except ProviderError as error:
        told = str(error)
    assert len(told) < 2000


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_it_should_be(case: str) -> None:
    """The form that the others are made from is read."""
    read, good = CASES[case]
    if case == "yandex error":
        with pytest.raises(ProviderError):
            read(good)
    else:
        read(good)


NASTY: list[Any] = [
    *(None, True, False, -1, 0.5, 2**64, 10**400, -(10**400), math.inf, -math.inf, math.nan),
    *("", "text", "1e999", "9" * 5000, "\n" * 200),
    *([], [None], [[]], {}, {"a": None}, {"type": []}, [{}], [5], ["text"]),
]


@pytest.mark.parametrize("case", sorted(CASES))
def test_each_nasty_value_in_each_place(case: str) -> None:
    """Numbers beyond all measure, other types and empty things, in the place of every part."""
    read, good = CASES[case]
    for path in places(good):
        for other in NASTY:
            tried(read, put(good, path, other))


@pytest.mark.parametrize("case", sorted(CASES))
def test_any_json(case: str) -> None:
    """Any value in the place of the whole, or of any part of it."""
    read, good = CASES[case]
    every = list(places(good))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.sampled_from(every), VALUES)
    def check(path: tuple[Any, ...], other: Any) -> None:
        tried(read, put(good, path, other))

    check()


@pytest.mark.parametrize("case", sorted(CASES))
def test_nested_as_deep_as_can_be_read(case: str) -> None:
    """In each place too."""
    read, good = CASES[case]
    for path in places(good):
        for opens, closes in ("[]", ('{"a":', "}")):
            deep = json.loads(opens * 700 + "1" + closes * 700)
            tried(read, put(good, path, deep))


@given(st.text(st.sampled_from("a\\é\ud83d\ude00\U0001f600"), max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_all_texts_can_be_encoded(text: str) -> None:
    """Halves of surrogate pairs are replaced wherever they stand; all else stays as it was."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    for data in (json.dumps([{text: text}]), json.dumps([{text: text}]).encode()):
        assert parsed(data) == [{whole: whole}]


def test_what_is_no_probability() -> None:
    """A logarithm above 0 is refused; one that rounding put there is certainty."""
    assert (logprob(1e-6), logprob(-0.5)) == (0.0, -0.5)
    with pytest.raises(ValueError, match="probability"):
        logprob(0.5)


@pytest.mark.parametrize("data", ["", "{", "nul", "[" * 100_000, "9" * 5000, b"\xff"])
def test_what_is_no_json(data: str | bytes) -> None:
    """It is a ValueError, also where the standard library says something else."""
    with pytest.raises(ValueError, match=r"."):
        parsed(data)
