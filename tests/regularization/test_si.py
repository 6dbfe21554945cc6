"""SI: its path integral against closed forms, whose gradient it follows, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.batch import Batch
from forgetlab.checks.regularizer import moved, network
from forgetlab.plugins import registry
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.training.network import SharedNetwork

CURVATURE = torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64)
NOTHING = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))


class Point(nn.Module):
    """Weights without a network."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def way(method: Any) -> dict[str, Tensor]:
    """What the steps of the task in training took off the loss, so far."""
    return method.walk.gain


def quadratic(theta: Tensor) -> Tensor:
    return (CURVATURE * theta**2).sum() / 2


def nothing(theta: Tensor) -> Tensor:
    return 0 * theta.sum()


def si(**options: float) -> Any:
    return registry.find("regularizer", "si").factory(**options)


def descend(method: Regularizer, model: Any, loss: Any, steps: int, lr: float) -> None:
    """One task of plain gradient descent on the loss and the penalty, as the loop does it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    method.begin(model)
    for _ in range(steps):
        optimizer.zero_grad()
        total = loss(model.theta)
        if method.tasks:
            total = total + method.strength * method.penalty(model, NOTHING, NOTHING.x)
        total.backward()
        optimizer.step()
        method.observe(model, total)


def finish(method: Regularizer, model: nn.Module) -> None:
    method.consolidate(model, [])
    method.tasks += 1


@pytest.mark.parametrize(("lr", "tolerance"), [(1e-1, 0.2), (1e-3, 2e-3)])
def test_the_path_integral_is_the_loss_that_was_taken_off(lr: float, tolerance: float) -> None:
    """Each parameter's share a (theta_0^2 - theta_n^2) / 2, with an error that shrinks with the step."""
    method, model = si(), Point(1.0, -2.0, 5.0)
    start = model.theta.detach().clone()
    descend(method, model, quadratic, steps=int(1 / lr), lr=lr)
    drop = CURVATURE * (start**2 - model.theta.detach() ** 2) / 2
    torch.testing.assert_close(way(method)["theta"], drop, rtol=tolerance, atol=0)
    assert way(method)["theta"][2] == 0


def test_the_path_integral_of_large_steps_exceeds_the_drop_by_a_known_sum() -> None:
    """-g dtheta = the drop + a dtheta^2 / 2, in each step."""
    method, model = si(), Point(1.0, -2.0, 5.0)
    lr, excess, start = 0.3, torch.zeros(3, dtype=torch.float64), model.theta.detach().clone()
    theta = start.clone()
    for _ in range(7):
        step = lr * CURVATURE * theta
        excess += CURVATURE * step**2 / 2
        theta -= step
    descend(method, model, quadratic, steps=7, lr=lr)
    torch.testing.assert_close(model.theta.detach(), theta)
    torch.testing.assert_close(way(method)["theta"], CURVATURE * (start**2 - theta**2) / 2 + excess)


def test_importance_and_penalty_are_those_of_the_paper() -> None:
    method, model = si(strength=2.0, xi=0.5), Point(1.0, -2.0, 5.0)
    start = model.theta.detach().clone()
    descend(method, model, quadratic, steps=5, lr=0.1)
    path, end = way(method)["theta"].clone(), model.theta.detach().clone()
    finish(method, model)
    omega = path / ((end - start) ** 2 + 0.5)
    torch.testing.assert_close(method.importance["theta"], omega)
    with torch.no_grad():
        model.theta.add_(0.3)
    torch.testing.assert_close(method.penalty(model, NOTHING, NOTHING.x), (omega * 0.09).sum())


def test_importance_adds_up_over_tasks_and_the_anchor_is_the_last() -> None:
    method, model = si(), Point(1.0, -2.0, 5.0)
    descend(method, model, quadratic, steps=5, lr=0.1)
    finish(method, model)
    first, start = method.importance["theta"].clone(), model.theta.detach().clone()
    descend(method, model, quadratic, steps=5, lr=0.1)
    path = way(method)["theta"].clone()
    finish(method, model)
    gained = path / ((model.theta.detach() - start) ** 2 + 0.1)
    torch.testing.assert_close(method.importance["theta"], first + gained)
    assert torch.equal(method.anchor["theta"], model.theta)


def test_the_way_back_to_the_anchor_is_no_learning() -> None:
    """A task without a loss of its own leaves every importance as it was, though the penalty moves the weights."""
    method, model = si(strength=1.0), Point(1.0, -2.0, 5.0)
    descend(method, model, quadratic, steps=5, lr=0.1)
    finish(method, model)
    before = method.importance["theta"].clone()
    with torch.no_grad():
        model.theta.add_(1.0)
    away = model.theta.detach().clone()
    descend(method, model, nothing, steps=5, lr=0.1)
    assert bool((model.theta[:2] < away[:2]).all())
    torch.testing.assert_close(way(method)["theta"], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)
    finish(method, model)
    torch.testing.assert_close(method.importance["theta"], before)


def test_no_importance_falls_below_zero() -> None:
    """A parameter that went uphill would else be pushed away from its anchor."""
    method, model = si(), Point(1.0, -2.0, 5.0)
    descend(method, model, lambda theta: -quadratic(theta), steps=1, lr=0.1)  # gradients that point the other way
    way(method)["theta"].neg_()
    finish(method, model)
    assert bool((method.importance["theta"] == 0).all())


def test_a_loss_in_a_later_task_is_taken_off_what_was_gained_before() -> None:
    """The bound of 0 is on the sum over tasks, not on each task's share."""
    method, model = si(), Point(1.0, -2.0, 5.0)
    descend(method, model, quadratic, steps=5, lr=0.1)
    finish(method, model)
    first, start = method.importance["theta"].clone(), model.theta.detach().clone()
    assert bool((first[:2] > 0).all())
    descend(method, model, quadratic, steps=1, lr=0.1)
    way(method)["theta"].copy_(torch.tensor([-0.01, -100.0, 0.0]))  # uphill: a little, and more than was gained
    finish(method, model)
    lost = 0.01 / ((model.theta.detach()[0] - start[0]) ** 2 + 0.1)
    torch.testing.assert_close(method.importance["theta"][0], first[0] - lost)
    assert method.importance["theta"][1] == 0


def test_a_head_that_grows_keeps_the_importance_of_its_old_rows() -> None:
    model: SharedNetwork = network()
    method = si()
    method.begin(model)
    moved(model)
    way(method)["head.weight"] += 1.0
    finish(method, model)
    old = method.importance["head.weight"].clone()
    model.open(1, [4, 5])
    method.begin(model.double())
    finish(method, model)
    assert torch.equal(method.importance["head.weight"][:4], old)
    assert method.importance["head.weight"].shape == (6, 10)
    assert bool((method.importance["head.weight"][4:] == 0).all())


def test_between_tasks_two_numbers_per_parameter_are_kept() -> None:
    method, model = si(), Point(1.0, -2.0, 5.0)
    descend(method, model, quadratic, steps=2, lr=0.1)
    finish(method, model)
    assert sum(t.numel() for t in method.state()[0].values()) == 2 * 3
    assert method.walk is None
