"""Files of a Hub repository: which there are, which are here already, and fetching the rest.

The bytes are read here and not by huggingface_hub's own download: that cannot go on where a stopped one
ended, and through Xet it cannot be stopped at all. The cache it keeps is the same, and so are its locks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from nbproviders.errors import ConfigurationError, ModelAccessError, ProviderError, foreign
from nbproviders.residency.memory import size_text
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import hub

_CHUNK_BYTES = 1 << 18
_TRIES = 4  # in a row without a byte
_PAUSE_S = 0.5
_LOCK_POLL_S = 0.2
_LATER = (408, 429)  # and all from 500: the Hub asks to try again
_SHA256 = re.compile(r"[0-9a-f]{64}")  # the ETag of a large file is its digest


def cached_files(repo: str, revision: str | None = None) -> dict[str, Path]:
    """Return the files of a repository that the local cache holds, by name; of one version."""
    folder = _folder(repo)
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
    _require_hub()
    hub.require_access(repo, revision or "")
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # no network shows as many kinds of exception
        raise _unreachable(repo, error) from foreign(error)
    return {one.rfilename: one.size or 0 for one in info.siblings or []}


def require_parts(repo: str, parts: Sequence[str], remote: Container[str]) -> None:
    """Check that a repository has all parts of a model's weights.

    Raises
    ------
    ModelAccessError
        Naming the first that it lacks.
    """
    missing = [part for part in parts if part not in remote]
    if missing:
        raise ModelAccessError(
            f"{repo!r} lacks {len(missing)} of the {len(parts)} parts of that model: {missing[0]} …",
            hint="Choose another revision, or another model.",
        )


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
        If the Hub cannot be reached, the disk is full, or what came is not what the Hub promised.
    """
    total, before = sum(names.values()), 0
    folder = _folder(repo)
    there = next(one for one in (folder, *folder.parents) if one.is_dir())
    _require_space(there, sum(_missing_bytes(repo, names, revision)))
    paths = []
    for name, size in names.items():
        progress.report(before, total, "downloading")
        try:
            paths.append(_fetched(repo, name, revision, _Part(progress, before, total)))
        except ProviderError:
            raise
        except Exception as error:  # no network shows as many kinds of exception
            raise _unreachable(f"{repo}/{name}", error) from foreign(error)
        before += size
    return paths


def _missing_bytes(repo: str, names: Mapping[str, int], revision: str | None) -> Iterator[int]:
    """Tell of each file that is not here how much is missing; what a stopped download left is nameless."""
    here = cached_files(repo, revision)
    left = sum(one.stat().st_size for one in _folder(repo).glob("blobs/*.incomplete"))
    for name, size in names.items():
        if name not in here:
            yield max(size - left, 0)
            left = max(left - size, 0)


class _Part:
    """The progress of one file among several."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def report(self, done_bytes: int, phase: str = "downloading") -> None:
        """Say how much of the file is here; raises if nobody wants it any more."""
        self._progress.report(self._before + done_bytes, self._total, phase)

    def check(self) -> None:
        """Raise if nobody wants it any more."""
        self._progress.check()


def _fetched(repo: str, name: str, revision: str | None, part: _Part) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repo, name, revision=revision)
    told = get_hf_file_metadata(url)
    # What is larger the Hub gives by Xet alone.
    if told.etag and told.size and told.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        blob = _folder(repo) / "blobs" / told.etag
        with _alone(blob, part):
            if not blob.exists():
                _transfer(url, blob, told.size, part)
    # Finds the blob, and enters it in the cache under its name and version.
    return Path(hf_hub_download(repo, name, revision=revision))


@contextmanager
def _alone(blob: Path, part: _Part) -> Iterator[None]:
    """Keep other downloads of a file away, also those of other processes."""
    from huggingface_hub import utils

    hf: Any = utils  # exports lazily, unseen by checkers
    locks = blob.parents[2] / ".locks" / blob.parents[1].name
    for folder in (locks, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(
                    hf.WeakFileLock(locks / f"{blob.name}.lock", timeout=_LOCK_POLL_S)
                )
                break
            except TimeoutError:
                part.report(0, "waiting for another download")
        yield


def _transfer(url: str, blob: Path, size: int, part: _Part) -> None:
    """Download a file to its place in the cache, going on where an earlier try ended."""
    incomplete = blob.with_name(f"{blob.name}.incomplete")
    with incomplete.open("ab") as file:
        if file.tell() > size:
            _begin_again(file)
        _require_space(blob.parent, size - file.tell())
        part.report(file.tell())
        failures = 0
        while file.tell() < size:
            before = file.tell()
            try:
                _append(url, file, size, part)
            except Exception as error:  # a lost connection shows as many kinds of exception
                failures = 0 if file.tell() > before else failures + 1
                if not _transient(error) or failures >= _TRIES:
                    raise
                part.check()
                time.sleep(_PAUSE_S)
    _require_same(incomplete, blob.name, size, part)
    incomplete.replace(blob)


def _append(url: str, file: IO[bytes], size: int, part: _Part) -> None:
    """Append what is missing of a file, as long as the connection holds."""
    from huggingface_hub import constants, utils

    hf: Any = utils  # exports lazily, unseen by checkers
    headers = {**hf.build_hf_headers(), "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with hf.get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        hf.hf_raise_for_status(response)
        if response.status_code != 206:  # the whole file, whatever was asked for
            _begin_again(file)
        before = file.tell()
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            file.write(chunk)
            part.report(min(file.tell(), size))
            if file.tell() > size:
                return  # not the file that was promised: its size will tell
        if file.tell() == before:
            raise EOFError("The Hub sent nothing.")


def _begin_again(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _transient(error: Exception) -> bool:
    """Whether another try may go better."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _LATER or error.response.status_code >= 500
    return not isinstance(error, (ProviderError, OSError))  # cancelled; the disk


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelAccessError(
            f"The download needs {size_text(needed)}, and the disk of {str(folder)!r} has "
            f"{size_text(free)} left.",
            hint="Make room, choose a smaller model or quantization, or set HF_HOME to another disk.",
        )


def _require_same(path: Path, etag: str, size: int, part: _Part) -> None:
    """Check that a whole file is what the Hub promised; else it must not stay."""
    good = path.stat().st_size == size
    if good and _SHA256.fullmatch(etag):
        part.report(size, "checking the download")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES * 16):
                digest.update(chunk)
                part.check()
        good = digest.hexdigest() == etag
    if not good:
        path.unlink()
        raise ModelAccessError(
            "What was downloaded is not the file that the Hub promised: its size or digest differs.",
            hint="Try again; what came was removed.",
        )


def _folder(repo: str) -> Path:
    _require_hub()
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))


def _require_hub() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigurationError(
            "Models of the Hub need the package huggingface_hub, which is not installed.",
            hint="pip install huggingface_hub, or give the path of a .gguf file.",
        )


def _unreachable(what: str, error: BaseException) -> ModelAccessError:
    return ModelAccessError(
        f"{what!r} is not in the local cache and cannot be fetched from the Hub: {foreign(error)}",
        hint="Check the network and the disk, or use a model that is here: `nbproviders list`.",
    )
