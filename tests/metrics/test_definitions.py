"""The register is whole, and ``describe`` says what a reader needs."""

from __future__ import annotations

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


def test_describe_names_the_nearest_metric():
    with pytest.raises(LookupError) as error:
        describe_metric("forgeting")
    assert str(error.value) == "no metric 'forgeting'; did you mean 'forgetting'?"
    with pytest.raises(LookupError, match="there are: average_accuracy, "):
        describe_metric("zzz")
