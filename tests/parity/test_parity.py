"""Our methods in our loop beside Avalanche's in Avalanche's, on the same batches from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.avalanche.api import CLScenario, SupervisedPlugin, stock_plugin
from forgetlab.plugins import registry
from helpers import training
from helpers.networks import bare
from helpers.streams import opposed, under_one_label
from helpers.training import SEED, Weights, difference, weights

TOLERANCE = 1e-6  # in a weight, after all tasks


def benchmark(tasks: int = 3) -> CLScenario:
    """60 samples a task; all carry one task label, as one head wants."""
    return under_one_label(opposed("parity", 60, tasks))


def in_avalanche(plugin: SupervisedPlugin, tasks: int = 3) -> Weights:
    return weights(training.in_avalanche(bare(), benchmark(tasks), plugin, criterion=nn.CrossEntropyLoss()))


def in_our_loop(plugin: SupervisedPlugin | None, tasks: int = 3) -> Weights:
    return weights(training.learned(bare(), benchmark(tasks), *([plugin] if plugin else []), seed=SEED))


STOCK = [
    {"plugin": "MASPlugin", "lambda_reg": 1.0},
    {"plugin": "GEMPlugin", "patterns_per_experience": 20, "memory_strength": 0.5},
    {"plugin": "AGEMPlugin", "patterns_per_experience": 20, "sample_size": 12},
    {"plugin": "LwFPlugin", "alpha": 2.0},
]


@pytest.mark.parametrize("spec", STOCK, ids=lambda spec: spec["plugin"])
def test_a_stock_plugin_does_in_our_loop_what_it_does_in_avalanches(spec: dict[str, Any]) -> None:
    ours, theirs = in_our_loop(stock_plugin(spec)), in_avalanche(stock_plugin(spec))
    print(f"{spec['plugin']}: {difference(ours, theirs):.2g}")
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, in_our_loop(None)) > 1e-3  # and it does something


def test_lwf_is_avalanches() -> None:
    ours = in_our_loop(registry.build("regularizer", "lwf", {"strength": 2.0}))
    theirs = in_avalanche(stock_plugin({"plugin": "LwFPlugin", "alpha": 2.0}))
    print(f"LwF: {difference(ours, theirs):.2g}")
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, in_our_loop(None)) > 1e-2


SI = {"plugin": "SynapticIntelligencePlugin", "si_lambda": 2.0, "eps": 0.1}
SynapticIntelligence: Any = type(stock_plugin(SI))


def copied(model: nn.Module, target: Any, excluded: Any) -> None:
    for name, parameter in SynapticIntelligence.allowed_parameters(model, excluded):
        target[name].data = parameter.detach().flatten().clone()


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_avalanches_si_does_nothing_on_a_cpu() -> None:
    """Its "weights before the step" are a view of the weights, so every path integral is 0."""
    assert difference(in_avalanche(stock_plugin(SI)), in_our_loop(None)) < TOLERANCE


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Avalanche's SI with weights that are copied."""
    monkeypatch.setattr(SynapticIntelligence, "extract_weights", staticmethod(copied))
    return monkeypatch


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_si_is_avalanches_without_its_cap(repaired: pytest.MonkeyPatch) -> None:
    """Over two tasks: from the third on it also counts the penalty's gradient as learning. Its lambda is twice ours."""
    capped = SynapticIntelligence.update_ewc_data

    def uncapped(net: Any, ewc_data: Any, syn_data: Any, clip_to: float, *rest: Any, **options: Any) -> None:
        capped(net, ewc_data, syn_data, float("inf"), *rest, **options)
        for importance in ewc_data[1].values():
            importance.data = importance.data.clamp(min=0)  # as the authors' code does

    repaired.setattr(SynapticIntelligence, "update_ewc_data", staticmethod(uncapped))
    ours = in_our_loop(registry.build("regularizer", "si", {"strength": 1.0, "xi": 0.1}), 2)
    theirs = in_avalanche(stock_plugin(SI), 2)
    print(f"SI: {difference(ours, theirs):.2g}")
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, in_our_loop(None, 2)) > 1e-2


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_avalanches_cap_is_far_below_the_importances(repaired: pytest.MonkeyPatch) -> None:
    """It sets all above 0.001 to 0.001: with the strengths of the paper the penalty is next to nothing."""
    plugin: Any = stock_plugin(SI)
    in_avalanche(plugin, 1)
    importance = torch.cat([one.data for one in plugin.ewc_data[1].values()])
    ours: Any = registry.build("regularizer", "si")
    in_our_loop(ours, 1)
    true = torch.cat([one.flatten() for one in ours.importance.values()])
    assert importance.max() == pytest.approx(0.001)
    assert true.max() > 100 * importance.max()
    assert (importance == importance.max()).float().mean() > 0.3
