"""How likely a model is to be wanted next, by when it was used: recency, frequency and rhythm.

Time is counted in turns: a turn begins when another model is used than the last time. So a night in
which nothing is used changes nothing, and 20 cells with one model count as one use of it.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

# Gaps between uses that are remembered, and how many of them it takes to say as much as the rate does.
# Measured as benchmarks/eviction.py does, on 72 traces of each kind that it does not use itself: the drawn
# notebooks' bytes are 1.20 times the least possible by the rate alone and 1.17 with the gaps, the loops' 1.11
# and 1.10, and the Zipf traces' 1.02 and 1.03 times those of the best policy that knows the chances. Half or
# twice as many of either move none of these by more than 0.012.
_GAPS = 8
_RATE_WEIGHT = 16


class Reuse:
    """The uses of one model.

    Examples
    --------
    >>> often, once = Reuse(), Reuse()
    >>> for turn in (1, 3, 5):
    ...     often.used(turn)
    >>> once.used(4)
    >>> often.chance(6) > once.chance(6)
    True
    """

    __slots__ = ("_first", "_recent", "_times")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_GAPS + 1)
        self._first = 0.0
        self._times = 0

    def used(self, now: float) -> None:
        """Record a use; all uses in one turn are one.

        Parameters
        ----------
        now
            The turn, counted from 0 for all models together.
        """
        if self._recent and now <= self._recent[-1]:
            return
        if not self._times:
            self._first = now
        self._recent.append(now)
        self._times += 1

    def chance(self, now: float) -> float:
        """Return how likely a use in the next turn is, about; 0 for what was never used."""
        if not self._recent:
            return 0.0
        age = max(now - self._recent[-1], 0.0)
        gaps = [later - earlier for earlier, later in pairwise(self._recent)]
        # Had the model come back after each of its past gaps that are longer than its age now: one in so
        # many turns from now on. A model of a loop that was just used is thus the last to come again.
        rhythm = sum(1 / (gap - age) for gap in gaps if gap > age)
        return (_RATE_WEIGHT * self._rate(now) + rhythm) / (_RATE_WEIGHT + len(gaps))

    def _rate(self, now: float) -> float:
        """Return the uses' sum of 1/sqrt(age), as a share of what a use in every turn would sum up to.

        This is base-level learning of ACT-R with its usual exponent of a half: need falls as a power of the
        time since a use, and uses add up (after Anderson and Schooler, Reflections of the Environment in
        Memory, 1991). It lies between counting uses, best where habits stay, and the last use, best where
        they change.
        """
        total = sum(1 / math.sqrt(max(now - turn, 0.0) + 1) for turn in self._recent)
        older = self._times - len(self._recent)
        if older:
            # Taken to be spread evenly, as in Petrov, Computationally Efficient Approximation of the
            # Base-Level Learning Equation in ACT-R, 2006.
            near, far = now - self._recent[0] + 1, now - self._first + 1
            total += older * 2 / (math.sqrt(far) + math.sqrt(near))
        return total / (2 * math.sqrt(now + 1))
