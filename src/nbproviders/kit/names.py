"""What a provider's project, package, class, entry point and fixtures are called, from one name."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Self

from nbproviders.errors import ConfigurationError

_PROJECT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_MOST_CHARACTERS = 40  # lines of the templates hold the name up to four times
_EXAMPLE = "Write letters, digits and hyphens, beginning with a letter: my-provider."
# Fixtures of nbproviders' own are model_client, model_handle and model_providers.
_TAKEN = {"model": "its fixture would be nbproviders' own model_client"}


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one provider.

    Attributes
    ----------
    project
        What pip installs, and the folder: ``my-model-provider``.
    package
        What Python imports: ``my_model_provider``.
    provider
        What stands before the colon of a reference, and names the fixtures: ``my_model``.
    camel
        What its classes begin with: ``MyModel``.
    """

    project: str
    package: str
    provider: str
    camel: str

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the names that follow from the project's.

        Raises
        ------
        ConfigurationError
            For what cannot be a project's or package's name, or would hide what is there already.

        Examples
        --------
        >>> Names.of("My.Model-Provider")
        Names(project='my-model-provider', package='my_model_provider', provider='my_model', camel='MyModel')
        """
        if not isinstance(name, str) or not _PROJECT.fullmatch(name):
            raise ConfigurationError(f"{name!r} cannot be a project's name.", hint=_EXAMPLE)
        project = re.sub(r"[-_.]+", "-", name).lower()
        package = project.replace("-", "_")
        provider = package.removesuffix("_provider")
        made = cls(project, package, provider, "".join(map(str.capitalize, provider.split("_"))))
        wrong = made._wrong() or made._hides()
        if wrong:
            raise ConfigurationError(
                f"A provider cannot be called {name!r}: {wrong}.", hint=_EXAMPLE
            )
        return made

    def _wrong(self) -> str:
        """Return what is wrong with the name itself."""
        if len(self.project) > _MOST_CHARACTERS:
            return f"it has {len(self.project)} characters, and {_MOST_CHARACTERS} at most fit"
        if not self.package.isidentifier() or keyword.iskeyword(self.package):
            return f"Python cannot import {self.package}"
        if self.package == "provider":
            return "that is what each of them is; say which"
        if self.package.startswith("test"):
            return "pytest would take its class for a test"
        return _TAKEN.get(self.provider, "")

    def _hides(self) -> str:
        """Return what is here already and could no longer be reached."""
        if self.package in sys.stdlib_module_names:
            return f"{self.package} is a module of Python's own"
        from nbproviders import registry  # the command line reads this module at each start

        listed = registry.list_available().get(self.provider)
        source = _project(listed.source) if listed is not None else ""
        if source in ("registered", self.project):
            return ""  # it is its own, written anew
        if listed is not None:
            return f"there is a provider {self.provider!r} already, of {source}"
        others = metadata.packages_distributions().get(self.package, ())
        if others:
            return f"a package {self.package} is installed, of {', '.join(sorted(others))}"
        return ""


def _project(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
