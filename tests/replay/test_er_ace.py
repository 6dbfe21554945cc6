"""ER-ACE: its loss by hand, whom new samples push away, and parity with Avalanche's, step by step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import stock_class
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.seeding import generator
from forgetlab.strategies.replay.rehearsals.er_ace import AsymmetricCrossEntropy
from forgetlab.training.competing_classes import MASK
from helpers import runs
from helpers.networks import bare
from helpers.streams import opposed, under_one_label
from helpers.training import SEED, OurBatches, difference, in_avalanche, learned

ER_ACE = stock_class("strategy", "ER_ACE")
ACECriterion: Any = vars(inspect.getmodule(ER_ACE))["ACECriterion"]
MODEL = nn.Identity()  # the loss needs no more than the output
LR, DRAWN = 0.05, 12
TOLERANCE = 1e-6  # in a weight, after all tasks
PARTS = opposed("er_ace stream", 60)


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


def old_samples(task: int) -> Iterator[Batch]:
    """The same for both: of the tasks before."""
    x, y = (torch.cat(column) for column in zip(*PARTS[:task], strict=True))
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


class Theirs(OurBatches, ER_ACE):
    """Avalanche's with the batches of our loop, the drawn samples from above, and the sum that it halves."""

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        task, halved = self.clock.train_exp_counter, ACECriterion()
        self.replay_loader = (drawn[:3] for drawn in old_samples(task)) if task else None
        self.ace_criterion = lambda *given: 2 * halved(*given)


def in_our_loop(rehearsal: Rehearsal) -> nn.Module:
    memory = OldSamples(50)
    memory.rehearsal = rehearsal
    return learned(bare(), under_one_label(PARTS), memory, lr=LR, seed=SEED)


def test_it_goes_avalanches_way_step_by_step() -> None:
    how: Any = {"kind": Theirs, "lr": LR, "mem_size": 50, "batch_size_mem": DRAWN}
    theirs = in_avalanche(bare(), under_one_label(PARTS), **how)
    apart = difference(in_our_loop(AsymmetricCrossEntropy()), theirs)
    print(f"ER-ACE: {apart:.2g}")
    assert apart < TOLERANCE
    assert difference(in_our_loop(Symmetric()), theirs) > 1e-2


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


def results(folder: Path, setting: str, head: str = "growing") -> list[list[float]]:
    """The final accuracies of plain replay and of ER-ACE, with each seed."""
    return list(runs.finals(folder, FILE.format(setting=setting, head=head)).values())


@pytest.mark.slow
def test_it_forgets_less_than_plain_replay_where_classes_come(tmp_path: Path) -> None:
    """In one pass, as the paper says. By Adam, whose steps are no longer where a loss is a sum and not a mean."""
    accuracy = results(tmp_path, "class-incremental")
    print(accuracy)
    assert all(b > a + 0.03 for a, b in zip(*accuracy, strict=True))


@pytest.mark.slow
def test_where_the_task_is_told_there_is_little_between_them(tmp_path: Path) -> None:
    plain, ours = results(tmp_path, "task-incremental", "per-task")
    for a, b in zip(plain, ours, strict=True):
        assert abs(a - b) < 0.05


def test_a_scenario_file_gives_it_to_a_memory(tmp_path: Path) -> None:
    assert registry.parameters(registry.find("rehearsal", "er_ace")) == []
    experiment = runs.loaded(tmp_path, FILE.format(setting="class-incremental", head="fixed"))
    assert [entry.name for entry in experiment.strategies] == ["reservoir", "reservoir+er_ace"]
