"""Promises of answers to bodies of one's own: their fields are attributes, and they are plain on request."""

from __future__ import annotations

import json

import pytest

from nbproviders.runtimes.chat_completions import Reply, reply

ANSWER = {
    "id": "c1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi", "parts": [[{}], 1]}}
    ],
    "usage": {"total_tokens": 3},
    "refusal": None,
}


def test_fields_are_attributes() -> None:
    """At any depth; a field that is not there is named."""
    told = reply(ANSWER)
    assert told.choices[0].message.content == "hi"
    with pytest.raises(AttributeError, match="no field 'output'"):
        _ = told.usage.output


def test_model_dump() -> None:
    """As with the client of OpenAI it is an equal value of plain dictionaries and lists, and a copy."""
    told = reply(ANSWER)
    plain = told.model_dump()
    assert plain == ANSWER
    assert json.loads(json.dumps(plain)) == ANSWER

    def kinds(value: object) -> set[type]:
        inner = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        return {type(value)}.union(*map(kinds, inner))

    assert Reply not in kinds(plain)
    plain["choices"][0]["message"]["content"] = "changed"
    assert told.choices[0].message.content == "hi"
