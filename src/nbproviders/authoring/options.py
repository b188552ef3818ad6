"""Load options that a provider declares, and what a user wrote, checked against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nbproviders.core.config import MASK
from nbproviders.core.spec import did_you_mean, holds_secret
from nbproviders.errors import ConfigurationError

CALL_OPTIONS = ("chat", "invariant")
_EXAMPLES = {
    bool: "true",
    int: "1",
    float: "1.5",
    list: '["a","b"]',
    dict: '{"a":1}',
    str: '"…"',
}


@dataclass(frozen=True, slots=True)
class Option:
    """One load option.

    Attributes
    ----------
    kinds
        Types its value may have; int is taken for float, None is always allowed.
    default
        Its value if not given.
    help
        One line for people.
    loads
        Whether it decides what is loaded; if not, it is left out of the key.
    """

    kinds: tuple[type, ...]
    default: Any = None
    help: str = ""
    loads: bool = True


def check(
    declared: Mapping[str, Option] | None, given: Mapping[str, Any], provider: str
) -> dict[str, Any]:
    """Return the values of all declared options, defaults filled in.

    Parameters
    ----------
    declared
        What there is; None takes any option as it comes.
    given
        What the user wrote.
    provider
        Named in errors.

    Raises
    ------
    ConfigurationError
        For an option that is not declared, or a value of a wrong type.
    """
    if declared is None:
        return dict(given)
    for name, value in given.items():
        option = declared.get(name)
        if option is None:
            raise ConfigurationError(
                f"The provider {provider!r} has no option {name!r}.",
                hint=f"{_near(name, declared)}Its options: "
                f"{', '.join([*sorted(declared), *CALL_OPTIONS])}.",
            )
        if not _fits(value, option.kinds):
            kinds = " or ".join(kind.__name__ for kind in option.kinds)
            shown = MASK if holds_secret(name, value) else f"{value!r:.60}"
            raise ConfigurationError(
                f"The option {name}={shown} of provider {provider!r} must be {kinds}, not "
                f"{type(value).__name__}.",
                hint=f"{_written(name, option)}{option.help}",
            )
    return {name: _value(given, name, option) for name, option in declared.items()}


def _written(name: str, option: Option) -> str:
    """Return how an option of one kind is written in a reference."""
    if len(option.kinds) != 1:
        return ""
    example = _EXAMPLES.get(option.kinds[0], "")
    if isinstance(option.default, int | float) and not isinstance(option.default, bool):
        example = f"{option.default:g}"
    other = f" or {name}=false" if option.kinds[0] is bool else ""
    return f"Write {name}={example}{other}. " if example else ""


def with_defaults(
    declared: Mapping[str, Option], defaults: Mapping[str, Any], provider: str
) -> dict[str, Option]:
    """Return a provider's options with the defaults that its constructor was given.

    Raises
    ------
    ConfigurationError
        For a default that is no option, or has a wrong type.
    """
    checked = check(declared, defaults, provider)
    return {
        name: option if defaults.get(name) is None else replace(option, default=checked[name])
        for name, option in declared.items()
    }


def filled(declared: Mapping[str, Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with those that are None replaced by the defaults of `declared`."""
    return {name: declared[name].default if v is None else v for name, v in values.items()}


def _value(given: Mapping[str, Any], name: str, option: Option) -> Any:
    value = given.get(name, option.default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and int not in option.kinds and float in option.kinds else value


def _near(name: str, declared: Mapping[str, Option]) -> str:
    asked = did_you_mean(name, [*declared, *CALL_OPTIONS], 0.6)
    return f"{asked} " if asked else ""


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], bool | None, bool]:
    """Return load options, and the call options ``chat`` and ``invariant``.

    Raises
    ------
    ConfigurationError
        If a call option is not true or false.
    """
    rest = dict(given)
    chat, invariant = rest.pop("chat", None), rest.pop("invariant", None)
    for name, value in (("chat", chat), ("invariant", invariant)):
        if value is not None and not isinstance(value, bool):
            raise ConfigurationError(
                f"The option {name}={value!r} must be true or false.",
                hint=f"Write {name}=true or {name}=false.",
            )
    return rest, chat, bool(invariant)
