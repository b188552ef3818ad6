"""Sampling with one seed a row, the same text alone, batched or reordered.

``generate()`` of transformers takes no generator. The Gumbel-max trick (Gumbel 1954; Maddison et al.
2014) makes sampling an argmax over noisy logits, and the noise of each row comes from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is sampled; a temperature of 0 is greedy.

    Attributes
    ----------
    temperature, top_p, seed
        As in `GenerationParams`, all given.
    """

    temperature: float
    top_p: float = 1.0
    seed: int = 0


class Sampler:
    """A logits processor: after it, the argmax of each row is that row's sample.

    Parameters
    ----------
    draws
        One for each row.
    device
        Where the logits are.
    """

    def __init__(self, draws: Sequence[Draw], device: torch.device) -> None:
        import torch

        self._draws = draws
        self._generators = {
            i: torch.Generator(device).manual_seed(draw.seed)
            for i, draw in enumerate(draws)
            if draw.temperature > 0
        }

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return ``(rows, vocabulary)`` scores whose argmax is the sampled token."""
        import torch

        scores = scores.float()
        for i, generator in self._generators.items():
            draw = self._draws[i]
            row = scores[i] / draw.temperature
            if draw.top_p < 1:
                row = _top_p(row, draw.top_p)
            noise = torch.empty_like(row).exponential_(generator=generator).log()
            scores[i] = row - noise
        return scores


def _top_p(row: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest tokens whose probabilities reach `top_p` (Holtzman et al. 2020)."""
    import torch

    ordered, places = torch.sort(row, descending=True)
    before = torch.softmax(ordered, dim=-1).cumsum(-1).roll(1)
    before[0] = 0.0
    return row.masked_fill(
        torch.zeros_like(row, dtype=torch.bool).scatter(0, places, before >= top_p), -torch.inf
    )
