"""Calling a resource that lives on the engine as if it were here: ``await m.query(…)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[[tuple[str, ...], tuple[Any, ...], dict[str, Any]], Any]


class Proxy:
    """An attribute of a resource held elsewhere; it runs there when it is called.

    Parameters
    ----------
    call
        Carries a call over: the attribute's path, arguments and keywords.
    path
        Names from the resource down to this attribute.
    """

    def __init__(self, call: Call, path: tuple[str, ...]) -> None:
        self._call, self._path = call, path

    def __getattr__(self, name: str) -> Proxy:
        if name.startswith("_"):
            raise AttributeError(name)
        return Proxy(self._call, (*self._path, name))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it there."""
        return self._call(self._path, arguments, named)

    def __repr__(self) -> str:
        return f"<call of {'.'.join(self._path)}>"
