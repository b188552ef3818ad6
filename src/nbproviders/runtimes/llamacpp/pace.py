"""One core or all of them: chosen by what evaluations really take.

llama.cpp's threads wait for one another at each node of the graph. On an idle machine two cores nearly halve
an evaluation of a small model; beside another busy process they wait for the scheduler instead, and the same
evaluation takes a hundred times as long (both seen with demo-m on two cores). So it is measured as it goes,
and what trying costs is kept within a share of all the time spent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

# Parameters times tokens. Below the first, an evaluation is too short to share; above the second, waiting
# costs less than sharing gains.
_LEAST_WORK = 2_000_000
_SURE_WORK = 500_000_000
_SAMPLES = 3
_REST = 64  # evaluations on one core after all of them did not pay
_SHARE_LOST = 0.02


@dataclass(slots=True)
class Purse:
    """Seconds spent, and those lost by trying: shared by all models, since the machine is."""

    spent_s: float = 0.0
    lost_s: float = 0.0

    @property
    def allows(self) -> bool:
        """Whether another try may cost something."""
        return self.lost_s <= _SHARE_LOST * self.spent_s


_purse = Purse()


@dataclass(slots=True)
class _Record:
    """What evaluations of about the same work took, in seconds."""

    alone_s: list[float] = field(default_factory=list)
    together_s: list[float] = field(default_factory=list)
    rest: int = 0


class Pace:
    """Chooses how many cores an evaluation gets.

    Parameters
    ----------
    cores
        How many there are for us.
    purse
        What trying may cost; None takes the one that all models share.
    """

    def __init__(self, cores: int, purse: Purse | None = None) -> None:
        self._cores = cores
        self._purse = _purse if purse is None else purse
        self._records: dict[int, _Record] = {}

    def cores(self, work: int) -> int:
        """Return how many cores to use for so much work: parameters times tokens."""
        if self._cores == 1 or work < _LEAST_WORK:
            return 1
        if work >= _SURE_WORK:
            return self._cores
        record = self._records.setdefault(work.bit_length(), _Record())
        if record.rest > 0:
            record.rest -= 1
            return 1
        measured = len(record.alone_s) == _SAMPLES
        return self._cores if measured and self._purse.allows else 1

    def took(self, work: int, cores: int, seconds: float) -> None:
        """Note what an evaluation took; sharing it must pay, or it is left for a while."""
        self._purse.spent_s += seconds
        record = self._records.get(work.bit_length())
        if record is None or work < _LEAST_WORK or work >= _SURE_WORK:
            return
        own = record.alone_s if cores == 1 else record.together_s
        own.append(seconds)
        del own[:-_SAMPLES]
        if cores == 1:
            return
        alone_s = median(record.alone_s)
        self._purse.lost_s += max(seconds - alone_s, 0.0)
        if len(own) == _SAMPLES and median(own) >= alone_s:
            record.rest = _REST
            own.clear()
