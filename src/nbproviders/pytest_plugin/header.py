"""One line for pytest's header: the providers that can be used here."""

from __future__ import annotations

from nbproviders import __version__, registry
from nbproviders.catalog import keys
from nbproviders.catalog.services import SERVICES
from nbproviders.errors import ConfigurationError


def available() -> str:
    """Return what computes here, and the services whose key the environment has."""
    listed = [name for name, info in registry.list_available().items() if info.available]
    here = [name for name in listed if name not in SERVICES]
    served = [name for name in listed if name in SERVICES and _has_key(name)]
    services = f"; keys of {', '.join(served)}" if served else ""
    return f"nbproviders {__version__}: {', '.join(here)}{services}"


def _has_key(name: str) -> bool:
    try:
        return bool(SERVICES[name].key_variables) and bool(keys.find(SERVICES[name].key_variables))
    except ConfigurationError:  # a spoiled one: whoever uses it is told
        return False
