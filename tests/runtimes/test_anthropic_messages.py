"""Promises about the messages protocol: what is said in bodies, and what answers and refusals mean."""

from __future__ import annotations

from typing import Any

import pytest

from nbproviders.core.completion import Usage
from nbproviders.core.params import as_request
from nbproviders.errors import InvalidRequestError, ServiceUnavailableError, UnsupportedError
from nbproviders.runtimes import anthropic_messages
from nbproviders.runtimes.anthropic_messages import Answer, Dialect

BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "filtered"),
    ],
)
def test_reasons(told: str, reason: str) -> None:
    """Each stop reason is one of ours, whole and streamed."""
    whole, streamed = Answer("x"), Answer("x")
    whole.whole({"content": [], "stop_reason": told})
    streamed.event({"type": "message_delta", "delta": {"stop_reason": told}})
    assert whole.reason == streamed.reason == reason


def test_counts() -> None:
    """What was read from a cache or written into it is the prompt's; later counts replace earlier ones."""
    answer = Answer("x")
    told = {"input_tokens": 5, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 200}
    answer.event({"type": "message_start", "message": {"usage": {**told, "output_tokens": 1}}})
    later = {"output_tokens": 7, "input_tokens": None, "service_tier": "standard"}
    answer.event({"type": "message_delta", "delta": {}, "usage": later})
    assert (answer.usage, answer.cache_written_tokens) == (Usage(235, 7, 30), 200)
    assert not answer.over
    answer.event({"type": "message_stop"})
    assert answer.over


@pytest.mark.parametrize("told", ["tool_use", "pause_turn"])
def test_a_turn_that_is_not_over(told: str) -> None:
    """What came before a tool's call is not taken for the answer, whole or streamed."""
    with pytest.raises(UnsupportedError, match=told):
        Answer("x").whole({"content": [{"type": "text", "text": "Let me"}], "stop_reason": told})
    with pytest.raises(UnsupportedError, match=told):
        Answer("x").event({"type": "message_delta", "delta": {"stop_reason": told}})


def test_what_is_no_text_is_left_out() -> None:
    """Thoughts stand apart; blocks, deltas and events of other kinds say nothing."""
    answer = Answer("x")
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "?"},
        {"type": "text", "text": "a"},
        {"type": "server_tool_use", "id": "1", "name": "n", "input": {}},
        {"type": "text", "text": "b"},
    ]
    assert answer.whole({"content": blocks}) == "ab"
    assert answer.reasoning == "hm"
    signed = {"type": "signature_delta", "signature": "s"}
    for event in ({"type": "content_block_delta", "delta": signed}, {"type": "of tomorrow"}):
        assert answer.event(event) == ""


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"choices": []},
        {"content": None},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "text", "text": 5}]},
        {"content": [], "usage": {"input_tokens": "many"}},
        {"content": [], "usage": [1]},
    ],
)
def test_another_form(value: Any) -> None:
    """An answer of another form is the service's failure, not a completion."""
    with pytest.raises(ServiceUnavailableError, match="here: the answer is not of the messages"):
        Answer("here").whole(value)


@pytest.mark.parametrize("value", [None, 5, {}, {"type": "content_block_delta", "delta": {}}])
def test_an_event_of_another_form(value: Any) -> None:
    """The same for an event."""
    with pytest.raises(ServiceUnavailableError, match="messages form"):
        Answer("here").event(value)


def test_system_prompts_are_lifted() -> None:
    """All of them become the one system prompt, wherever they stand; the turns keep their order."""
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    body = anthropic_messages.body(as_request(turns), "m", max_tokens=7)
    assert body == {
        "model": "m",
        "max_tokens": 7,
        "messages": [turn for turn in turns if turn["role"] != "system"],
        "system": "be brief\n\nbe kind",
    }
    with pytest.raises(InvalidRequestError, match="nothing to answer"):
        anthropic_messages.body(as_request(turns[:1]), "m", max_tokens=7)


def fields(dialect: Dialect, *, thinks: bool = False, **params: Any) -> dict[str, Any]:
    return dialect.fields(as_request("x", **params), thinks=thinks)


def test_with_thoughts() -> None:
    """A thinking model takes no temperature but 1, and of top_p the upper end only."""
    dialect = Dialect()
    assert fields(dialect, thinks=True, temperature=0, top_p=0.5) == {}
    kept = {"temperature": 1.0, "top_p": 0.95}
    assert fields(dialect, thinks=True, **kept) == kept
    assert fields(dialect, temperature=0, top_p=0.5) == {"temperature": 0.0, "top_p": 0.5}


def test_one_of_two() -> None:
    """Where only one of temperature and top_p is taken, it is the temperature, if there is one."""
    dialect = Dialect()
    assert not dialect.learn(BOTH, {"temperature": 0})
    assert dialect.learn(BOTH, {"temperature": 0, "top_p": 0.5})
    assert fields(dialect, temperature=0, top_p=0.5, stop="z") == {
        "temperature": 0.0,
        "stop_sequences": ["z"],
    }
    assert fields(dialect, top_p=0.5) == {"top_p": 0.5}


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (
            "HTTP 400 from POST http://h/v1/messages: `temperature` is deprecated for this",
            "temperature",
        ),
        ("`temperature` may only be set to 1 when thinking is enabled.", "temperature"),
        ("'top_p' is not supported by this model", "top_p"),
        ("stop_sequences: Extra inputs are not permitted", "stop_sequences"),
        ("temperature: range: 0..1", None),
        ("max_tokens: must be greater than or equal to 1", None),
    ],
)
def test_learning(message: str, name: str | None) -> None:
    """A refusal tells which field to leave out; one of a value, or of what was not sent, does not."""
    body = dict.fromkeys(["temperature", "top_p", "stop_sequences", "max_tokens"], 1)
    dialect = Dialect()
    assert dialect.learn(message, body) is (name is not None)
    assert dialect.refused == ({name} if name else set())
    assert not Dialect().learn(message, {})
