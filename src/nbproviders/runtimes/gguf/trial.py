"""An unusual GGUF file is loaded by a child process first: if llama.cpp dies of it, the child does.

An ordinary file (no `oddities`) costs nothing here. A verdict is remembered for that very file and that
llama.cpp, so each unusual file is tried once.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nbproviders.errors import ConfigurationError, ModelAccessError, scrub
from nbproviders.runtimes.gguf import verdicts
from nbproviders.runtimes.gguf.check import oddities
from nbproviders.runtimes.gguf.header import Header

_CHILD = Path(__file__).with_name("child.py")
_POLL_S = 0.05
_DECODE_BYTES = 4 << 30
_LIMIT_S = 60.0
_BYTES_PER_S = 100e6  # a slow disk: the time that a file may take grows with its size
_TAIL_BYTES = 64 << 10
_NOTHING = dict.fromkeys(
    ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), ""
)
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?[^\s:'\"]*[/\\](?=[\w.-]+\.(?:c|cc|cpp|h|hpp|cu|m):\d)")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child came to its end."""

    status: int
    output: str

    @property
    def stage(self) -> str:
        """What it was doing."""
        stages = re.findall(r"^@stage (.*)$", self.output, re.MULTILINE)
        return stages[-1].strip() if stages else "starting"

    @property
    def how(self) -> str:
        """How it ended, in words."""
        failed = re.findall(r"^@failed (.*)$", self.output, re.MULTILINE)
        if failed:
            return str(failed[-1]).strip()
        if self.status < 0:
            try:
                return f"llama.cpp ended the process with {signal.Signals(-self.status).name}"
            except ValueError:
                return f"llama.cpp ended the process with signal {-self.status}"
        return f"the process ended with status {self.status}"

    @property
    def words(self) -> str:
        """The last lines of its output that are llama.cpp's own."""
        lines = [line.strip() for line in self.output.splitlines()]
        lines = [_FOLDERS.sub("", line) for line in lines if line and not line.startswith("@")]
        return scrub(" | ".join(lines[-3:]))[-600:]


def ensure_loadable(files: Sequence[Header], stop: Callable[[], None] | None = None) -> None:
    """Return if llama.cpp can be trusted with a model; blocks while a child tries an unusual one.

    Parameters
    ----------
    files
        All parts, as `read_files` returns them.
    stop
        Called every 50 ms; what it raises ends the child and passes through.

    Raises
    ------
    ModelAccessError
        If the file is no language model, or the child could not load it, or took too long.
    """
    reasons = oddities(files)
    if not reasons:
        return
    key = verdicts.key_of(files, _version())
    known = verdicts.recall(key)
    if known is None:
        ended = _try(files, stop)
        known = verdicts.Verdict(ended.status == 0, ended.stage, ended.how, ended.words)
        # A kill comes from outside, for want of memory; the next time may go better.
        if ended.status != -9:
            verdicts.remember(key, known)
    if not known.good:
        raise _error(files, reasons, known)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    if importlib.util.find_spec("llama_cpp") is None:
        raise ConfigurationError(
            "llama-cpp-python is not installed, so no GGUF file can be loaded.",
            hint="Install it: pip install 'nbproviders[llama-cpp]'",
        )
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:  # built by hand, without metadata
        return "unknown"


def _error(
    files: Sequence[Header], reasons: Sequence[str], verdict: verdicts.Verdict
) -> ModelAccessError:
    shown = " ".join(reasons[:3]) + (f" And {len(reasons) - 3} more." if len(reasons) > 3 else "")
    said = f" It said: {verdict.words}." if verdict.words else ""
    return ModelAccessError(
        f"The GGUF file {str(files[0].path)!r} cannot be loaded: a trial in another process failed while "
        f"{verdict.stage}: {verdict.how}.{said} What is unusual about the file: {shown}",
        hint=f"Download it again. If it is newer than llama-cpp-python {_version()}, update that.",
    )


def _try(files: Sequence[Header], stop: Callable[[], None] | None) -> Ended:
    """Start a child with the files and return how it ended."""
    size = sum(file.size for file in files)
    limit_s = _LIMIT_S + size / _BYTES_PER_S
    order = {
        "path": str(files[0].path.absolute()),
        "sys_path": [path or str(Path.cwd()) for path in sys.path],
        "decode": size < _DECODE_BYTES,
        "seconds": limit_s + 5,
    }
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_NOTHING, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            status = _wait(child, limit_s, stop)
        finally:
            _kill(child)
        if status is None:
            raise ModelAccessError(
                f"Trying {str(files[0].path)!r} in another process took longer than {limit_s:.0f} s while "
                f"{Ended(0, _tail(output)).stage}.",
                hint="The disk may be slow, or the file damaged. Try again, or download it again.",
            )
        return Ended(status, _tail(output))


def _wait(
    child: subprocess.Popen[bytes], limit_s: float, stop: Callable[[], None] | None
) -> int | None:
    """Return the child's status, or None if it took too long."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if stop is not None:
            stop()
        try:
            return child.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            continue
    return None


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, and all that it started."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()
    else:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(output.tell() - _TAIL_BYTES, 0))
    return output.read().decode("utf-8", "replace")
