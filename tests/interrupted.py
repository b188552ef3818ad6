"""Ctrl-C at a chosen line of our code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any


@contextmanager
def interrupted(line: int, *modules: ModuleType) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt before the n-th line of these modules that this thread runs.

    Yields
    ------
    list[str]
        The functions that lines were run of, the interrupted one last.
    """
    paths, functions = {module.__file__ for module in modules}, []
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in paths:
            return None
        if event == "line":
            functions.append(frame.f_code.co_name)
            if len(functions) == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield functions
    finally:
        sys.settrace(before)
