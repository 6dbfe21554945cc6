"""Intervals against scipy's tests and printed t tables."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from forgetlab.metrics.intervals import Interval, disjoint, equivalent, paired_interval, t_interval

VALUES = [0.91, 0.87, 0.93, 0.9, 0.88]


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_t_interval_is_that_of_the_t_test(n: int, confidence: float):
    values = np.random.default_rng(n).normal(size=n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    interval = t_interval(values, confidence)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.n == n


def test_t_interval_with_the_quantile_of_a_printed_table():
    interval = t_interval([1, 2, 3, 4, 5])  # s = sqrt(2.5); t(4, .975) = 2.776
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)


def test_the_order_of_the_values_changes_no_bit():
    assert len({t_interval(order) for order in itertools.permutations(VALUES)}) == 1


def test_one_value_has_no_interval():
    interval = t_interval([0.9])
    assert interval == Interval(0.9, None, 1)
    assert interval.low is None and interval.high is None
    assert str(interval) == "0.900"


def test_an_interval_is_cut_to_its_bounds_and_covers_what_it_covered():
    values = [0.98, 0.96, 0.9]
    cut, whole = t_interval(values, bounds=(0, 1)), t_interval(values)
    assert whole.high is not None and whole.high > 1
    assert (cut.low, cut.high, cut.mean, cut.half_width) == (whole.low, 1, whole.mean, whole.half_width)
    assert cut.is_cut and str(cut) == f"0.947 [{whole.low:.3f}, 1.000]"
    assert not t_interval([0.4, 0.5, 0.6], bounds=(0, 1)).is_cut
    assert not t_interval([1.0, 1.0], bounds=(0, 1)).is_cut, "a width of 0 leaves nothing"
    assert not Interval(0.75, 0.25 + 1e-12, 3, (0, 1)).is_cut, "nor does rounding"
    near_one = np.random.default_rng(0).beta(20, 1, size=(2000, 3))  # values in [0, 1] with mean 20/21
    covered = [
        [(one.low or 0) <= 20 / 21 <= (one.high or 0) for one in map(how, near_one)] for how in (_cut, t_interval)
    ]
    assert covered[0] == covered[1], "coverage is the same, run by run"


def _cut(values: np.ndarray) -> Any:
    return t_interval(values, bounds=(0, 1))


def test_cut_intervals_that_do_not_meet_are_disjoint():
    low, high = Interval(0.1, 0.3, 3, (0, 1)), Interval(0.9, 0.3, 3, (0, 1))
    assert disjoint(low, high) and disjoint(high, low)


def test_equal_values_have_half_width_zero_exactly():
    assert t_interval([0.1] * 3) == Interval(0.1, 0.0, 3)
    assert str(t_interval([0.1] * 3)) == "0.100 ± 0.000"


def test_an_interval_prints_no_negative_zero():
    assert str(Interval(-1e-9, 0.25, 3)) == "0.000 ± 0.250"
    assert str(Interval(-0.0126, 0.25, 3)) == "-0.013 ± 0.250"


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [0.5, math.inf]])
def test_values_without_a_mean_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="finite values"):
        t_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_outside_0_1_is_refused(confidence: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_interval(VALUES, confidence)


def test_a_paired_interval_uses_the_shared_seeds_alone():
    ours = {0: 0.9, 1: 0.8, 2: 0.7, 9: 0.0}
    theirs = {2: 0.6, 1: 0.6, 0: 0.8, 7: 1.0}
    expected = stats.ttest_rel([0.9, 0.8, 0.7], [0.8, 0.6, 0.6]).confidence_interval(0.95)
    interval = paired_interval(ours, theirs)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.n == 3
    with pytest.raises(ValueError, match="no seed is shared"):
        paired_interval({0: 0.5}, {1: 0.5})


def test_pairing_takes_out_what_the_seeds_share():
    easy_and_hard = {seed: 0.5 + 0.1 * seed for seed in range(5)}
    better = {seed: value + 0.02 + 0.001 * (-1) ** seed for seed, value in easy_and_hard.items()}
    assert not disjoint(t_interval(easy_and_hard.values()), t_interval(better.values()))
    low = paired_interval(better, easy_and_hard).low
    assert low is not None and low > 0


def test_disjoint():
    a = Interval(0.5, 0.125, 3)
    assert disjoint(a, Interval(1.0, 0.25, 3))
    assert not disjoint(a, Interval(0.75, 0.125, 3)), "intervals that touch share a value"
    assert not disjoint(a, Interval(0.5, 0.0, 3))
    assert not disjoint(a, Interval(9.0, None, 1)), "one seed shows nothing"


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.05])
def test_equivalence_is_two_one_sided_t_tests(margin: float):
    one_sided: Any = stats.ttest_1samp
    generator = np.random.default_rng(0)
    for _ in range(50):
        theirs = generator.normal(0.8, 0.02, 5)
        ours = theirs + generator.normal(0.005, 0.01, 5)
        above = one_sided(ours - theirs, -margin, alternative="greater").pvalue
        below = one_sided(ours - theirs, margin, alternative="less").pvalue
        expected = max(above, below) < 0.05
        assert equivalent(dict(enumerate(ours)), dict(enumerate(theirs)), margin) == expected


def test_a_noisy_method_is_not_equivalent_though_not_found_to_differ():
    ours, theirs = {0: 0.2, 1: 0.9, 2: 0.5}, {0: 0.6, 1: 0.5, 2: 0.5}
    difference = paired_interval(ours, theirs)
    assert difference.low is not None and difference.high is not None
    assert difference.low < 0 < difference.high
    assert not equivalent(ours, theirs, 0.02)


def test_equivalence_needs_two_seeds_a_margin_and_a_confidence():
    same = {0: 0.5, 1: 0.5}
    assert equivalent(same, same, 0.01)
    assert not equivalent({0: 0.5}, {0: 0.5}, 0.01)
    with pytest.raises(ValueError, match="margin"):
        equivalent(same, same, 0)
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        equivalent(same, same, 0.01, confidence=0.05)
