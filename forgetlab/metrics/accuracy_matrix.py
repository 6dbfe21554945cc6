"""Metrics of the accuracy matrix, as pure functions; ``definitions`` says where each comes from.

``a[i][j]`` is the accuracy on task j after training task i; None or nan: the model has no answer for j yet.
An unfinished run's matrix has fewer rows than columns: its k rows are the k tasks learned so far. A metric
that is undefined for a matrix is None; no mean leaves cells out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Matrix = Sequence[Sequence[float | None]] | Array
Vector = Sequence[float | None] | Array


def as_matrix(accuracy: Matrix) -> Array:
    """The matrix as floats, nan where there is no answer.

    >>> as_matrix([[0.5, None], [0.25, 1]])
    array([[0.5 ,  nan],
           [0.25, 1.  ]])

    Raises:
        ValueError: rows of unequal length, or more rows than tasks.
    """
    rows = [_as_vector(row) for row in accuracy]
    if not rows:
        return np.empty((0, 0))
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1 or len(rows) > widths[0]:
        raise ValueError(f"an accuracy matrix has at most T rows of T cells each, not {len(rows)} of {widths}")
    return np.array(rows)


def _as_vector(values: Vector) -> Array:
    return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def _mean(values: Iterable[float]) -> float:
    """The exactly rounded mean, the same on every machine; nan if there is no value or an unknown one."""
    listed = [float(value) for value in values]
    return math.fsum(listed) / len(listed) if listed else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def average_accuracy_curve(accuracy: Matrix) -> Array:
    """After each task, the mean accuracy over the tasks learned so far: (rows,).

    >>> average_accuracy_curve([[1.0, None], [0.5, 0.75]])
    array([1.   , 0.625])
    """
    return np.array([_mean(row[: i + 1]) for i, row in enumerate(as_matrix(accuracy))])


def forgetting_curve(accuracy: Matrix) -> Array:
    """``[i][j]`` = best of a[j..i][j], minus a[i][j]: (rows, T); nan before task j is learned.

    It is nan too where nothing was measured before row i: one measurement shows no loss.

    >>> forgetting_curve([[0.5, None], [0.75, 1.0]])
    array([[ 0., nan],
           [ 0.,  0.]])
    """
    matrix = as_matrix(accuracy)
    curve = np.full(matrix.shape, np.nan)
    for task in range(len(matrix)):
        column = matrix[task:, task]
        compared = np.cumsum(~np.isnan(column)) > 1
        compared[0] = True
        curve[task:, task] = np.where(compared, np.fmax.accumulate(column) - column, np.nan)
    return curve


def average_forgetting_curve(accuracy: Matrix) -> Array:
    """After each task, the mean forgetting of the tasks before it: (rows,); nan after the first."""
    return np.array([_mean(row[:i]) for i, row in enumerate(forgetting_curve(accuracy))])


def forgetting_per_task(accuracy: Matrix) -> list[float | None]:
    """Best minus last of each task; 0 for the task learned last, None for tasks not learned.

    >>> forgetting_per_task([[0.5, None, None], [0.75, 1.0, None], [0.25, 0.5, 1.0]])
    [0.5, 0.5, 0.0]
    """
    return [_known(value) for value in forgetting_curve(accuracy)[-1:].ravel()]


def average_accuracy(accuracy: Matrix) -> float | None:
    """Mean accuracy over the tasks learned so far, after the last of them: the last row.

    >>> average_accuracy([[1.0, None], [0.5, 0.75]])
    0.625
    """
    return _known(_mean(_last(as_matrix(accuracy))))


def average_accuracy_stages(accuracy: Matrix) -> float | None:
    """Mean over the stages of the average accuracy at each: early stages, with few tasks, count in full.

    >>> average_accuracy_stages([[1.0, None], [0.5, 0.75]])
    0.8125
    """
    return _known(_mean(average_accuracy_curve(accuracy)))


def forgetting(accuracy: Matrix) -> float | None:
    """How far the tasks before the last fell from their best accuracy since they were learned. Never
    negative, and biased upward: the best of several noisy values lies above their mean. In class-incremental
    streams a part of it is due to the growing set of classes, which even a jointly trained model feels.

    >>> forgetting([[1.0, None], [0.5, 0.75]])
    0.5
    """
    return _known(_mean(_last(forgetting_curve(accuracy))[:-1]))


def forgetting_first_last(accuracy: Matrix) -> float | None:
    """How far the tasks before the last fell from the accuracy right after learning them: minus the backward
    transfer. Negative where they gained.

    >>> forgetting_first_last([[0.5, None], [0.75, 0.75]])
    -0.25
    """
    transfer = backward_transfer(accuracy)
    return None if transfer is None else 0.0 - transfer


def backward_transfer(accuracy: Matrix) -> float | None:
    """What learning later tasks did to earlier ones, from right after each was learned to the end.

    >>> backward_transfer([[1.0, None], [0.5, 0.75]])
    -0.5
    """
    matrix = as_matrix(accuracy)
    return _known(_mean((_last(matrix) - matrix.diagonal())[:-1]))


def forward_transfer(accuracy: Matrix, accuracy_initial: Vector) -> float | None:
    """What the tasks before j did for task j before it was trained on. Undefined where the model has no
    answer for a task that it has not seen, as with a growing head.

    >>> forward_transfer([[1.0, 0.75], [0.5, 1.0]], [0.5, 0.5])
    0.25
    """
    matrix = as_matrix(accuracy)
    ahead = matrix.diagonal(offset=1)
    return _known(_mean(ahead - _as_vector(accuracy_initial)[1 : len(ahead) + 1]))


def learning_accuracy(accuracy: Matrix) -> float | None:
    """How well each task was learned, right after it was trained on: the diagonal.

    >>> learning_accuracy([[1.0, None], [0.5, 0.75]])
    0.875
    """
    return _known(_mean(as_matrix(accuracy).diagonal()))


def plasticity_change(accuracy: Matrix) -> float | None:
    """How much better (above 0) or worse the last tenth of the tasks was learned than the first; of 20 tasks or more.

    >>> round(plasticity_change([[0.8 - 0.01 * i] * 20 for i in range(20)]), 3)
    -0.18
    """
    learned = as_matrix(accuracy).diagonal()
    tenth = len(learned) // 10
    return None if tenth < 2 else _known(_mean(learned[-tenth:]) - _mean(learned[:tenth]))


def relative_learning_accuracy(accuracy: Matrix, separate: Matrix) -> float | None:
    """What the sequence gave to, or took from, the learning of each task: above 0 is transfer. Both models
    must be told the task, or neither.

    >>> relative_learning_accuracy([[1.0, None], [0.5, 0.75]], [[0.5, None], [0.5, 0.75]])
    0.25
    """
    learned, alone = _same_length(as_matrix(accuracy).diagonal(), as_matrix(separate).diagonal())
    return _known(_mean(learned - alone))


def intransigence(accuracy: Matrix, joint: Matrix) -> float | None:
    """How much worse a task is learned in the sequence than together with all tasks so far. Negative: better.

    >>> intransigence([[1.0, None], [0.5, 0.5]], [[1.0, None], [0.75, 0.75]])
    0.125
    """
    learned, together = _same_length(as_matrix(accuracy).diagonal(), as_matrix(joint).diagonal())
    there = ~np.isnan(together)
    return _known(_mean((together - learned)[there]))


def normalised_accuracy(accuracy: Matrix, joint: Matrix, chance: float | Vector) -> float | None:
    """The final accuracy of each task on a scale from guessing (0) to joint training (1), so that tasks with
    unlike numbers of classes count alike. Undefined where joint is not above chance.

    >>> normalised_accuracy([[1.0, None], [0.5, 0.75]], [[1.0, None], [1.0, 0.75]], 0.25)
    0.6666666666666666
    """
    matrix = as_matrix(accuracy)
    ours, together = _same_length(_last(matrix), _last(as_matrix(joint)[: len(matrix)]))
    guess = chance if isinstance(chance, (int, float)) else _as_vector(chance)[: len(ours)]
    room = together - guess
    with np.errstate(invalid="ignore"):
        return _known(_mean((ours - guess) / np.where(room > 0, room, np.nan)))


def pretrained_forgetting(pretrained: Vector) -> float | None:
    """How much accuracy on the pretraining data is lost by the end of the sequence, under the pretraining's head.

    >>> round(pretrained_forgetting([0.9, 0.7, 0.4]), 3)
    0.5
    """
    values = _as_vector(pretrained)
    return _known(values[0] - values[-1])


def prequential_accuracy(accuracy: Vector, samples: Sequence[int]) -> float | None:
    """The share of an online stream's samples that are answered rightly just before they are learned.

    ``accuracy`` holds one value for each task learned so far, ``samples`` how many samples it had.

    >>> prequential_accuracy([0.5, 1.0], [300, 100])
    0.625
    """
    known = _as_vector(accuracy)
    return _known(math.fsum(known * np.array(samples)) / sum(samples)) if len(known) and sum(samples) else None


def _last(matrix: Array) -> Array:
    """The last row's cells of the tasks learned so far; empty where nothing was learned."""
    return matrix[-1, : len(matrix)] if len(matrix) else np.empty(0)


def _same_length(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """A reference cut to the tasks that we learned; what it lacks is nan."""
    padded = np.full(len(ours), np.nan)
    shared = theirs[: len(ours)]
    padded[: len(shared)] = shared
    return ours, padded


OWN = (
    average_accuracy,
    average_accuracy_stages,
    forgetting,
    forgetting_first_last,
    backward_transfer,
    learning_accuracy,
    plasticity_change,
)


def own_metrics(
    accuracy: Matrix, accuracy_initial: Vector, stored: Mapping[str, float | None] | None = None
) -> dict[str, float | None]:
    """Every metric that needs no other strategy, by name: what a run stores as its final metrics.

    What is ``stored`` is taken as it is, whatever its name; only what an older run did not store yet is worked out.
    """
    own = {metric.__name__: partial(metric, accuracy) for metric in OWN}
    own["forward_transfer"] = partial(forward_transfer, accuracy, accuracy_initial)
    known = {} if stored is None else dict(stored)
    return {name: known[name] if name in known else compute() for name, compute in own.items()} | known


def relative_metrics(
    accuracy: Matrix, joint: Matrix | None, separate: Matrix | None, chance: float | Vector
) -> dict[str, float | None]:
    """Every metric that needs a reference's matrix of the same seed, by name; None where there is none."""
    joint = [] if joint is None else joint
    separate = [] if separate is None else separate
    return {
        "relative_learning_accuracy": relative_learning_accuracy(accuracy, separate),
        "intransigence": intransigence(accuracy, joint),
        "normalised_accuracy": normalised_accuracy(accuracy, joint, chance),
    }
