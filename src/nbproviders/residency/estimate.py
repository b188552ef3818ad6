"""What a model will take on each device, told before it is loaded; a value that knows no runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from nbproviders.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Estimate(Mapping[str, int]):
    """Bytes on each device in all: ``dict(estimate)``; and what they are for.

    Attributes
    ----------
    weights
        Parameters and buffers.
    cache
        Keys, values and states of one text as long as `context_tokens`.
    workspace
        What computing takes beside, at its peak.
    optional
        What it would like and does without: main memory (``host``) for a copy of the weights.
    context_tokens
        The longest text that is counted with; None if it does not matter.
    notes
        What is guessed, in words.
    architecture
        The kind of model, by which guesses are compared with measurements.
    held
        Whether cache and workspace are taken with the weights, and stay.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    cache: Mapping[str, int] = field(default_factory=dict)
    workspace: Mapping[str, int] = field(default_factory=dict)
    optional: Mapping[str, int] = field(default_factory=dict)
    context_tokens: int | None = None
    notes: tuple[str, ...] = ()
    architecture: str = ""
    held: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "cache", "workspace", "optional"):
            # A copy: who made it may go on with theirs.
            object.__setattr__(self, name, _checked(getattr(self, name)))

    @classmethod
    def of(cls, told: Mapping[str, int]) -> Estimate:
        """Return an estimate as it is; a plain mapping as one whose bytes are all held after loading.

        Raises
        ------
        ConfigurationError
            For anything but whole bytes by device.
        """
        return told if isinstance(told, Estimate) else cls(weights=told)

    @property
    def reserve(self) -> dict[str, int]:
        """What the model does not hold after loading and will need to compute."""
        return {} if self.held else _sum(self.cache, self.workspace)

    def corrected(self, factor: float) -> Estimate:
        """Return it with the workspace that measurements of its like suggest."""
        workspace = {device: round(count * factor) for device, count in self.workspace.items()}
        return replace(self, workspace=workspace)

    def __getitem__(self, device: str) -> int:
        return _sum(self.weights, self.cache, self.workspace)[device]

    def __iter__(self) -> Iterator[str]:
        return iter(_sum(self.weights, self.cache, self.workspace))

    def __len__(self) -> int:
        return len(_sum(self.weights, self.cache, self.workspace))


def _sum(*parts: Mapping[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for device, count in part.items():
            total[device] = total.get(device, 0) + count
    return total


def _checked(told: object) -> dict[str, int]:
    """Return bytes by device, as told by somebody's code."""
    if isinstance(told, Mapping):
        wrong = [item for item in told.items() if not _is_bytes(*item)]
        if not wrong:
            return dict(told)
        told = dict(wrong)
    raise ConfigurationError(
        f"An estimate of {told!r} is not one of bytes by device.",
        hint='Return a mapping such as {"cuda:0": 2_000_000_000}; an empty one if it is not known.',
    )


def _is_bytes(device: object, count: object) -> bool:
    whole = isinstance(count, int) and not isinstance(count, bool)
    return isinstance(device, str) and whole and count >= 0  # type: ignore[operator]
