"""RWalk: its running Fisher and its scores against a walk that is written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.checks.regularizer import batch, consolidated, moved, network
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.toolbox.fisher import fisher
from forgetlab.toolbox.path_integral import Walk, scaled

NOTHING = Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0))
LR, ALPHA, DAMPING = 0.5, 0.9, 1e-3


def rwalk(**options: Any) -> Any:
    return registry.build("regularizer", "rwalk", options)


def softmax_regression() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


def samples(step: int, n: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(step)
    y = torch.arange(n) % 4
    return Batch(
        torch.randn(n, 3, generator=draw, dtype=torch.float64) + F.one_hot(y, 4)[:, :3], y, torch.zeros_like(y)
    )


def train(method: Any, model: nn.Module, batches: list[Batch]) -> None:
    """A task of plain gradient descent on the loss and the penalty, as the loop does it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    method.begin(model)
    for one in batches:
        optimizer.zero_grad()
        method.batch = one
        loss = F.cross_entropy(model(one.x), one.y)
        if method.tasks:
            loss = loss + method.strength * method.penalty(model, one, NOTHING.x)
        loss.backward()
        optimizer.step()
        method.observe(model, loss)
    method.consolidate(model, batches)
    method.tasks += 1


Written = dict[str, Tensor]


def by_hand(tasks: list[list[Batch]], delta_t: int, strength: float) -> tuple[Written, Written, Tensor]:
    """F, s and the weights of softmax regression, all in closed form, the bias as one more column."""
    model = softmax_regression()
    theta = torch.cat([model.weight, model.bias.unsqueeze(1)], 1).detach()  # type: ignore[operator,union-attr]
    f, score, weight, anchor = (torch.zeros_like(theta) for _ in range(4))

    def per_sample(theta: Tensor, one: Batch) -> Tensor:
        x = torch.cat([one.x, torch.ones(len(one.x), 1)], 1)
        residual = (x @ theta.T).softmax(1) - F.one_hot(one.y, 4)
        return torch.einsum("bc,bi->bci", residual, x)

    for task, batches in enumerate(tasks):
        gain, path, mark, since = torch.zeros_like(theta), torch.zeros_like(theta), theta.clone(), 0
        for step, one in enumerate(batches):
            g = per_sample(theta, one).mean(0)
            before, since = theta.clone(), since + 1
            theta = theta - LR * (g + 2 * strength * weight * (theta - anchor))
            gain -= g * (theta - before)
            ends = [since == delta_t, step + 1 == len(batches)]
            for _ in range(sum(ends)):  # where the task's end is a stretch's end too, F is updated twice
                f = ALPHA * (per_sample(theta, one) ** 2).mean(0) + (1 - ALPHA) * f
                path += gain.clamp(min=0) / (f * (theta - mark) ** 2 / 2 + DAMPING)
                gain, mark, since = torch.zeros_like(gain), theta.clone(), 0
        score = (score + path) / 2 if task else path
        weight, anchor = f / f.max() + score / score.max(), theta.clone()
    split = [{"weight": t[:, :3], "bias": t[:, 3]} for t in (f, score)]
    return split[0], split[1], theta


@pytest.mark.parametrize("delta_t", [1, 3, 10])
def test_the_whole_walk_is_that_of_the_paper(delta_t: int) -> None:
    """Three tasks of seven steps; the longest stretch is shorter than asked for, as the task ends before."""
    tasks = [[samples(10 * task + step) for step in range(7)] for task in range(3)]
    method, model = rwalk(delta_t=delta_t, strength=0.1), softmax_regression()
    for batches in tasks:
        train(method, model, batches)
    f, score, theta = by_hand(tasks, delta_t, strength=0.1)
    for name in f:
        torch.testing.assert_close(method.fisher[name], f[name])
        torch.testing.assert_close(method.score[name], score[name])
    torch.testing.assert_close(model.weight.detach(), theta[:, :3])  # type: ignore[union-attr]


def test_a_walk_that_counts_the_way_back_as_learning_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [[samples(10 * task + step) for step in range(7)] for task in range(2)]
    own = Walk.step
    monkeypatch.setattr(
        Walk, "step", lambda self, model, strength, weight, anchor: own(self, model, 0.0, weight, anchor)
    )
    method, model = rwalk(delta_t=3, strength=0.1), softmax_regression()
    for batches in tasks:
        train(method, model, batches)
    _, score, _ = by_hand(tasks, 3, strength=0.1)
    assert not torch.allclose(method.score["weight"], score["weight"], rtol=1e-3)


def test_the_penalty_weighs_fisher_and_score_alike() -> None:
    method, model = rwalk(), softmax_regression()
    train(method, model, [samples(step) for step in range(12)])
    method.begin(model)
    tops = [max(float(value.max()) for value in part.values()) for part in (method.fisher, method.score)]
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3
    terms = [
        ((method.fisher[n] / tops[0] + method.score[n] / tops[1]) * (p - anchor[n]) ** 2).sum()
        for n, p in model.named_parameters()
    ]
    torch.testing.assert_close(method.penalty(model, NOTHING, NOTHING.x), torch.stack(terms).sum())


def test_scaled_importances_have_a_largest_value_of_one_each() -> None:
    first, second = (
        {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0])},
        {"a": torch.zeros(2), "b": torch.zeros(1)},
    )
    assert scaled(first, second)["a"].tolist() == [0.25, 1.0] and scaled(first, first)["b"].tolist() == [1.0]
    assert scaled({}, {}) == {}


def test_damping_keeps_weights_that_hardly_move_from_counting_most() -> None:
    """The gain of a step of descent is lr g^2, its distance F lr^2 g^2 / 2: with F = g^2 their ratio falls with g.

    Avalanche's damping is the smallest step of float32.
    """
    model = nn.Linear(1, 2, bias=False)
    gradient = torch.tensor([[1.0], [0.1]])
    ranks = []
    for damping in (DAMPING, torch.finfo(torch.float32).eps):
        walk = Walk(model, {})
        with torch.no_grad():
            model.weight -= 0.1 * gradient
        model.weight.grad = gradient
        walk.step(model, 0.0, {}, {})
        walk.arrive({"weight": gradient**2}, damping)
        ranks.append(bool(walk.score["weight"][0] > walk.score["weight"][1]))
    assert ranks == [True, False]


def test_the_fisher_is_exact_per_sample_in_evaluation_mode_whatever_the_batch_size() -> None:
    """One stretch of one step: alpha times that of the batch; squaring the batch's mean would give less."""
    method, model = rwalk(delta_t=100), softmax_regression()
    one = samples(0)
    train(method, model, [one])
    exact = fisher(model, [one], "empirical")
    torch.testing.assert_close(method.fisher["weight"], ALPHA * exact["weight"])
    mean = torch.autograd.grad(F.cross_entropy(model(one.x), one.y), model.weight)[0] ** 2  # type: ignore[arg-type]
    assert mean.sum() < 0.7 * exact["weight"].sum()


def test_old_scores_halve_with_each_task_and_new_rows_start_at_nothing() -> None:
    plugin = Plugin("regularizer", "rwalk", type(rwalk()))
    model = network()
    method: Any = consolidated(plugin, model)
    old = method.score["head.weight"].clone()
    assert old.shape == (4, 10) and old.sum() > 0
    model.open(1, [4, 5])
    method.begin(model.double())
    method.batch = batch(0, task=1)
    method.consolidate(model, [])
    assert method.score["head.weight"].shape == (6, 10)
    torch.testing.assert_close(method.score["head.weight"], torch.cat([old / 2, torch.zeros(2, 10).double()]))


def test_three_numbers_per_parameter_are_kept_and_a_restored_one_goes_on_alike() -> None:
    plugin = Plugin("regularizer", "rwalk", type(rwalk()))
    model = network()
    old: Any = consolidated(plugin, model)
    assert sum(t.numel() for t in old.state()[0].values()) == 3 * sum(p.numel() for p in model.parameters())
    new = rwalk()
    new.restore(*old.state())
    for method in (old, new):
        method.begin(model)
    moved(model)
    torch.testing.assert_close(new.penalty(model, NOTHING, NOTHING.x), old.penalty(model, NOTHING, NOTHING.x))
