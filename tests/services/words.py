"""What the servers say: the last thing they were told, word by word, unless a test says otherwise."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Said:
    """An answer in tokens: a thought, the text, and why it ended."""

    thought: tuple[str, ...]
    tokens: tuple[str, ...]
    finish: Literal["stop", "length", "stop_sequence"]
    stopped_by: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def thinking(self) -> str:
        return "".join(self.thought)


def split(text: str) -> tuple[str, ...]:
    """Return a text's tokens: its words, each with the blanks before it."""
    return tuple(re.findall(r"\s*\S+|\s+\Z", text))


def count(texts: Iterable[str]) -> int:
    """Return how many words there are."""
    return sum(len(text.split()) for text in texts)


def plain(content: Any) -> str:
    """Return the text of a message's content: text, or a list of parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


def last_user(messages: Sequence[Any]) -> str:
    """Return what the user said last."""
    told = [plain(message["content"]) for message in messages if message["role"] == "user"]
    return told[-1] if told else ""


def say(
    text: str,
    max_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    thought: str = "",
) -> Said:
    """End a text where the first stop sequence or the limit ends it; thoughts count towards the limit."""
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    places = [(text.find(each), each) for each in stops if each and each in text]
    stopped_by = min(places)[1] if places else None
    tokens = split(text[: min(places)[0]] if places else text)
    thinking = split(thought)
    if max_tokens is not None and len(thinking) + len(tokens) > max_tokens:
        thinking = thinking[:max_tokens]
        return Said(thinking, tokens[: max_tokens - len(thinking)], "length")
    return Said(thinking, tokens, "stop_sequence" if stopped_by else "stop", stopped_by)


def alternatives(token: str, number: int) -> list[tuple[str, float]]:
    """Return a token and others that were less likely, with plausible probabilities; always the same."""
    likely = 0.55 + (zlib.crc32(token.encode()) % 400) / 1000
    found, rest = [(token, likely)], 1.0 - likely
    for place in range(1, number):
        rest /= 2
        found.append((f"{token}{place}", rest))
    return found[: max(number, 1)]
