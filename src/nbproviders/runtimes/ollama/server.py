"""What an Ollama server tells of its models and of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nbproviders.runtimes.http import values
from nbproviders.runtimes.ollama.names import short

_STATUS_CHARACTERS = 80
_LOGPROBS_SINCE = (0, 12, 11)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that an Ollama server has in memory.

    Attributes
    ----------
    name
        As Ollama takes it.
    bytes
        What it takes, on all devices.
    vram_bytes
        What of that is a GPU's.
    context_tokens
        Most tokens of prompt and answer, as it was loaded; None if the server does not tell.
    expires
        When it leaves by itself, if nobody asks it; None if that is not told.
    """

    name: str
    bytes: int
    vram_bytes: int
    context_tokens: int | None
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a server tells of a model that need not be loaded.

    Attributes
    ----------
    context_tokens
        What it was made for; None if that is not told.
    generates
        Whether it writes text: an embedding model does not.
    remote
        Whether it runs elsewhere, in Ollama's cloud.
    """

    context_tokens: int | None
    generates: bool
    remote: bool


@dataclass(slots=True)
class Pull:
    """How far a download is: a model has several layers, each told by its digest.

    Attributes
    ----------
    status
        What is being done, in a word or two.
    over
        Whether the server said that all is there.
    """

    status: str = "asking"
    over: bool = False
    _done: dict[str, int] = field(default_factory=dict)
    _total: dict[str, int] = field(default_factory=dict)

    @property
    def done_bytes(self) -> int:
        """Bytes of all layers that are here."""
        return sum(self._done.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all layers that were named so far."""
        return sum(self._total.values())

    def take(self, value: Any, what: str) -> None:
        """Take in one line; for the arguments and the error see `loaded`."""
        with values.of_form("Ollama's", what):
            told = values.text(value.get("status"))[:_STATUS_CHARACTERS]
            self.status = "".join(c if c.isprintable() else " " for c in told) or self.status
            self.over = self.status == "success"
            digest = value.get("digest")
            if digest and value.get("total"):
                self.status = "downloading"  # it says "pulling" and the digest
                self._total[digest] = values.count(value["total"])
                self._done[digest] = values.count(value.get("completed"))


def loaded(value: Any, what: str) -> list[Loaded]:
    """Return what an answer to ``/api/ps`` says.

    Parameters
    ----------
    value
        The parsed JSON.
    what
        Who answered, for the error.

    Raises
    ------
    ServiceUnavailableError
        If it is of another form.
    """
    with values.of_form("Ollama's", what):
        return [
            Loaded(
                _name(row),
                values.count(row.get("size")),
                values.count(row.get("size_vram")),
                values.count(row.get("context_length")) or None,
                _time(row.get("expires_at")),
            )
            for row in value["models"] or ()
        ]


def listed(value: Any, what: str) -> list[str]:
    """Return the names of the models in an answer to ``/api/tags``; else as `loaded`."""
    with values.of_form("Ollama's", what):
        return sorted(_name(row) for row in value["models"] or ())


def shown(value: Any, what: str) -> Shown:
    """Return what an answer to ``/api/show`` says; else as `loaded`."""
    with values.of_form("Ollama's", what):
        told: Mapping[str, Any] = value.get("model_info") or {}
        limits = [values.count(told[name]) for name in told if name.endswith(".context_length")]
        can = value.get("capabilities")
        return Shown(
            max(limits, default=None),
            not can or "completion" in can,
            bool(value.get("remote_host") or value.get("remote_model")),
        )


def tells_probabilities(value: Any) -> bool:
    """Whether an answer to ``/api/version`` is of a server that tells the probabilities of tokens."""
    told = str(value.get("version")) if isinstance(value, dict) else ""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", told)
    number = tuple(map(int, found.groups())) if found else (0,)
    return number >= _LOGPROBS_SINCE or number == (0, 0, 0)  # which is one built from source


def _name(row: Mapping[str, Any]) -> str:
    name = short(values.text(row.get("name") or row["model"]))
    if not name.isprintable():
        raise ValueError("no name")
    return name


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.year > 1 else None  # Go's time of none
