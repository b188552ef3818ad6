"""API keys of services: found in the environment, Colab, a keyring, or by asking whoever sits there.

What was found elsewhere than in the environment is remembered in this process's memory alone. A key is a
`Secret` from the moment it is read, so that no traceback which shows its frames' values shows it.
"""

from __future__ import annotations

import getpass
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nbproviders.core.config import Secret
from nbproviders.errors import ConfigurationError

logger = logging.getLogger(__name__)

KEYRING_SERVICE = "nbproviders"
_KEYRING_S = 5.0  # a locked keyring may wait for its owner for ever

_known: dict[str, Secret] = {}
_lock = threading.Lock()
_hung: threading.Thread | None = None  # reads a keyring that did not answer in time


def find(variables: Sequence[str]) -> Secret | None:
    """Return the first key that the environment or this process's memory has; without any I/O.

    Parameters
    ----------
    variables
        Names of environment variables, the first is the one to recommend.

    Raises
    ------
    ConfigurationError
        For a key that cannot be sent; it is not shown.
    """
    for variable in variables:
        key = _usable(Secret(os.environ.get(variable, "")), variable)
        if key:
            return key
    with _lock:
        return next((_known[variable] for variable in variables if variable in _known), None)


def ask(service: str, variables: Sequence[str]) -> Secret | None:
    """Return a key from wherever there is one, and remember it; None if nobody knows one. May block.

    Looks as `find` does, then into Colab's secrets, then into the keyring, and last asks the user, if
    somebody can answer: on the main thread, in a notebook's running cell or at an interactive terminal.

    Parameters
    ----------
    service
        What is asked for, as people know it.
    variables
        As for `find`; secrets in Colab and the keyring have the same names.

    Raises
    ------
    ConfigurationError
        For a key that cannot be sent; it is not shown.
    KeyboardInterrupt
        If the user interrupts the question.
    """
    key = find(variables)
    if key is not None or not variables:
        return key
    found = _colab(variables) or _keyring(variables) or _prompted(service, variables[0])
    for variable, key in found.items():
        with _lock:
            _known[variable] = key
        return key
    return None


def forget(variables: Sequence[str]) -> None:
    """Forget what `ask` remembered: the service refused it."""
    with _lock:
        for variable in variables:
            _known.pop(variable, None)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a key is, without the key.

    Attributes
    ----------
    wrong
        What it has that no key has; empty if it can be used.
    """

    variable: str
    place: Literal["environment", "memory", "keyring"]
    wrong: str = ""


def locate(services: Iterable[Sequence[str]]) -> list[Location | None]:
    """Return where the key of each service is, None for one without; nobody is asked.

    Parameters
    ----------
    services
        The variables of each, as for `find`.
    """
    wanted = [tuple(variables) for variables in services]
    found = [_located(variables) for variables in wanted]
    missing = [name for name, one in zip(wanted, found, strict=True) if one is None]
    stored = _read_keyring([variable for variables in missing for variable in variables])
    for n, variables in enumerate(wanted):
        held = next((variable for variable in variables if variable in stored), None)
        if found[n] is None and held is not None:
            found[n] = Location(held, "keyring", _wrong(stored[held]))
    return found


def _located(variables: Sequence[str]) -> Location | None:
    for variable in variables:
        key = _stripped(Secret(os.environ.get(variable, "")))
        if key:
            return Location(variable, "environment", _wrong(key))
    with _lock:
        known = next((variable for variable in variables if variable in _known), None)
    return None if known is None else Location(known, "memory")


def _stripped(text: Secret) -> Secret:
    """Return a key without the white space and quotes that came along when it was copied."""
    return Secret(text.strip().strip("'\"").strip())


def _usable(text: Secret, place: str) -> Secret | None:
    """Return what can be sent in a header; None if nothing is there."""
    key = _stripped(text)
    wrong = _wrong(key)
    if wrong:
        raise ConfigurationError(
            f"The key in {place} cannot be one: it has {wrong} in it.",
            hint="Copy it again from the service's page, whole and without anything else.",
        )
    return key or None


def _wrong(key: Secret) -> str:
    if not key.isascii():
        return "a character that is not ASCII"
    if not key.isprintable():
        return "a line break" if len(key.splitlines()) > 1 else "a control character"
    return ""


def _colab(variables: Sequence[str]) -> dict[str, Secret]:
    """Return the first of Colab's secrets that this notebook may read, by its name."""
    # It talks to the page through the kernel's input socket, which is the main thread's.
    if "google.colab" not in sys.modules or not _on_main_thread():
        return {}
    from google.colab import userdata  # type: ignore[import-not-found]

    for variable in variables:
        try:
            key = _usable(Secret(userdata.get(variable) or ""), f"Colab's secret {variable}")
        except userdata.SecretNotFoundError:
            continue
        except userdata.NotebookAccessError:
            logger.info("This notebook was not given access to Colab's secret %s.", variable)
            continue
        except ConfigurationError:
            raise
        except Exception as error:  # the border to Colab; it times out where no page is open
            logger.info("Colab's secrets cannot be read: %s", type(error).__name__)
            break
        if key is not None:
            return {variable: key}
    return {}


def _keyring(variables: Sequence[str]) -> dict[str, Secret]:
    """Return the first key that the keyring has, by its variable."""
    stored = _read_keyring(variables)
    for variable in variables:
        key = _usable(stored.get(variable, Secret()), f"the keyring's entry {variable}")
        if key is not None:
            return {variable: key}
    return {}


def _read_keyring(variables: Sequence[str]) -> dict[str, Secret]:
    """Return what the keyring has under these names, as much of it as comes within five seconds."""
    global _hung
    if not variables or importlib.util.find_spec("keyring") is None:
        return {}
    if _hung is not None and _hung.is_alive():
        logger.info("The keyring still has not answered; going on without it.")
        return {}
    found: dict[str, Secret] = {}
    reading = threading.Thread(
        target=_read, args=(variables, found), name="nbproviders-keyring", daemon=True
    )
    reading.start()
    reading.join(_KEYRING_S)
    if reading.is_alive():
        _hung = reading
        logger.info("The keyring did not answer within %g s; going on without it.", _KEYRING_S)
    return dict(found)


def _read(variables: Sequence[str], found: dict[str, Secret]) -> None:
    try:
        import keyring

        for variable in variables:
            key = _stripped(Secret(keyring.get_password(KEYRING_SERVICE, variable) or ""))
            if key:
                found[variable] = key
    except Exception as error:  # the border to keyring's backends, which are plugins
        # Its text is left out: a backend may put anything into it.
        logger.info("The keyring cannot be read: %s", type(error).__name__)


def _prompted(service: str, variable: str) -> dict[str, Secret]:
    """Return what the user enters, by its variable; nothing if nobody can be asked or enters nothing."""
    if not _somebody_there():
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # no terminal that would show it
        try:
            answer = Secret(getpass.getpass(_question(service, variable)))
        except (EOFError, NotImplementedError, getpass.GetPassWarning):
            return {}
    key = _usable(answer, "the answer")
    return {} if key is None else {variable: key}


def _question(service: str, variable: str) -> str:
    lasting = f"set {variable} in the environment"
    if "google.colab" in sys.modules:
        lasting = f"add {variable} to Colab's secrets"
    elif importlib.util.find_spec("keyring") is not None:
        lasting += f" or run: keyring set {KEYRING_SERVICE} {variable}"
    return (
        f"{service} needs an API key; it is remembered until this process ends.\n"
        f"To store it for good, {lasting}\n"
        "Key (Enter: none): "
    )


def _somebody_there() -> bool:
    """Whether a question could be seen now; a front end that takes no input refuses it by itself."""
    if not _on_main_thread() or _in_pytest():
        return False
    # While a cell runs, and only then, ipykernel puts a method of the kernel in getpass's place.
    kernel = getattr(getpass.getpass, "__self__", None)
    if hasattr(kernel, "get_parent"):
        return _in_a_cell(kernel)
    return hasattr(sys, "ps1") and all(
        stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)
    )


def _in_a_cell(kernel: object) -> bool:
    """Whether this code runs for a cell, and not for a widget while a cell is awaiting."""
    parent = kernel.get_parent("shell")  # type: ignore[attr-defined]
    return bool(parent.get("header", {}).get("msg_type") == "execute_request")


def _in_pytest() -> bool:
    """Whether a test runs in this process, from a notebook too: it would wait for an answer for ever."""
    running = {"PYTEST_VERSION", "PYTEST_CURRENT_TEST"} & os.environ.keys()
    return bool(running) and "pytest" in sys.modules  # a child of pytest inherits the former only


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
