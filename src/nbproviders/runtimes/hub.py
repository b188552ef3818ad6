"""Whether a Hub id can be reached and is what was asked for, within bounded time, and what is in the way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from nbproviders.errors import ModelAccessError, foreign
from nbproviders.runtimes import checkpoints

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

_TIMEOUT_S = 10.0
_ABSENT, _PARTIAL = "not in the local cache", "only in part in the local cache"
_HERE = "demo-xs, demo-s, demo-m"


def require_access(model_id: str, revision: str = "", *, whole: bool = False) -> None:
    """Check that a Hub id is in the local cache or can be downloaded, whatever it holds.

    Takes 10 s at most, however slow the Hub answers; so does `require_model`.

    Parameters
    ----------
    model_id
        Such as ``org/name``.
    revision
        Branch, tag or commit.
    whole
        Whether a checkpoint in the cache has to have all its weights.

    Raises
    ------
    ModelAccessError
        With the reason: missing, gated, or offline.
    """
    folder = checkpoints.folder_of(model_id, revision or None)
    if folder is None or (whole and not checkpoints.is_whole(folder, allow_pickle=True)):
        _asked(model_id, revision, _ABSENT if folder is None else _PARTIAL)


def require_model(
    model_id: str, revision: str = "", *, model_class: str = "", allow_pickle: bool = False
) -> None:
    """Check that a Hub id is a model for transformers, and here as a whole or within reach.

    Parameters
    ----------
    model_id
        Such as ``org/name``.
    revision
        Branch, tag or commit.
    model_class
        The auto class it shall be loaded with; empty for the one that fits.
    allow_pickle
        Whether pickled weights will do.

    Raises
    ------
    ModelAccessError
        With the reason: missing, gated, offline, of the wrong class, or without weights.
    """
    folder = checkpoints.folder_of(model_id, revision or None)
    if folder is not None and checkpoints.is_whole(folder, allow_pickle=allow_pickle):
        config = checkpoints.read_config(folder)
    else:
        names, config = _asked(model_id, revision, _ABSENT if folder is None else _PARTIAL)
        checkpoints.require_files(names, model_id, allow_pickle=allow_pickle)
    checkpoints.require_class(config, model_class or checkpoints.class_of(config), model_id)


def _asked(model_id: str, revision: str, place: str) -> tuple[list[str], dict[str, Any]]:
    """Return names of files and the short config that the Hub tells of a model."""
    from huggingface_hub import errors

    try:
        return _bounded(lambda: _look_up(model_id, revision))
    except errors.HFValidationError:
        raise ModelAccessError(
            f"{model_id!r} is neither a folder that is there nor a Hub id.",
            hint=f"A Hub id reads 'org/name'. Shipped models: {_HERE}.",
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refused(error, model_id, revision, place) from foreign(error)
    except errors.OfflineModeIsEnabled:
        raise ModelAccessError(
            f"{model_id!r} is {place}, and HF_HUB_OFFLINE is set.",
            hint=f"Unset HF_HUB_OFFLINE to download it, or use {_HERE}.",
        ) from None
    except Exception as error:  # no network shows as many kinds of exception
        raise _unanswered(error, model_id, place) from foreign(error)


def _unanswered(error: Exception, model_id: str, place: str) -> ModelAccessError:
    """Return what it means that no answer came."""
    # The bound of the library's HTTP client, whichever that is, ends in the same moment as ours.
    if isinstance(error, _Late) or type(error).__name__.endswith("Timeout"):
        return ModelAccessError(
            f"{model_id!r} is {place}, and the Hub did not answer within {_TIMEOUT_S:g} s.",
            hint=f"Try again later, or use a model that is here: {_HERE}.",
        )
    return ModelAccessError(
        f"{model_id!r} is {place}, and the Hub cannot be reached ({type(error).__name__}).",
        hint=f"Check the network, or use a model that is here: {_HERE}.",
    )


def _refused(error: HfHubHTTPError, model_id: str, revision: str, place: str) -> ModelAccessError:
    """Return what an answer of the Hub other than success means."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return ModelAccessError(
            f"The Hub model {model_id!r} is gated.",
            hint="Ask for access on its page, then log in: hf auth login, or set HF_TOKEN.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelAccessError(
            f"The Hub has no model {model_id!r}, or it is private.",
            hint="Check the spelling; for a private one set HF_TOKEN.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelAccessError(
            f"The Hub model {model_id!r} has no revision {revision!r}.",
            hint="Give a branch, tag or commit that its page lists, or none.",
        )
    return ModelAccessError(
        f"{model_id!r} is {place}, and the Hub answers with an error (HTTP {status}).",
        hint="Is HF_TOKEN out of date? Log in again: hf auth login."
        if status == 401
        else f"Try again later, or use a model that is here: {_HERE}.",
    )


def _look_up(model_id: str, revision: str) -> tuple[list[str], dict[str, Any]]:
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.model_info(model_id, revision=revision or None, timeout=_TIMEOUT_S)
    if info.gated:  # everyone may read about it; whether we may download it is another question
        api.auth_check(model_id)
    return [file.rfilename for file in info.siblings or ()], dict(info.config or {})


class _Late(Exception):
    """No answer in time."""


def _bounded(function: Callable[[], T]) -> T:
    """Call a function on a thread and wait for it no longer than the time that is given in all.

    The library's own timeout is for each packet, so that a slow answer could take any time.
    """
    answers: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer = function()
        except BaseException as error:  # handed over whole; raised by the one who waits
            answers.put(partial(_raise, error))
        else:
            answers.put(lambda: answer)

    threading.Thread(target=ask, name="nbproviders-hub", daemon=True).start()
    try:
        told = answers.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise _Late from None
    return told()


def _raise(error: BaseException) -> NoReturn:
    raise error
