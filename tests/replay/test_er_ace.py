"""ER-ACE: its loss by hand, whom new samples push away, and parity with Avalanche's, step by step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab import engine, plugins
from forgetlab.avalanche_api import (
    BaseLogger,
    CLScenario,
    EvaluationPlugin,
    benchmark_from_datasets,
    stock_class,
    with_classes_timeline,
    with_task_labels,
)
from forgetlab.batch import Batch
from forgetlab.config import load
from forgetlab.data import TensorLoader, TensorTask
from forgetlab.description import Budget, Train
from forgetlab.loop import Loop
from forgetlab.network import MASK
from forgetlab.replay import Memory, Rehearsal
from forgetlab.scenario import Samples
from forgetlab.seeding import generator, reseed
from forgetlab.strategies.replay.er_ace import AsymmetricCrossEntropy

ER_ACE = stock_class("strategy", "ER_ACE")
ACECriterion: Any = vars(inspect.getmodule(ER_ACE))["ACECriterion"]
MODEL = nn.Identity()  # the loss needs no more than the output
SEED, LR, BATCH, EPOCHS, SIZE, DRAWN = 3, 0.05, 8, 2, 60, 12
TOLERANCE = 1e-6  # in a weight, after all tasks


class Symmetric(Rehearsal):
    """The deliberate break: new samples compete with all classes."""

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        n = len(new.y)
        return F.cross_entropy(output[:n], new.y) + F.cross_entropy(output[n:], drawn.y)


def batch(y: list[int]) -> Batch:
    return Batch(torch.zeros(len(y), 1), torch.tensor(y), torch.zeros(len(y), dtype=torch.int64))


def example() -> tuple[Batch, Batch, Tensor]:
    """New samples of classes 3 and 4, drawn ones of 0 to 2; class 5 is open, and nobody has seen it."""
    output = torch.randn(7, 6, generator=generator("er_ace"), dtype=torch.float64)
    return batch([3, 4, 4]), batch([0, 1, 2, 1]), output.requires_grad_()


def test_the_loss_by_hand() -> None:
    new, drawn, output = example()
    on_new = -output[:3, 3:5].log_softmax(1)[range(3), [0, 1, 1]].mean()
    on_drawn = -output[3:].log_softmax(1)[range(4), [0, 1, 2, 1]].mean()
    torch.testing.assert_close(AsymmetricCrossEntropy().loss(MODEL, new, drawn, output), on_new + on_drawn)


def pushed(rehearsal: Rehearsal) -> Tensor:
    """How hard the new samples push the classes that are not among them."""
    new, drawn, output = example()
    (gradient,) = torch.autograd.grad(rehearsal.loss(MODEL, new, drawn, output), [output])
    return gradient[:3, [0, 1, 2, 5]]


def test_new_samples_push_no_class_that_is_not_among_them() -> None:
    assert not pushed(AsymmetricCrossEntropy()).any()
    assert (pushed(Symmetric()) > 0).all()


def test_classes_that_may_not_answer_stay_out() -> None:
    """Where the task is told, or a head has rows for classes to come, their logits are MASK."""
    new, drawn, output = example()
    masked = output.detach().clone()
    masked[3:, 3:] = MASK
    expected = AsymmetricCrossEntropy().loss(MODEL, new, drawn, masked[:, :5])
    torch.testing.assert_close(AsymmetricCrossEntropy().loss(MODEL, new, drawn, masked), expected)


def test_it_is_twice_avalanches() -> None:
    """Which halves the sum of the paper and of the authors' code."""
    new, drawn, output = example()
    theirs = ACECriterion()(output[:3], new.y, output[3:], drawn.y)
    torch.testing.assert_close(AsymmetricCrossEntropy().loss(MODEL, new, drawn, output), 2 * theirs)


def parts() -> list[Samples]:
    draw, found = generator("er_ace stream"), []
    for task in range(3):
        y = 2 * task + torch.arange(SIZE) % 2
        found.append(Samples(torch.randn(SIZE, 6, generator=draw) + 1.5 * torch.eye(6)[y] * (-1) ** task, y))
    return found


def benchmark() -> CLScenario:
    tasks = [TensorTask.of(part, task=0) for part in parts()]
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=tasks)))


def old_samples(task: int) -> Iterator[Batch]:
    """The same for both: of the tasks before."""
    x, y = (torch.cat(column) for column in zip(*parts()[:task], strict=True))
    draw = generator("er_ace draws", task)
    while True:
        rows = torch.randperm(len(y), generator=draw)[:DRAWN]
        yield Batch(x[rows], y[rows], torch.zeros_like(rows))


class OldSamples(Memory):
    """Draws those, from the second task on."""

    task = -1

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        self.task += 1
        self.drawn = old_samples(self.task)

    def __len__(self) -> int:
        return DRAWN if self.task > 0 else 0

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None: ...

    def sample(self, n: int, generator: Generator) -> Batch:
        return next(self.drawn)


class Theirs(ER_ACE):
    """Avalanche's with the batches of our loop, the drawn samples from above, and the sum that it halves."""

    def make_train_dataloader(self, **kwargs: Any) -> None:
        columns, task = self.adapted_dataset.columns(), self.clock.train_exp_counter
        self.dataloader = TensorLoader(columns, self.train_mb_size, lambda e: generator("order", SEED, task, e))

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        reseed("task", SEED, self.clock.train_exp_counter)
        super().check_model_and_optimizer(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        task, halved = self.clock.train_exp_counter, ACECriterion()
        self.replay_loader = (drawn[:3] for drawn in old_samples(task)) if task else None
        self.ace_criterion = lambda *given: 2 * halved(*given)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))


def trained(training: Any) -> Tensor:
    for experience in benchmark().streams["train"]:
        training.train(experience, [])
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def in_avalanche() -> Tensor:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sizes = {"train_mb_size": BATCH, "train_epochs": EPOCHS, "mem_size": 50, "batch_size_mem": DRAWN}
    return trained(
        Theirs(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(loggers=[BaseLogger()]), **sizes)
    )


def in_our_loop(rehearsal: Rehearsal) -> Tensor:
    memory = OldSamples(50)
    memory.rehearsal = rehearsal
    train = Train(optimizer="sgd", lr=LR, batch_size=BATCH)
    return trained(Loop(model=network(), train=train, budget=Budget(epochs=EPOCHS), plugins=[memory], seed=SEED))


def test_it_goes_avalanches_way_step_by_step() -> None:
    theirs = in_avalanche()
    difference = (in_our_loop(AsymmetricCrossEntropy()) - theirs).abs().max().item()
    print(f"ER-ACE: {difference:.2g}")
    assert difference < TOLERANCE
    assert (in_our_loop(Symmetric()) - theirs).abs().max() > 1e-2


FILE = """
name: er-ace
scenario: {{name: split_digits, setting: {setting}, n_tasks: 5}}
model: {{name: mlp, hidden: [32]}}
protocol: {{budget: {{epochs: 1}}, head: {head}}}
train: {{lr: 1e-2, batch_size: 32}}
references: []
strategies:
  - {{replay: {{memory: reservoir, capacity: 50}}}}
  - {{replay: {{memory: reservoir, capacity: 50, rehearsal: er_ace}}}}
seeds: [0, 1, 2]
"""


def results(folder: Path, setting: str, head: str = "growing") -> tuple[list[Any], list[Any]]:
    """Of plain replay and of ER-ACE, with each seed."""
    (folder / "file.yaml").write_text(FILE.format(setting=setting, head=head), encoding="utf-8")
    found = [engine.run(run) for run in load(folder / "file.yaml").runs()]
    return found[:3], found[3:]


def test_it_forgets_less_than_plain_replay_where_classes_come(tmp_path: Path) -> None:
    """In one pass, as the paper says. By Adam, whose steps are no longer where a loss is a sum and not a mean."""
    plain, ours = results(tmp_path, "class-incremental")
    accuracy = [[result.metrics["average_accuracy"] for result in some] for some in (plain, ours)]
    print(accuracy)
    assert all(b > a + 0.03 for a, b in zip(*accuracy, strict=True))


def test_where_the_task_is_told_there_is_little_between_them(tmp_path: Path) -> None:
    plain, ours = results(tmp_path, "task-incremental", "per-task")
    for a, b in zip(plain, ours, strict=True):
        assert abs(a.metrics["average_accuracy"] - b.metrics["average_accuracy"]) < 0.05


def test_a_scenario_file_gives_it_to_a_memory(tmp_path: Path) -> None:
    assert plugins.parameters(plugins.find("rehearsal", "er_ace")) == []
    (tmp_path / "file.yaml").write_text(FILE.format(setting="class-incremental", head="fixed"), encoding="utf-8")
    assert [entry.name for entry in load(tmp_path / "file.yaml").strategies] == ["reservoir", "reservoir+er_ace"]
