"""Python, and the packages that do the work: whether they are there, new enough, and can be imported."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nbproviders import __version__
from nbproviders.doctor.finding import Finding

_AREA = "packages"
_IMPORT_S = 120.0  # a large library on a slow network disk
# What is imported to see whether it can be, by its distribution.
_LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "llama-cpp-python": "llama_cpp",
    "bitsandbytes": "bitsandbytes",
}
_CHILD = """
import json, sys
name = sys.argv[1]
told = {}
try:
    module = __import__(name)
    if name == "torch":
        told["cuda_build"] = module.version.cuda
        told["cuda"] = module.cuda.is_available()
        told["devices"] = [module.cuda.get_device_name(n) for n in range(module.cuda.device_count())]
        told["mps"] = module.backends.mps.is_available()
except BaseException as error:  # this is the child: what a library does at its import is what is asked
    told["error"] = f"{type(error).__name__}: {error}"
print("\\n@told " + json.dumps(told))
"""


def examine() -> Iterator[Finding]:
    """Yield a finding for Python, for this package, and for each library."""
    yield Finding(_AREA, "python", f"{platform.python_version()} in {sys.prefix}")
    yield Finding(_AREA, "nbproviders", f"{__version__} in {Path(__file__).parents[1]}")
    wrong = dict(_too_old())
    for distribution in _LIBRARIES:
        version = _version(distribution)
        if version is None:
            yield Finding(_AREA, distribution, "not installed", "note")
            continue
        yield _imported(distribution, version, wrong.pop(distribution, ""))
    for distribution, wanted in wrong.items():
        version = _version(distribution)
        yield _other(distribution, f"{version}, but {wanted} is needed" if version else wanted)


def _imported(distribution: str, version: str, wanted: str) -> Finding:
    told = imported(_LIBRARIES[distribution])
    if "error" in told:
        hint = f"Install it again: pip install --force-reinstall --no-deps {distribution}"
        said = f"{version}, but it cannot be imported: {told['error']}"
        return Finding(_AREA, distribution, said, "problem", hint)
    if wanted:
        return _other(distribution, f"{version}, but {wanted} is needed")
    build = ""
    if distribution == "torch":
        build = f", built for CUDA {told['cuda_build']}" if told["cuda_build"] else ", CPU build"
    return Finding(_AREA, distribution, f"{version}{build}")


def _other(distribution: str, said: str) -> Finding:
    hint = f'Install another: pip install -U "{distribution}" nbproviders'
    return Finding(_AREA, distribution, said, "problem", hint)


@cache
def imported(module: str) -> dict[str, Any]:
    """Return what a child process tells of a library that it imports; ``error`` if it cannot.

    For torch: ``cuda_build`` (version or None), ``cuda``, ``devices`` (names), ``mps``.
    """
    command = [sys.executable, "-c", _CHILD, module]
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # what a dying library prints may be anything
            timeout=_IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {_IMPORT_S:.0f} s"}
    _, _, told = child.stdout.rpartition("\n@told ")
    try:
        found: dict[str, Any] = json.loads(told)
    except ValueError:  # it ended the process
        last = child.stderr.strip().rpartition("\n")[2]
        return {"error": f"it ended the process with status {child.returncode}. {last}".strip()}
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _too_old() -> Iterator[tuple[str, str]]:
    """Yield what is missing or of a version that this package cannot work with."""
    from packaging.requirements import InvalidRequirement, Requirement

    extras = metadata.metadata("nbproviders").get_all("Provides-Extra") or ()
    for text in metadata.requires("nbproviders") or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.name == "nbproviders":  # an extra that names another
            continue
        marker = wanted.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        if marker is not None and not any(marker.evaluate({"extra": e}) for e in ("", *extras)):
            continue  # for another system or Python
        version = _version(wanted.name)
        if version is None and needed:
            yield wanted.name, "it is not installed, and nothing works without it"
        elif version is not None and not wanted.specifier.contains(version, prereleases=True):
            yield wanted.name, str(wanted.specifier)
