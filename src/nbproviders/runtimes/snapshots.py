"""A checkpoint of the Hub, brought into the local cache before it is measured and loaded."""

from __future__ import annotations

from collections.abc import Mapping

from nbproviders.residency.progress import Progress
from nbproviders.runtimes import checkpoints, downloads

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def is_here(repo: str, revision: str | None, *, allow_pickle: bool = False) -> bool:
    """Whether the local cache holds a Hub id's config and all its weights."""
    folder = checkpoints.folder_of(repo, revision)
    return folder is not None and checkpoints.is_whole(folder, allow_pickle=allow_pickle)


def bring(
    repo: str, revision: str | None, progress: Progress, *, allow_pickle: bool = False
) -> None:
    """Download the weights of a Hub id and then its ``config.json``, as far as they are not in the cache.

    Small files, such as those of the tokenizer, are left to the library that reads them.

    Parameters
    ----------
    progress
        Told of the bytes; cancelling it ends the download, and what has come is kept for the next time.
    allow_pickle
        Whether pickled weights will do where there are no others.

    Raises
    ------
    ModelAccessError
        If the Hub cannot be reached, lacks a part of the weights, or sends something else.
    """
    progress.report(0, 0, "looking on the Hub")
    remote = downloads.remote_files(repo, revision)
    weights = _weights(repo, revision, remote, progress, allow_pickle=allow_pickle)
    # The config last: a folder without one is not taken for a model.
    wanted = {name: remote[name] for name in (*weights, "config.json") if name in remote}
    downloads.fetch(repo, wanted, revision, progress)


def _weights(
    repo: str,
    revision: str | None,
    remote: Mapping[str, int],
    progress: Progress,
    *,
    allow_pickle: bool,
) -> list[str]:
    """Return the names of the weights that transformers will read: one file, or those an index names."""
    for name in (_SAFE, _PICKLED) if allow_pickle else (_SAFE,):
        if name in remote:
            return [name]
        index = f"{name}.index.json"
        if index in remote:
            [path] = downloads.fetch(repo, {index: remote[index]}, revision, progress)
            parts = checkpoints.parts_of(path)
            downloads.require_parts(repo, parts, remote)
            return parts
    return []  # what the library makes of it, it says best
