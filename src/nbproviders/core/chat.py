"""``m.chat``: a call that takes the turns of a chat, and the way to the chat completions of a service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from nbproviders.core.params import GenerationParams, Messages
from nbproviders.core.proxy import Proxy

T = TypeVar("T")


class Chat(Generic[T]):
    """Call it with messages: ``await m.chat([{"role": "user", "content": "…"}], system="…")``.

    Attributes
    ----------
    completions
        ``await m.chat.completions.create(model=…, messages=…)``, for services that speak that protocol.
    """

    def __init__(self, generate: Callable[..., T], carry: Callable[..., Any]) -> None:
        self._generate = generate
        self.completions = Proxy(carry, ("chat", "completions"))

    def __call__(
        self,
        messages: Messages | str,
        params: GenerationParams | None = None,
        *,
        system: str | None = None,
        **overrides: Any,
    ) -> T:
        """Return the next turn of a chat.

        Parameters
        ----------
        messages
            The turns so far, or the text of a first one.
        params
            How to generate.
        system
            A system prompt, put before the turns.
        **overrides
            As for ``generate``.
        """
        __tracebackhide__ = True
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if system is not None and isinstance(turns, Sequence):  # what is none is refused further on
            turns = [{"role": "system", "content": system}, *turns]
        return self._generate(turns, params, **overrides)
