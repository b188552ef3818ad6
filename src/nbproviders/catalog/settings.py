"""The user's one TOML file: ``config.toml`` in the user's configuration folder."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from nbproviders.errors import ConfigurationError

CONFIG_VARIABLE = "NBPROVIDERS_CONFIG"


def config_path() -> Path:
    """Return where the user's file is, there or not; ``NBPROVIDERS_CONFIG`` names another."""
    chosen = os.environ.get(CONFIG_VARIABLE)
    if chosen:
        return user_path(chosen)
    import platformdirs

    return platformdirs.user_config_path("nbproviders") / "config.toml"


def user_path(text: str) -> Path:
    """Return the path that a text means, ``~`` being the user's home; as it stands if there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no home can be told, or not of that user
        return Path(text)


def section(name: str) -> dict[str, Any]:
    """Return one table of the user's file; empty if there is no file or no such table.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or is not TOML, saying where.
    """
    path = config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error}") from None
    try:
        found = tomllib.loads(text).get(name, {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"The settings file {path} is not valid TOML: {error}", hint="Mend it or remove it."
        ) from None
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"In the settings file {path}, {name!r} must be a table: [{name}]."
        )
    return found
