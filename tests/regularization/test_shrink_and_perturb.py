"""Shrink and perturb: its formula and its noise, what it leaves alone, and plasticity that stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.mlp import MLP
from forgetlab.checks.regime import network
from forgetlab.experiment import Strategy
from forgetlab.plugins import registry
from forgetlab.regularization.regime import Regime
from forgetlab.seeding import generator
from forgetlab.training.network import SharedNetwork
from helpers.runs import learned_late

Weights = dict[str, Tensor]


def shrink_and_perturb(**options: float) -> Any:
    return registry.build("regime", "shrink_and_perturb", options)


def weights(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def ended(method: Regime, model: nn.Module) -> None:
    """A task's end."""
    method.consolidate(model, [])
    method.tasks += 1


def wide(**options: Any) -> SharedNetwork:
    """Wide enough for its noise to be measured; two classes are open."""
    torch.manual_seed(3)
    model = SharedNetwork(MLP((1, 8, 8), hidden=(300, 300)), **options)
    model.open(0, [0, 1])
    return model


def test_the_formula_step_by_step() -> None:
    method, model = shrink_and_perturb(shrink=0.7, perturb=0.3), wide()
    method.begin(model)
    start = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    before = weights(model)
    ended(method, model)
    draws = generator("ShrinkAndPerturb", 0, 1)
    method.begin(model)
    for name, theta in model.named_parameters():
        noise = torch.randn(theta.shape, generator=draws) * start[name].std(correction=0)
        torch.testing.assert_close(theta, 0.7 * before[name] + 0.3 * noise)


def test_nothing_happens_before_the_first_task() -> None:
    method, model = shrink_and_perturb(), wide()
    before = weights(model)
    method.begin(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def spreads(method: Regime) -> dict[str, tuple[float, float]]:
    """By tensor, how wide the noise is after a task that changed the weights, and how wide a new start is."""
    model = wide()
    method.begin(model)
    anew = weights(wide())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7).add_(1)
    ended(method, model)
    method.begin(model)
    layers = [name for name in anew if name.startswith("backbone.")]
    return {name: (model.state_dict()[name].std().item(), anew[name].std().item()) for name in layers}


def of_trained_weights() -> Regime:
    """Noise as wide as the weights have become."""
    method = shrink_and_perturb(shrink=0.0, perturb=1.0)
    begin = method.begin

    def measured_late(model: nn.Module) -> None:
        method.spread = {name: p.detach().std() for name, p in model.named_parameters()}
        begin(model)

    method.begin = measured_late
    return method


def test_noise_alone_is_as_wide_as_a_network_that_starts_anew() -> None:
    """Each layer in its own width, whatever training made of the weights: the choice of the authors' code."""
    for ours, anew in spreads(shrink_and_perturb(shrink=0.0, perturb=1.0)).values():
        assert ours == pytest.approx(anew, rel=0.1)


def test_noise_of_another_width_is_found() -> None:
    assert any(abs(ours / anew - 1) > 0.5 for ours, anew in spreads(of_trained_weights()).values())


def again(method: Regime, model: SharedNetwork) -> tuple[Weights, Weights]:
    """The weights before and after a second task begins with new classes."""
    method.begin(model)
    ended(method, model)
    model.open(1, [2, 3])
    before = weights(model)
    method.begin(model)
    return before, weights(model)


def test_rows_of_new_classes_start_as_they_do_everywhere() -> None:
    before, after = again(shrink_and_perturb(), wide())
    assert torch.equal(after["head.weight"][2:], before["head.weight"][2:])
    assert not torch.equal(after["head.weight"][:2], before["head.weight"][:2])


def test_heads_of_single_tasks_stay() -> None:
    before, after = again(shrink_and_perturb(), wide(task_known=True, head="per-task"))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in after if name.startswith("backbone.")}


def test_normalisation_and_what_is_frozen_stay() -> None:
    options = {"width": 16, "depth": 1, "heads": 2}
    model = SharedNetwork(registry.build("model", "vit", options, input_shape=(1, 8, 8)))
    model.backbone.get_submodule("embed").requires_grad_(False)
    model.open(0, [0, 1])
    before, after = again(shrink_and_perturb(), model)
    stay = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert stay == {name for name in after if ".norm" in name or ".embed." in name}


def test_each_task_has_noise_of_its_own() -> None:
    method, model = shrink_and_perturb(shrink=0.0, perturb=1.0), wide()
    found = []
    for _ in range(3):
        method.begin(model)
        found.append(weights(model)["backbone.layers.0.0.weight"])
        ended(method, model)
    assert not torch.equal(found[1], found[2])


def test_two_numbers_of_each_tensor_are_kept() -> None:
    method, model = shrink_and_perturb(), network()
    model.open(0, [0, 1])
    method.begin(model)
    ended(method, model)
    assert sum(t.numel() for t in method.state()[0].values()) == 2 * len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_twentieth_permutation_is_learned_better_than_by_naive_training(seed: int) -> None:
    naive = Strategy(name="naive", reference={"name": "naive"})
    ours = Strategy(name="ours", regularization=({"name": "shrink_and_perturb"},))
    assert learned_late(ours, seed) > learned_late(naive, seed) + 0.02
