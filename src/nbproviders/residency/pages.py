"""One page of the ledger: what one process tells, and the two files that it lies in.

``<name>.lock`` is locked for as long as its process lives; ``<name>.json`` is replaced as a whole, so that a
reader sees the old rows or the new ones, also of a writer that was stopped in the middle.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from nbproviders.errors import scrub
from nbproviders.residency import locks

logger = logging.getLogger(__name__)

LOCK = ".lock"
_ROWS, _NEW = ".json", ".new"
_VERSION = 1
_LABEL_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one device.

    Attributes
    ----------
    key
        The key's digest.
    spec
        Its reference.
    device
        By a name that means the same device in every process.
    charged_bytes
        Reserved for it there.
    taken_bytes
        How many of these it has really allocated by now: they are missing from the device's free memory.
    state
        As in `State`.
    idle
        Whether nobody holds it in a hard lease. A hint: its process looks again before it gives it away.
    process, pid
        Whose it is; filled in for rows of others.
    """

    key: str
    spec: str
    device: str
    charged_bytes: int
    taken_bytes: int
    state: str
    idle: bool
    process: str = ""
    pid: int = 0

    @property
    def pending_bytes(self) -> int:
        """Charged and not allocated yet: the device shows them as free, and they are promised already."""
        return max(self.charged_bytes - self.taken_bytes, 0)


@dataclass(frozen=True, slots=True)
class Page:
    """What one process tells.

    Attributes
    ----------
    started
        As `locks.process_started` tells it: an id may be given to another process later.
    label
        Whose rows these are, for people.
    port, token
        Where and by what it may be asked for memory; port 0 is nowhere.
    """

    pid: int
    started: str
    label: str
    rows: tuple[Row, ...]
    port: int = 0
    token: str = field(default="", repr=False)

    def text(self) -> str:
        """Return it as it is written."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        told["rows"] = [_told(row) for row in self.rows]
        return json.dumps({"version": _VERSION, **told})


def clean(label: str) -> str:
    """Return a label that may be shown to anyone: of a path the last part, short, and without keys."""
    name = re.split(r"[/\\]", label.rstrip("/\\"))[-1]
    shown = "".join(c for c in scrub(name[: 4 * _LABEL_CHARACTERS]) if c.isprintable())
    return shown[:_LABEL_CHARACTERS]


def names(folder: Path) -> list[str]:
    """Return the names of all pages, of the living and the dead."""
    return sorted(one[: -len(LOCK)] for one in os.listdir(folder) if one.endswith(LOCK))  # noqa: PTH208


def living(base: Path) -> Page | None:
    """Return the page of a process that lives; of one that died the files are removed."""
    with locks.looked_at(_with(base, LOCK)) as held:
        if not held:
            remove(base)
            return None
    page = read(base)
    # A lock outlives its process in a child that was forked behind Python's back.
    if page is not None and locks.has_ended(page.pid, page.started):
        remove(base)
        return None
    return page


def read(base: Path) -> Page | None:
    """Return a page; None if its process has just come or gone, or wrote what cannot be read."""
    try:
        told = json.loads(_with(base, _ROWS).read_bytes())
        pid = operator.index(told["pid"])
        label = clean(str(told["label"])) or f"process {pid}"
        return Page(
            pid=pid,
            started=str(told["started"]),
            label=label,
            rows=tuple(_row(values, label, pid) for values in told["rows"]),
            port=operator.index(told["port"]),
            token=str(told["token"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        logger.debug("The page %s of the ledger cannot be read.", base.name)
        return None


def write(base: Path, text: str) -> None:
    """Write a page in place of the one before; nobody but its user sees it."""
    new = _with(base, _NEW)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(_with(base, _ROWS))


def remove(base: Path) -> None:
    """Remove a page's files, there or not."""
    # The lock last: as long as it is there, whoever looks next goes on with what is left.
    for ending in (_ROWS, _NEW, LOCK):
        with suppress(OSError):
            _with(base, ending).unlink()


def own(rows: Sequence[Row], label: str) -> Page:
    """Return this process's page."""
    pid = os.getpid()
    return Page(pid, locks.process_started(pid), label, tuple(rows))


def _told(row: Row) -> dict[str, object]:
    values = asdict(row)
    del values["process"], values["pid"]  # the page's
    return values


def _row(values: dict[str, object], process: str, pid: int) -> Row:
    row = Row(
        key=str(values["key"]),
        spec=str(values["spec"]),
        device=str(values["device"]),
        charged_bytes=_count(values["charged_bytes"]),
        taken_bytes=_count(values["taken_bytes"]),
        state=str(values["state"]),
        idle=values["idle"] is True,
    )
    return replace(row, process=process, pid=pid)


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def _with(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)
