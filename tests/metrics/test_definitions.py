"""The register is whole, and ``describe`` says what a reader needs."""

from __future__ import annotations

import numpy as np
import pytest

from forgetlab.learners.scores import SCORES
from forgetlab.metrics import accuracy_matrix, scores_beside_accuracy
from forgetlab.metrics.definition_texts import METRICS, NEEDS, describe_metric


def test_the_register_is_complete():
    own = set(accuracy_matrix.own_metrics([[0.5]], [None]))
    relative = set(accuracy_matrix.relative_metrics([[0.5]], None, None, 0.5))
    of_scores = {"router_accuracy", "accuracy_given_route", *SCORES}
    assert set(METRICS) == own | relative | of_scores | {"pretrained_forgetting", "prequential_accuracy"}
    for name, metric in METRICS.items():
        assert metric.compute is getattr(scores_beside_accuracy if name in of_scores else accuracy_matrix, name)
        assert metric.needs in NEEDS
        assert all((metric.title, metric.formula, metric.meaning, metric.differs))
        assert "arXiv:" in metric.source or "doi:" in metric.source
    assert {name for name, m in METRICS.items() if not m.higher_is_better} == {
        "forgetting",
        "forgetting_first_last",
        "intransigence",
        "log_loss",
        "pretrained_forgetting",
    }


def test_the_score_metrics_are_means_of_the_last_row():
    for name in ("router_accuracy", "accuracy_given_route", *SCORES):
        assert METRICS[name].compute([[1.0, None], [0.5, 0.25]]) == 0.375


def test_describe_says_formula_source_and_difference():
    text = describe_metric("forgetting")
    for part in ("max_{j≤l≤k}", "arXiv:1801.10112", "Avalanche", "better     lower"):
        assert part in text
    assert all(len(line) <= 110 for name in METRICS for line in describe_metric(name).splitlines())


def test_each_metric_keeps_to_the_bounds_that_it_declares():
    draw = np.random.default_rng(0)
    for _ in range(200):
        ours, joint, separate = (
            draw.integers(0, 2, (3, 20, 20)).astype(float) if draw.random() < 0.5 else draw.random((3, 20, 20))
        )
        own = accuracy_matrix.own_metrics(ours, draw.random(20))
        found = own | accuracy_matrix.relative_metrics(ours, joint, separate, 0.5)
        for name, value in found.items():
            low, high = METRICS[name].bounds
            assert value is None or low - 1e-12 <= value <= high + 1e-12, name


def test_describe_says_how_the_interval_is_made():
    assert "t-interval over seeds, cut to the metric's bounds [0, 1]" in describe_metric("average_accuracy")
    assert "bounds [-1, 1]" in describe_metric("backward_transfer")
    assert "bounds [0, ∞]" in describe_metric("log_loss")
    assert "the metric has no bounds" in describe_metric("normalised_accuracy")


def test_describe_names_the_nearest_metric():
    with pytest.raises(LookupError) as error:
        describe_metric("forgeting")
    assert str(error.value) == "no metric 'forgeting'; did you mean 'forgetting'?"
    with pytest.raises(LookupError, match="there are: average_accuracy, "):
        describe_metric("zzz")
