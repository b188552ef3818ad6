"""Promises of the names people import."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import nbproviders as nbp
from nbproviders import abc as authors

DOCUMENTED = (
    "BaseProvider Chunk Client Completion Cost GenerationParams ModelHandle ModelPicker ModelProvider "
    "ModelSpec ProviderError ResidentProvider ResourceKey Router Score SyncClient Token WeightsProvider "
    "alias as_evaluator compare compare_sync contains create_provider evaluate evaluate_sync events "
    "exact_match list_available load "
    "load_provider load_sync model plot_next_tokens plot_tokens regex_match register_provider replay "
    "residents unload unload_all unregister_provider ResidentsPanel"
).split()


@pytest.mark.parametrize("name", nbp.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """What __all__ promises is there, and is the same thing each time."""
    assert getattr(nbp, name) is getattr(nbp, name)


def test_documented_names_are_public() -> None:
    """The names of the documentation are in __all__, sorted and once each."""
    assert set(DOCUMENTED) <= set(nbp.__all__)
    assert list(nbp.__all__) == sorted(set(nbp.__all__))


def test_names_are_shown() -> None:
    """Completion in a notebook finds them."""
    assert set(nbp.__all__) <= set(dir(nbp))
    assert {"abc", "demo", "errors", "__version__"} <= set(dir(nbp))


@pytest.mark.parametrize("name", ["abc", "demo", "errors"])
def test_submodules_are_reached_without_importing_them(name: str) -> None:
    """nbp.demo.tasks() needs no import of its own."""
    code = f"import nbproviders as nbp; print(nbp.{name}.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"nbproviders.{name}"


def test_any_other_name_is_an_attribute_error() -> None:
    """A misspelt name is refused as by any module."""
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = nbp.laod


@pytest.mark.parametrize("name", authors.__all__)
def test_every_name_for_authors_resolves(name: str) -> None:
    """What a provider's author needs is in nbproviders.abc."""
    assert getattr(authors, name) is not None


def test_every_error_is_public() -> None:
    """Whatever can be raised can be caught by a name of the package."""
    errors = importlib.import_module("nbproviders.errors")
    kinds = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, nbp.ProviderError)
    }
    assert kinds <= set(nbp.__all__)


def test_the_version_is_the_packages() -> None:
    """What is imported is what was installed."""
    from importlib.metadata import version

    assert nbp.__version__ == version("nbproviders")
