"""Means over seeds with t-intervals, and what may be claimed from a few of them.

With n seeds a sign-flip or Wilcoxon test cannot go below p = 2 / 2^n: .0625 with n = 5, so it can never pass
.05, and a correction for several strategies asks for more still. Intervals say what a few seeds can say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.special import stdtrit

ROUNDING = 1e-9  # of sums of floats: an interval that leaves its bounds by less has not left them

Bounds = tuple[float, float]  # the lowest and the highest value that a metric can have
UNBOUNDED: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class Interval:
    """mean ± half_width over n values, cut to the metric's bounds; a single value's half width is unknown: None.

    A mean of values within bounds lies within them too. So the part of a t-interval that lies outside can be left
    out: whatever the interval covers, it covers after the cut.
    """

    mean: float
    half_width: float | None
    n: int
    bounds: Bounds = UNBOUNDED

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else max(self.mean - self.half_width, self.bounds[0])

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else min(self.mean + self.half_width, self.bounds[1])

    @property
    def is_cut(self) -> bool:
        """Whether the t-interval leaves the bounds, by more than rounding."""
        if self.half_width is None:
            return False
        below, above = self.bounds[0] - (self.mean - self.half_width), self.mean + self.half_width - self.bounds[1]
        return max(below, above) > ROUNDING

    def __str__(self) -> str:
        """
        >>> print(Interval(0.9134, 0.0123, 5), Interval(0.9134, None, 1), Interval(0.95, 0.07, 3, (0, 1)), sep=", ")
        0.913 ± 0.012, 0.913, 0.950 [0.880, 1.000]
        """
        mean = _three_digits(self.mean)
        if self.low is None or self.high is None:
            return mean
        if self.is_cut:
            return f"{mean} [{_three_digits(self.low)}, {_three_digits(self.high)}]"
        return f"{mean} ± {self.half_width:.3f}"


def _three_digits(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no "-0.000"


def t_interval(values: Iterable[float], confidence: float = 0.95, bounds: Bounds = UNBOUNDED) -> Interval:
    """mean ± t(n - 1, (1 + confidence) / 2) · s / √n, s with n - 1 in the denominator (Student 1908), within bounds.

    With the normal quantile 1.96 the interval would cover 88 % at n = 5, not 95 %. Sums are exactly rounded,
    so the order of the values does not matter; equal values have half width 0 exactly.

    >>> print(t_interval([0.8, 0.9, 1.0]), t_interval([0.8, 0.9, 1.0], bounds=(0, 1)), sep=", ")
    0.900 ± 0.248, 0.900 [0.652, 1.000]

    Raises:
        ValueError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    listed = [float(value) for value in values]
    if not listed or not all(map(math.isfinite, listed)):
        raise ValueError(f"an interval needs finite values, at least one; got {listed}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not at {confidence}")
    n = len(listed)
    if n == 1:
        return Interval(listed[0], None, 1, bounds)
    if min(listed) == max(listed):
        return Interval(listed[0], 0.0, n, bounds)
    mean = math.fsum(listed) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in listed) / (n - 1))
    half_width = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return Interval(mean, half_width, n, bounds)


def paired_interval(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    confidence: float = 0.95,
    bounds: Bounds = UNBOUNDED,
) -> Interval:
    """The t-interval of ours minus theirs on the seeds that both have.

    A seed sets class order, starting weights and data order of every strategy alike; the difference takes
    this shared noise out, which two separate intervals leave in.

    >>> print(paired_interval({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25, 2: 0.9}))
    0.250 ± 0.000

    Raises:
        ValueError: no shared seed.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ValueError("no seed is shared, so nothing can be paired")
    return t_interval([ours[seed] - theirs[seed] for seed in shared], confidence, bounds)


def disjoint(a: Interval, b: Interval) -> bool:
    """Whether no value lies in both intervals; False where one of them is unknown.

    Disjoint intervals differ; intervals that meet need not be equal: for that see ``equivalent``.
    """
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def equivalent(ours: Mapping[int, float], theirs: Mapping[int, float], margin: float, confidence: float = 0.95) -> bool:
    """Whether ours and theirs differ by less than the margin, which is to be named before looking.

    Two one-sided tests (TOST, Schuirmann 1987) at alpha = 1 - confidence: the 1 - 2 alpha interval of the
    paired differences lies inside (-margin, margin). "Not found to differ" is no evidence of equality: a
    noisy method would always pass. False with one shared seed.

    Raises:
        ValueError: a margin that is not above 0, no shared seed, or a confidence outside (0.5, 1).
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"an equivalence test needs a confidence between 0.5 and 1, not {confidence}")
    difference = paired_interval(ours, theirs, 1 - 2 * (1 - confidence))
    return difference.half_width is not None and abs(difference.mean) + difference.half_width < margin
