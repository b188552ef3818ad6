"""The shipped demo models and the task set they are scored on; everything here works offline."""

from __future__ import annotations

from pathlib import Path

from nbproviders.demo.gguf import QUANTS
from nbproviders.demo.items import HARD_TASKS, RECALL_TASKS, TASKS, Item, test_items

__all__ = [
    "GGUF",
    "HARD_TASKS",
    "MODELS",
    "QUANTS",
    "RECALL_TASKS",
    "TASKS",
    "Item",
    "gguf_path",
    "path",
    "tasks",
]

MODELS = ("demo-xs", "demo-s", "demo-m")
# Shipped for llama.cpp too: one that quantising hurts, and one that is large enough to bear it.
GGUF = ("demo-xs", "demo-m")


def path(name: str) -> Path:
    """Return the folder of a shipped demo model (config, tokenizer, float16 safetensors).

    Raises
    ------
    KeyError
        For a name that is not in `MODELS`.
    """
    if name not in MODELS:
        raise KeyError(name)
    return Path(__file__).parent / "weights" / name


def gguf_path(name: str) -> Path:
    """Return the folder of a shipped demo model's GGUF files: ``<name>-<quant>.gguf`` for each of `QUANTS`.

    Raises
    ------
    KeyError
        For a name that is not in `GGUF`.
    """
    if name not in GGUF:
        raise KeyError(name)
    return Path(__file__).parent / "weights" / f"{name}-gguf"


def tasks(n: int = 10, names: tuple[str, ...] | None = None, seed: int = 0) -> list[dict[str, str]]:
    """Return prompts with expected answers, ready for `nbproviders.compare`.

    Parameters
    ----------
    n
        Items of each task.
    names
        Which tasks (default: all of `TASKS`).
    seed
        Another seed draws other items.

    Returns
    -------
    list of dict
        Each with ``prompt``, ``expected`` and ``task``; none was shown in training, except
        those of `RECALL_TASKS`, which ask for taught facts.

    Examples
    --------
    >>> tasks(1, names=("add2",))[0].keys()
    dict_keys(['prompt', 'expected', 'task'])
    """
    chosen = TASKS if names is None else names
    return [
        {"prompt": item.prompt, "expected": item.expected, "task": item.task}
        for name in chosen
        for item in test_items(name, n, seed)
    ]
