"""Ours in a plain Avalanche script, and Avalanche's own plug-ins in a ForgetLab run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from forgetlab.avalanche.api import BaseLogger, EvaluationPlugin, SupervisedPlugin, stock_plugin
from forgetlab.backbones.mlp import MLP
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Protocol, Strategy
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.results.store import Result
from forgetlab.toolbox.fisher import fisher
from helpers.runs import description

N_TASKS = 3


def parts() -> list[tuple[Tensor, Tensor]]:
    """Digits 0 and 1, then 2 and 3, then 4 and 5."""
    digits: Any = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    return [(x[y // 2 == task], y[y // 2 == task]) for task in range(N_TASKS)]


def benchmark(task_labels: Sequence[int]) -> Any:
    """Avalanche's own benchmark from tensors: the first 100 samples of each task to train, the rest to test."""
    from avalanche.benchmarks import tensors_benchmark

    train, test = [(x[:100], y[:100]) for x, y in parts()], [(x[100:], y[100:]) for x, y in parts()]
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=list(task_labels))


CLASS_INCREMENTAL, TASK_INCREMENTAL = [0] * N_TASKS, list(range(N_TASKS))


def script(model: nn.Module, *methods: Any, epochs: int = 10) -> Any:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.supervised import Naive

    return Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=20,
        train_epochs=epochs,
        eval_mb_size=200,
        plugins=list(methods),
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    )


def simple_mlp() -> nn.Module:
    from avalanche.models import SimpleMLP

    torch.manual_seed(0)
    return SimpleMLP(num_classes=2 * N_TASKS, input_size=64, hidden_size=100, drop_rate=0.1)


def accuracies(strategy: Any, stream: Any) -> list[float]:
    """Of each task, as Avalanche measures it."""
    return list(strategy.eval(stream).values())


def learned(*methods: Any) -> tuple[nn.Module, list[float]]:
    strategy, stream = script(simple_mlp(), *methods), benchmark(CLASS_INCREMENTAL)
    for experience in stream.train_stream:
        strategy.train(experience)
    return strategy.model, accuracies(strategy, stream.test_stream)


@pytest.fixture(scope="module")
def fine_tuned() -> list[float]:
    return learned()[1]


@pytest.mark.slow
def test_reservoir_in_a_plain_avalanche_script(fine_tuned: list[float]) -> None:
    memory = registry.build("memory", "reservoir", {"capacity": 60})
    _, final = learned(memory)
    assert fine_tuned[0] < 0.2 < 0.6 < min(final)
    assert memory.seen == 100 * N_TASKS and len(memory.slots) == 60
    assert set(memory.slots.tensors["y"].tolist()) == set(range(2 * N_TASKS))
    pairs = {(tuple(x.tolist()), int(y)) for part in parts() for x, y in zip(*part, strict=True)}
    kept = zip(memory.slots.tensors["x"], memory.slots.tensors["y"], strict=True)
    assert all((tuple(x.tolist()), int(y)) in pairs for x, y in kept)


class Weighs(SupervisedPlugin):
    """How far the weights are from those of the first task, where they mattered to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fisher: dict[str, Tensor] = {}

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if not self.fisher:
            from forgetlab.avalanche.tensor_data import batches

            self.first = copy.deepcopy(strategy.model).eval()
            self.fisher = fisher(self.first, batches(strategy.experience.dataset, 50, "cpu"))

    def distance(self, model: nn.Module) -> float:
        first = dict(self.first.named_parameters())
        return sum(float((self.fisher[n] * (p - first[n]) ** 2).detach().sum()) for n, p in model.named_parameters())


@pytest.mark.slow
def test_ewc_in_a_plain_avalanche_script() -> None:
    free, held = Weighs(), Weighs()
    far = free.distance(learned(free)[0])
    ewc = registry.build("regularizer", "ewc", {"strength": 1e3})
    model, final = learned(ewc, held)
    assert ewc.tasks == N_TASKS and final[-1] > 0.8
    assert held.distance(model) < 0.2 * far
    for name, value in ewc.weight.items():
        assert value.shape == model.get_parameter(name).shape


@pytest.mark.slow
def test_lora_per_task_in_a_plain_avalanche_script_answers_old_tasks_as_before() -> None:
    torch.manual_seed(0)
    options = {"sites": ["mlp.in"], "rank": 4}
    network = IsolatedNetwork(MLP((64,), (30, 30)), lambda: registry.build("isolation", "lora", options))
    strategy, stream = script(network, IsolationPlugin()), benchmark(TASK_INCREMENTAL)
    backbone = copy.deepcopy(network.backbone.state_dict())
    answers: list[Tensor] = []
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        assert all(accuracy > 0.9 for accuracy in accuracies(strategy, stream.test_stream[: task + 1]))
        answers.append(network.eval()(parts()[task][0], torch.full((len(parts()[task][0]),), task)))
    for task, before in enumerate(answers):
        x = parts()[task][0]
        after = network(x, torch.full((len(x),), task))
        assert torch.equal(after[:, : before.shape[1]], before)
        assert after[:, before.shape[1] :].unique().tolist() in ([], [-1e4])
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in network.backbone.state_dict().items())


def run(stock: dict[str, Any] | None, setting: str, **protocol: Any) -> Result:
    strategy = Strategy(name="stock", avalanche=stock, reference={"name": "naive"} if stock is None else None)
    told = Protocol(task_known_at_test=setting == "task-incremental", budget=Budget(epochs=1), **protocol)
    scenario = {"name": "split_digits", "setting": setting, "n_tasks": 5}
    return one_run.run(description(strategy, scenario=scenario, protocol=told))


@pytest.fixture(scope="module")
def naive() -> Callable[..., Result]:
    """The run without a plug-in; once for each protocol."""
    return cache(lambda setting, **protocol: run(None, setting, **protocol))


STOCK = [
    {"plugin": "LwFPlugin", "alpha": 1.0},
    {"plugin": "MASPlugin", "lambda_reg": 1.0},
    {"plugin": "EWCPlugin", "ewc_lambda": 10.0},
    {"plugin": "AGEMPlugin", "patterns_per_experience": 20, "sample_size": 20},
    {"plugin": "ReplayPlugin", "mem_size": 50},
    {"plugin": "GDumbPlugin", "mem_size": 100},
]


@pytest.mark.usefixtures("undeprecated")
@pytest.mark.parametrize(
    ("setting", "protocol"),
    [
        ("class-incremental", {}),
        ("class-incremental", {"head": "fixed", "loss_classes": "all"}),
        ("class-incremental", {"loss_classes": "current"}),
        ("task-incremental", {}),
        ("task-incremental", {"head": "per-task"}),
        ("domain-incremental", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value.values()) or "growing",
)
@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: stock["plugin"])
def test_a_stock_plugin_runs_by_its_name(
    stock: dict[str, Any], setting: str, protocol: dict[str, Any], naive: Callable[..., Result]
) -> None:
    result, without = run(stock, setting, **protocol), naive(setting, **protocol)
    answered = [[a is not None for a in row] for row in result.accuracy]
    assert answered == [[a is not None for a in row] for row in without.accuracy]
    assert result.accuracy != without.accuracy
    assert math.isfinite(result.metrics["average_accuracy"] or math.nan)
    assert result.counts["total"]["parameters"] == without.counts["total"]["parameters"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"plugin": "LwfPlugin"}, "did you mean 'LwFPlugin'"),
        ({"plugin": "EWCPlugin"}, "ewc_lambda"),
        ({"plugin": "EWCPlugin", "ewc_lambda": 1.0, "lamda": 1.0}, "lamda"),
        ({"plugin": "EWCPlugin", "ewc_lambda": 1.0, "mode": "sometimes"}, "EWCPlugin"),
        ({"plugin": "CWRStarPlugin", "model": None}, "CWRStarPlugin"),
    ],
)
def test_arguments_that_a_stock_plugin_does_not_take_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        stock_plugin(spec)
