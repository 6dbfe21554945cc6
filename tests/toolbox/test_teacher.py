"""A model asked under other tensors, at rest, or as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.seeding import drawn_from, generator
from forgetlab.toolbox.teacher import changing, features, frozen_copy, logits, still
from forgetlab.training.network import SharedNetwork


class Chancy(nn.Sequential):
    """A backbone that draws, and counts what it sees."""

    n_features = 5

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))


def network(backbone: type = Chancy, **options: Any) -> SharedNetwork:
    with drawn_from("teacher"):
        model = SharedNetwork(backbone(), **options)
    model.open(0, range(3))
    return model.train()


def batch(n: int = 12) -> Batch:
    return Batch(torch.randn(n, 4, generator=generator("teacher")), torch.arange(n) % 3, torch.zeros(n).long())


def moved(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    return other


@pytest.mark.parametrize("known", [False, True])
def test_a_model_under_other_tensors_answers_as_one_that_has_them(known: bool) -> None:
    model = network(lambda: MLP((4,), (5,)), task_known=known)  # type: ignore[arg-type]
    other, own = moved(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    assert torch.equal(logits(model, batch(), dict(other.named_parameters())), logits(other, batch()))
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    plain = nn.Linear(4, 3)
    expected = logits(moved(plain), batch())
    assert torch.equal(logits(plain, batch(), dict(moved(plain).named_parameters())), expected)


def test_at_rest_no_layer_draws_or_counts_and_the_network_answers_as_in_training() -> None:
    model = network(loss_classes="current")
    model.open(1, (3, 4))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    with still(model):
        here = logits(model, batch()._replace(task=torch.ones(12, dtype=torch.int64)))
        assert model.training and not model.backbone.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert bool((here[:, :3] == -1e4).all())  # of the current task alone, which is so in training
    assert all(layer.training for layer in model.modules())


def test_modes_come_back_one_by_one_also_after_an_error() -> None:
    model = network()
    model.backbone[1].eval()  # type: ignore[index,operator,union-attr]
    with pytest.raises(ZeroDivisionError), still(model):
        raise ZeroDivisionError
    assert [layer.training for layer in model.backbone.modules()] == [True, True, False, True]


def test_features_are_what_the_head_stands_on() -> None:
    model = network().eval()
    torch.testing.assert_close(model.head(features(model, batch().x)), logits(model, batch()))  # type: ignore[operator]
    with pytest.raises(TypeError, match="give the Linear a 'backbone'"):
        features(nn.Linear(4, 3), batch().x)


def test_what_training_does_not_change_need_not_be_kept() -> None:
    """A frozen copy from the rest is the model as it was, with no row of the classes that have come since."""
    model = network()
    model.backbone[0].requires_grad_(False)  # type: ignore[index,operator,union-attr]
    names = set(changing(model))
    assert names == set(model.state_dict()) - {"backbone.0.weight", "backbone.0.bias"}
    kept = {name: tensor.clone() for name, tensor in changing(model).items()}
    was = logits(copy.deepcopy(model).eval(), batch())
    with torch.no_grad():
        for tensor in changing(model).values():
            tensor.mul_(2)
    model.open(1, (3, 4))
    copied = frozen_copy(model, kept)
    torch.testing.assert_close(logits(copied, batch())[:, :3], was)
    assert not logits(copied, batch())[:, 3:].any()
    assert not any(p.requires_grad for p in copied.parameters())
