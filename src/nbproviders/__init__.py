"""Pick a model in a notebook, keep it resident from cell to cell, compare models inline.

>>> import nbproviders as nbp
>>> with nbp.model("echo:echo") as m:
...     m.generate("hello")
'hello'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbproviders.authoring.provider import ModelHandle, ModelProvider
    from nbproviders.authoring.resident import ResidentProvider
    from nbproviders.authoring.service import BaseProvider
    from nbproviders.authoring.weights import WeightsProvider
    from nbproviders.catalog.aliases import alias
    from nbproviders.comparison.comparison import Comparison
    from nbproviders.comparison.evaluation import evaluate, evaluate_sync
    from nbproviders.comparison.evaluators import as_evaluator
    from nbproviders.comparison.run import compare, compare_sync
    from nbproviders.comparison.scorers import contains, exact_match, regex_match
    from nbproviders.core.client import Client, SyncClient
    from nbproviders.core.completion import Chunk, Completion, Cost, Usage
    from nbproviders.core.config import ProviderConfig
    from nbproviders.core.params import GenerationParams
    from nbproviders.core.spec import ModelSpec, ResourceKey
    from nbproviders.core.tokens import Score, Token
    from nbproviders.errors import (
        AuthenticationError,
        ClosedError,
        ConfigurationError,
        InsufficientMemoryError,
        InvalidRequestError,
        ModelAccessError,
        ProviderError,
        RateLimitError,
        ServiceUnavailableError,
        TimeoutError,
        UnsupportedError,
    )
    from nbproviders.ipython import load_ipython_extension
    from nbproviders.registry import (
        create_provider,
        list_available,
        load_provider,
        model,
        register_provider,
        unregister_provider,
    )
    from nbproviders.render.token_charts import plot_next_tokens
    from nbproviders.render.tokens import plot_tokens
    from nbproviders.routing.replay import replay
    from nbproviders.routing.router import Router
    from nbproviders.session import events, load, load_sync, residents, unload, unload_all
    from nbproviders.widgets.picker import ModelPicker

__version__ = "0.1.0"

# Where each public name lives. Resolved on first use (PEP 562): importing this package imports nothing else.
_HOMES = {
    "authoring.provider": ("ModelHandle", "ModelProvider"),
    "authoring.resident": ("ResidentProvider",),
    "authoring.service": ("BaseProvider",),
    "authoring.weights": ("WeightsProvider",),
    "catalog.aliases": ("alias",),
    "comparison.comparison": ("Comparison",),
    "comparison.evaluation": ("evaluate", "evaluate_sync"),
    "comparison.evaluators": ("as_evaluator",),
    "comparison.run": ("compare", "compare_sync"),
    "comparison.scorers": ("contains", "exact_match", "regex_match"),
    "core.client": ("Client", "SyncClient"),
    "core.completion": ("Chunk", "Completion", "Cost", "Usage"),
    "core.config": ("ProviderConfig",),
    "core.params": ("GenerationParams",),
    "core.spec": ("ModelSpec", "ResourceKey"),
    "core.tokens": ("Score", "Token"),
    "errors": (
        "AuthenticationError",
        "ClosedError",
        "ConfigurationError",
        "InsufficientMemoryError",
        "InvalidRequestError",
        "ModelAccessError",
        "ProviderError",
        "RateLimitError",
        "ServiceUnavailableError",
        "TimeoutError",
        "UnsupportedError",
    ),
    "ipython": ("load_ipython_extension",),
    "registry": (
        "create_provider",
        "list_available",
        "load_provider",
        "model",
        "register_provider",
        "unregister_provider",
    ),
    "render.token_charts": ("plot_next_tokens",),
    "render.tokens": ("plot_tokens",),
    "routing.replay": ("replay",),
    "routing.router": ("Router",),
    "session": ("events", "load", "load_sync", "residents", "unload", "unload_all"),
    "widgets.picker": ("ModelPicker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBMODULES = frozenset({"abc", "demo", "errors"})

__all__ = [  # noqa: PLE0604  # one table says where each name lives
    *sorted(_HOME_OF),
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = found
        return found
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
