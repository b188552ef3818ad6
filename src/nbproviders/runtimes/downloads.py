"""Files of a Hub repository: which there are, which are here already, and fetching the rest with progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbproviders.errors import ClosedError, ModelAccessError, foreign
from nbproviders.residency.entry import Progress
from nbproviders.runtimes import hub


def cached_files(repo: str, revision: str | None = None) -> dict[str, Path]:
    """Return the files of a repository that the local cache holds, by name; of one version."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))
    commit = revision or "main"
    reference = folder / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir() or snapshot.parent.name != "snapshots":
        return {}
    return {
        path.relative_to(snapshot).as_posix(): path
        for path in sorted(snapshot.rglob("*"))
        if path.is_file()
    }


def remote_files(repo: str, revision: str | None = None) -> dict[str, int]:
    """Return names and sizes of the files of a repository on the Hub.

    Raises
    ------
    ModelAccessError
        With the reason: missing, gated, or offline.
    """
    hub.require_access(repo, revision or "")
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # no network shows as many kinds of exception
        raise _unreachable(repo, error) from foreign(error)
    return {one.rfilename: one.size or 0 for one in info.siblings or []}


def fetch(repo: str, names: dict[str, int], revision: str | None, progress: Progress) -> list[Path]:
    """Download files into the local cache, those that are missing, and return where they are.

    Parameters
    ----------
    names
        Names and sizes in bytes.
    progress
        Told of the bytes; cancelling it ends the download, and what has come is kept for the next time.

    Raises
    ------
    ModelAccessError
        If the Hub cannot be reached, or the disk is full.
    """
    from huggingface_hub import hf_hub_download

    total, before = sum(names.values()), 0
    paths = []
    for name, size in names.items():
        progress.report(before, total, "downloading")
        bar = _reporting(progress, before, total)
        try:
            path = hf_hub_download(repo, name, revision=revision, tqdm_class=bar)
        except ClosedError:
            raise
        except Exception as error:  # no network shows as many kinds of exception
            if isinstance(error.__cause__ or error.__context__, ClosedError):
                progress.check()
            raise _unreachable(f"{repo}/{name}", error) from foreign(error)
        paths.append(Path(path))
        before += size
    return paths


def _reporting(progress: Progress, before: int, total: int) -> type[Any]:
    """Return a class of progress bars that draws nothing and reports to `progress`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # generic for checkers only
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self._done = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            progress.report(before + self._done, total)
            return None

    return Bar


def _unreachable(what: str, error: BaseException) -> ModelAccessError:
    return ModelAccessError(
        f"{what!r} is not in the local cache and cannot be fetched from the Hub: {foreign(error)}",
        hint="Check the network and the disk, or use a model that is here: `nbproviders list`.",
    )
