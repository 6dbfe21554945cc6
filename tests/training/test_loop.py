"""The loop: as many steps as the budget says, on the samples it says, and the same numbers as bare PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import CLScenario, SupervisedPlugin, stock_plugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.isolation.router import Router
from forgetlab.plugins import registry
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.heads import Head
from forgetlab.training.loop import Epoch, Loop, progress
from helpers.networks import network

SIZES = (50, 23, 1)  # samples of each task
BATCH = 8
TWO_EPOCHS = Budget(epochs=2)


def stream() -> Scenario:
    """Three tasks of different sizes; the first feature numbers the samples."""
    draw = torch.Generator().manual_seed(0)
    tasks = []
    for task, size in enumerate(SIZES):
        x = torch.randn(size, 4, generator=draw)
        x[:, 0] = torch.arange(size) / size
        samples = Samples(x, 2 * task + torch.arange(size) % 2)
        tasks.append(Task(f"task {task}", samples, samples, tuple(samples.y.unique().tolist())))
    return Scenario(tuple(tasks), tuple("abcdef"), task_known_at_test=False)


@pytest.fixture
def benchmark() -> CLScenario:
    return to_benchmark(stream())


def loop(*methods: SupervisedPlugin, budget: Budget = TWO_EPOCHS, **options: Any) -> Loop:
    settings = {"model": network(), "train": Train(batch_size=BATCH, lr=0.01), **options}
    return Loop(plugins=methods, budget=budget, **settings)


class Recorder(SupervisedPlugin):
    """Keeps what was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Tensor]] = []
        self.updates = 0

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.batches.append([field.clone() for field in strategy.mbatch])

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.updates += 1


@pytest.mark.parametrize("updates", [1, 6, 7, 8, 14, 20])
def test_a_budget_of_updates_is_the_exact_number_of_optimizer_steps(benchmark: CLScenario, updates: int) -> None:
    recorder = Recorder()
    training = loop(recorder, budget=Budget(updates=updates))
    for experience in benchmark.streams["train"]:
        training.train(experience, [])
        assert recorder.updates == training.clock.train_exp_iterations == updates
        recorder.updates = 0


@pytest.mark.usefixtures("undeprecated")
@pytest.mark.parametrize("batch_size", [5, 16, 100])
def test_a_budget_of_updates_holds_where_a_plugin_brings_its_own_loader(benchmark: CLScenario, batch_size: int) -> None:
    """A stock replay may take more or fewer new samples per step than we would."""
    replay = stock_plugin({"plugin": "ReplayPlugin", "mem_size": 10, "batch_size": batch_size})
    training = loop(replay, budget=Budget(updates=12))
    for experience in benchmark.streams["train"]:
        training.train(experience, [])
        assert training.clock.train_exp_iterations == 12


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_budget_of_epochs_shows_every_sample_once_per_epoch(benchmark: CLScenario, epochs: int) -> None:
    recorder = Recorder()
    told: list[Epoch] = []
    training = loop(recorder, budget=Budget(epochs=epochs), on_epoch=told.append)
    for size, experience in zip(SIZES, benchmark.streams["train"], strict=True):
        recorder.batches.clear()
        training.train(experience, [])
        per_epoch = math.ceil(size / BATCH)
        assert len(recorder.batches) == training.clock.train_exp_iterations == epochs * per_epoch
        for epoch in range(epochs):
            x = torch.cat([b[0] for b in recorder.batches[epoch * per_epoch : (epoch + 1) * per_epoch]])
            assert torch.equal(x[:, 0].sort().values, torch.arange(size) / size)
        assert training.seen == epochs * size
    assert told == [Epoch(epoch + 1, epochs) for _ in SIZES for epoch in range(epochs)]


class Shares(SupervisedPlugin):
    """Notes which share of a task's steps is behind before each."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.told.append(progress(strategy))


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(updates=(4, 2, 5)), [4, 2, 5]),
        (Budget(updates=2, first_task=5), [5, 2, 2]),
        (Budget(epochs=(1, 2, 3)), [7, 6, 3]),
        (Budget(epochs=1, first_task=2), [14, 3, 1]),
    ],
)
def test_each_task_has_its_own_part_of_a_budget(benchmark: CLScenario, budget: Budget, steps: list[int]) -> None:
    shares = Shares()
    training = loop(shares, budget=budget)
    for n, experience in zip(steps, benchmark.streams["train"], strict=True):
        shares.told.clear()
        training.train(experience, [])
        assert training.steps == n
        assert shares.told == [step / n for step in range(n)]


class States(SupervisedPlugin):
    """Copies of the optimizer's state of the head's weight, when a task begins and when it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[dict[str, Tensor]] = []
        self.ended: list[dict[str, Tensor]] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.begun.append(self._copied(strategy))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.ended.append(self._copied(strategy))

    def _copied(self, strategy: Any) -> dict[str, Tensor]:
        state = strategy.optimizer.state.get(strategy.model.get_parameter("head.weight"), {})
        return {name: value.clone() for name, value in state.items()}


def test_rows_that_a_head_has_grown_by_begin_with_no_moments_and_old_rows_keep_theirs(benchmark: CLScenario) -> None:
    states = States()
    training = loop(states, reset_optimizer=False)
    for experience in benchmark.streams["train"]:
        training.train(experience, [])
    assert states.begun[0] == {}
    for task in (1, 2):
        old, new = states.ended[task - 1], states.begun[task]
        assert torch.equal(new["step"], old["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            rows = len(old[name])
            assert len(new[name]) > rows and bool(old[name].any())
            assert torch.equal(new[name][:rows], old[name])
            assert not bool(new[name][rows:].any())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_naive_training_equals_bare_pytorch_to_the_bit(benchmark: CLScenario, optimizer: Any) -> None:
    momentum: dict[str, Any] = {"momentum": 0.9} if optimizer == "sgd" else {}
    train = Train(optimizer=optimizer, lr=0.02, batch_size=BATCH, weight_decay=0.1, **momentum)
    training = loop(train=train, seed=3)
    for experience in benchmark.streams["train"]:
        training.train(experience, [])
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    options = {"lr": 0.02, "weight_decay": 0.1, "fused": True, **momentum}
    expected = bare_pytorch(lambda parameters: kind(parameters, **options), epochs=2, seed=3)
    for ours, theirs in zip(training.model.parameters(), expected, strict=True):
        assert torch.equal(ours, theirs)


def bare_pytorch(make_optimizer: Any, epochs: int, seed: int) -> list[Tensor]:
    """The same written out; new rows of the head are taken from those that a network starts with."""
    torch.manual_seed(0)
    backbone, start = MLP((4,), (5,)), Head(5, seed=0)
    start.grow(range(6))
    weight, bias = torch.empty(0, 5), torch.empty(0)
    for i, task in enumerate(stream().tasks):
        new = slice(len(weight), max(task.classes) + 1)
        weight = nn.Parameter(torch.cat([weight.detach(), start.weight.detach()[new]]))
        bias = nn.Parameter(torch.cat([bias.detach(), start.bias.detach()[new]]))
        optimizer = make_optimizer([*backbone.parameters(), weight, bias])
        for epoch in range(epochs):
            order = torch.randperm(SIZES[i], generator=generator("order", seed, i, epoch))
            for rows in order.split(BATCH):
                optimizer.zero_grad()
                logits = backbone(task.train.x[rows]) @ weight.T + bias
                F.cross_entropy(logits, task.train.y[rows]).backward()
                optimizer.step()
    return [*backbone.parameters(), weight, bias]


def test_evaluation_says_for_every_sample_whether_its_answer_is_right(benchmark: CLScenario) -> None:
    training = loop()
    training.train(benchmark.streams["train"][0], [])
    training.eval(benchmark.streams["test"][0])
    samples = stream().tasks[0].test
    answers = training.model.eval()(samples.x, torch.zeros_like(samples.y)).argmax(1)
    assert training.correct is not None and torch.equal(training.correct, answers == samples.y)
    assert training.right_route is None


class Halves(Router):
    """Sends the samples with the largest sum of features to task 1."""

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None: ...

    def route(self, features: Tensor, answers: Any) -> Tensor:
        size = features.sum(1)
        return (size > size.median()).long()


def test_evaluation_says_for_every_sample_whether_its_route_is_right(benchmark: CLScenario) -> None:
    torch.manual_seed(0)
    backbone, router = MLP((4,), (5,)), Halves()
    model = IsolatedNetwork(
        backbone,
        lambda: registry.build("isolation", "lora", {"sites": ["mlp.in"], "rank": 1}),
        router=router,
        task_known=False,
    )
    training = loop(IsolationPlugin(), model=model)
    for task in (0, 1):
        training.train(benchmark.streams["train"][task], [])
    for task in (0, 1):
        training.eval(benchmark.streams["test"][task])
        routes = router.route(backbone(stream().tasks[task].test.x), None)
        assert training.right_route is not None and torch.equal(training.right_route, routes == task)
        assert 0 < training.right_route.sum() < len(routes)
