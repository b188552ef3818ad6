"""Promises of `m.chat`: turns, a system prompt, and what is neither."""

from __future__ import annotations

from typing import Any

import pytest

from nbproviders.core.chat import Chat
from nbproviders.core.params import Request, as_request
from nbproviders.errors import InvalidRequestError


def asked(turns: Any, system: Any = None) -> Any:
    chat = Chat[Request](as_request, lambda *_: None)
    return chat(turns, system=system).prompt


def test_a_system_prompt_stands_first() -> None:
    """Before turns, and before a text, which is one turn of the user's."""
    turn = {"role": "user", "content": "hi"}
    first = {"role": "system", "content": "be brief"}
    assert asked([turn], "be brief") == asked("hi", "be brief") == (first, turn)
    assert asked("hi") == (turn,)


@pytest.mark.parametrize("turns", [5, None, {"role": "user", "content": "hi"}, [5], b"hi"])
@pytest.mark.parametrize("system", [None, "be brief", 5])
def test_what_is_no_chat(turns: Any, system: Any) -> None:
    """It is one of our errors, with a system prompt and without."""
    with pytest.raises(InvalidRequestError):
        asked(turns, system)
