"""What may be said of two means: the arithmetic against scipy's, and how often the verdicts are wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from forgetlab.metrics.equivalence import Difference, Sample, difference, verdict

OURS, THEIRS = [0.71, 0.74, 0.69, 0.75, 0.72], [0.70, 0.73, 0.71, 0.78, 0.69, 0.74, 0.70, 0.72]


def test_the_interval_is_welchs() -> None:
    found = difference(Sample.of(OURS), Sample.of(THEIRS))
    theirs: Any = stats.ttest_ind(OURS, THEIRS, equal_var=False)
    told = theirs.confidence_interval(0.9)
    assert found.interval() == pytest.approx((told.low, told.high))
    assert found.in_errors == pytest.approx(theirs.statistic)


@pytest.mark.parametrize("shift", [-0.08, -0.02, 0.0, 0.02, 0.08])
def test_agreement_is_what_two_one_sided_tests_say(shift: float) -> None:
    ours, margin = [value + shift for value in OURS], 0.04
    low: Any = stats.ttest_ind([v + margin for v in ours], THEIRS, equal_var=False, alternative="greater")
    high: Any = stats.ttest_ind([v - margin for v in ours], THEIRS, equal_var=False, alternative="less")
    found = verdict(difference(Sample.of(ours), Sample.of(THEIRS)), margin)
    assert (found == "agrees") == (max(low.pvalue, high.pvalue) < 0.05)
    assert found == {-0.08: "differs", 0.08: "differs", 0.0: "agrees"}.get(shift, found)


def test_constant_samples_have_no_error() -> None:
    same = difference(Sample.of([0.5, 0.5]), Sample.of([0.5, 0.5, 0.5]))
    assert same.in_errors is None and same.interval() == (0.0, 0.0) and verdict(same, 0.01) == "agrees"
    assert verdict(difference(Sample.of([0.6, 0.6]), Sample.of([0.5, 0.5])), 0.05) == "differs"


def test_a_noisy_method_does_not_pass() -> None:
    """ "Within two standard errors" would let it."""
    noisy = difference(Sample(0.70, 0.15, 5), Sample(0.72, 0.01, 5))
    assert abs(noisy.in_errors or 0) < 2 and verdict(noisy, 0.03) == "undecided"


@pytest.mark.parametrize("gap", [0.03, -0.03])
def test_at_the_margin_agreement_is_claimed_in_one_case_of_twenty(gap: float) -> None:
    draw, said = np.random.default_rng(0), 0
    for _ in range(2000):
        ours, theirs = draw.normal(gap, 0.01, 10), draw.normal(0, 0.02, 8)
        said += verdict(difference(Sample.of(ours), Sample.of(theirs)), 0.03) == "agrees"
    assert 0.03 < said / 2000 < 0.07


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="two finite values"):
        Sample.of([0.5])
    with pytest.raises(ValueError, match="two finite values"):
        Sample.of([0.5, math.nan])
    with pytest.raises(ValueError, match="above 0"):
        verdict(Difference(0.0, 0.01, 8), 0.0)
