"""L2 to the last task's weights, and to those of the start."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.batch import Batch
from forgetlab.checks.regularizer import moved, network
from forgetlab.plugins import registry

NOTHING = Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0))


def built(name: str, **options: Any) -> Any:
    return registry.build("regularizer", name, options)


def value(method: Any, model: nn.Module) -> float:
    return method.penalty(model, NOTHING, NOTHING.x).item()


def half_distance(model: nn.Module, other: nn.Module | None, prefix: str = "") -> float:
    """1/2 sum (theta - theta')^2 over the parameters of this prefix, theta' = 0 where there is no other model."""
    there = {} if other is None else dict(other.named_parameters())
    chosen = [(n, p) for n, p in model.named_parameters() if n.startswith(prefix)]
    return sum(((p[: len(there[n])] - there[n] if there else p) ** 2).sum().item() / 2 for n, p in chosen)


def test_l2_pulls_to_the_last_tasks_weights_and_lets_new_rows_go() -> None:
    method, model = built("l2"), network()
    for _ in range(2):
        moved(model)
        last = copy.deepcopy(model)
        method.consolidate(model, [])
    model.open(1, [4, 5])
    moved(model.double())
    assert value(method, model) == pytest.approx(half_distance(model, last))  # type: ignore[possibly-undefined]


def test_l2_is_ewc_with_every_importance_one() -> None:
    method, ewc, model = built("l2"), built("ewc"), network()
    method.consolidate(model, [])
    ewc.weight = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    ewc.centre = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved(model)
    assert value(method, model) == pytest.approx(value(ewc, model))


@pytest.mark.parametrize("head", [0.0, 1.0, 2.5])
def test_l2_sp_pulls_the_backbone_to_its_start_and_the_head_to_nothing(head: float) -> None:
    method, model = built("l2_sp", head=head), network()
    start = copy.deepcopy(model)
    for task in range(3):
        model.open(task, [2 * task, 2 * task + 1])
        method.begin(model.double())
        moved(model)
        expected = half_distance(model, start, "backbone.") + head * half_distance(model, None, "head.")
        assert value(method, model) == pytest.approx(expected)
        method.consolidate(model, [])
        method.tasks += 1


def test_l2_sp_with_the_last_weights_for_the_start_would_be_found() -> None:
    method, model = built("l2_sp", head=0.0), network()
    start = copy.deepcopy(model)
    method.begin(model)
    moved(model)
    broken = copy.deepcopy(method)
    broken.start = {}
    for one in (method, broken):
        one.begin(model)
    moved(model)
    expected = half_distance(model, start, "backbone.")
    assert value(method, model) == pytest.approx(expected) and value(broken, model) < 0.7 * expected


def test_l2_sp_holds_a_model_without_a_backbone_as_a_whole() -> None:
    torch.manual_seed(0)
    method, model = built("l2_sp"), nn.Linear(3, 2)
    start = copy.deepcopy(model)
    method.begin(model)
    assert value(method, model) == 0
    nn.init.normal_(model.weight)
    assert value(method, model) == pytest.approx(half_distance(model, start), rel=1e-5)
