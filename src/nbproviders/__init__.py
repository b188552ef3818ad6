"""Pick a model in a notebook, keep it resident from cell to cell, compare models inline.

>>> import nbproviders as nbp
>>> with nbp.model("echo:echo") as m:
...     m.generate("hello")
'hello'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # by its own name each: so type checkers know that it is public
    from nbproviders.authoring.provider import (
        ModelHandle as ModelHandle,
        ModelProvider as ModelProvider,
    )
    from nbproviders.authoring.resident import ResidentProvider as ResidentProvider
    from nbproviders.authoring.service import BaseProvider as BaseProvider
    from nbproviders.authoring.weights import WeightsProvider as WeightsProvider
    from nbproviders.catalog.aliases import alias as alias
    from nbproviders.comparison.comparison import Comparison as Comparison
    from nbproviders.comparison.evaluation import (
        evaluate as evaluate,
        evaluate_sync as evaluate_sync,
    )
    from nbproviders.comparison.evaluators import as_evaluator as as_evaluator
    from nbproviders.comparison.run import compare as compare, compare_sync as compare_sync
    from nbproviders.comparison.scorers import (
        contains as contains,
        exact_match as exact_match,
        regex_match as regex_match,
    )
    from nbproviders.core.client import Client as Client, SyncClient as SyncClient
    from nbproviders.core.completion import (
        Chunk as Chunk,
        Completion as Completion,
        Cost as Cost,
        Usage as Usage,
    )
    from nbproviders.core.config import ProviderConfig as ProviderConfig
    from nbproviders.core.params import GenerationParams as GenerationParams
    from nbproviders.core.spec import ModelSpec as ModelSpec, ResourceKey as ResourceKey
    from nbproviders.core.tokens import Score as Score, Token as Token
    from nbproviders.errors import (
        AuthenticationError as AuthenticationError,
        ClosedError as ClosedError,
        ConfigurationError as ConfigurationError,
        InsufficientMemoryError as InsufficientMemoryError,
        InvalidRequestError as InvalidRequestError,
        ModelAccessError as ModelAccessError,
        ProviderError as ProviderError,
        RateLimitError as RateLimitError,
        ServiceUnavailableError as ServiceUnavailableError,
        TimeoutError as TimeoutError,
        UnsupportedError as UnsupportedError,
    )
    from nbproviders.ipython import load_ipython_extension as load_ipython_extension
    from nbproviders.registry import (
        create_provider as create_provider,
        list_available as list_available,
        load_provider as load_provider,
        model as model,
        register_provider as register_provider,
        unregister_provider as unregister_provider,
    )
    from nbproviders.render.token_charts import plot_next_tokens as plot_next_tokens
    from nbproviders.render.tokens import plot_tokens as plot_tokens
    from nbproviders.routing.replay import replay as replay
    from nbproviders.routing.router import Router as Router
    from nbproviders.session import (
        events as events,
        load as load,
        load_sync as load_sync,
        models as models,
        pin as pin,
        residents as residents,
        set_memory as set_memory,
        sleep as sleep,
        unload as unload,
        unload_all as unload_all,
        unpin as unpin,
        wake as wake,
        will_it_fit as will_it_fit,
    )
    from nbproviders.widgets.picker import ModelPicker as ModelPicker
    from nbproviders.widgets.residents import ResidentsPanel as ResidentsPanel

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
    "session": (
        "events",
        "load",
        "load_sync",
        "models",
        "pin",
        "residents",
        "set_memory",
        "sleep",
        "unload",
        "unload_all",
        "unpin",
        "wake",
        "will_it_fit",
    ),
    "widgets.picker": ("ModelPicker",),
    "widgets.residents": ("ResidentsPanel",),
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
