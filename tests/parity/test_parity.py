"""Our methods in our loop beside Avalanche's in Avalanche's, on the same batches from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab import plugins
from forgetlab.avalanche_api import (
    BaseLogger,
    CLScenario,
    EvaluationPlugin,
    SupervisedPlugin,
    SupervisedTemplate,
    benchmark_from_datasets,
    stock_plugin,
    with_classes_timeline,
    with_task_labels,
)
from forgetlab.data import TensorLoader, TensorTask
from forgetlab.description import Budget, Train
from forgetlab.loop import Loop
from forgetlab.scenario import Samples
from forgetlab.seeding import generator, reseed

SEED, LR, BATCH, EPOCHS = 3, 0.1, 8, 2
SIZE = 60  # of a task
TOLERANCE = 1e-6  # in a weight, after all tasks

Weights = dict[str, Tensor]


def benchmark(tasks: int = 3) -> CLScenario:
    """Tasks of two classes each that pull at shared features; all carry one task label, as one head wants."""
    draw, found = generator("parity"), []
    for task in range(tasks):
        y = 2 * task + torch.arange(SIZE) % 2
        x = torch.randn(SIZE, 6, generator=draw) + 1.5 * torch.eye(6)[y % 6] * (-1) ** task
        found.append(TensorTask.of(Samples(x, y), task=0))
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=found)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))


class Stock(SupervisedTemplate):
    """Avalanche's own template, fed with the batches of our loop; its generators are seeded as our loop seeds them."""

    def make_train_dataloader(self, **kwargs: Any) -> None:
        columns, task = self.adapted_dataset.columns(), self.clock.train_exp_counter
        self.dataloader = TensorLoader(columns, self.train_mb_size, lambda e: generator("order", SEED, task, e))

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        reseed("task", SEED, self.clock.train_exp_counter)
        super().check_model_and_optimizer(**kwargs)


def in_avalanche(plugin: SupervisedPlugin, stream: CLScenario) -> Weights:
    model = network()
    training = Stock(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        plugins=[plugin],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )
    return trained(training, stream)


def in_our_loop(plugin: SupervisedPlugin | None, stream: CLScenario) -> Weights:
    training = Loop(
        model=network(),
        train=Train(optimizer="sgd", lr=LR, batch_size=BATCH),
        budget=Budget(epochs=EPOCHS),
        plugins=[plugin] if plugin else [],
        seed=SEED,
    )
    return trained(training, stream)


def trained(training: Any, stream: CLScenario) -> Weights:
    for experience in stream.streams["train"]:
        training.train(experience, [])
    return {name: p.detach().clone() for name, p in training.model.named_parameters()}


def difference(ours: Weights, theirs: Weights) -> float:
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


STOCK = [
    {"plugin": "MASPlugin", "lambda_reg": 1.0},
    {"plugin": "GEMPlugin", "patterns_per_experience": 20, "memory_strength": 0.5},
    {"plugin": "AGEMPlugin", "patterns_per_experience": 20, "sample_size": 12},
    {"plugin": "LwFPlugin", "alpha": 2.0},
]


@pytest.mark.parametrize("spec", STOCK, ids=lambda spec: spec["plugin"])
def test_a_stock_plugin_does_in_our_loop_what_it_does_in_avalanches(spec: dict[str, Any]) -> None:
    ours, theirs = in_our_loop(stock_plugin(spec), benchmark()), in_avalanche(stock_plugin(spec), benchmark())
    print(f"{spec['plugin']}: {difference(ours, theirs):.2g}")
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, in_our_loop(None, benchmark())) > 1e-3  # and it does something


def test_lwf_is_avalanches() -> None:
    ours = in_our_loop(plugins.build("regularizer", "lwf", {"strength": 2.0}), benchmark())
    theirs = in_avalanche(stock_plugin({"plugin": "LwFPlugin", "alpha": 2.0}), benchmark())
    print(f"LwF: {difference(ours, theirs):.2g}")
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, in_our_loop(None, benchmark())) > 1e-2


SI = {"plugin": "SynapticIntelligencePlugin", "si_lambda": 2.0, "eps": 0.1}
SynapticIntelligence: Any = type(stock_plugin(SI))


def copied(model: nn.Module, target: Any, excluded: Any) -> None:
    for name, parameter in SynapticIntelligence.allowed_parameters(model, excluded):
        target[name].data = parameter.detach().flatten().clone()


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_avalanches_si_does_nothing_on_a_cpu() -> None:
    """Its "weights before the step" are a view of the weights, so every path integral is 0."""
    assert difference(in_avalanche(stock_plugin(SI), benchmark()), in_our_loop(None, benchmark())) < TOLERANCE


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
    ours = in_our_loop(plugins.build("regularizer", "si", {"strength": 1.0, "xi": 0.1}), benchmark(2))
    theirs = in_avalanche(stock_plugin(SI), benchmark(2))
    print(f"SI: {difference(ours, theirs):.2g}")
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, in_our_loop(None, benchmark(2))) > 1e-2


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_avalanches_cap_is_far_below_the_importances(repaired: pytest.MonkeyPatch) -> None:
    """It sets all above 0.001 to 0.001: with the strengths of the paper the penalty is next to nothing."""
    plugin: Any = stock_plugin(SI)
    in_avalanche(plugin, benchmark(1))
    importance = torch.cat([one.data for one in plugin.ewc_data[1].values()])
    ours: Any = plugins.build("regularizer", "si")
    in_our_loop(ours, benchmark(1))
    true = torch.cat([one.flatten() for one in ours.importance.values()])
    assert importance.max() == pytest.approx(0.001)
    assert true.max() > 100 * importance.max()
    assert (importance == importance.max()).float().mean() > 0.3
