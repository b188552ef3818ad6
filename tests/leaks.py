"""Looks for fake keys in all that a test session leaves: files, logs, output, and what failures show.

Each finding names the place and never the key, so that the report does not leak it once more. No file is
excused: a test that has to write a key into one takes it away again.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.keys import FAKE

# The beginning is enough: what was cut off after it is a leak as well.
_MARK = FAKE[:16]


def _forms(mark: str) -> Iterator[bytes]:
    """Yield a text's bytes, and their parts that any Base64 around them has."""
    raw = mark.encode()
    yield raw
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw).rstrip(b"=")
        # The first letters depend on what stands before, the last on what follows.
        yield coded[(before * 8 + 5) // 6 : -1]


_PATTERN = re.compile(b"|".join(re.escape(form) for form in _forms(_MARK)))


def holds_key(text: str | bytes) -> bool:
    """Whether a fake key, or its beginning, is in a text, plain or in Base64."""
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    return _PATTERN.search(raw) is not None


def _masked(name: str) -> str:
    return re.sub(rf"{_MARK}[\w-]*", "****", name)


def files(folder: Path) -> list[str]:
    """Return the files below a folder that hold a fake key, as places for a report."""
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            shown = path.relative_to(folder).as_posix()
            if holds_key(shown):
                found.append(f"the name of a file or folder: {_masked(shown)}")
            elif _holds(path):
                found.append(f"the file {shown}")
    return sorted(found)


def _holds(path: Path) -> bool:
    # What a link leads to is somebody else's, or is found there.
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return False
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                return _PATTERN.search(raw) is not None
    except OSError:  # unreadable by intent, or gone meanwhile
        return False


class _Logged(logging.Handler):
    """Reads all that is logged, by anybody and at any level."""

    def __init__(self, leaks: Leaks) -> None:
        super().__init__(logging.NOTSET)
        self._leaks = leaks

    def emit(self, record: logging.LogRecord) -> None:
        try:
            told = f"{self.format(record)} {vars(record)}"
        except Exception:  # a broken record is for the handlers that print it
            return
        if holds_key(told):
            self._leaks.found(f"the log of {record.name}, from {record.module}:{record.lineno}")


class Leaks:
    """A plugin of pytest that fails the session if a fake key got out."""

    def __init__(self, config: pytest.Config) -> None:
        self.folder: Path | None = None
        self._places: dict[str, None] = {}  # in order, each once
        self._test = "the collection"
        self._handler = _Logged(self)
        self._undo = contextlib.ExitStack()
        # Loggers tell everything; by this, tests see no more of it than they would without.
        config.option.log_level = config.getoption("log_level", None) or "WARNING"
        self._start()

    def found(self, place: str) -> None:
        """Note a place in which a key was."""
        self._places[f"{place} ({_masked(self._test)})"] = None

    def _start(self) -> None:
        """Begin to listen; before pytest does, which puts the loggers' level back as it was then."""
        root = logging.getLogger()
        self._undo.callback(root.setLevel, root.level)
        self._undo.callback(root.removeHandler, self._handler)
        root.setLevel(logging.DEBUG)
        root.addHandler(self._handler)
        patch = self._undo.enter_context(pytest.MonkeyPatch.context())
        read = pytest.CaptureFixture.readouterr

        def readouterr(fixture: pytest.CaptureFixture[Any]) -> Any:
            told = read(fixture)  # after this the report no longer has it
            for text in told:
                if holds_key(text):
                    self.found("the output that a test read")
            return told

        patch.setattr(pytest.CaptureFixture, "readouterr", readouterr)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid
        if holds_key(nodeid):
            self.found("the test's own name")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._check(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._check(report)

    def _check(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        for name, text in report.sections:
            if holds_key(text):
                self.found(name)
        if report.longrepr is not None and holds_key(str(report.longrepr)):
            self.found("what a failure shows")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._test = "the whole session"
        for place in files(self.folder) if self.folder is not None else ():
            self.found(place)
        if self._places:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        self._undo.close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._places:
            terminalreporter.section("keys that got out", red=True)
            for place in self._places:
                terminalreporter.line(f"LEAKED: a key is in {place}")
