"""llama.cpp's library: started once, its log in ours, weights loaded and freed, evaluation stopped."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbproviders.core import engine
from nbproviders.errors import InsufficientMemoryError, ModelAccessError
from nbproviders.residency.progress import Progress

logger = logging.getLogger("nbproviders.llamacpp")

_INFO, _WARN, _ERROR, _CONTINUED = 1, 2, 3, 5
# None of it is a warning of ours: what fails is raised, with llama.cpp's reason in it, and Python prints the
# warnings of a logger that nobody has set up into the notebook.
_LEVELS = {_INFO: logging.DEBUG, _WARN: logging.DEBUG, _ERROR: logging.INFO}
_lock = threading.Lock()
_here = threading.local()
_library: Any = None
_callback: Any = None  # native code keeps its address: never freed


def library() -> Any:
    """Return the module ``llama_cpp.llama_cpp``, its log going to ours instead of to stderr.

    Raises
    ------
    ModelAccessError
        If its shared library cannot be loaded.
    """
    global _library, _callback
    with _lock:
        if _library is None:
            try:
                import llama_cpp.llama_cpp as found
            except (OSError, RuntimeError) as error:
                raise ModelAccessError(
                    f"llama.cpp's library cannot be loaded: {error}",
                    hint="Build it again: pip install --force-reinstall --no-cache-dir llama-cpp-python",
                ) from None
            _callback = found.llama_log_callback(_log)
            found.llama_log_set(_callback, ctypes.c_void_p(0))
            found.llama_backend_init()
            _library = found
    return _library


def _forget() -> None:
    """In a forked child: whoever held the lock is not there to give it back."""
    global _lock
    _lock = threading.Lock()


engine.after_fork([_forget])


def _log(level: int, text: bytes, _: object) -> None:
    """Take a piece of a line of llama.cpp's log; called on whichever thread computes."""
    if sys.is_finalizing():
        return
    line = text.decode("utf-8", "replace")
    if level != _CONTINUED:
        _here.level = level
    level = getattr(_here, "level", _INFO)
    lines: list[str] | None = getattr(_here, "lines", None)
    if lines is not None:
        lines.append(line)
    if logger.isEnabledFor(_LEVELS.get(level, logging.DEBUG)) and line.strip(". \n"):
        logger.log(_LEVELS.get(level, logging.DEBUG), "%s", line.rstrip("\n"))


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Collect what llama.cpp logs on this thread."""
    lines: list[str] = []
    if _library is not None:  # other code in this process may have taken the log over
        _library.llama_log_set(_callback, ctypes.c_void_p(0))
    outer = getattr(_here, "lines", None)
    _here.lines = lines
    try:
        yield lines
    finally:
        _here.lines = outer


def complaint(lines: list[str]) -> str:
    """Return the last things llama.cpp said that sound like a reason."""
    text = "".join(lines).splitlines()
    told = [line.strip() for line in text if "error" in line.lower() or "fail" in line.lower()]
    return "; ".join(dict.fromkeys(told[-3:])) or "it gave no reason"


def load_weights(
    path: Path, *, gpu_layers: int, total_bytes: int, progress: Progress
) -> tuple[Any, list[str]]:
    """Return the pointer to a loaded model, and what llama.cpp logged; its file was checked before.

    Parameters
    ----------
    path
        The file, or the first of several.
    gpu_layers
        Layers on the GPU; negative means all.
    total_bytes
        For progress.
    progress
        Told at each tensor; cancelling it ends the load there.

    Raises
    ------
    ModelAccessError
        With llama.cpp's reason.
    ClosedError
        If nobody wants it any more.
    """
    native = library()
    params = native.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    refused: list[BaseException] = []

    def told(fraction: float, _: object) -> bool:
        try:
            progress.report(int(fraction * total_bytes), total_bytes, "loading weights")
        except BaseException as error:  # it cannot pass through native code; raised again behind it
            refused.append(error)
        return not refused

    # Kept in this frame: the struct holds its address alone.
    callback = native.llama_progress_callback(told)
    params.progress_callback = callback
    with recorded() as lines:
        model = native.llama_model_load_from_file(str(path).encode(), params)
    if refused:
        if model:
            native.llama_model_free(model)
        raise refused[0]
    if model:
        return model, lines
    raise ModelAccessError(
        f"llama.cpp cannot load {str(path)!r}: {complaint(lines)}.",
        hint="Is the file complete, and of an architecture that this llama.cpp knows? "
        "pip install --upgrade llama-cpp-python may know more.",
    )


def new_context(model: Any, params: Any) -> tuple[Any, list[str]]:
    """Return the pointer to a new context of a model, and what llama.cpp logged about it.

    Raises
    ------
    InsufficientMemoryError
        If it cannot be made.
    """
    with recorded() as lines:
        context = library().llama_init_from_model(model, params)
    if not context:
        raise InsufficientMemoryError(
            f"llama.cpp cannot make a context of {params.n_ctx} tokens: {complaint(lines)}.",
            hint="Choose a smaller n_ctx or parallel, or another type_k, type_v or flash_attn.",
        )
    return context, lines


class Abort:
    """Stops an evaluation from another thread.

    llama.cpp asks a C function at each node of its graph whether to stop. A Python function would have to
    take the interpreter's lock each time, which a busy notebook holds for milliseconds. The C library's
    ``strlen`` on one byte of ours answers as well: 0 for an empty string, 1 for one of length one.
    """

    def __init__(self) -> None:
        self._flag = ctypes.create_string_buffer(2)

    def set(self) -> None:
        """Stop what is being evaluated, on a CPU within a node of the graph."""
        self._flag[0] = b"\x01"

    def clear(self) -> None:
        """Let evaluations run."""
        self._flag[0] = b"\x00"

    def watch(self, context: Any) -> None:
        """Have a context ask this flag."""
        native = library()
        runtime = ctypes.CDLL("msvcrt") if sys.platform == "win32" else ctypes.CDLL(None)
        function = ctypes.cast(runtime.strlen, native.ggml_abort_callback)
        native.llama_set_abort_callback(context, function, ctypes.cast(self._flag, ctypes.c_void_p))
