"""Each test has a folder of servers of its own, and leaves no process and no file of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbproviders.runtimes.process import state
from tests.runtimes.process import servers

if sys.platform != "linux":
    collect_ignore_glob = ["test_*"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the servers of this test are written down."""
    path = tmp_path / "state"
    monkeypatch.setenv(state.STATE_VARIABLE, str(path))
    with servers.nothing_left(path):
        yield path
