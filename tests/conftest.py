"""What every test gets: no settings of the user's, and nothing left in memory by the test before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbproviders import registry, session
from nbproviders.catalog import aliases, settings
from nbproviders.catalog.services import SERVICES
from nbproviders.errors import ProviderError
from nbproviders.residency import residency as residencies
from nbproviders.residency.memory import BUDGET_VARIABLE, KEEP_VARIABLE
from nbproviders.runtimes import measuring
from tests.leaks import Leaks


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A settings file of this test alone, no budget, measurements or keys of others; its path is told."""
    path = tmp_path / "nbproviders-config.toml"
    monkeypatch.setenv(settings.CONFIG_VARIABLE, str(path))
    monkeypatch.setattr(measuring, "base", lambda: tmp_path / "nbproviders-state")
    for variable in (BUDGET_VARIABLE, KEEP_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    for row in SERVICES.values():
        for variable in (*row.key_variables, row.url_variable or "_"):
            monkeypatch.delenv(variable, raising=False)
    # A developer's own keyring is read by no test; those that are about keyrings set their own.
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    for variable in ("OLLAMA_API_KEY", "OLLAMA_NUM_PARALLEL", "YANDEX_FOLDER_ID", "YC_FOLDER_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(aliases, "_made", {})
    aliases.reload()
    yield path
    aliases.reload()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test its models are freed and its providers are forgotten."""
    before = set(registry._registered)
    yield
    for name in set(registry._registered) - before:
        registry.unregister_provider(name)
    if residencies._default is not None:
        try:
            session.unload_all(force=True, timeout_s=20)
        except ProviderError:  # the test was about a closing that fails, and has seen it
            return


# Files that take more than half a minute. They begin first: where files run beside each other, the last one
# to begin would run alone.
LONG = (
    "kernel/test_leaks.py",
    "residency/test_machine.py",
    "test_notebooks.py",
    "browser/test_picker.py",
    "runtimes/test_snapshots.py",
    "runtimes/test_downloads.py",
    "kit/test_kit.py",
    "kernel/test_sharing.py",
    "providers/test_transformers_serve.py",
    "testing/test_broken.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_configure(config: pytest.Config) -> None:
    # Kernels of other sessions, and of another worker of this one, share no device with these tests.
    runtime = tempfile.TemporaryDirectory(prefix="nbp")
    config.add_cleanup(runtime.cleanup)
    os.environ["XDG_RUNTIME_DIR"] = runtime.name
    os.environ.pop("NBPROVIDERS_VIRTUAL", None)
    config.pluginmanager.register(Leaks(config), "leaks")


@pytest.fixture(scope="session", autouse=True)
def no_key_gets_out(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At the session's end no file, log or output holds a fake key."""
    leaks = request.config.pluginmanager.get_plugin("leaks")
    leaks.folder = tmp_path_factory.getbasetemp()
