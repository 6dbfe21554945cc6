"""MAS: how far a weight moves the logits of each sample, against slower forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.vit import ViT
from forgetlab.batch import Batch
from forgetlab.checks.regularizer import batch, moved, network
from forgetlab.plugins import registry
from forgetlab.toolbox.fisher import RULES, sensitivity
from forgetlab.toolbox.teacher import logits
from forgetlab.training import competing_classes
from forgetlab.training.network import SharedNetwork

NOTHING = Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0))


def mas(**options: Any) -> Any:
    return registry.build("regularizer", "mas", options)


def one_by_one(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """By autograd, a sample at a time, over the logits that are not masked."""
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in named.items()}
    for i in range(len(batch.y)):
        output = logits(model, batch.rows(torch.tensor([i])))
        norm = output[output > competing_classes.MASK].square().sum()
        gradients = torch.autograd.grad(norm, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            sums[name] += 0 if gradient is None else gradient.abs()
    return {name: value / len(batch.y) for name, value in sums.items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.allclose(value, theirs[name], rtol=1e-9, atol=1e-12) for name, value in ours.items())


def mlp(**options: Any) -> SharedNetwork:
    return network(**options).eval()


def vit(**options: Any) -> SharedNetwork:
    torch.manual_seed(0)
    model = SharedNetwork(ViT((1, 8, 8), width=8, depth=1, heads=2), **options)
    model.open(0, [0, 1, 2, 3])
    return model.double().eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"head": "fixed", "n_classes": 7}, {"task_known": True}, {"task_known": True, "head": "per-task"}],
    ids=str,
)
@pytest.mark.parametrize("make", [mlp, vit])
def test_importance_is_that_of_each_sample(make: Callable[..., SharedNetwork], options: dict[str, Any]) -> None:
    """Classes that may not be answered have no part in the norm."""
    model = make(**options)
    model.open(1, [4, 5])
    model.double()
    method = mas()
    method.consolidate(model, [batch(0), batch(1, task=1)])
    halves = [one_by_one(model, one) for one in (batch(0), batch(1, task=1))]
    expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    assert same(method.importance, expected)
    assert all(bool(value.isfinite().all()) for value in method.importance.values())


@pytest.mark.parametrize("masked", [True, False])
def test_a_norm_over_masked_classes_would_be_found(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    """A row that no sample may be answered by does not matter; without the mask it would."""
    model = mlp(head="fixed", n_classes=7)
    if not masked:
        monkeypatch.setattr(SharedNetwork, "_support", lambda *_: None)
    rows = sensitivity(model, [batch(0)])["head.weight"].sum(1)
    assert bool((rows[:4] > 0).all())
    assert bool((rows[4:] == 0).all()) == masked


def test_the_absolute_value_of_a_batchs_gradient_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the authors' code and in Avalanche's: samples that pull at a weight from two sides cancel."""

    def of_the_batch(layer: nn.Module, a: Tensor, g: Tensor, size: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"weight": size(g.T @ a), "bias": size(g.sum(0))}

    model, both_signs = mlp(), batch(0)._replace(x=batch(0).x - 0.5)
    exact = sensitivity(model, [both_signs])
    assert same(exact, one_by_one(model, both_signs))
    monkeypatch.setitem(RULES, nn.Linear, of_the_batch)
    broken = sensitivity(model, [both_signs])
    assert not same(broken, exact)
    ratio = broken["backbone.layers.0.0.weight"].sum() / exact["backbone.layers.0.0.weight"].sum()
    assert 0.2 < ratio < 0.6


def test_the_penalty_is_that_of_the_paper_and_importances_add_up() -> None:
    method, model, importances = mas(), mlp(), []
    for task in range(3):
        moved(model)
        importances.append(sensitivity(model, [batch(task)]))
        method.consolidate(model, [batch(task)])
    last = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved(model)
    theta = dict(model.named_parameters())
    terms = [(one[name] * (theta[name] - last[name]) ** 2).sum() for one in importances for name in one]
    torch.testing.assert_close(method.penalty(model, NOTHING, NOTHING.x), torch.stack(terms).sum())


def test_labels_are_not_asked_for() -> None:
    model, methods = mlp(), (mas(), mas())
    for method, shift in zip(methods, (0, 1), strict=True):
        method.consolidate(model, [batch(0)._replace(y=(batch(0).y + shift) % 4)])
    assert all(torch.equal(value, methods[1].importance[name]) for name, value in methods[0].importance.items())


def test_rows_of_new_classes_are_free() -> None:
    method, model = mas(), mlp()
    method.consolidate(model, [batch(0)])
    old = method.importance["head.weight"].clone()
    model.open(1, [4, 5])
    assert method.penalty(model.double(), NOTHING, NOTHING.x) == 0
    method.consolidate(model, [batch(1, task=1)])
    new = method.importance["head.weight"]
    assert new.shape == (6, 10) and bool((new.sum(1) > 0).all())
    torch.testing.assert_close(new[:4] - old, sensitivity(model, [batch(1, task=1)])["head.weight"][:4])
