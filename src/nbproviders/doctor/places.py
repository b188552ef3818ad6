"""Settings, keys, and the folders that must hold what is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nbproviders.catalog import keys, local, settings
from nbproviders.catalog.services import SERVICES
from nbproviders.doctor.finding import Finding
from nbproviders.errors import ConfigurationError
from nbproviders.residency.memory import size_text

_AREA = "places"
_LITTLE_BYTES = 5 * 10**9  # about what one model of seven billion parameters in 4 bits takes


def examine() -> Iterator[Finding]:
    """Yield a finding for the settings file, each key that is there, and the cache of the Hub."""
    yield _settings()
    yield from _cache()
    yield from _servers()
    yield from _keys()


def _settings() -> Finding:
    path = settings.config_path()
    try:
        settings.section("folders")
        local.gguf_folders()
    except ConfigurationError as error:
        return Finding(_AREA, "settings", error.message, "problem", error.hint or "")
    return Finding(_AREA, "settings", str(path) if path.exists() else f"none ({path})")


def _keys() -> Iterator[Finding]:
    services = [service for service in SERVICES.values() if service.key_variables]
    located = keys.locate(service.key_variables for service in services)
    there = []
    for service, key in zip(services, located, strict=True):
        if key is None:
            continue
        if key.wrong:
            hint = f"Copy it again, and set {key.variable}."
            yield Finding("keys", service.title, f"{key.variable} has {key.wrong}", "problem", hint)
        else:
            there.append(f"{service.title} ({key.variable}, {key.place})")
    yield Finding("keys", "found", ", ".join(there) or "none", "ok" if there else "note")


def _cache() -> Iterator[Finding]:
    path = local.hub_cache()
    place = next(one for one in (path, *path.parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        hint = "Make it writable, or name another folder in HF_HUB_CACHE."
        yield Finding(_AREA, "Hub cache", f"{path} cannot be written", "problem", hint)
        return
    models = sum(1 for _ in path.glob("models--*")) if path.is_dir() else 0
    yield Finding(_AREA, "Hub cache", f"{path}, {models} model{'' if models == 1 else 's'}")
    yield _disk(place)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        hint = "Unset HF_HUB_OFFLINE to download."
        yield Finding(
            _AREA, "Hub", "offline: only what is in the cache can be opened", "note", hint
        )


def _disk(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    if free < _LITTLE_BYTES:
        hint = (
            "Name a folder on a larger disk in HF_HUB_CACHE, or delete models: `hf cache ls` lists "
            "them, `hf cache rm model/…` deletes one."
        )
        return Finding(_AREA, "disk", f"{size_text(free)} free", "problem", hint)
    return Finding(_AREA, "disk", f"{size_text(free)} free")


def _servers() -> Iterator[Finding]:
    from nbproviders.runtimes.process.keeping import kept

    try:
        for one in kept():
            said = f"kept running, process {one.pid}"
            yield Finding(_AREA, one.what, said, "note", "`nbproviders list` tells for how long.")
    except ConfigurationError as error:
        yield Finding(_AREA, "servers", error.message, "problem", error.hint or "")
