"""EWC's variants beside each other; the sum over tasks and the Fisher themselves stand in test_fisher.py."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from forgetlab.batch import Batch
from forgetlab.checks.regularizer import batch, moved, network
from forgetlab.plugins import options as plugins_options
from forgetlab.plugins import registry
from forgetlab.toolbox.fisher import Variant, fisher

NOTHING = Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0))
ALPHA = 0.3


def three_tasks(method: Any, variant: Variant = "exact") -> tuple[Tensor, list[dict[str, Tensor]], dict[str, Tensor]]:
    """The penalty when the model has moved on, each task's Fisher, and how far each weight is from its last value."""
    model, fishers, last = network().eval(), [], {}
    for task in range(3):
        fishers.append(fisher(model, [batch(task)], variant))
        last = {name: p.detach().clone() for name, p in model.named_parameters()}
        method.consolidate(model, [batch(task)])
        method.tasks += 1
        moved(model)
    away = {name: p.detach() - last[name] for name, p in model.named_parameters()}
    return method.penalty(model, NOTHING, NOTHING.x).detach(), fishers, away


def merged(**options: Any) -> Any:
    return registry.build("regularizer", "online_ewc", {"merge": "mean", "gamma": ALPHA, **options})


def test_merged_ewc_is_facils() -> None:
    """F <- alpha F + (1 - alpha) F_new from F = 0, and 1/2 sum F (theta - theta~)^2."""
    penalty, fishers, away = three_tasks(merged())
    running = {name: torch.zeros_like(value) for name, value in fishers[0].items()}
    for one in fishers:
        running = {name: ALPHA * running[name] + (1 - ALPHA) * one[name] for name in running}
    torch.testing.assert_close(penalty, sum((running[name] * away[name] ** 2).sum() / 2 for name in running))


def test_merged_ewc_is_online_ewc_at_another_strength() -> None:
    mean, sum_ = merged(), registry.build("regularizer", "online_ewc", {"gamma": ALPHA})
    torch.testing.assert_close(three_tasks(mean)[0], (1 - ALPHA) / ALPHA * three_tasks(sum_)[0])


def test_a_mean_that_forgets_its_share_would_be_found() -> None:
    broken = merged()
    broken.mean = False
    assert three_tasks(broken)[0] < 0.5 * three_tasks(merged())[0]


def test_a_mean_in_which_no_task_has_a_share_is_refused() -> None:
    with pytest.raises(plugins_options.OptionError, match="no task has a share"):
        merged(gamma=1.0)


@pytest.mark.parametrize("variant", get_args(Variant))
@pytest.mark.parametrize("name", ["ewc", "online_ewc"])
def test_the_variant_named_in_the_file_is_the_one_taken(name: str, variant: Variant) -> None:
    """And with one task, the penalty is 1/2 sum F (theta - theta~)^2 for both."""
    method, model = registry.build("regularizer", name, {"fisher": variant}), network().eval()
    expected = fisher(model, [batch(0)], variant)
    last = {n: p.detach().clone() for n, p in model.named_parameters()}
    method.consolidate(model, [batch(0)])
    moved(model)
    terms = [(expected[n] * (p - last[n]) ** 2).sum() / 2 for n, p in model.named_parameters()]
    torch.testing.assert_close(method.penalty(model, NOTHING, NOTHING.x), torch.stack(terms).sum())
