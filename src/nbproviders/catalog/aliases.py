"""Short names for models: shipped ones, the user's, and those made in the session.

One alias may mean another identifier for each provider. Later sources win: shipped, then the table
``[aliases]`` of the user's file, then `alias`.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from nbproviders import demo
from nbproviders.catalog.settings import config_path, section
from nbproviders.errors import ConfigurationError

ANY = "*"
Targets = dict[str, str]

_lock = threading.Lock()
_made: dict[str, Targets] = {}
_user: dict[str, Targets] | None = None
_version = 0


def version() -> int:
    """Return a number that changes whenever an alias may mean something else."""
    return _version


def alias(name: str, target: str | None = None, **by_provider: str) -> None:
    """Give a model a short name for this session.

    Parameters
    ----------
    name
        The short name.
    target
        What it means for every provider that is not named.
    **by_provider
        What it means for single providers; write ``llama_cpp`` for ``llama-cpp``.

    Raises
    ------
    ConfigurationError
        For an empty name or no target.

    Examples
    --------
    >>> alias("mine", transformers="org/model", llama_cpp="org/model-GGUF:Q4_K_M")
    >>> resolve("mine", "llama-cpp")
    'org/model-GGUF:Q4_K_M'
    """
    global _version
    targets = {provider.replace("_", "-"): model for provider, model in by_provider.items()}
    if target is not None:
        targets[ANY] = target
    if not name or not targets or not all(isinstance(t, str) and t for t in targets.values()):
        raise ConfigurationError(
            f"The alias {name!r} needs a name and at least one target.",
            hint='Write nbp.alias("mine", "org/model"), or transformers="org/model".',
        )
    with _lock:
        _made[name] = targets
        _version += 1


def reload() -> None:
    """Read the user's file again at the next look-up."""
    global _user, _version
    with _lock:
        _user = None
        _version += 1


def resolve(name: str, provider: str) -> str:
    """Return what a name means for a provider; the name itself if it is no alias."""
    targets = known().get(name, {})
    return targets.get(provider, targets.get(ANY, name))


def known() -> dict[str, Targets]:
    """Return every alias with its targets by provider; ``*`` stands for any other provider."""
    global _user
    if _user is None:
        read = {name: _targets(name, value) for name, value in section("aliases").items()}
        with _lock:
            _user = read
    found: dict[str, Targets] = {}
    for table in (_shipped(), _user, _made):
        for name, targets in table.items():
            # One meant for every provider replaces what was; single providers leave the others.
            found[name] = targets if ANY in targets else {**found.get(name, {}), **targets}
    return found


@cache
def _shipped() -> dict[str, Targets]:
    text = resources.files(__package__).joinpath("aliases.toml").read_text(encoding="utf-8")
    found: dict[str, Targets] = tomllib.loads(text)
    for name in demo.MODELS:
        found[name] = {"transformers": str(demo.path(name))}
    for name in demo.GGUF:
        found[name]["llama-cpp"] = f"{demo.gguf_path(name)}:{demo.QUANTS[0]}"
    return found


def _targets(name: str, value: object) -> Targets:
    if isinstance(value, str):
        return {ANY: value}
    if isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()):
        return {str(k): str(v) for k, v in value.items()}
    raise ConfigurationError(
        f"The alias {name!r} in {config_path()} must be a string or a table of strings.",
        hint='Write name = "org/model", or [aliases.name] with a line for each provider.',
    )
