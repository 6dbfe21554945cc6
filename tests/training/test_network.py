"""Heads and masks: which classes compete, on logits written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.mlp import MLP
from forgetlab.batch import UNKNOWN
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.isolation.router import Router
from forgetlab.plugins import registry
from forgetlab.training.competing_classes import MASK
from forgetlab.training.heads import Head
from forgetlab.training.network import Network, SharedNetwork

N_CLASSES = 6  # two tasks of two classes are opened; 4 and 5 are still to come
TASKS = torch.tensor([0, 1])  # of the two samples; task 1 is in training
LOGITS = torch.tensor([[-1.0, -2, -3, -4, -5, -6], [-6.0, -5, -4, -3, -2, -1]])
SEEN, ALL = {0, 1, 2, 3}, set(range(N_CLASSES))


class Raw(nn.Module):
    """A backbone whose features are its inputs."""

    n_features = N_CLASSES

    def forward(self, x: Tensor) -> Tensor:
        return x


def identity_heads(network: Network) -> None:
    """Make every head pass feature c on as the logit of class c."""
    heads = head_modules(network)
    rows = list(network.classes_of.values()) if len(heads) > 1 else [list(range(len(heads[0].weight)))]
    for head, classes in zip(heads, rows, strict=True):
        head.weight.data, head.bias.data = torch.eye(N_CLASSES)[classes], torch.zeros(len(classes))


def head_modules(network: Network) -> list[Head]:
    return [module for module in network.modules() if isinstance(module, Head)]


def opened(**options: Any) -> SharedNetwork:
    network = SharedNetwork(Raw(), n_classes=N_CLASSES, **options)
    network.open(0, [0, 1])
    network.open(1, [2, 3])
    identity_heads(network)
    return network


@pytest.mark.parametrize(
    ("head", "loss_classes", "task_known", "training", "competing"),
    [
        ("growing", "seen", False, True, [SEEN, SEEN]),
        ("growing", "seen", False, False, [SEEN, SEEN]),
        ("growing", "current", False, True, [SEEN, {2, 3}]),  # a replayed sample competes with all seen
        ("growing", "current", False, False, [SEEN, SEEN]),
        ("fixed", "all", False, True, [ALL, ALL]),
        ("fixed", "all", False, False, [SEEN, SEEN]),
        ("fixed", "seen", False, True, [SEEN, SEEN]),
        ("fixed", "seen", False, False, [SEEN, SEEN]),
        ("fixed", "current", False, True, [SEEN, {2, 3}]),
        ("fixed", "current", False, False, [SEEN, SEEN]),
        *(
            (head, loss_classes, True, training, [{0, 1}, {2, 3}])
            for head in ("growing", "fixed", "per-task")
            for loss_classes in ("all", "seen", "current")
            for training in (True, False)
        ),
    ],
)
def test_the_protocol_says_which_classes_compete(
    head: Any, loss_classes: Any, task_known: bool, training: bool, competing: list[set[int]]
) -> None:
    network = opened(head=head, loss_classes=loss_classes, task_known=task_known).train(training)
    answer = network(LOGITS, TASKS)
    assert answer.shape == (2, N_CLASSES if head == "fixed" else 4)
    for row, logits, classes in zip(answer, LOGITS, competing, strict=True):
        for label, value in enumerate(row):
            assert value == (logits[label] if label in classes else MASK)


def test_where_the_task_is_not_told_no_task_label_is_looked_at() -> None:
    network = opened(task_known=False).eval()
    assert torch.equal(network(LOGITS, TASKS), network(LOGITS, torch.full((2,), UNKNOWN)))


def test_a_masked_class_has_no_share_in_the_softmax_and_gets_no_gradient() -> None:
    network = opened(task_known=True)
    answer = network(LOGITS, TASKS)
    assert answer.softmax(1)[0, 2:].sum() == 0
    answer.log_softmax(1)[0, 0].backward()
    assert isinstance(network.head, Head) and network.head.weight.grad is not None
    assert network.head.weight.grad[2:].abs().sum() == 0
    assert network.head.weight.grad[:2].abs().sum() > 0


@pytest.mark.parametrize("head", ["growing", "fixed", "per-task"])
def test_with_no_tasks_given_every_open_task_answers(head: Any) -> None:
    """Avalanche's stock plug-ins ask this way for a teacher's answers."""
    network = opened(head=head, task_known=True)
    answers: Any = network(LOGITS, None)
    assert list(answers) == [0, 1]
    for task, answer in answers.items():
        assert torch.equal(answer, network(LOGITS, torch.full((2,), task)))


def test_tasks_that_share_their_labels_add_no_rows() -> None:
    network = SharedNetwork(Raw(), task_known=False)
    for task in range(3):
        network.open(task, [0, 1])
    assert network(LOGITS, TASKS).shape == (2, 2)


@pytest.mark.parametrize("head", ["growing", "fixed", "per-task"])
def test_a_task_that_comes_again_with_more_classes_keeps_those_it_had(head: Any) -> None:
    network = opened(head=head, task_known=True)
    before = network(LOGITS, TASKS)
    network.open(0, [4, 1])
    assert network.classes_of == {0: [0, 1, 4], 1: [2, 3]}
    after = network(LOGITS, TASKS)
    assert (after[0] > MASK).tolist()[:5] == [True, True, False, False, True]
    assert torch.equal(after[:, :4], before[:, :4])


@pytest.mark.parametrize(
    ("task_known", "task", "classes", "answer"),
    [
        (False, 1, [2, 3], True),
        (False, 2, [4, 5], False),
        (False, 2, [3, 4], False),
        (False, 2, [0, 1], True),  # domain-incremental: the labels are known already
        (True, 1, [2, 3], True),
        (True, 2, [0, 1], False),
    ],
)
def test_a_task_can_be_answered_once_what_its_answer_needs_is_open(
    task_known: bool, task: int, classes: list[int], answer: bool
) -> None:
    assert opened(task_known=task_known).can_answer(task, classes) is answer
    assert isolated(task_known=task_known).can_answer(task, classes) is answer


def lora() -> Isolation:
    return registry.build("isolation", "lora", {"sites": ["mlp.in"], "rank": 1})


def isolated(task_known: bool = True, router: Router | None = None) -> IsolatedNetwork:
    network = IsolatedNetwork(MLP((N_CLASSES,), (N_CLASSES,)), lora, task_known=task_known, router=router)
    network.open(0, [0, 1])
    network.open(1, [2, 3])
    linear = network.backbone.get_submodule("layers.0.0")
    assert isinstance(linear, nn.Linear)
    linear.weight.data, linear.bias.data = torch.eye(N_CLASSES), torch.zeros(N_CLASSES)
    identity_heads(network)
    return network


class Crossed(Router):
    """Sends every sample to the other task."""

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None: ...

    def route(self, features: Tensor, answers: Any) -> Tensor:
        return 1 - TASKS


@pytest.mark.parametrize(("router", "right"), [(None, [0, 1]), (Crossed(), [1, 0])])
def test_a_module_answers_for_its_own_classes_alone(router: Router | None, right: list[int]) -> None:
    network = isolated(router=router).eval()
    answer = network(-LOGITS, TASKS if router is None else torch.full((2,), UNKNOWN))
    for row, logits, task in zip(answer, -LOGITS, right, strict=True):
        own = network.classes_of[task]
        assert [label for label, value in enumerate(row) if value > MASK] == own
        torch.testing.assert_close(row[own], logits[own])
    assert network.routes is not None and network.routes.tolist() == right


def rows(head: Head) -> Tensor:
    return torch.cat([head.weight, head.bias.unsqueeze(1)], dim=1).detach()


def grown(*steps: list[int], seed: int = 0) -> Tensor:
    head = Head(3, seed)
    for classes in steps:
        head.grow(classes)
    return rows(head)


def test_a_row_starts_from_its_seed_and_class_whenever_it_is_made() -> None:
    at_once = grown([0, 1, 2, 3])
    assert torch.equal(at_once, grown([0], [1, 2], [], [3]))
    assert torch.equal(at_once[[3, 1]], grown([3, 1]))
    torch.rand(5)
    assert torch.equal(at_once, grown([0, 1, 2, 3]))
    assert not torch.isin(at_once, grown([0, 1, 2, 3], seed=1)).any()
    assert at_once.unique().numel() == at_once.numel() and at_once.abs().max() < 3**-0.5


def test_growing_keeps_what_was_trained() -> None:
    head = Head(3, 0)
    head.grow([0, 1])
    head.weight.data += 1
    before = rows(head)
    head.grow([2])
    assert torch.equal(rows(head)[:2], before) and head.weight.requires_grad


def test_separate_heads_start_from_the_rows_of_the_growing_head() -> None:
    """So that settings and strategies of one seed start from the same weights."""
    shared = SharedNetwork(Raw(), head="growing", task_known=True, seed=4)
    separate = SharedNetwork(Raw(), head="per-task", task_known=True, seed=4)
    modules = IsolatedNetwork(MLP((4,), (N_CLASSES,)), lora, seed=4)
    for network in (shared, separate, modules):
        network.open(0, [0, 1])
        network.open(1, [2, 3])
    whole = rows(head_modules(shared)[0])
    for network in (separate, modules):
        assert torch.equal(whole, torch.cat([rows(head) for head in head_modules(network)]))
