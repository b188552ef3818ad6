"""Who is built like whom: the identity of providers, and what a class leaves that was defined anew.

Two providers of one origin share what they load. It is text, so that it stands in keys from run to run.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import types
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nbproviders.core.spec import canonical
from nbproviders.errors import ProviderError
from nbproviders.residency import residency as residencies

_serial = itertools.count(1)
_numbers: dict[int, tuple[weakref.ref[Any], int]] = {}  # by id; what is equal need not be the same
# A name of a notebook's own, with its number. What a function makes has <locals> in its name and does not
# match: such classes live side by side.
_NUMBERED = re.compile(r"(?:Wrapped\w+\()?(__main__\.[\w.]+)#(\d+)\(")


def origin(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], self: object) -> str:
    """Return the identity of a provider: its class and canonical constructor arguments.

    A class defined in a notebook is another one each time its cell runs: its code may have changed.
    Arguments without canonical form make the instance its own origin.
    """
    try:
        made_by: Any = vars(cls).get("__init__") or cls.__init__  # type: ignore[misc]
        bound = inspect.signature(made_by).bind(self, *args, **kwargs)
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
        arguments = canonical(values)
    except TypeError:
        arguments = alone()
    return f"{_name(cls)}({arguments})"


def alone() -> str:
    """Return what is equal to nothing else."""
    return f"#{next(_serial)}"


def of_made(maker: Any, config: Mapping[str, Any]) -> str:
    """Return the identity of what a class or a plain function makes of a configuration."""
    if not isinstance(
        maker, (type, types.FunctionType)
    ):  # a bound method makes what its object wants
        return alone()
    try:
        return f"{_name(maker)}({canonical(dict(config))})"
    except TypeError:
        return alone()


def of_object(thing: object) -> str:
    """Return the identity of an object that is there already: its own."""
    try:
        return f"{_name(type(thing))}(#{_number(thing)})"
    except TypeError:  # it takes no weak references
        return alone()


def _name(made: Any) -> str:
    name = f"{made.__module__}.{made.__qualname__}"
    found: Any = None if made.__module__ == "__main__" else sys.modules.get(made.__module__)
    for part in made.__qualname__.split("."):
        found = getattr(found, part, None)
    # A class may have been imported anew; a function of the same name may be another's inside.
    if found is made or (found is not None and isinstance(made, type)):
        return name
    return f"{name}#{_number(made)}"


def _number(thing: Any) -> int:
    place = id(thing)
    found = _numbers.get(place)
    if found is None or found[0]() is not thing:
        ref = weakref.ref(thing, lambda gone: _forget(place, gone))
        found = _numbers[place] = (ref, next(_serial))
    return found[1]


def _forget(place: int, gone: weakref.ref[Any]) -> None:
    found = _numbers.get(place)
    if found is not None and found[0] is gone:
        del _numbers[place]


async def free_former(origin: str) -> None:
    """Free what former definitions of an origin's class have loaded; on the engine's loop.

    Called before the new one loads: its notebook's cell was run again, and nothing leads to the old models
    but handles, which load them again should they ever be used.
    """
    mine = _definition(origin)
    if mine is None:
        return
    former = set()
    for entry in residencies.default().entries():
        other = _definition(entry.key.origin)
        if other is not None and other[0] == mine[0] and other[1] < mine[1]:
            former.add(entry)
    idle = {entry for entry in former if not entry.hard and not entry.pinned}
    if idle:
        with suppress(ProviderError):  # they have left all the same; this load is not to fail of it
            await residencies.default().unload(idle.__contains__)


def _definition(origin: str) -> tuple[str, int] | None:
    found = _NUMBERED.match(origin)
    return (found[1], int(found[2])) if found is not None else None
