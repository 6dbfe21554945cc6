"""Several comparisons at once: paired differences of a family, corrected for its size, and intervals for ranks.

Of twenty 95 % intervals one misses on average. What is claimed of several strategies together therefore rests on
intervals that cover all at once with 95 %: those of a family of m at confidence 1 - .05 / m each (Bonferroni; Dunn
1961, https://doi.org/10.1080/01621459.1961.10482090), which holds however the comparisons depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from forgetlab.metrics.intervals import UNBOUNDED, Bounds, Interval, equivalent, paired_interval

BySeed = Mapping[int, float]  # a strategy's value for each seed that defines it


@dataclass(frozen=True)
class PairedDifference:
    """A strategy minus the one that all are held against, on the seeds that both have."""

    alone: Interval  # 95 %, of this comparison by itself
    together: Interval  # covers with those of all other comparisons of the family with 95 %
    equal: bool | None  # whether the difference is shown to lie within the margin; None where no margin was named

    @property
    def direction(self) -> int:
        """1 above, -1 below, 0 where the interval of the family leaves it open."""
        if self.together.low is None or self.together.high is None:
            return 0
        return int(self.together.low > 0) - int(self.together.high < 0)


def paired_differences(
    family: Mapping[str, BySeed],
    against: BySeed,
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    bounds: Bounds = UNBOUNDED,
) -> dict[str, PairedDifference | None]:
    """Every strategy of the family minus ``against``, seed by seed; None where no seed is shared.

    The size of the family is the number of its strategies, those of which nothing can be said included. With a margin,
    each difference has an equivalence test beside it, two one-sided ones at (1 - confidence) / m: corrected as well.

    >>> naive = {0: 0.50, 1: 0.52, 2: 0.51}
    >>> one = {0: 0.60, 1: 0.63, 2: 0.61}
    >>> found = paired_differences({"one": one, "two": naive}, naive, margin=0.02)
    >>> print(found["one"].alone, found["one"].together, found["one"].equal, found["two"].equal, sep=", ")
    0.103 ± 0.014, 0.103 ± 0.021, False, True

    Raises:
        ValueError: a margin that is not above 0.
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    corrected = 1 - (1 - confidence) / max(1, len(family))
    found: dict[str, PairedDifference | None] = {}
    for name, ours in family.items():
        if not ours.keys() & against.keys():
            found[name] = None
            continue
        found[name] = PairedDifference(
            alone=paired_interval(ours, against, confidence, bounds),
            together=paired_interval(ours, against, corrected, bounds),
            equal=None if margin is None else equivalent(ours, against, margin, corrected),
        )
    return found


@dataclass(frozen=True)
class RankInterval:
    """A strategy's rank by its mean, 1 for the best, and between which ranks its true one lies."""

    rank: int
    best: int
    worst: int

    def __str__(self) -> str:
        """
        >>> print(RankInterval(2, 1, 4))
        2 [1, 4]
        """
        return f"{self.rank} [{self.best}, {self.worst}]"


def rank_intervals(
    values: Mapping[str, BySeed], *, higher_is_better: bool = True, confidence: float = 0.95
) -> dict[str, RankInterval]:
    """Ranks of the means with intervals that hold for all strategies at once.

    Mogstad, Romano, Shaikh & Wilhelm 2024, Inference for Ranks (https://doi.org/10.1093/restud/rdad006), with paired
    t-intervals of all differences, corrected by Bonferroni: a strategy's best rank is 1 + the number of those that are
    better beyond their interval, its worst the number of all minus the number of those that are worse. A pair that
    shares fewer than two seeds leaves both open. Equal means have the same rank.

    >>> values = {"a": {0: 0.9, 1: 0.91, 2: 0.9}, "b": {0: 0.5, 1: 0.6, 2: 0.51}, "c": {0: 0.52, 1: 0.57, 2: 0.54}}
    >>> [str(rank) for rank in rank_intervals(values).values()]
    ['1 [1, 1]', '3 [2, 3]', '2 [2, 3]']

    Raises:
        ValueError: a strategy without a value.
    """
    if not all(values.values()):
        raise ValueError("a rank needs at least one value of every strategy")
    sign = 1 if higher_is_better else -1
    goodness = {name: sign * math.fsum(known.values()) / len(known) for name, known in values.items()}
    pairs = list(combinations(values, 2))
    corrected = 1 - (1 - confidence) / max(1, len(pairs))
    better_than = dict.fromkeys(values, 0)  # how many a strategy surpasses beyond their interval
    worse_than = dict.fromkeys(values, 0)
    for one, other in pairs:
        winner = _winner(one, other, values, sign, corrected)
        if winner is not None:
            loser = other if winner == one else one
            better_than[winner] += 1
            worse_than[loser] += 1
    return {
        name: RankInterval(
            rank=1 + sum(theirs > goodness[name] for theirs in goodness.values()),
            best=1 + worse_than[name],
            worst=len(values) - better_than[name],
        )
        for name in values
    }


def _winner(one: str, other: str, values: Mapping[str, BySeed], sign: int, confidence: float) -> str | None:
    """Which of two is better beyond their interval; None where that is open."""
    if not values[one].keys() & values[other].keys():
        return None
    difference = paired_interval(values[one], values[other], confidence)
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return None
    return one if sign * difference.mean > 0 else other
