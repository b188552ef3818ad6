"""Providers made from classes and factories, and objects that are providers in all but their base class."""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from nbproviders.authoring.provider import ModelHandle, ModelProvider
from nbproviders.authoring.service import BaseProvider
from nbproviders.authoring.weights import WEIGHTS_METHODS, WrappedWeights
from nbproviders.core.config import MASK, ProviderConfig
from nbproviders.core.spec import holds_secret
from nbproviders.errors import ConfigurationError, ProviderError, foreign


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


def as_provider(thing: Any, name: str, made_of: str = "") -> ModelProvider:
    """Return a `ModelProvider` for an object that is one, or behaves like one.

    Parameters
    ----------
    thing
        The object.
    name
        What it is registered by.
    made_of
        The identity of an object that is wrapped: those of one identity share what they load. By default
        it is like no other.

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
    if made_of:
        wrapped.__dict__["_origin"] = f"{type(wrapped).__name__}({made_of})"
    wrapped.go_by(name)
    return wrapped


def construct(target: Callable[..., Any], name: str, config: Mapping[str, Any]) -> Any:
    """Call a class or factory with the keywords it takes, or with one dict if it takes ``config``.

    A `BaseProvider` gets a `ProviderConfig` of them.

    Raises
    ------
    ConfigurationError
        For a field that it does not take or lacks, a value of another type than its annotation says,
        and where it fails.
    """
    if isinstance(target, type) and issubclass(target, BaseProvider):
        config = _of_service(target, name, config)
    signature = _signature(target)
    parameters = signature.parameters
    whole = list(parameters) == ["config"] and list(config) != ["config"]
    given: dict[str, Any] = dict(config)
    if whole and (config or parameters["config"].default is inspect.Parameter.empty):
        given = {"config": dict(config)}
    try:
        bound = signature.bind(**given)
    except TypeError:
        raise _refused(name, config, parameters) from None
    _check_types(target, name, bound.arguments, parameters)
    try:
        return target(*bound.args, **bound.kwargs)
    except ProviderError:
        raise
    except Exception as error:  # a plugin's constructor
        raise ConfigurationError(
            f"The provider {name!r} could not be made: {foreign(error)}"
        ) from foreign(error)


def _of_service(target: type[BaseProvider], name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a service's provider: its `ProviderConfig`, and settings of its own."""
    given = dict(config)
    settings = {field: given.pop(field) for field in target.settings if field in given}
    made = given.pop("config", None) or ProviderConfig(**{"name": name, **given})
    return {"config": made, **settings}


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """Return what a class or factory takes; a class without a constructor of its own takes nothing."""
    if isinstance(target, type) and _init(target) is object.__init__:
        return inspect.Signature()
    return inspect.signature(target)


def _init(cls: type) -> Callable[..., Any]:
    found: Callable[..., Any] = cls.__init__  # type: ignore[misc]  # of this very class
    return found


def _refused(
    name: str, config: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> ConfigurationError:
    known = [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD]
    unknown = [field for field in config if field not in known]
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name in known]
    wrong = f"does not take {', '.join(unknown)}"
    if not unknown:
        wrong = f"needs {', '.join(field for field in needed if field not in config)}"
    return ConfigurationError(
        f"The provider {name!r} {wrong}.",
        hint=f"Its fields: {', '.join(map(str, parameters.values())) or 'none'}.",
    )


def _check_types(
    target: Callable[..., Any],
    name: str,
    given: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
) -> None:
    """Compare plain values, as files hold them, with plain annotations; all else is left to the code."""
    try:
        hints = get_type_hints(_init(target) if isinstance(target, type) else target)
    except (NameError, TypeError, AttributeError):  # annotations that cannot be resolved here
        return
    for field, value in given.items():
        hint = hints.get(field, Any)
        optional = value is None and parameters[field].default is None
        if optional or parameters[field].kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if not _fits(value, hint):
            told = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            shown = MASK if holds_secret(field, value) else f"{value!r:.60}"
            raise ConfigurationError(
                f"The provider {name!r} takes {field} as {told}, not {type(value).__name__}: "
                f"{shown}.",
                hint=f"Its fields: {', '.join(map(str, parameters.values()))}.",
            )


_PLAIN = (type(None), bool, int, float, str, list, dict)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a plain annotation; True for what is neither."""
    if type(value) not in _PLAIN:
        return True
    made_of = get_origin(hint)
    if made_of in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if made_of is Literal:
        return value in get_args(hint)
    kind = made_of or hint
    if kind not in _PLAIN:
        return True
    return type(value) is kind or (kind is float and type(value) is int)
