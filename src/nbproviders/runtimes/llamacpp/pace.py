"""One core or all of them: chosen by what evaluations really take.

llama.cpp's threads wait for one another at each node of the graph. On an idle machine two cores nearly halve
an evaluation of a small model; beside another busy process they wait for the scheduler instead, and the same
evaluation takes a hundred times as long (both seen with demo-m on two cores). So it is measured as it goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Parameters times rows. Below the first, an evaluation is too short to share; above the second, waiting costs
# less than sharing gains.
_LEAST_WORK = 2_000_000
_SURE_WORK = 500_000_000
_SAMPLES = 3
_FIRST_PAUSE = 64
_LONGEST_PAUSE = 4096
_TOO_SLOW = 3.0


@dataclass(slots=True)
class _Record:
    """What evaluations of about the same work took, in seconds."""

    alone_s: list[float] = field(default_factory=list)
    together_s: list[float] = field(default_factory=list)
    pause: int = 0  # evaluations to go before all cores are tried again
    next_pause: int = _FIRST_PAUSE


class Pace:
    """Chooses how many cores an evaluation gets.

    Parameters
    ----------
    cores
        How many there are for us.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._records: dict[int, _Record] = {}

    def cores(self, work: int) -> int:
        """Return how many cores to use for so much work: parameters times rows."""
        if self._cores == 1 or work < _LEAST_WORK:
            return 1
        if work >= _SURE_WORK:
            return self._cores
        record = self._records.setdefault(work.bit_length(), _Record())
        if record.pause > 0:
            record.pause -= 1
            return 1
        if len(record.alone_s) < _SAMPLES:
            return 1
        return self._cores

    def took(self, work: int, cores: int, seconds: float) -> None:
        """Note what an evaluation took; sharing it must pay, or it is left for a while."""
        record = self._records.get(work.bit_length())
        if record is None:
            return
        own = record.alone_s if cores == 1 else record.together_s
        own.append(seconds)
        del own[:-_SAMPLES]
        if cores == 1 or not record.alone_s:
            return
        alone_s = sorted(record.alone_s)[len(record.alone_s) // 2]
        tried = len(record.together_s) == _SAMPLES
        lost = tried and sorted(record.together_s)[_SAMPLES // 2] >= alone_s
        if lost or seconds > _TOO_SLOW * alone_s:
            record.pause = record.next_pause
            record.next_pause = min(record.next_pause * 2, _LONGEST_PAUSE)
            record.together_s.clear()
            record.alone_s.clear()  # measured anew before the next try: the machine may have changed
        elif tried:
            record.next_pause = _FIRST_PAUSE
