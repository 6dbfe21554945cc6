"""Scores other than accuracy, each averaged over the tasks learned so far, as accuracy is."""

from __future__ import annotations

from forgetlab.metrics.accuracy_matrix import Matrix, average_accuracy


def router_accuracy(score: Matrix) -> float | None:
    """The share of test samples whose task the router infers rightly, among the tasks learned so far.

    >>> router_accuracy([[1.0, None], [0.5, 0.75]])
    0.625
    """
    return average_accuracy(score)


def accuracy_given_route(score: Matrix) -> float | None:
    """The accuracy on the samples that the router sent to their own task. With it, of each task: accuracy =
    P(right route) · this + P(wrong route) · accuracy on the wrongly routed.

    >>> accuracy_given_route([[1.0, None], [0.5, 1.0]])
    0.75
    """
    return average_accuracy(score)


def macro_f1(score: Matrix) -> float | None:
    """The mean over classes of F1, the harmonic mean of precision and recall, averaged over the tasks learned so far.

    >>> macro_f1([[0.5]])
    0.5
    """
    return average_accuracy(score)


def auroc(score: Matrix) -> float | None:
    """The area under the ROC curve where there are two labels, averaged over the tasks learned so far.

    >>> auroc([[1.0, None], [0.5, 0.75]])
    0.625
    """
    return average_accuracy(score)


def log_loss(score: Matrix) -> float | None:
    """The mean of -log p(y|x) over test samples, in nats, averaged over the tasks learned so far.

    >>> log_loss([[1.0, None], [0.5, 0.25]])
    0.375
    """
    return average_accuracy(score)
