"""From names to providers: entry points of installed packages, and what was registered at run time."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from nbproviders.authoring import fixtures, origins
from nbproviders.authoring.opening import ModelContext
from nbproviders.authoring.provider import ModelProvider
from nbproviders.authoring.wrapped import as_provider, construct
from nbproviders.core.spec import ModelSpec, canonical, did_you_mean
from nbproviders.errors import ConfigurationError, foreign
from nbproviders.runtimes.devices import cuda_count

GROUPS = ("nbproviders.providers", "dotevals.model_providers", "doteval.model_providers")
# What a built-in provider imports when first used, and the extra that brings it.
_NEEDS = {
    "llama-cpp": (("llama_cpp",), "llama-cpp"),
    "llama-server": (("llama_cpp", "uvicorn", "fastapi"), "llama-server"),
    "optimized": (("torch", "transformers", "safetensors"), "transformers"),
    "transformers": (("torch", "transformers", "safetensors"), "transformers"),
    "transformers-serve": (("torch", "transformers", "uvicorn", "fastapi"), "transformers-serve"),
    "unsloth": (("unsloth",), "unsloth"),
    "vllm": (("vllm",), "vllm"),
}
_NEED_CUDA = frozenset({"unsloth", "vllm"})
# Another interpreter may have what these need, or another machine: they can be made all the same.
_ELSEWHERE = frozenset({"llama-server", "transformers-serve", "vllm"})
_OURS = "nbproviders.providers."
# What a parser's message quotes; a single character, or the name of a token, may stay.
_QUOTED = re.compile(r"""^((?:[^'"]|'(?:[^\\]|\\.|<[a-z ]+>)')*+)['"].*['"]""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """Whether a provider can be used here.

    Attributes
    ----------
    available
        Whether its packages are there and it could be imported.
    reason
        Why not; empty if it is available.
    source
        The package that brought it, or ``registered``.
    """

    available: bool
    reason: str = ""
    source: str = ""


class Listing(Mapping[str, ProviderInfo]):
    """A read-only mapping from provider names to `ProviderInfo`; prints like the list of names."""

    def __init__(self, infos: Mapping[str, ProviderInfo]) -> None:
        self._infos = dict(infos)

    def __getitem__(self, name: str) -> ProviderInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return repr(list(self._infos))


_lock = threading.Lock()
_registered: dict[str, Any] = {}
_points: dict[str, EntryPoint] | None = None
_broken: dict[str, str] = {}
_made: dict[tuple[str, str], ModelProvider] = {}


def register_provider(name: str, provider: Any) -> None:
    """Make a provider known for this session.

    Parameters
    ----------
    name
        What stands before the colon of a reference; case does not matter. Registering a name again
        replaces it.
    provider
        A class, a factory, or an instance.

    Raises
    ------
    ConfigurationError
        For a name that cannot stand in a reference.
    """
    low = _checked_name(name)
    with _lock:
        _registered[low] = provider
        _forget(low)


def unregister_provider(name: str) -> None:
    """Forget a provider that was registered; models it loaded stay until they are unloaded.

    Raises
    ------
    ConfigurationError
        If none was registered by this name.
    """
    low = _checked_name(name)
    with _lock:
        if _registered.pop(low, None) is None:
            raise ConfigurationError(
                f"No provider was registered as {name!r}.",
                hint=f"Registered: {', '.join(_registered) or 'none'}.",
            )
        _forget(low)


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or set(name) & set(":?&= \n"):
        raise ConfigurationError(
            f"{name!r} cannot be a provider's name.", hint="Use letters, digits, - and _."
        )
    return name.lower()


def _forget(name: str) -> None:
    for place in [place for place in _made if place[0] == name]:
        del _made[place]


def _entry_points() -> dict[str, EntryPoint]:
    global _points
    if _points is None:
        found: dict[str, EntryPoint] = {}
        for group in GROUPS:
            for point in entry_points(group=group):
                found.setdefault(point.name.lower(), point)
        _points = found
    return _points


def names() -> list[str]:
    """Return the names of all providers, available or not."""
    return sorted({*_entry_points(), *_registered})


def list_available() -> Listing:
    """Return every provider with whether it can be used here, and why not.

    Built-in providers are judged without importing their libraries; plugins are imported.
    """
    return Listing({name: _info(name) for name in names()})


def _info(name: str) -> ProviderInfo:
    if name in _registered:
        return ProviderInfo(True, source="registered")
    point = _entry_points()[name]
    source = point.dist.name if point.dist is not None else ""
    if point.value.startswith(_OURS):
        reason = _missing(name)
    else:
        loaded = _load(name, point)
        reason = _broken.get(name, "")
        if fixtures.is_fixture(loaded) and (taken := fixtures.needs(loaded)):
            reason = f"only under pytest: it is a fixture that takes {', '.join(taken)}"
    return ProviderInfo(not reason, reason, source)


def _missing(name: str) -> str:
    modules, extra = _NEEDS.get(name, ((), ""))
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    reasons = []
    if absent:
        reasons.append(f'{", ".join(absent)} not installed: pip install "nbproviders[{extra}]"')
    if name in _NEED_CUDA and not cuda_count():
        reasons.append("it needs a CUDA GPU, and there is none here")
    return "; ".join(reasons)


def _load(name: str, point: EntryPoint) -> Any:
    try:
        loaded = point.load()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a plugin's import, pytest.skip or sys.exit; it is listed so
        _broken[name] = f"cannot be imported: {foreign(error)}"
        return None
    _broken.pop(name, None)
    return loaded


def fixture_of(name: str) -> str:
    """Return the name of the pytest fixture that a provider is; empty for any other."""
    point = None if name in _registered else _entry_points().get(name)
    if point is None or point.value.startswith(_OURS):
        return ""
    loaded = _load(name, point)
    return (loaded.name or point.attr) if fixtures.is_fixture(loaded) else ""


def create_provider(name: str, **provider_config: Any) -> ModelProvider:
    """Return a provider by name.

    Parameters
    ----------
    name
        One of `list_available`; case does not matter.
    **provider_config
        For its constructor. Calls with equal configuration return providers that share what they load.

    Raises
    ------
    ConfigurationError
        For an unknown name, listing those there are; for one that is unavailable, with the reason;
        and for configuration that its constructor does not take.
    """
    low = name.lower() if isinstance(name, str) else ""
    if low not in _registered and low not in _entry_points():
        raise ConfigurationError(
            f"Unknown provider: {name}. Available providers: {', '.join(names())}.",
            hint=did_you_mean(low, names()),
        )
    try:
        place = (low, canonical(provider_config))
    except TypeError:
        return _construct(_target(low), low, provider_config)
    with _lock:
        made = _made.get(place)
    return _make(place, provider_config) if made is None else made


def _make(place: tuple[str, str], config: dict[str, Any]) -> ModelProvider:
    name, _ = place
    target = _target(name)
    # A fixture is opened once: of two, one would never be closed.
    with fixtures.alone(name) if fixtures.is_fixture(target) else nullcontext():
        with _lock:
            made = _made.get(place)
        if made is None:
            made = _construct(target, name, config)
            with _lock:
                made = _made.setdefault(place, made)
    return made


def _target(name: str) -> Any:
    if name in _registered:
        return _registered[name]
    ours = _entry_points()[name].value.startswith(_OURS)
    reason = _missing(name) if ours and name not in _ELSEWHERE else ""
    target = None if reason else _load(name, _entry_points()[name])
    if target is None:
        raise ConfigurationError(
            f"The provider {name!r} is not available: {reason or _broken[name]}"
        )
    return target


def _construct(target: Any, name: str, config: dict[str, Any]) -> ModelProvider:
    rest, made_of = None, ""
    if fixtures.is_fixture(target):
        if config:
            raise ConfigurationError(
                f"The provider {name!r} is a pytest fixture and takes no configuration: "
                f"{', '.join(config)}."
            )
        target, rest = fixtures.opened(target, name)
    elif callable(target) and not isinstance(target, ModelProvider):
        made_of = origins.of_made(target, config)
        target = construct(target, name, config)
    elif config:
        raise ConfigurationError(
            f"The provider {name!r} is an instance already and takes no configuration: "
            f"{', '.join(config)}."
        )
    elif not isinstance(target, ModelProvider):
        made_of = origins.of_object(target)
    provider = as_provider(target, name, made_of)
    provider.go_by(name)
    if rest is not None:
        _close_with(provider, name, rest)
    return provider


def _close_with(provider: ModelProvider, name: str, rest: fixtures.Close) -> None:
    async def close() -> None:
        with _lock:  # the next one is made anew
            _forget(name)
        await rest()

    provider.at_teardown_all(close)


def load_provider(path: str | Path) -> ModelProvider:
    """Return the provider that a JSON, TOML or YAML file describes.

    The file holds ``{"provider": …, "provider_config": {…}}``.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, or holds something else.
    """
    place = Path(path)
    try:
        found = parse(place)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The provider file {place} cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("provider"), str):
        raise ConfigurationError(
            f"The provider file {place} must hold provider and provider_config.",
            hint='For example {"provider": "transformers", "provider_config": {"dtype": "float32"}}.',
        )
    config = found.get("provider_config") or {}
    if not isinstance(config, dict):
        raise ConfigurationError(
            f"In the provider file {place}, provider_config must be a table, not {config!r:.60}."
        )
    return create_provider(found["provider"], **config)


def parse(place: Path) -> Any:
    """Return what a JSON, TOML or YAML file holds.

    Raises
    ------
    OSError, ValueError
        If it cannot be read; nothing of the file is quoted, which may hold keys.
    """
    text = place.read_text(encoding="utf-8")
    try:
        if place.suffix == ".toml":
            return tomllib.loads(text)
        return _yaml(text) if place.suffix in (".yaml", ".yml") else json.loads(text)
    except ValueError as error:
        raise ValueError(_QUOTED.sub(r"\1…", str(error))) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _yaml(text: str) -> Any:
    if importlib.util.find_spec("yaml") is None:
        raise ValueError("YAML needs the package pyyaml")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem}{place}") from None
    except (yaml.YAMLError, LookupError, AttributeError) as error:  # of a character, or by a tag
        said = getattr(error, "reason", "a value is not what its tag says")
        raise ValueError(said) from None


def find(reference: str | ModelSpec) -> tuple[ModelProvider, ModelSpec]:
    """Return the provider and the parsed form of a reference ``provider:model?option=value``.

    Raises
    ------
    ConfigurationError
        If no known provider stands before the first colon.
    """
    __tracebackhide__ = True
    spec = reference if isinstance(reference, ModelSpec) else ModelSpec.parse(reference, names())
    return create_provider(spec.provider), spec


def model(reference: str | ModelSpec, **options: Any) -> ModelContext:
    """Open a model by reference: ``async with nbp.model("transformers:demo-m") as m``, or ``with``.

    Parameters
    ----------
    reference
        ``provider:model?option=value&…``.
    **options
        More options; they win over those in the reference.

    Raises
    ------
    ConfigurationError
        For an unknown provider, or an unknown or badly typed option.
    """
    __tracebackhide__ = True
    provider, spec = find(reference)
    return provider.model(spec.name, **options)
