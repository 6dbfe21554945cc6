"""Online EWC: one running Fisher around the last weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab.batch import Batch
from forgetlab.checks.regularizer import batch, moved, network
from forgetlab.plugins import options as plugins_options
from forgetlab.plugins import registry
from forgetlab.toolbox.fisher import fisher
from forgetlab.training.network import SharedNetwork

EMPTY = torch.zeros(0)
NOTHING = Batch(EMPTY, EMPTY, EMPTY)


def method(**options: Any) -> Any:
    return registry.find("regularizer", "online_ewc").factory(**options)


def three_tasks(gamma: float) -> tuple[Any, SharedNetwork, list[dict[str, Tensor]], dict[str, Tensor]]:
    """A regularizer after three tasks, the model moved away since, each task's Fisher, and the last weights."""
    one, model, fishers, last = method(gamma=gamma), network().eval(), [], {}
    for task in range(3):
        fishers.append(fisher(model, [batch(task)]))
        last = {name: p.detach().clone() for name, p in model.named_parameters()}
        one.consolidate(model, [batch(task)])
        moved(model)
    return one, model, fishers, last


def quadratic(weight: dict[str, Tensor], model: SharedNetwork, centre: dict[str, Tensor]) -> Tensor:
    theta = dict(model.named_parameters())
    return torch.stack([(w * (theta[name] - centre[name]) ** 2).sum() for name, w in weight.items()]).sum() / 2


def test_without_fading_it_is_the_sum_of_fishers_around_the_last_weights() -> None:
    one, model, fishers, last = three_tasks(gamma=1.0)
    total = {name: sum(f[name] for f in fishers) for name in fishers[0]}
    torch.testing.assert_close(one.penalty(model, NOTHING, EMPTY), quadratic(total, model, last))  # type: ignore[arg-type]


def test_old_fishers_fade_by_gamma_with_each_task() -> None:
    one, model, (first, second, third), last = three_tasks(gamma=0.5)
    faded = {name: 0.125 * first[name] + 0.25 * second[name] + 0.5 * third[name] for name in first}
    torch.testing.assert_close(one.penalty(model, NOTHING, EMPTY), quadratic(faded, model, last))


def test_ewc_has_a_centre_for_each_task_and_differs() -> None:
    one, model, _, _ = three_tasks(gamma=1.0)
    other, again = registry.find("regularizer", "ewc").factory(), network().eval()
    for task in range(3):
        other.consolidate(again, [batch(task)])
        moved(again)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    ours, theirs = one.penalty(model, NOTHING, EMPTY).item(), other.penalty(again, NOTHING, EMPTY).item()
    assert abs(ours - theirs) > 0.01 * theirs


def test_after_one_task_it_is_ewc() -> None:
    one, other, model = method(), registry.find("regularizer", "ewc").factory(), network().eval()
    for regularizer in (one, other):
        regularizer.consolidate(model, [batch(0)])
    moved(model)
    torch.testing.assert_close(one.penalty(model, NOTHING, EMPTY), other.penalty(model, NOTHING, EMPTY))


def test_what_is_kept_does_not_grow_with_the_tasks() -> None:
    one, model, _, _ = three_tasks(gamma=1.0)
    assert sum(t.numel() for t in one.state()[0].values()) == 2 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_gamma_is_a_share(gamma: float) -> None:
    with pytest.raises(plugins_options.OptionsError, match="gamma"):
        registry.resolve("regularizer", "online_ewc", {"gamma": gamma})
