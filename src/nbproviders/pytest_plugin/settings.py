"""What a run of pytest was told: options on the command line, the environment, the ini file, in this order.

It knows no providers; reading it costs nothing where nothing was told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ConfigurationError

VARIABLES = "NBPROVIDERS_PYTEST_"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})
# What counts in a list of references: a text in quotes as a whole, and what stands outside of them.
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]')


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen for a run.

    Attributes
    ----------
    models
        References for tests that ask for a model and do not say which.
    config
        A file of provider configurations.
    api_urls
        Addresses of services, by provider.
    keep
        Whether models and servers may outlive the run.
    """

    models: tuple[str, ...] = ()
    config: Path | None = None
    api_urls: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False

    @property
    def given(self) -> bool:
        """Whether anything was chosen."""
        return self != Settings()


def declare(parser: pytest.Parser) -> None:
    """Declare the options and the ini values of the same meaning."""
    group = parser.getgroup("nbproviders", "models as fixtures (nbproviders)")
    group.addoption(
        "--nbp-models",
        action="append",
        metavar="REFERENCE,…",
        help="models for tests that take model_client or model_handle and do not say which",
    )
    group.addoption(
        "--nbp-config", metavar="FILE", help="TOML, YAML or JSON file of provider configurations"
    )
    group.addoption(
        "--nbp-api-url",
        action="append",
        metavar="[PROVIDER=]URL",
        help="address of a service; without a provider that of openai",
    )
    group.addoption(
        "--nbp-keep",
        action="store_true",
        default=None,
        help="let models and servers outlive the run where they can",
    )
    parser.addini("nbp_models", "as --nbp-models, a reference a line", type="linelist")
    parser.addini("nbp_config", "as --nbp-config, relative to this file")
    parser.addini("nbp_api_url", "as --nbp-api-url, one a line", type="linelist")
    parser.addini("nbp_keep", "as --nbp-keep", type="bool", default=False)


def chosen(config: pytest.Config) -> Settings:
    """Return what was chosen.

    Raises
    ------
    ConfigurationError
        For something that cannot be meant.
    """
    return Settings(
        models=tuple(_first(config, "models")),
        config=_config_path(config),
        api_urls=dict(map(_api_url, _first(config, "api_url"))),
        keep=_keep(config),
    )


def parts(text: str) -> list[str]:
    """Return what commas part, but for those within brackets and quotes: an option may have them.

    Examples
    --------
    >>> parts('echo:a, echo:b?stop=["x","]"]')
    ['echo:a', 'echo:b?stop=["x","]"]']
    """
    commas, depth = [], 0
    for mark in _MARK.finditer(text):
        if mark[0] in ("[", "{"):
            depth += 1
        elif mark[0] in ("]", "}"):
            depth = max(0, depth - 1)
        elif mark[0] == "," and not depth:
            commas.append(mark.start())
    found = [text[before + 1 : end] for before, end in pairwise((-1, *commas, len(text)))]
    return [part.strip() for part in found if part.strip()]


def _first(config: pytest.Config, name: str) -> Sequence[str]:
    """Return what the first place that has any says, one by one."""
    given: Sequence[str] | None = config.getoption(f"nbp_{name}")
    told = _variable(name)
    if given is None and told is None:
        lines: Sequence[str] = config.getini(f"nbp_{name}")
        return lines  # one a line, whatever commas there are
    return [one for text in given or [told or ""] for one in parts(text)]


def _variable(name: str) -> str | None:
    """Return what the environment says; an empty value chooses nothing, whatever the ini file says."""
    return os.environ.get(f"{VARIABLES}{name.upper()}")


def _config_path(config: pytest.Config) -> Path | None:
    here = config.invocation_params.dir
    for told in (config.getoption("nbp_config"), _variable("config")):
        if told is not None:
            return here / Path(told).expanduser() if told else None
    told = config.getini("nbp_config")
    beside = config.inipath.parent if config.inipath is not None else config.rootpath
    return beside / Path(told).expanduser() if told else None


def _api_url(text: str) -> tuple[str, str]:
    provider, equals, url = text.partition("=")
    if not equals or "/" in provider:  # an address may have an = of its own
        provider, url = "openai", text
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{text.partition('?')[0]!r} is no address of a service.",
            hint="Write --nbp-api-url http://localhost:8000/v1, or provider=http://….",
        )
    return provider.strip().lower(), url


def _keep(config: pytest.Config) -> bool:
    given: Any = config.getoption("nbp_keep")
    if given is not None:
        return bool(given)
    told = _variable("keep")
    if told is None:
        return bool(config.getini("nbp_keep"))
    if told.strip().lower() not in _TRUE | _FALSE:
        raise ConfigurationError(
            f"{VARIABLES}KEEP={told!r} is neither yes nor no.", hint="Set it to 1 or 0."
        )
    return told.strip().lower() in _TRUE
