"""The list of models on this machine, as part of a widget: looked for behind, chosen by a click."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from nbproviders.catalog import local
from nbproviders.catalog.settings import user_path
from nbproviders.residency.memory import size_text
from nbproviders.widgets.models import why_not
from nbproviders.widgets.tasks import Home, Job

# Of a long path the beginning and, above all, the end are shown.
_LONGEST, _START = 72, 20


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine: its reference, and the text that tells where it is from and its size."""

    spec: str
    text: str

    @property
    def provider(self) -> str:
        """What stands before the colon."""
        return self.spec.partition(":")[0]

    @property
    def name(self) -> str:
        """What stands after it."""
        return self.spec.partition(":")[2]


class OnDisk(widgets.Dropdown):  # type: ignore[misc]  # ipywidgets is not typed
    """A drop-down list of the models on this machine.

    Parameters
    ----------
    home
        Where it may be changed.
    listed
        Called when the search is over.
    picked
        Called with the reference that a person chose; what `show` chooses is no news.

    Attributes
    ----------
    value
        The reference of the model chosen; empty if it is none of these.
    found
        What the last search found.
    """

    def __init__(
        self,
        home: Home,
        listed: Callable[[], object],
        picked: Callable[[str], object],
        **kwargs: Any,
    ) -> None:
        self.found: tuple[Found, ...] = ()
        self._chosen = ""
        self._showing = False
        self._shown: tuple[tuple[str, str], ...] = ()
        self._listed = listed
        self._looks: Job[list[Found]] = Job(self._changed, home=home)
        super().__init__(**kwargs)
        self._changed()
        self._home, self._picked = home, picked
        self.observe(self._valued, "value")

    def look(self) -> None:
        """Start to look for models; what is there already stays meanwhile."""
        self._looks.start(lambda _: asyncio.to_thread(_found), self._take)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the search is over; False after `timeout_s`. Never on the thread of a loop."""
        return self._looks.wait(timeout_s)

    def show(self, spec: str) -> None:
        """Show what is chosen, if it is among these."""
        self._chosen = spec
        self._showing = True
        try:
            self.value = spec if any(spec == value for _, value in self._shown) else ""
        finally:
            self._showing = False

    def names(self, provider: str) -> list[str]:
        """Return the models of a provider, by the name that it takes."""
        return [one.name for one in self.found if one.provider == provider]

    def close(self) -> None:
        """Stop looking, and take it off the page."""
        self._looks.stop()
        super().close()

    def _valued(self, _: object) -> None:
        if not self._showing:
            self._home.call(self._picked, self.value)

    def _take(self, found: Sequence[Found]) -> None:
        self.found = tuple(found)
        self._listed()

    def _changed(self) -> None:
        head = "choose one, or fill in the fields" if self.found else "none found"
        if self._looks.busy and not self.found:
            head = "looking …"
        elif self._looks.error:
            head = self._looks.error.partition("\n")[0]
        shown = ((head, ""), *((one.text, one.spec) for one in self.found))
        if self._shown != shown:
            self.options = self._shown = shown
        self.show(self._chosen)


def _found() -> list[Found]:
    missing: dict[str, bool] = {}
    found = []
    for one in local.find_models():
        provider = one.spec.partition(":")[0]
        if provider not in missing:
            missing[provider] = bool(why_not(provider))
        facts = [one.source, size_text(one.bytes), *["not available"] * missing[provider]]
        found.append(Found(one.spec, " · ".join([*facts, _label(one.spec)])))
    return found


def _label(spec: str) -> str:
    """Return a reference as it is shown, and saved with a notebook: without the user's home, not too long."""
    home = str(user_path("~"))
    text = spec.replace(home + os.sep, f"~{os.sep}") if len(home) > 1 else spec
    return text if len(text) <= _LONGEST else f"{text[:_START]}…{text[_START + 1 - _LONGEST :]}"
