"""The providers of one run of pytest: configured as it says, made when first asked for, closed with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nbproviders import registry
from nbproviders.authoring.opening import ModelContext
from nbproviders.authoring.provider import ModelHandle, ModelProvider
from nbproviders.authoring.wrapped import as_provider
from nbproviders.core import engine
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import ConfigurationError, ForeignError, ProviderError, setup_failed
from nbproviders.pytest_plugin.settings import Settings

_FREED_S = 30.0


class NoProviderError(ConfigurationError, KeyError):
    """A provider that is not here, as a mapping says it."""

    @property
    def message(self) -> str:
        """What was wrong; KeyError's own text would be a repr."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class LentHandle(ModelHandle):
    """A handle that gives its own lease back, and no other user's."""

    async def teardown(self) -> None:
        """Give the lease back, exactly once however often this is called."""
        self.close()

    def close(self) -> None:
        """The same, where nothing can be awaited."""
        self._active = False
        self.model.close()


class Providers(Mapping[str, ModelProvider]):
    """What is available here, by name; a provider is made when it is first looked up.

    Parameters
    ----------
    settings
        What the run was told.
    fixture
        Returns the value of a fixture by its name; a provider that is one may take others.

    Raises
    ------
    ConfigurationError
        If the file of configurations cannot be used.
    """

    def __init__(self, settings: Settings, fixture: Callable[[str], Any]) -> None:
        self._settings = settings
        self._fixture = fixture
        self._made: dict[str, ModelProvider] = {}
        self._opened: set[str] = set()
        self._names, self._configs = read(settings.config)

    def __getitem__(self, name: str) -> ModelProvider:
        low = name.lower() if isinstance(name, str) else ""
        made = self._made.get(low)
        if made is None:
            made = self._made[low] = self._create(low)
        elif low in self._opened:  # a test may have torn all of it down: then it is opened anew
            made = self._made[low] = _open(low)
        return made

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in list(self)

    def __iter__(self) -> Iterator[str]:
        listed = registry.list_available().items()
        return (name for name, info in listed if info.available or registry.fixture_of(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<model_providers {list(self)}>"

    def context(self, reference: str | ModelSpec, **options: Any) -> ModelContext:
        """Return a model to open: ``provider:model?option=value``, or ``provider/model``.

        Raises
        ------
        ConfigurationError
            For an unknown provider or option.
        """
        provider, spec = self._find(reference)
        return provider.model(spec.name, **options)

    async def setup(self, reference: str | ModelSpec, **config: Any) -> ModelHandle:
        """Return a handle of a model; its ``model`` is a client that any event loop may use.

        Loads it once, whoever else asks; ``await handle.teardown()`` gives back this lease alone.

        Raises
        ------
        ProviderError
            ``Failed to setup resource '<reference>': <cause>``, and what to do.
        """
        try:
            provider, spec = self._find(reference)
            context = provider.model(spec.name, **config)
        except ProviderError as error:
            raise setup_failed(reference, error) from None
        return LentHandle(context.spec, await context.open(), provider)

    def client(
        self, reference: str | ModelSpec, *, sync: bool, **options: Any
    ) -> Client | SyncClient:
        """Return an open client, blocking or for any event loop; blocks until it is loaded."""
        context = self.context(reference, **options)
        # Made on the engine, not on a loop of the test's: it may be used on that one all the same.
        return context.open_sync() if sync else engine.default().wait(context.open)

    def handle(self, reference: str | ModelSpec, *, sync: bool) -> LentHandle:
        """Return a handle of such a client."""
        provider, _ = self._find(reference)
        client = self.client(reference, sync=sync)
        return LentHandle(client.spec, client, provider)

    def close(self) -> None:
        """Tear down what tests set up themselves, going on past failures.

        Raises
        ------
        ProviderError
            Telling all failures together.
        """
        failures = []
        for name, provider in self._made.items():
            try:
                engine.default().wait(provider.teardown_all, _FREED_S)
            except ProviderError as error:
                failures.append(f"{name}: {error.message}")
        self._made.clear()
        if failures:
            raise ProviderError("\n".join(["Not everything could be torn down.", *failures]))

    def _find(self, reference: str | ModelSpec) -> tuple[ModelProvider, ModelSpec]:
        if isinstance(reference, ModelSpec):
            spec = reference
        else:
            known = registry.names()
            spec = ModelSpec.parse(self._full(reference, known), known)
        return self[spec.provider], spec

    def _full(self, reference: str, known: list[str]) -> str:
        """Return ``provider:model`` for a name from the file, and for ``provider/model``."""
        if not isinstance(reference, str):  # refused further on, in its own words
            return reference
        text = self._names.get(reference, reference).strip()
        provider, slash, model = text.partition("/")
        if slash and ":" not in provider and provider.lower() in known:
            return f"{provider}:{model}"
        return text

    def _create(self, name: str) -> ModelProvider:
        info = registry.list_available().get(name)
        if info is None:
            raise NoProviderError(
                f"Unknown provider: {name}. Available providers: {', '.join(self)}."
            )
        fixture = registry.fixture_of(name)
        if fixture and not info.available:  # it takes others, which only pytest has
            return as_provider(self._requested(fixture, name), name)
        config = dict(self._configs.get(name, {}))
        if name in self._settings.api_urls:
            config["base_url"] = self._settings.api_urls[name]
        if fixture:
            provider = _open(name, **config)
            self._opened.add(name)
            return provider
        try:
            provider = registry.create_provider(name, **config)
            if self._settings.keep and "keep" in (provider.options or {}) and "keep" not in config:
                provider = registry.create_provider(name, **config, keep=True)
        except ConfigurationError as error:
            if info.available:
                raise
            raise NoProviderError(error.message, hint=error.hint) from None
        return provider

    def _requested(self, fixture: str, name: str) -> Any:
        what = f"The provider {name!r} is the fixture {fixture!r}, which"
        try:
            return self._fixture(fixture)
        except pytest.FixtureLookupError as error:
            if error.argname != fixture:
                raise ConfigurationError(
                    f"{what} takes {error.argname!r}, and pytest knows no such fixture.",
                    hint="Install or enable the plugin that brings it, or put it into a conftest.",
                ) from None
            raise ConfigurationError(
                f"{what} takes others, and pytest does not know it.",
                hint="The module of the fixture must be a plugin of pytest: in the package that "
                "brings it an entry point of the group pytest11, here pytest_plugins or -p.",
            ) from None
        except pytest.fail.Exception as error:
            found = str(error).partition(". ")[0]
            if not found.startswith("ScopeMismatch"):
                raise
            raise ConfigurationError(
                f"{what} cannot be used for the whole run. {found}.",
                hint="A provider's fixture must be session-scoped, and so what it takes: "
                '@pytest.fixture(scope="session").',
            ) from None


def _open(name: str, **config: Any) -> ModelProvider:
    """Return a provider that is a fixture without others; where it skips, so does the test."""
    try:
        return registry.create_provider(name, **config)
    except ConfigurationError as error:
        cause = error.__cause__
        if isinstance(cause, ForeignError) and cause.type_name == pytest.skip.Exception.__name__:
            raise pytest.skip.Exception(cause.text) from None
        raise


def read(path: Path | None) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Return the names of models and the configurations by provider that a file holds.

    It holds ``{"provider": …, "provider_config": {…}}``, as `nbproviders.load_provider` takes it, a list of
    these, or ``{"providers": [these], "models": {name: reference}}``.

    Raises
    ------
    ConfigurationError
        If it cannot be read, or holds something else.
    """
    if path is None:
        return {}, {}
    try:
        found = registry.parse(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--nbp-config {path} cannot be read: {error}") from None
    names: Any = {}
    if isinstance(found, dict) and "provider" not in found:
        names, found = found.get("models", {}), found.get("providers", [])
    listed = found if isinstance(found, list) else [found]
    configs = {}
    for one in listed:
        given = one.get("provider_config") or {} if isinstance(one, dict) else None
        if not isinstance(given, dict) or not isinstance(one.get("provider"), str):
            raise _unlike(path)
        configs[one["provider"].lower()] = given
    if not isinstance(names, dict) or not all(isinstance(text, str) for text in names.values()):
        raise _unlike(path)
    return names, configs


def _unlike(path: Path) -> ConfigurationError:
    # Without the values: a key may stand among them.
    return ConfigurationError(
        f"--nbp-config {path} holds something else than configurations of providers.",
        hint='For example {"providers": [{"provider": "transformers", "provider_config": '
        '{"dtype": "float32"}}], "models": {"small": "transformers:demo-xs"}}.',
    )
