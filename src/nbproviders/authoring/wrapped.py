"""Objects that are providers in all but their base class."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from nbproviders.authoring.provider import ModelHandle, ModelProvider
from nbproviders.authoring.weights import WEIGHTS_METHODS, WrappedWeights
from nbproviders.errors import ConfigurationError


class WrappedResource(ModelProvider):
    """An object with ``setup`` and ``teardown``, as a provider.

    Parameters
    ----------
    wrapped
        The object; attributes that are not the provider's are its own.
    """

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        """By the object."""
        return await cast("Awaitable[ModelHandle]", self.wrapped.setup(resource_spec, **config))

    async def teardown(self, resource_id: str) -> None:
        """By the object."""
        await self.wrapped.teardown(resource_id)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":
            raise AttributeError(name)
        return getattr(self.wrapped, name)


def as_provider(thing: Any, name: str) -> ModelProvider:
    """Return a `ModelProvider` for an object that is one, or behaves like one.

    Raises
    ------
    ConfigurationError
        If it has neither the four weights methods nor ``setup`` and ``teardown``.
    """
    if isinstance(thing, ModelProvider):
        return thing
    if all(callable(getattr(thing, method, None)) for method in WEIGHTS_METHODS):
        wrapped: ModelProvider = WrappedWeights(thing)
    elif all(callable(getattr(thing, method, None)) for method in ("setup", "teardown")):
        wrapped = WrappedResource(thing)
    else:
        raise ConfigurationError(
            f"{type(thing).__name__}, registered as {name!r}, is no provider.",
            hint="It needs setup and teardown, or " + ", ".join(WEIGHTS_METHODS) + ".",
        )
    wrapped.go_by(name)
    return wrapped
