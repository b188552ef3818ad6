"""The next token from logits: greedy, or sampled with a generator of the request's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbproviders.core.params import GenerationParams
from nbproviders.errors import ProviderError

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float32]]


class Choice:
    """Chooses tokens for one request.

    Parameters
    ----------
    params
        Effective: temperature, top_p and seed are given.
    """

    def __init__(self, params: GenerationParams) -> None:
        self._temperature = params.temperature or 0.0
        self._top_p = params.top_p or 1.0
        self._generator: Any = None
        if self._temperature > 0:
            import numpy as np

            self._generator = np.random.default_rng(params.seed or 0)

    @property
    def greedy(self) -> bool:
        """Whether it always takes the most likely token."""
        return self._generator is None

    def sample(self, logits: Floats) -> int:
        """Return a token by temperature and top_p; the Gumbel-max trick, as for transformers models."""
        import numpy as np

        row = logits.astype(np.float64) / self._temperature
        if self._top_p < 1:
            row = _top_p(row, self._top_p)
        return int(np.argmax(row + self._generator.gumbel(size=len(row))))


def _top_p(row: Any, top_p: float) -> Any:
    """Keep the fewest tokens whose probabilities reach `top_p` (Holtzman et al. 2020)."""
    import numpy as np

    order = np.argsort(-row, kind="stable")
    shares = np.exp(row[order] - row[order[0]])
    before = np.cumsum(shares) / shares.sum() - shares / shares.sum()
    row[order[before >= top_p]] = -np.inf
    return row


def logprobs(logits: Floats) -> Any:
    """Return the natural logarithms of the probabilities, ``(…, vocabulary) float64``.

    Raises
    ------
    ProviderError
        If there is no number among the logits.
    """
    import numpy as np

    exact = logits.astype(np.float64)
    top = exact.max(axis=-1, keepdims=True)
    require_numbers(top)
    return exact - top - np.log(np.exp(exact - top).sum(axis=-1, keepdims=True))


def require_numbers(values: Any) -> None:
    """Refuse what is not a number: damaged weights compute that, and no text of it means anything.

    Raises
    ------
    ProviderError
        If any value is none.
    """
    import numpy as np

    if np.isnan(values).any():
        raise ProviderError(
            "The model computed something that is no number: its weights may be damaged.",
            hint="Download the file again, and compare its size and digest.",
        )
