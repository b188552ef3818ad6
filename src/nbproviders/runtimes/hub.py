"""Whether a Hub id can be reached, within bounded time, and what stands in the way."""

from __future__ import annotations

from nbproviders.errors import ModelAccessError, foreign

_TIMEOUT_S = 10.0


def require_access(model_id: str, revision: str = "") -> None:
    """Check that a Hub id is in the local cache or can be downloaded.

    Raises
    ------
    ModelAccessError
        With the reason: missing, gated, or offline.
    """
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        if isinstance(
            try_to_load_from_cache(model_id, "config.json", revision=revision or None), str
        ):
            return
        model_info(model_id, revision=revision or None, timeout=_TIMEOUT_S)
    except HFValidationError:
        raise ModelAccessError(
            f"{model_id!r} is neither a folder that is there nor a Hub id.",
            hint="A Hub id reads 'org/name'. Shipped models: demo-xs, demo-s, demo-m.",
        ) from None
    except GatedRepoError:
        raise ModelAccessError(
            f"The Hub model {model_id!r} is gated.",
            hint="Ask for access on its page, then log in: huggingface-cli login, or set HF_TOKEN.",
        ) from None
    except RepositoryNotFoundError:
        raise ModelAccessError(
            f"The Hub has no model {model_id!r}, or it is private.",
            hint="Check the spelling; for a private one set HF_TOKEN.",
        ) from None
    except OfflineModeIsEnabled:
        raise ModelAccessError(
            f"{model_id!r} is not in the local cache, and HF_HUB_OFFLINE is set.",
            hint="Unset HF_HUB_OFFLINE to download it, or use demo-xs, demo-s or demo-m.",
        ) from None
    except Exception as error:  # no network shows as many kinds of exception
        raise ModelAccessError(
            f"{model_id!r} is not in the local cache, and the Hub cannot be reached "
            f"({type(error).__name__}).",
            hint="Check the network, or use a model that is here: demo-xs, demo-s, demo-m.",
        ) from foreign(error)
