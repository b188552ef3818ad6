"""Providers: which package brings each, and why one cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from nbproviders import registry
from nbproviders.catalog.services import SERVICES
from nbproviders.doctor.finding import Finding

_AREA = "providers"
_OURS = "nbproviders"


def examine() -> Iterator[Finding]:
    """Yield a finding for our providers together, and for each plugin by itself."""
    listed = registry.list_available()
    points = [point for group in registry.GROUPS for point in entry_points(group=group)]
    first: dict[str, EntryPoint] = {}
    for point in points:
        first.setdefault(point.name.lower(), point)
    ours = [name for name, point in first.items() if _package(point) == _OURS]
    ready = [name for name in ours if listed[name].available and name not in SERVICES]
    yield Finding(_AREA, "ready", ", ".join(sorted(ready)))
    for name in sorted(set(ours) - set(ready) - SERVICES.keys()):
        yield Finding(_AREA, name, listed[name].reason, "note")
    for point in points:
        if _package(point) == _OURS and first[point.name.lower()] is point:
            continue
        yield _plugin(point, first[point.name.lower()], listed[point.name.lower()])


def _plugin(point: EntryPoint, first: EntryPoint, info: registry.ProviderInfo) -> Finding:
    version = f" {point.dist.version}" if point.dist is not None else ""
    where = f"{_package(point)}{version}, {point.group}: {point.value}"
    if first is not point:
        if (first.value, _package(first)) == (point.value, _package(point)):
            return Finding(_AREA, point.name, f"{where} (the same, in another group)")
        said = f"{where}; not used, {_package(first)} brings the name {first.name!r} too"
        return Finding(_AREA, point.name, said, "note", "Uninstall one of the two packages.")
    if info.available:
        return Finding(_AREA, point.name, where)
    hint = f"Update {_package(point)}, or tell those who make it; without it: pip uninstall {_package(point)}"
    return Finding(_AREA, point.name, f"{where}; {info.reason}", "problem", hint)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"
