"""L2 Init: its pull by hand, the way back of what the loss leaves alone, and plasticity that stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.batch import Batch
from forgetlab.checks.regime import network, trained
from forgetlab.checks.regularizer import moved
from forgetlab.experiment import Strategy
from forgetlab.plugins import registry
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.training.network import SharedNetwork
from helpers.runs import learned_late

NOTHING = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))
STRENGTH, RATE = 0.05, 0.1


def l2_init(strength: float = STRENGTH) -> Any:
    return registry.build("regularizer", "l2_init", {"strength": strength})


class ByHand(SupervisedPlugin):
    """The same, written as autograd reads it; a new row's start is noted when it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.start: dict[str, list[Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for name, parameter in strategy.model.named_parameters():
            rows = self.start.setdefault(name, [])
            rows += [row.detach().clone() for row in parameter[len(rows) :]]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        pairs = [(p, torch.stack(self.start[name])) for name, p in strategy.model.named_parameters()]
        strategy.loss = strategy.loss + STRENGTH * torch.stack([((p - s) ** 2).sum() for p, s in pairs]).sum()


def anchored_at_the_last_task() -> Regularizer:
    """Takes each task's first weights for the start."""
    method = l2_init()
    begin = method.begin

    def anew(model: nn.Module) -> None:
        method.start = {}
        begin(model)

    method.begin = anew
    return method


def silent_in_the_first_task() -> Regularizer:
    method = l2_init()
    method.from_start = False
    return method


def free_new_rows() -> Regularizer:
    """Rows that come later are not held."""
    method = l2_init()
    begin = method.begin
    method.begin = lambda model: None if method.start else begin(model)
    return method


def gap(method: SupervisedPlugin) -> float:
    ours, theirs = trained(network(), method), trained(network(), ByHand())
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def test_three_tasks_end_where_the_formula_ends() -> None:
    assert gap(l2_init()) < 1e-6


@pytest.mark.parametrize("broken", [anchored_at_the_last_task, silent_in_the_first_task, free_new_rows])
def test_a_wrong_start_is_found(broken: Any) -> None:
    assert gap(broken()) > 1e-4


def test_what_the_loss_leaves_alone_drifts_back_at_a_known_rate() -> None:
    """theta - theta_0 shrinks by 1 - 2 rate strength with each step of gradient descent."""
    method, model = l2_init(), nn.Linear(3, 2).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.begin(model)
    moved(model)  # type: ignore[arg-type]
    away = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(7):
        optimizer.zero_grad()
        (STRENGTH * method.penalty(model, NOTHING, NOTHING.x)).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter - start[name], (1 - 2 * RATE * STRENGTH) ** 7 * away[name])


def test_rows_of_new_classes_are_held_around_their_own_start() -> None:
    method, model = l2_init(), network()
    model.open(0, [0, 1])
    method.begin(model)
    moved(model)
    before = method.penalty(model, NOTHING, NOTHING.x).item()
    model.open(1, [2, 3, 4])
    method.begin(model)
    assert method.penalty(model, NOTHING, NOTHING.x).item() == pytest.approx(before)
    rows = model.get_parameter("head.weight").detach()
    assert torch.equal(method.start["head.weight"][2:], rows[2:])
    rows[3] += 1
    assert method.penalty(model, NOTHING, NOTHING.x).item() == pytest.approx(before + model.n_features)


def test_what_is_frozen_is_not_kept() -> None:
    method, model = l2_init(), network()
    model.backbone.requires_grad_(False)
    model.open(0, [0, 1])
    method.begin(model)
    assert method.start.keys() == {"head.weight", "head.bias"}


def test_one_copy_of_the_weights_is_kept_however_many_tasks_there_are() -> None:
    sizes = []
    for tasks in (2, 3):
        method, model = l2_init(), SharedNetwork(network().backbone, head="fixed", n_classes=6)
        trained(model, method, tasks=range(tasks))
        sizes.append(sum(t.numel() for t in method.state()[0].values()))
    assert sizes == [sum(p.numel() for p in model.parameters())] * 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_twentieth_permutation_is_learned_as_well_as_the_first(seed: int) -> None:
    """Naive training with Adam has lost some of its plasticity by then, as the paper says."""
    naive = Strategy(name="naive", reference={"name": "naive"})
    ours = Strategy(name="l2_init", regularization=({"name": "l2_init"},))
    assert learned_late(ours, seed) > learned_late(naive, seed) + 0.05
