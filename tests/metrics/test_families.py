"""Families of comparisons and ranks: by hand, beside scipy, and how often they cover."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from forgetlab.metrics.families import RankInterval, paired_differences, rank_intervals

SEEDS = range(5)


def by_seed(values: Any) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


@pytest.fixture
def drawn() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    shared = draw.normal(0.5, 0.1, 5)
    return {name: shared + gain + draw.normal(0, 0.02, 5) for name, gain in (("a", 0.0), ("b", 0.03), ("c", 0.1))}


@pytest.mark.parametrize("size", [1, 2, 4, 28])
def test_each_interval_is_scipys_at_the_corrected_level(size: int, drawn: dict[str, np.ndarray]) -> None:
    family = {"b": by_seed(drawn["b"])} | {f"other {number}": by_seed(drawn["c"]) for number in range(size - 1)}
    one = paired_differences(family, by_seed(drawn["a"]))["b"]
    assert one is not None
    test: Any = stats.ttest_rel(drawn["b"], drawn["a"])
    for interval, confidence in ((one.alone, 0.95), (one.together, 1 - 0.05 / size)):
        expected = test.confidence_interval(confidence)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_what_one_comparison_shows_a_family_of_four_may_not() -> None:
    """The means and half widths of experiments/tuned.yaml against naive, five seeds: only replay stood out, alone."""
    half_widths = {"reservoir": (0.084, 0.078), "si": (0.027, 0.042), "ewc": (0.013, 0.087), "lwf": (-0.059, 0.089)}
    pattern = np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5)  # standard deviation 1, mean 0
    t = stats.t.ppf(0.975, 4)
    family = {name: by_seed(mean + pattern * half * np.sqrt(5) / t) for name, (mean, half) in half_widths.items()}
    found = paired_differences(family, by_seed(np.zeros(5)))
    replay = found["reservoir"]
    assert replay is not None and replay.alone.low == pytest.approx(0.006, abs=1e-6)
    assert replay.together.low == pytest.approx(0.084 - 0.078 * stats.t.ppf(1 - 0.05 / 8, 4) / t)
    assert [one.direction for one in found.values() if one is not None] == [0, 0, 0, 0]


@pytest.mark.parametrize("margin", [0.02, 0.03])
def test_equal_is_what_two_one_sided_tests_say_at_the_corrected_level(margin: float) -> None:
    draw, one_sided, seen = np.random.default_rng(0), stats.ttest_1samp, set()
    for _ in range(40):
        gaps = {name: draw.normal(0.005, 0.015, 5) for name in "abc"}
        found = paired_differences({n: by_seed(g) for n, g in gaps.items()}, by_seed(np.zeros(5)), margin=margin)
        for name, gap in gaps.items():
            above: Any = one_sided(gap, -margin, alternative="greater")
            below: Any = one_sided(gap, margin, alternative="less")
            one = found[name]
            assert one is not None and one.equal == (max(above.pvalue, below.pvalue) < 0.05 / 3)
            seen.add(one.equal)
    assert seen == {True, False}, "or the case shows nothing"


def test_only_shared_seeds_are_paired_and_none_shared_says_nothing() -> None:
    found = paired_differences({"few": {0: 0.5, 1: 0.75, 9: 0.0}, "none": {7: 1.0}}, {0: 0.25, 1: 0.25, 2: 0.5})
    few = found["few"]
    assert found["none"] is None and few is not None
    assert (few.alone.mean, few.alone.n) == (0.375, 2)
    assert few.equal is None, "no margin was named"
    single = paired_differences({"one": {0: 0.9}}, {0: 0.1})["one"]
    assert single is not None and single.direction == 0, "one seed shows nothing"


def test_a_margin_is_above_0() -> None:
    with pytest.raises(ValueError, match="margin"):
        paired_differences({"a": {0: 0.5}}, {0: 0.5}, margin=0.0)


def test_ranks_by_hand() -> None:
    """a is surely above b and c, which are not told apart; d has one seed and is told apart from none."""
    values = {
        "b": by_seed([0.50, 0.55, 0.51]),
        "a": by_seed([0.90, 0.92, 0.91]),
        "c": by_seed([0.53, 0.52, 0.54]),
        "d": {0: 0.2},
    }
    assert rank_intervals(values) == {
        "b": RankInterval(3, 2, 4),
        "a": RankInterval(1, 1, 2),
        "c": RankInterval(2, 2, 4),
        "d": RankInterval(4, 1, 4),
    }
    turned = rank_intervals(values, higher_is_better=False)
    assert turned["a"] == RankInterval(4, 3, 4) and turned["d"] == RankInterval(1, 1, 4)


def test_ranks_are_what_the_corrected_tests_of_all_pairs_leave(drawn: dict[str, np.ndarray]) -> None:
    pairs = list(combinations(drawn, 2))
    better = {
        (one, other) if np.mean(drawn[one] - drawn[other]) > 0 else (other, one)
        for one, other in pairs
        if stats.ttest_rel(drawn[one], drawn[other]).pvalue < 0.05 / len(pairs)
    }
    found = rank_intervals({name: by_seed(values) for name, values in drawn.items()})
    assert better, "or the case shows nothing"
    for name, interval in found.items():
        assert interval.best == 1 + sum(loser == name for _, loser in better)
        assert interval.worst == 3 - sum(winner == name for winner, _ in better)


def test_equal_means_share_a_rank() -> None:
    found = rank_intervals({"a": {0: 0.5, 1: 0.75}, "b": {0: 0.75, 1: 0.5}, "c": {0: 0.0, 1: 0.25}})
    assert [one.rank for one in found.values()] == [1, 1, 3]
    with pytest.raises(ValueError, match="at least one value"):
        rank_intervals({"a": {}})


def test_rank_intervals_hold_for_all_at_once_in_95_of_100_cases() -> None:
    """Five strategies, two of them with equal means: all true ranks are covered at least that often."""
    true = np.array([0.6, 0.6, 0.63, 0.7, 0.5])
    possible = {0: {3, 4}, 1: {3, 4}, 2: {2}, 3: {1}, 4: {5}}  # equal ones share two ranks
    draw, held, told_apart, trials = np.random.default_rng(1), 0, 0, 400
    for _ in range(trials):
        shared = draw.normal(0, 0.05, 5)
        drawn = {k: by_seed(true[k] + shared + draw.normal(0, 0.02, 5)) for k in range(5)}
        found = rank_intervals({str(k): values for k, values in drawn.items()})
        inside = [any(found[str(k)].best <= rank <= found[str(k)].worst for rank in possible[k]) for k in range(5)]
        held += all(inside)
        told_apart += sum(found[str(k)].worst - found[str(k)].best < 4 for k in range(5))
    assert held / trials > 0.95 - 2 * (0.05 * 0.95 / trials) ** 0.5
    assert told_apart > trials, "intervals that rule nothing out would cover as well"
