"""LwF: what is distilled, from whom, over which classes, and at what price."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks import regularizer as checks
from forgetlab.costs.ledger import byte_count
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator
from forgetlab.strategies.regularization.penalties.lwf import LwF
from forgetlab.toolbox.teacher import frozen_copy, logits
from forgetlab.training.competing_classes import MASK
from forgetlab.training.network import SharedNetwork
from helpers import networks
from helpers.data import two_classes
from helpers.networks import opened

T = 2.0


def data(task: int, n: int = 6) -> Batch:
    return two_classes("lwf", task, n)


def network(tasks: int, **options: Any) -> SharedNetwork:
    return opened(networks.network(n_classes=8, **options), tasks)


def disturb(model: nn.Module) -> None:
    draw = generator("lwf", "disturb")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)


def after_two_tasks(**options: Any) -> tuple[LwF, SharedNetwork, SharedNetwork]:
    """A regularizer that has seen two tasks, the model as it was then, and the model in the third task."""
    regularizer, model = LwF(), network(2, **options)
    for task in (0, 1):
        regularizer.consolidate(model.eval(), [data(task)])
    teacher = copy.deepcopy(model)
    model.open(2, [4, 5])
    disturb(model)
    return regularizer, teacher, model.train()


def penalty(regularizer: LwF, model: nn.Module, batch: Batch) -> Tensor:
    return regularizer.penalty(model, batch, logits(model, batch))


def by_hand(learned: Tensor, taught: Tensor) -> Tensor:
    p, q = (taught / T).softmax(1), (learned / T).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("loss_classes", ["seen", "current"])
@pytest.mark.parametrize("head", ["growing", "fixed"])
def test_without_task_ids_all_classes_of_the_teacher_are_distilled_together(head: str, loss_classes: str) -> None:
    """Also where the loss of the new samples leaves the old classes out: MASK is never distilled."""
    regularizer, teacher, model = after_two_tasks(head=head, loss_classes=loss_classes)
    new = data(2)
    assert bool((logits(model, new)[:, :4] == MASK).all()) == (loss_classes == "current")
    taught, learned = (one.head(one.backbone(new.x))[:, :4] for one in (teacher, model))
    torch.testing.assert_close(penalty(regularizer, model, new), by_hand(learned, taught))


@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_with_task_ids_each_old_task_is_distilled_by_itself(head: str) -> None:
    regularizer, teacher, model = after_two_tasks(head=head, task_known=True)
    new = data(2)
    expected = torch.zeros(())
    for task in (0, 1):
        asked = new._replace(task=torch.full_like(new.task, task))
        learned, taught = (logits(one, asked)[:, 2 * task : 2 * task + 2] for one in (model, teacher))
        expected = expected + by_hand(learned, taught)
    torch.testing.assert_close(penalty(regularizer, model, new), expected)


def test_the_gradient_is_that_of_the_cross_entropy_with_soft_targets() -> None:
    regularizer, teacher, model = after_two_tasks()
    new = data(2)
    soft = (logits(teacher, new) / T).softmax(1).detach()
    cross_entropy = F.cross_entropy(logits(model, new)[:, :4] / T, soft)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (penalty(regularizer, model, new), cross_entropy))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, (1, 1)), ({"loss_classes": "current"}, (1, 2)), ({"task_known": True, "head": "per-task"}, (1, 2))],
)
def test_the_teacher_answers_once_per_batch_however_many_tasks(options: Any, passes: tuple[int, int]) -> None:
    """And the student once more than the loop asks it, only where the loop's answer leaves old classes out."""
    regularizer, _, model = after_two_tasks(**options)
    penalty(regularizer, model, data(2))
    assert regularizer.teacher is not None
    calls = {"teacher": 0, "student": 0}
    for name, one in (("teacher", regularizer.teacher), ("student", model)):
        one.get_submodule("backbone").register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    penalty(regularizer, model, data(2))
    assert tuple(calls.values()) == passes


def test_the_teacher_is_in_evaluation_mode_and_learns_nothing() -> None:
    backbone = MLP((4,), (5,))
    backbone.layers[0].append(nn.Dropout(0.5))  # type: ignore[union-attr]
    model = SharedNetwork(backbone)
    model.open(0, [0, 1])
    regularizer = LwF()
    regularizer.consolidate(model.eval(), [data(0)])
    model.train()
    penalty(regularizer, model, data(0)).backward()
    teacher = regularizer.teacher
    assert teacher is not None and not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_what_is_kept_is_one_copy_of_the_model() -> None:
    regularizer, teacher, _ = after_two_tasks()
    assert byte_count(regularizer.state()[0]) == 4 * sum(p.numel() for p in teacher.parameters())


def test_a_restored_teacher_is_the_old_one_though_the_model_has_grown_since() -> None:
    for options in ({}, {"task_known": True}, {"task_known": True, "head": "per-task"}):
        old, _, model = after_two_tasks(**options)
        new = LwF()
        new.restore(*old.state())
        assert torch.equal(penalty(new, model, data(2)), penalty(old, model, data(2)))


def test_a_plain_network_is_distilled_over_the_labels_seen() -> None:
    """As Avalanche's models with one head of fixed size are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8))
    regularizer, teacher = LwF(), copy.deepcopy(model)
    regularizer.consolidate(model, [data(1)])
    disturb(model)
    expected = by_hand(model(data(2).x)[:, 2:4], teacher(data(2).x)[:, 2:4])
    torch.testing.assert_close(penalty(regularizer, model, data(2)), expected)


class SharesItsTeacher(LwF):
    """The deliberate break: student and teacher are one."""

    def consolidate(self, model: nn.Module, data: Any) -> None:
        super().consolidate(model, data)
        self.teacher = model


class CopiesNothing(LwF):
    """The deliberate break: the teacher's tensors are the student's."""

    def consolidate(self, model: nn.Module, data: Any) -> None:
        super().consolidate(model, data)
        self.tensors = dict(model.state_dict())


def test_a_teacher_that_shares_the_student_is_found() -> None:
    with pytest.raises(AssertionError, match="does not depend on the weights"):
        checks.gradient_is_right(Plugin("regularizer", "broken", SharesItsTeacher))
    with pytest.raises(AssertionError, match="moves with the model"):
        checks.owns_what_it_keeps(Plugin("regularizer", "broken", CopiesNothing))


@pytest.mark.parametrize("hooked", [False, True])
def test_a_hook_that_outlives_its_forward_pass_would_tie_the_teacher_to_the_student(hooked: bool) -> None:
    """Why modules are attached for one forward pass: a deep copy keeps a hook that belongs to the live model."""
    model = network(1)
    if hooked:
        model.backbone.register_forward_hook(lambda *_: model.head.weight.sum() + _[2])  # type: ignore[union-attr]
    teacher = frozen_copy(model, model.state_dict())
    before = logits(teacher, data(0))
    disturb(model)
    assert torch.equal(logits(teacher, data(0)), before) != hooked
