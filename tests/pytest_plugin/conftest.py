"""What the tests of the plugin share."""

from __future__ import annotations

import pytest

from tests.pytest_plugin.projects import COUNTING, Log


@pytest.fixture
def log(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Log:
    """What the project's provider `counting` does; the project registers it in its conftest."""
    path = pytester.path / "log"
    monkeypatch.setenv("LOG", str(path))
    pytester.makeconftest(COUNTING)
    return Log(path)
