"""Which classes compete, by hand: three tasks of two classes each, of which two were seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forgetlab.training import competing_classes as competing
from forgetlab.training.competing_classes import MASK, LossClasses

CLASSES = {0: [0, 1], 1: [2, 3]}
TASK = torch.tensor([0, 1])


def who(task_known: bool, loss_classes: LossClasses | None, n_classes: int = 6) -> list[list[int]] | None:
    """The classes that compete for a sample of each task, task 1 being learned; None for all."""
    table = competing.table_of(CLASSES, n_classes)
    support = competing.support(TASK, table, n_classes, 4, task_known=task_known, loss_classes=loss_classes, current=1)
    if support is None:
        return None
    return [row.nonzero().squeeze(1).tolist() for row in support.expand(len(TASK), n_classes)]


@pytest.mark.parametrize("loss_classes", ["all", "seen", "current", None])
def test_where_the_task_is_told_its_classes_compete(loss_classes: LossClasses | None) -> None:
    assert who(True, loss_classes) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("loss_classes", "expected"),
    [
        ("all", None),
        ("seen", [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ("current", [[0, 1, 2, 3], [2, 3]]),  # an old sample competes with all that is seen
        (None, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_where_it_is_not_told_the_loss_says_it(loss_classes: LossClasses | None, expected: object) -> None:
    assert who(False, loss_classes) == expected


def test_a_head_without_rows_for_what_is_to_come_masks_nothing() -> None:
    assert who(False, "seen", n_classes=4) is None and who(False, None, n_classes=4) is None


@pytest.mark.parametrize(
    ("training", "task_known", "routed", "expected"),
    [
        (True, True, False, [1]),
        (True, False, True, [1]),
        (False, False, False, [0, 1]),  # all heads, side by side
        (False, True, False, None),
        (False, False, True, None),
    ],
)
def test_whose_heads_are_asked(training: bool, task_known: bool, routed: bool, expected: list[int] | None) -> None:
    asked = competing.heads_asked(CLASSES, training=training, current=1, task_known=task_known, routed=routed)
    assert asked == expected


def test_at_test_a_told_task_has_its_own_classes_and_an_untold_one_all() -> None:
    assert competing.classes_at_test([3, 2], {0, 3, 1, 2}, task_known=True) == [2, 3]
    assert competing.classes_at_test([3, 2], {0, 3, 1, 2}, task_known=False) == [0, 1, 2, 3]
    assert competing.all_seen([2, 3], {0, 1, 2, 3}) and not competing.all_seen([3, 4], {0, 1, 2, 3})


def test_side_by_side_a_shared_class_has_its_largest_logit() -> None:
    answers = {0: torch.tensor([[1.0, 2.0]]), 1: torch.tensor([[3.0, 4.0]])}
    found = competing.side_by_side(answers, {0: [0, 2], 1: [2, 1]}, width=4)
    assert found.tolist() == [[1.0, 4.0, 3.0, MASK]]


def test_who_came_later_does_not_compete() -> None:
    found = competing.widened(torch.tensor([[1.0, 2.0]]), 3)
    assert found.tolist() == [[1.0, 2.0, MASK]] and competing.competes(found).tolist() == [[True, True, False]]


def test_masking_keeps_the_gradient_of_who_competes_and_of_nobody_else() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    competing.among(logits, torch.tensor([0, 2, 0])).sum().backward()
    gradient = logits.grad
    assert isinstance(gradient, Tensor) and gradient.tolist() == [[1.0, 0.0, 1.0]] * 2
    assert competing.only(logits, None) is logits


def test_a_handicap_leaves_scores_below_the_mask_in_their_order() -> None:
    """A closed form's scores may be lower than MASK: whoever may not compete is lower still."""
    scores = torch.tensor([2 * MASK, 2 * MASK + 1, 2 * MASK + 2], dtype=torch.float64)
    added = competing.handicap([1, 0], 3, torch.device("cpu"))
    assert (scores + added).argmax() == 1
