"""The pytest plugin: models as fixtures, without a conftest.

``model_providers``, ``model_client`` and ``model_handle`` are there once nbproviders is installed. The
fixtures are plain functions that use the engine's thread, so that no plugin for async tests is needed, nor
disturbed. This file is imported whenever pytest starts in such an environment: it imports nothing that
costs, and says nothing in projects that do not use it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from nbproviders.errors import ConfigurationError, ProviderError
from nbproviders.pytest_plugin import settings
from nbproviders.pytest_plugin.settings import Settings

if TYPE_CHECKING:
    from nbproviders.authoring.provider import ModelHandle
    from nbproviders.core.client import Client, SyncClient
    from nbproviders.pytest_plugin.providers import Providers

__all__ = ["client_fixture", "model_client", "model_handle", "model_providers"]

_SETTINGS = pytest.StashKey[Settings]()
_BEFORE = pytest.StashKey["frozenset[Any]"]()
_TOLD = pytest.StashKey[bool]()
_MODEL_FIXTURES = ("model_client", "model_handle")
_FREED_S = 30.0


# Fixtures


@pytest.fixture(scope="session")
def model_providers(request: pytest.FixtureRequest) -> Iterator[Providers]:
    """The providers that are available here, by name; ``setup("provider:model")`` returns a handle."""
    from nbproviders.pytest_plugin.providers import Providers

    providers = Providers(request.config.stash[_SETTINGS], request.getfixturevalue)
    yield providers
    # Run from a notebook, a provider may have models of the notebook's: they are left alone.
    if not request.config.stash[_SETTINGS].keep and not request.config.stash[_BEFORE]:
        providers.close()


@pytest.fixture
def model_client(
    request: pytest.FixtureRequest, model_providers: Providers
) -> Iterator[Client | SyncClient]:
    """A model's client, by indirect parametrisation: blocking in a plain test, else to be awaited."""
    reference = _reference(request, "model_client")
    client = model_providers.client(reference, sync=not _is_async(request))
    yield client
    client.close()


@pytest.fixture
def model_handle(
    request: pytest.FixtureRequest, model_providers: Providers
) -> Iterator[ModelHandle]:
    """A model's handle, by indirect parametrisation; its ``model`` is what ``model_client`` would be."""
    reference = _reference(request, "model_handle")
    handle = model_providers.handle(reference, sync=not _is_async(request))
    yield handle
    handle.close()


def client_fixture(reference: str, *, name: str | None = None, **options: Any) -> Any:
    """Return a fixture that opens one model, for a line in a conftest.

    ``gpt4 = client_fixture("openai:gpt-4")``

    Parameters
    ----------
    reference
        ``provider:model?option=value&…``; looked at when a test first takes the fixture.
    name
        The fixture's name; by default that of the variable it is bound to.
    **options
        More options; they win over those in the reference.
    """

    def client(
        request: pytest.FixtureRequest, model_providers: Providers
    ) -> Iterator[Client | SyncClient]:
        made = model_providers.client(reference, sync=not _is_async(request), **options)
        yield made
        made.close()

    client.__doc__ = f"A client of {reference.partition('?')[0]}."
    return pytest.fixture(name=name)(client)


def _reference(request: pytest.FixtureRequest, fixture: str) -> Any:
    if hasattr(request, "param"):
        return request.param
    raise ConfigurationError(
        f"{fixture} was not told which model to open.",
        hint=f'Write @pytest.mark.parametrize("{fixture}", ["echo:echo"], indirect=True), or run '
        "pytest --nbp-models echo:echo.",
    )


def _is_async(request: pytest.FixtureRequest) -> bool:
    """Whether the test can await. An evaluation of dotevals can if the function it wraps does."""
    return inspect.iscoroutinefunction(inspect.unwrap(request.function))


# Hooks


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    settings.declare(parser)


@pytest.hookimpl(trylast=True)  # after dotevals, which is mended where it is there
def pytest_configure(config: pytest.Config) -> None:
    """Read the options, and note which models are not this run's."""
    try:
        config.stash[_SETTINGS] = settings.chosen(config)
    except ConfigurationError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_BEFORE] = _resident()
    if hasattr(config, "_dotevals_items"):
        from nbproviders.pytest_plugin import dotevals

        dotevals.mend(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is available, in a project that chose something."""
    return _available(config) if config.stash[_SETTINGS].given else []


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> list[str]:
    """Say what is available, in a project whose tests take models."""
    taken = (item.fixturenames for item in items if isinstance(item, pytest.Function))
    ours = {"model_providers", *_MODEL_FIXTURES}
    return _available(config) if any(ours.intersection(names) for names in taken) else []


@pytest.hookimpl(trylast=True)  # what the project parametrises itself stays as it is
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the models of ``--nbp-models`` to tests that do not say which."""
    models = metafunc.config.stash[_SETTINGS].models
    for fixture in _MODEL_FIXTURES if models else ():
        if _asks_us(metafunc, fixture) and not _parametrised(metafunc, fixture):
            metafunc.parametrize(fixture, models, indirect=True)


def _asks_us(metafunc: pytest.Metafunc, fixture: str) -> bool:
    """Whether a test's fixture of this name is ours, or one of the project's on top of it."""
    for found in reversed(metafunc._arg2fixturedefs.get(fixture, ())):
        if found.func.__module__ == __name__:
            return True
        if fixture not in found.argnames:
            return False
    return False


def _parametrised(metafunc: pytest.Metafunc, fixture: str) -> bool:
    return any(fixture in call.params for call in metafunc._calls)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Free what the run has loaded, whatever ended it."""
    if _SETTINGS not in config.stash or config.stash[_SETTINGS].keep:
        return
    before = config.stash[_BEFORE]
    if not _resident() - before:
        return
    from nbproviders.core import engine
    from nbproviders.residency import residency as residencies

    residency = residencies.default()
    try:
        engine.default().wait(
            lambda: residency.unload(lambda entry: entry.key not in before, force=True), _FREED_S
        )
    except ProviderError as error:  # the run is over, and its report printed
        print(f"nbproviders: not everything could be freed: {error}", file=sys.stderr)


def _resident() -> frozenset[Any]:
    """Return the keys of all models in memory; imports nothing: without the module there are none."""
    module = sys.modules.get("nbproviders.residency.residency")
    residency = getattr(module, "_default", None)
    return frozenset() if residency is None else frozenset(e.key for e in residency.entries())


def _available(config: pytest.Config) -> list[str]:
    """Return a line for the header; once a run."""
    if config.stash.get(_TOLD, False) or config.get_verbosity() < 0:
        return []
    config.stash[_TOLD] = True
    from nbproviders.pytest_plugin import header

    return [header.available()]
