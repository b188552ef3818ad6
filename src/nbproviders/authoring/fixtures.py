"""Providers that a package brings as a pytest fixture, used without pytest where that is possible."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nbproviders.core import engine
from nbproviders.core.turns import Turn
from nbproviders.errors import ConfigurationError, foreign

Close = Callable[[], Awaitable[None]]
_opening: dict[str, Turn] = {}  # by the provider's name


def is_fixture(thing: object) -> bool:
    """Whether this is what ``@pytest.fixture`` makes; pytest, which does not export the class, stays out."""
    return type(thing).__name__ == "FixtureFunctionDefinition"


def needs(fixture: Any) -> list[str]:
    """Return the fixtures that it takes, which only pytest has."""
    return list(inspect.signature(inspect.unwrap(fixture)).parameters)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one thread at a time open the fixture of a provider.

    Raises
    ------
    ConfigurationError
        On the engine's thread while another one has it, which may be waiting for the engine.
    """

    def waiting() -> None:
        if engine.default().here:
            raise ConfigurationError(
                f"The provider {name!r} is being opened by another thread.",
                hint=f"Open it before it is used: nbp.create_provider({name!r}).",
            )

    with _opening.setdefault(name, Turn()).taken(waiting):
        yield


def opened(fixture: Any, name: str) -> tuple[Any, Close | None]:
    """Run a fixture that takes none others.

    Returns
    -------
    tuple
        What it gives, and what runs the rest of it; None if it has no rest.

    Raises
    ------
    ConfigurationError
        If it takes others, or fails.
    """
    if needs(fixture):
        raise ConfigurationError(
            f"The provider {name!r} is a pytest fixture that takes {', '.join(needs(fixture))}.",
            hint="Use it in tests: model_providers.setup(…); or ask those who make it for a class.",
        )
    try:
        return _run(inspect.unwrap(fixture))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # the author's code, pytest.skip and sys.exit too
        raise ConfigurationError(
            f"The fixture of the provider {name!r} failed: {foreign(error)}"
        ) from foreign(error)


def _run(function: Callable[[], Any]) -> tuple[Any, Close | None]:
    made = function()
    if inspect.isgenerator(made):
        value = next(made)
        # Off the loop: what stands behind the yield may run one of its own.
        return value, lambda: asyncio.to_thread(_exhaust, made)
    if inspect.isasyncgen(made):
        return engine.default().wait(lambda: _first(made)), lambda: _rest(made)
    if inspect.isawaitable(made):
        return engine.default().wait(lambda: _value(made)), None
    return made, None


def _exhaust(made: Any) -> None:
    next(made, None)


async def _first(made: Any) -> Any:
    return await anext(made)


async def _rest(made: Any) -> None:
    await engine.default().call(lambda: _value(anext(made, None)))


async def _value(made: Awaitable[Any]) -> Any:
    return await made
