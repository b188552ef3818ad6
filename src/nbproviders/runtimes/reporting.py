"""How far transformers is with a load, told to a `Progress`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from nbproviders.residency.progress import Progress


class reporting:  # noqa: N801  # reads as a verb: with reporting(progress, sizes):
    """Tell a `Progress` of the weights that transformers loads on this thread.

    Parameters
    ----------
    progress
        Told of bytes; it raises when the load is no longer wanted.
    sizes
        Bytes of each tensor by name, as stored.
    """

    _by_thread: ClassVar[dict[int, tuple[Progress, Mapping[str, int]]]] = {}
    _hooked: ClassVar[bool] = False

    def __init__(self, progress: Progress, sizes: Mapping[str, int]) -> None:
        self._told = (progress, sizes)

    def __enter__(self) -> None:
        from transformers.utils import logging

        # The hook is process-wide; each load is told apart by its thread.
        if not reporting._hooked:
            reporting._hooked = True
            logging.set_tqdm_hook(_bar)
        self._by_thread[threading.get_ident()] = self._told

    def __exit__(self, *_: object) -> None:
        self._by_thread.pop(threading.get_ident(), None)


def _bar(factory: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    told = reporting._by_thread.get(threading.get_ident())
    if told is None or not args:
        return factory(*args, **named)
    return _reported(args[0], *told)


def _reported(items: Iterable[Any], progress: Progress, sizes: Mapping[str, int]) -> Iterator[Any]:
    todo = list(items)
    total = sum(sizes.values()) or len(todo)
    mean = total // max(len(todo), 1)
    done = 0
    for item in todo:
        progress.report(min(done, total), total, "weights")
        yield item
        name = item[0] if isinstance(item, tuple) else item
        done += sizes.get(str(name), mean)
    progress.report(total, total, "weights")
