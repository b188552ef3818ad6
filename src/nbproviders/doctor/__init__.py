"""`examine`: what on this machine keeps a provider from working, and what to do about it.

Each part looks at one thing and reports `Finding`s; what is broken is a finding, never an exception.
Libraries are imported in child processes: a broken one may end the process that imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nbproviders.doctor import machine, notebook, packages, places, plugins
from nbproviders.doctor.finding import Finding, State
from nbproviders.errors import foreign

_PARTS: tuple[Callable[[], Iterator[Finding]], ...] = (
    packages.examine,
    machine.examine,
    notebook.examine,
    plugins.examine,
    places.examine,
)


def examine() -> Iterator[Finding]:
    """Yield what is found, part by part, as soon as it is known; takes some seconds."""
    for part in _PARTS:
        try:
            yield from part()
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # whatever a broken machine does, the other parts are told
            area = part.__module__.rpartition(".")[2]
            yield Finding(area, "examination", f"failed: {foreign(error)}", "problem")


__all__ = ["Finding", "State", "examine"]
