"""What a failure means that came of asking an Ollama server, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nbproviders.errors import (
    ForeignError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelAccessError,
    ServiceUnavailableError,
)

_NOBODY = ("ClientConnectorError", "ClientConnectorDNSError")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Say of a failure what it means at an Ollama server.

    Parameters
    ----------
    name
        The model that is asked for; may be empty.

    Raises
    ------
    ModelAccessError
        If the model is not there.
    InsufficientMemoryError
        If it is too large for the server's machine.
    ServiceUnavailableError
        If no server is there, with the way to start one.
    """
    try:
        yield
    except InvalidRequestError as error:
        if "HTTP 404" not in error.message or "not found" not in error.message:
            raise
        hint = how_to_get(name) if name else error.hint
        raise ModelAccessError(error.message, hint=hint) from None
    except ServiceUnavailableError as error:
        if "memory" in error.message and "requires more" in error.message:
            hint = "Choose a smaller model or num_ctx, or free memory: `ollama ps`, `ollama stop`."
            raise InsufficientMemoryError(error.message, hint=hint) from None
        cause = error.__cause__
        if isinstance(cause, ForeignError) and cause.type_name in _NOBODY:
            error.hint = (
                "Is Ollama running there? Start it: `ollama serve`, or its app "
                "(https://ollama.com/download). OLLAMA_HOST or base_url tells where it is."
            )
        raise


def how_to_get(name: str) -> str:
    """Return how a model comes to the server."""
    return (
        f'Download it: await provider.pull("{name}"), or open it as "{name}?pull=true", or in a '
        f"terminal: ollama pull {name}"
    )
