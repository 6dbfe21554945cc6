"""Every metric against matrices worked by hand, and against what must hold for any matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forgetlab.metrics import accuracy_matrix

# Tasks fall, rise and are seen ahead; worked by hand below.
MATRIX = [
    [0.9, 0.3, 0.2],
    [0.6, 0.8, 0.4],
    [0.7, 0.5, 1.0],
]
INITIAL = [0.1, 0.2, 0.3]
JOINT = [[0.9, None, None], [0.9, 0.9, None], [0.8, 0.7, 0.9]]
SEPARATE = [[0.8, None, None], [0.8, 0.9, None], [0.8, 0.9, 0.9]]

BY_HAND = {
    "average_accuracy": (0.7 + 0.5 + 1.0) / 3,
    "average_accuracy_stages": (0.9 + (0.6 + 0.8) / 2 + (0.7 + 0.5 + 1.0) / 3) / 3,
    "forgetting": ((0.9 - 0.7) + (0.8 - 0.5)) / 2,
    "forgetting_first_last": ((0.9 - 0.7) + (0.8 - 0.5)) / 2,
    "backward_transfer": ((0.7 - 0.9) + (0.5 - 0.8)) / 2,
    "forward_transfer": ((0.3 - 0.2) + (0.4 - 0.3)) / 2,
    "learning_accuracy": (0.9 + 0.8 + 1.0) / 3,
}
LONG = {"plasticity_change": None}  # of three tasks


def random_matrix(seed: int, n_tasks: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n_tasks, n_tasks))


def test_own_metrics_by_hand():
    own = accuracy_matrix.own_metrics(MATRIX, INITIAL)
    assert {name: own.pop(name) for name in LONG} == LONG
    assert own == pytest.approx(BY_HAND)


def test_plasticity_is_that_of_the_first_and_the_last_tenth():
    learned = [0.9] * 3 + [0.1] * 24 + [0.5] * 3
    matrix = [[0.2 if j != i else learned[i] for j in range(30)] for i in range(30)]
    assert accuracy_matrix.plasticity_change(matrix) == pytest.approx(-0.4)
    assert accuracy_matrix.plasticity_change([row[:19] for row in matrix[:19]]) is None


def test_relative_metrics_by_hand():
    relative = accuracy_matrix.relative_metrics(MATRIX, JOINT, SEPARATE, [0.5, 0.25, 0.2])
    assert relative == pytest.approx(
        {
            "relative_learning_accuracy": (0.1 - 0.1 + 0.1) / 3,
            "intransigence": (0.0 + 0.1 - 0.1) / 3,
            "normalised_accuracy": (0.2 / 0.3 + 0.25 / 0.45 + 0.8 / 0.7) / 3,
        }
    )


def test_relative_metrics_without_references_are_undefined():
    assert set(accuracy_matrix.relative_metrics(MATRIX, None, None, 0.5).values()) == {None}


def test_best_and_first_differ_where_a_task_gains_before_it_falls():
    rising = [[0.5, None, None], [0.75, 0.5, None], [0.25, 0.5, 0.5]]
    assert accuracy_matrix.forgetting(rising) == 0.25  # (0.75 - 0.25 + 0) / 2
    assert accuracy_matrix.forgetting_first_last(rising) == 0.125  # (0.5 - 0.25 + 0) / 2
    assert accuracy_matrix.forgetting_per_task(rising) == [0.5, 0.0, 0.0]


def test_rows_before_a_task_is_learned_do_not_count_as_its_best():
    lucky = [[0.5, 1.0], [0.5, 0.25]]
    assert accuracy_matrix.forgetting_per_task(lucky) == [0.0, 0.0]
    longer = [[0.5, 1.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.5]]
    assert accuracy_matrix.forgetting(longer) == 0.125


def test_forgetting_curve_by_hand():
    nan = np.nan
    expected = [[0.0, nan, nan], [0.3, 0.0, nan], [0.2, 0.3, 0.0]]
    np.testing.assert_allclose(accuracy_matrix.forgetting_curve(MATRIX), expected, atol=1e-12)
    np.testing.assert_allclose(accuracy_matrix.average_forgetting_curve(MATRIX), [nan, 0.3, 0.25], atol=1e-12)
    np.testing.assert_allclose(accuracy_matrix.average_accuracy_curve(MATRIX), [0.9, 0.7, 2.2 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_what_holds_for_any_matrix(seed: int):
    matrix = random_matrix(seed)
    own = accuracy_matrix.own_metrics(matrix, random_matrix(seed + 100)[0])
    best, first = own["forgetting"], own["forgetting_first_last"]
    assert best is not None and first is not None
    assert best >= 0 and best >= first
    assert own["backward_transfer"] == -first
    # average accuracy = learning accuracy + backward transfer, which covers 5 tasks of 6
    learned = accuracy_matrix.learning_accuracy(matrix)
    assert learned is not None
    assert own["average_accuracy"] == pytest.approx(learned - first * 5 / 6)
    assert (
        accuracy_matrix.intransigence(matrix, matrix) == accuracy_matrix.relative_learning_accuracy(matrix, matrix) == 0
    )
    assert accuracy_matrix.normalised_accuracy(matrix, matrix, -1.0) == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_matrix_that_never_falls_has_no_forgetting(seed: int):
    rising = np.sort(random_matrix(seed), axis=0)
    assert accuracy_matrix.forgetting(rising) == 0
    assert np.nanmax(accuracy_matrix.forgetting_curve(rising)) == 0
    first_last = accuracy_matrix.forgetting_first_last(rising)
    assert first_last is not None and first_last < 0


def test_cells_of_tasks_not_yet_learned_change_only_forward_transfer():
    ahead, hidden = random_matrix(7), random_matrix(7)
    hidden[np.triu_indices(6, 1)] = np.nan
    with_answers, without = (accuracy_matrix.own_metrics(m, [0.5] * 6) for m in (ahead, hidden))
    assert without.pop("forward_transfer") is None
    assert with_answers.pop("forward_transfer") is not None
    assert with_answers == without


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_an_unfinished_run_scores_as_a_shorter_stream(rows: int):
    whole = accuracy_matrix.own_metrics(MATRIX[:rows], INITIAL)
    square = accuracy_matrix.own_metrics([row[:rows] for row in MATRIX[:rows]], INITIAL[:rows])
    for name in set(BY_HAND) - {"forward_transfer"}:
        assert whole[name] == square[name]


def test_undefined_is_none_and_never_nan():
    one_task = accuracy_matrix.own_metrics([[0.5]], [0.1])
    assert one_task["average_accuracy"] == one_task["learning_accuracy"] == 0.5
    undefined = {"forgetting", "forgetting_first_last", "backward_transfer", "forward_transfer", "plasticity_change"}
    assert {name for name, value in one_task.items() if value is None} == undefined
    assert set(accuracy_matrix.own_metrics([], []).values()) == {None}
    json.dumps(accuracy_matrix.own_metrics([[None, None], [None, 0.5]], [None, None]), allow_nan=False)


def test_a_mean_never_drops_a_missing_cell_in_silence():
    gap = [[0.9, None], [None, 0.8]]
    assert accuracy_matrix.average_accuracy(gap) is None
    assert accuracy_matrix.average_accuracy_stages(gap) is None
    assert accuracy_matrix.forgetting(gap) is None
    assert accuracy_matrix.learning_accuracy(gap) == pytest.approx(0.85)
    assert accuracy_matrix.forward_transfer([[0.9, 0.4, None], [0.9, 0.8, None], [0.9, 0.8, 0.7]], [0.1] * 3) is None


def test_joint_trained_on_the_last_prefix_alone():
    final_only = [[None] * 3, [None] * 3, JOINT[2]]
    assert accuracy_matrix.average_accuracy(final_only) == pytest.approx(0.8)
    assert accuracy_matrix.forgetting(final_only) is None, "one measurement shows no loss"
    assert accuracy_matrix.average_accuracy_stages(final_only) is None
    assert accuracy_matrix.intransigence(MATRIX, final_only) == pytest.approx(-0.1)
    assert accuracy_matrix.intransigence(MATRIX, [[None] * 3] * 3) is None


def test_relative_metrics_of_an_unfinished_run_use_the_same_stage_of_the_reference():
    assert accuracy_matrix.normalised_accuracy(MATRIX[:2], JOINT, 0.5) == pytest.approx((0.1 / 0.4 + 0.3 / 0.4) / 2)
    assert accuracy_matrix.intransigence(MATRIX[:2], JOINT) == pytest.approx(0.05)
    assert accuracy_matrix.relative_learning_accuracy(MATRIX, SEPARATE[:2]) is None, "the third task has no reference"


def test_normalised_accuracy_is_undefined_where_joint_is_at_chance():
    assert accuracy_matrix.normalised_accuracy([[0.9]], [[0.5]], 0.5) is None
    assert accuracy_matrix.normalised_accuracy([[0.9]], [[0.4]], [0.5]) is None


@pytest.mark.parametrize("wrong", [[[0.1, 0.2], [0.3]], [[0.1], [0.2]]], ids=["ragged", "more rows than tasks"])
def test_a_matrix_of_another_shape_is_refused(wrong: list[list[float | None]]):
    with pytest.raises(ValueError, match="at most T rows of T cells"):
        accuracy_matrix.as_matrix(wrong)
