"""`ModelProvider` and `ModelHandle`: the pattern setup → handle → teardown, for any resource.

A subclass writes `setup` and `teardown`. ``provider.model(…)`` is written once on top of them and goes
through the residency: one setup for each key, shared by all, torn down when it leaves memory.
"""

from __future__ import annotations

import contextvars
import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from nbproviders.authoring.group import ModelGroup
from nbproviders.authoring.loading import ResourceLoader
from nbproviders.authoring.opening import ModelContext, Opened
from nbproviders.authoring.options import Option, check, split
from nbproviders.authoring.origins import alone, origin
from nbproviders.catalog import aliases
from nbproviders.core import engine
from nbproviders.core.client import SyncClient
from nbproviders.core.config import Secret
from nbproviders.core.params import GenerationParams
from nbproviders.core.spec import ModelSpec, ResourceKey, canonical, is_secret, split_options
from nbproviders.errors import ConfigurationError, ProviderError, foreign
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Loader


@dataclass
class ModelHandle:
    """What `ModelProvider.setup` returns: a model, and the way to give it back.

    Attributes
    ----------
    resource_id
        What `ModelProvider.teardown` takes.
    model
        The model, client or any other resource.
    manager
        The provider.
    """

    resource_id: str
    model: Any
    manager: ModelProvider
    _active: bool = True

    @property
    def is_active(self) -> bool:
        """Whether it was not given back yet."""
        return self._active

    async def teardown(self) -> None:
        """Give the resource back, exactly once however often this is called."""
        if self._active:
            self._active = False
            await self.manager.teardown(self.resource_id)


# Set while the residency calls a setup or teardown: those are not the user's direct ones.
managed: contextvars.ContextVar[bool] = contextvars.ContextVar("managed", default=False)


# What this and the bases on it call their own, out of reach for those who write providers.
_OWN = frozenset(
    "_config_of _direct _instance _key _known _lent _loader _open _opened _origin _params _resolve "
    "_rests".split()
)


def _taken(cls: type, name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{cls.__name__} has a {name} of its own, a name that its base class needs.",
        hint=f"Call it otherwise, such as _my{name}.",
    )


class ModelProvider(ABC):
    """The base of all providers.

    Safe from any thread and event loop. Two providers built alike (the same class, equal constructor
    arguments) share what they loaded.

    Attributes
    ----------
    name
        What stands before the colon of a reference.
    options
        Load options by name. None takes any, and each of them makes another resource.
    """

    name: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option] | None] = None
    _origin: str
    _direct: Counter[str]
    _opened: dict[Any, Opened]
    _rests: list[Callable[[], Awaitable[None]]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the constructor's arguments: they are the provider's identity."""
        self = super().__new__(cls)
        own: dict[str, object] = {"_direct": Counter(), "_opened": {}, "_rests": []}
        self.__dict__.update(own, _origin=origin(cls, args, kwargs, self))
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have direct setups and teardowns recorded, for `teardown_all`."""
        super().__init_subclass__(**kwargs)
        if not cls.__module__.startswith("nbproviders."):
            for name in _OWN & cls.__dict__.keys():
                raise _taken(cls, name)
        if not cls.__dict__.get("name"):
            cls.name = cls.__name__.removesuffix("Provider").lower() or cls.__name__.lower()
        if "setup" in cls.__dict__:
            cls.setup = _recorded_setup(cls.setup)  # type: ignore[method-assign]
        if "teardown" in cls.__dict__:
            cls.teardown = _recorded_teardown(cls.teardown)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse names that are used here: an author's attribute would break what is done for them."""
        if name in _OWN:
            raise _taken(type(self), name)
        super().__setattr__(name, value)

    @abstractmethod
    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        """Make a resource ready and return its handle."""

    @abstractmethod
    async def teardown(self, resource_id: str) -> None:
        """Give a resource back; an unknown id is no error."""

    def model(self, spec: str, **config: Any) -> ModelContext:
        """Open a model: ``async with provider.model("demo-m") as m``, or plain ``with``.

        Loads it once; later openings, in this cell or another, are instant.

        Parameters
        ----------
        spec
            Name, Hub id or path, with options after ``?``. Nothing before a colon is split off.
        **config
            More options; they win over those in `spec` and in the constructor.

        Raises
        ------
        ConfigurationError
            For an unknown or badly typed option.
        """
        return ModelContext(self._open(spec, config))

    def models(self, *specs: str) -> ModelGroup:
        """Return models to open together: ``async with provider.models("a", "b") as (a, b)``.

        All are in memory at once, or none: room is made for all before the first loads.
        """
        return ModelGroup([self.model(spec) for spec in specs])

    def resolve(self, spec: str | ModelSpec, **config: Any) -> ResourceKey:
        """Return what a reference loads here: alias, options and revision resolved."""
        name = spec.name if isinstance(spec, ModelSpec) else spec
        return self._open(name, config).loader.key

    def go_by(self, name: str) -> None:
        """Use another name in references: the one it was registered by."""
        if name != self.name:
            self.name = name  # type: ignore[misc]  # the class's is the default
            self._opened.clear()

    def get_client(self, name: str, **config: Any) -> SyncClient:
        """Return a blocking client; closing or dropping it gives the model back."""
        return self._open(name, config).client_now()

    async def teardown_all(self) -> None:
        """Tear down and free everything of this provider, going on past failures.

        Raises
        ------
        ProviderError
            Telling all failures together.
        """
        failures = []
        for resource_id in list(self._direct.elements()):
            try:
                await self.teardown(resource_id)
            except Exception as error:  # the author's code; told below
                failures.append(f"{resource_id}: {foreign(error)}")
        self._direct.clear()
        residency = residencies.default()
        try:
            await engine.default().call(
                lambda: residency.unload(lambda entry: entry.key.origin == self._origin)
            )
        except ProviderError as error:
            failures.append(error.message)
        rests = self._rests.copy()
        self._rests.clear()
        for rest in rests:
            try:
                await rest()
            except Exception as error:  # the author's code too
                failures.append(f"{self.name}: {foreign(error)}")
        if failures:
            raise ProviderError("teardown_all failed in part:\n" + "\n".join(failures))

    def at_teardown_all(self, rest: Callable[[], Awaitable[None]]) -> None:
        """Have a coroutine function called, once, when all models of this provider have been freed."""
        self._rests.append(rest)

    # How references become loaders

    def _open(self, spec: str, config: Mapping[str, Any]) -> Opened:
        try:
            # With their types: True and 1 are equal, and other options.
            typed = ((name, type(value), _masked(name, value)) for name, value in config.items())
            place = (spec, *sorted(typed)) if config else spec
            found = self._opened.get(place)
        except TypeError:  # an option that cannot be hashed or ordered
            place, found = None, None
        if found is not None and found.fresh():
            return found
        made = self._resolve(spec, config)
        if place is not None:
            self._opened[place] = made
        return made

    def _resolve(self, spec: str, config: Mapping[str, Any]) -> Opened:
        if not isinstance(spec, str):
            raise ConfigurationError(
                f"A model is named by a str, not {type(spec).__name__}: {spec!r:.60}"
            )
        version = aliases.version()
        model, written = split_options(spec)
        given = {**written, **config}
        reference = ModelSpec.of(self.name, model, {k: v for k, v in given.items() if _shown(k, v)})
        load_options, chat, alone = split(given)
        values = check(self.options, load_options, self.name)
        target = aliases.resolve(model, self.name)
        key, watch = self._key(target, values)
        loader = self._loader(reference, key)
        return Opened(loader, chat, alone, version, watch, self._params(key.values))

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        """Return the key of a resolved model, and the files whose change makes it another."""
        declared = self.options or {}
        loads = {k: v for k, v in values.items() if k not in declared or declared[k].loads}
        return ResourceKey(self._origin, model, _canonical_or_alone(loads), values=values), ()

    def _params(self, values: Mapping[str, Any]) -> GenerationParams | None:
        """Return the parameters that these load options set for requests that give none."""
        return None

    def _loader(self, spec: ModelSpec, key: ResourceKey) -> Loader:
        return ResourceLoader(self, spec, key)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def _masked(name: str, value: Any) -> Any:
    """Return an option's value as it may be kept: a key does not show."""
    return Secret(value) if isinstance(value, str) and is_secret(name, value) else value


def _shown(name: str, value: Any) -> bool:
    """Whether an option given as a keyword may stand in the reference that tables show."""
    if is_secret(name, value):
        return False
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


def _canonical_or_alone(values: Mapping[str, Any]) -> str:
    try:
        return canonical(values)
    except TypeError:
        return alone()


# Set while a setup or teardown runs, so that one written on top of another is counted once.
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside", default=False)
Setup = Callable[..., Awaitable[ModelHandle]]
Teardown = Callable[..., Awaitable[None]]


def _recorded_setup(setup: Setup) -> Any:
    @functools.wraps(setup)
    async def recorded(self: ModelProvider, *args: Any, **config: Any) -> ModelHandle:
        if managed.get() or _inside.get():  # the outermost call counts
            return await setup(self, *args, **config)
        token = _inside.set(True)
        try:
            handle = await setup(self, *args, **config)
        finally:
            _inside.reset(token)
        if isinstance(handle, ModelHandle):
            self._direct[handle.resource_id] += 1
        return handle

    return recorded


def _recorded_teardown(teardown: Teardown) -> Any:
    @functools.wraps(teardown)
    async def recorded(self: ModelProvider, resource_id: str) -> None:
        if managed.get() or _inside.get():
            await teardown(self, resource_id)
            return
        if self._direct[resource_id] > 0:
            self._direct[resource_id] -= 1
        token = _inside.set(True)
        try:
            await teardown(self, resource_id)
        finally:
            _inside.reset(token)

    return recorded
