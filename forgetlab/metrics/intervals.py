"""Means over seeds with t-intervals, and what may be claimed from a few of them.

With n seeds a sign-flip or Wilcoxon test cannot go below p = 2 / 2^n: .0625 with n = 5, so it can never pass
.05, and a correction for several strategies asks for more still. Intervals say what a few seeds can say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """mean ± half_width over n values; the half width of a single value is unknown: None."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width

    def __str__(self) -> str:
        """
        >>> print(Interval(0.9134, 0.0123, 5), Interval(0.9134, None, 1), sep=", ")
        0.913 ± 0.012, 0.913
        """
        mean = f"{round(self.mean, 3) + 0.0:.3f}"  # + 0.0: no "-0.000"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.3f}"


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """mean ± t(n - 1, (1 + confidence) / 2) · s / √n, s with n - 1 in the denominator (Student 1908).

    With the normal quantile 1.96 the interval would cover 88 % at n = 5, not 95 %. Sums are exactly rounded,
    so the order of the values does not matter; equal values have half width 0 exactly.

    >>> print(t_interval([0.8, 0.9, 1.0]))
    0.900 ± 0.248

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
        return Interval(listed[0], None, 1)
    if min(listed) == max(listed):
        return Interval(listed[0], 0.0, n)
    mean = math.fsum(listed) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in listed) / (n - 1))
    return Interval(mean, float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n), n)


def paired_interval(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95) -> Interval:
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
    return t_interval([ours[seed] - theirs[seed] for seed in shared], confidence)


def disjoint(a: Interval, b: Interval) -> bool:
    """Whether no value lies in both intervals; False where one of them is unknown.

    Disjoint intervals differ; intervals that meet need not be equal: for that see ``equivalent``.
    """
    if a.half_width is None or b.half_width is None:
        return False
    return abs(a.mean - b.mean) > a.half_width + b.half_width


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
