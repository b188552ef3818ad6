"""Jupyter: whether there is a kernel, and one of this Python, new enough for widgets that act at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from nbproviders.doctor.finding import Finding

_AREA = "notebook"
_SUBSHELLS = (7, 4)  # from here on widgets act while a cell awaits


def examine() -> Iterator[Finding]:
    """Yield a finding for the kernel, for where notebooks run, and for JupyterLab."""
    yield _kernel()
    yield _started_as()
    try:
        yield Finding(_AREA, "jupyterlab", metadata.version("jupyterlab"))
    except metadata.PackageNotFoundError:
        hint = 'If notebooks are not opened elsewhere: pip install "nbproviders[lab]"'
        yield Finding(_AREA, "jupyterlab", "not installed here", "note", hint)


def _kernel() -> Finding:
    version = metadata.version("ipykernel")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < _SUBSHELLS:
        hint = "Newer ones let a click act at once: pip install -U ipykernel"
        said = f"{version}; clicks on widgets act after the running cell"
        return Finding(_AREA, "ipykernel", said, "note", hint)
    return Finding(_AREA, "ipykernel", version)


def _started_as() -> Finding:
    """Return what a notebook with the kernel "python3" runs: not seldom it is another Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    hint = f"Install one for this Python: {sys.executable} -m ipykernel install --sys-prefix"
    try:
        argv = KernelSpecManager().get_kernel_spec("python3").argv
    except NoSuchKernel:
        return Finding(_AREA, "kernel python3", "there is none", "problem", hint)
    program = Path(argv[0]) if argv else Path()
    if not program.is_absolute() or _same(program):
        return Finding(_AREA, "kernel python3", "this Python")
    if not program.exists():
        return Finding(_AREA, "kernel python3", f"{program}, which is gone", "problem", hint)
    said = f"{program}: notebooks run there, where nbproviders may be missing"
    return Finding(_AREA, "kernel python3", said, "note", hint)


def _same(program: Path) -> bool:
    # Not by the file behind the link: all environments' links lead to one.
    return program.parent.resolve() == Path(sys.executable).parent.resolve()
