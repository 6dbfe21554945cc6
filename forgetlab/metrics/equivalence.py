"""Whether two samples of runs agree within a margin, differ by more, or leave it open; no draw is shared by both.

The margin is named before looking. That no difference was found is no agreement: a noisy method would always pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

LEVEL = 0.05  # of each of the two one-sided tests: the interval covers 1 - 2 * LEVEL


@dataclass(frozen=True)
class Sample:
    """The mean of n values, and their standard deviation with n - 1 in the denominator."""

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        """
        Raises:
            ValueError: fewer than two values, or one that is not finite.
        """
        listed = [float(value) for value in values]
        if len(listed) < 2 or not all(map(math.isfinite, listed)):
            raise ValueError(f"a spread needs two finite values at least; got {listed}")
        mean = math.fsum(listed) / len(listed)
        squares = math.fsum((value - mean) ** 2 for value in listed)
        return cls(mean, math.sqrt(squares / (len(listed) - 1)), len(listed))

    def __str__(self) -> str:
        """
        >>> print(Sample(0.8134, 0.0123, 10))
        0.813 ± 0.012 (10)
        """
        return f"{self.mean:.3f} ± {self.deviation:.3f} ({self.n})"


@dataclass(frozen=True)
class Difference:
    """Of two means, with its standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float

    @property
    def in_errors(self) -> float | None:
        """The difference in its standard errors; None where both samples are constant."""
        return self.value / self.error if self.error else None

    def interval(self) -> tuple[float, float]:
        """The 1 - 2 LEVEL interval: 90 %."""
        half = float(stdtrit(self.freedom, 1 - LEVEL)) * self.error if self.error else 0.0
        return self.value - half, self.value + half


def difference(ours: Sample, theirs: Sample) -> Difference:
    """Ours minus theirs, unpaired, each with a spread of its own (Welch 1947, https://doi.org/10.2307/2332510).

    >>> difference(Sample(0.75, 1.5, 9), Sample(0.5, 2.0, 16))
    Difference(value=0.25, error=0.7071067811865476, freedom=20.869565217391305)
    """
    a, b = (one.deviation**2 / one.n for one in (ours, theirs))
    freedom = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (theirs.n - 1)) if a + b else math.inf
    return Difference(ours.mean - theirs.mean, math.sqrt(a + b), freedom)


def verdict(found: Difference, margin: float) -> str:
    """What may be said: the interval lies inside of ±margin, outside of it, or neither.

    Inside is the outcome of two one-sided tests at `LEVEL` (TOST, Schuirmann 1987).

    >>> [verdict(Difference(value, 0.01, 18), 0.03) for value in (0.005, 0.02, 0.06)]
    ['agrees', 'undecided', 'differs']

    Raises:
        ValueError: a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    low, high = found.interval()
    if -margin < low and high < margin:
        return "agrees"
    return "differs" if low > margin or high < -margin else "undecided"
