"""Stable SGD: rates and dropout as a network with dropout layers has them, nothing of it outside of a step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import BaseLogger, EvaluationPlugin, SupervisedPlugin
from forgetlab.backbones.mlp import MLP
from forgetlab.checks.backbones import FAMILIES, samples, tiny
from forgetlab.checks.regime import network, stream, trained
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import drawn_from
from forgetlab.training.network import SharedNetwork
from helpers.runs import finals

Weights = dict[str, Tensor]


def stable_sgd(**options: float) -> Any:
    return registry.build("regime", "stable_sgd", options)


class Dropped(MLP):
    """The paper's network: dropout behind each ReLU."""

    p = 0.4

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = nn.functional.dropout(layer(x), self.p, self.training)
        return x


class DropsAtTestToo(Dropped):
    """As the authors' MLP does, which leaves out what tells training from test."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = nn.functional.dropout(layer(x), self.p)
        return x


class Rates(SupervisedPlugin):
    """Sets a task's rate by hand, and notes that of each."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.seen: list[list[float]] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for group in strategy.optimizer.param_groups:
            group["lr"] *= self.decay**strategy.clock.train_exp_counter
        self.seen.append([group["lr"] for group in strategy.optimizer.param_groups])


def of(kind: type[MLP]) -> SharedNetwork:
    with drawn_from("checks"):
        return SharedNetwork(kind((1, 8, 8), hidden=(10, 10)))


def same(ours: Weights, theirs: Weights) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_it_is_to_the_bit_a_network_with_dropout_layers_under_falling_rates() -> None:
    assert same(trained(of(MLP), stable_sgd(decay=0.5, dropout=0.4)), trained(of(Dropped), Rates(0.5)))


@pytest.mark.parametrize(("decay", "dropout"), [(0.5, 0.3), (0.6, 0.4), (0.5, 0.0)])
def test_other_rates_or_shares_are_found(decay: float, dropout: float) -> None:
    assert not same(trained(of(MLP), stable_sgd(decay=decay, dropout=dropout)), trained(of(Dropped), Rates(0.5)))


def test_test_samples_are_answered_without_chance() -> None:
    """Unlike by the authors' MLP."""
    x, task = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    ours, theirs = of(MLP), of(DropsAtTestToo)
    trained(ours, stable_sgd())
    trained(theirs)
    assert torch.equal(ours.eval()(x, task), ours(x, task))
    assert not torch.equal(theirs.eval()(x, task), theirs(x, task))


def in_a_plain_script(method: Any, rates: Rates) -> None:
    """Avalanche's own loop keeps its optimizer from task to task."""
    from avalanche.training.supervised import Naive

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        plugins=[method, rates],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )
    for experience in stream():
        strategy.train(experience)


def test_rates_do_not_build_up_where_an_optimizer_is_kept() -> None:
    rates = Rates(1.0)
    in_a_plain_script(stable_sgd(decay=0.5, dropout=0.0), rates)
    assert rates.seen == [[0.1], [0.05], [0.025]]


def builds_up() -> Any:
    """Leaves the optimizer as it made it."""
    method = stable_sgd(decay=0.5, dropout=0.0)
    restore = method.after_training_exp

    def kept(strategy: Any, **kwargs: Any) -> None:
        groups = strategy.optimizer.param_groups
        restore(strategy, **kwargs)
        strategy.optimizer.param_groups = groups

    method.after_training_exp = kept
    return method


def test_rates_that_build_up_are_found() -> None:
    rates = Rates(1.0)
    in_a_plain_script(builds_up(), rates)
    assert rates.seen[-1] == [0.1 * 0.5 * 0.25]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_units_of_each_block_are_dropped_at_the_rate_that_is_named(family: str) -> None:
    """Chi-square at a fixed seed; what is left is larger by as much, and what else leaves a block stays."""
    backbone, method = tiny(family), stable_sgd(dropout=0.25)
    model, x, left = SharedNetwork(backbone), samples(backbone, 0, n=40), []
    with drawn_from("tests", "dropout"), method.around(model):
        hooked = [m for m in model.modules() if m._forward_hooks]
        handles = [m.register_forward_hook(lambda _, __, y: left.append(y)) for m in hooked]
        dropped = model.backbone(x)
        for handle in handles:
            handle.remove()
    assert len(hooked) == 2 and not any(m._forward_hooks for m in model.modules())
    assert torch.equal(model.backbone(x), backbone(x)) and not torch.equal(dropped, backbone(x))
    if family == "mlp":
        return  # its ReLU makes zeros as well
    zeros = torch.cat([(y[0] if isinstance(y, tuple) else y).flatten() for y in left]) == 0
    n, expected = len(zeros), 0.25 * len(zeros)
    assert (float(zeros.sum()) - expected) ** 2 / (expected * (1 - 0.25)) < 10, f"{int(zeros.sum())} of {n}"


def test_a_copy_made_within_a_task_is_bare() -> None:
    class Copies(SupervisedPlugin):
        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            self.model = copy.deepcopy(strategy.model)

    copies = Copies()
    trained(of(MLP), stable_sgd(), copies)
    x, task = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    assert torch.equal(copies.model.train()(x, task), copies.model(x, task))
    assert not any(m._forward_hooks for m in copies.model.modules())


def test_a_pass_that_is_interrupted_leaves_no_second_dropout() -> None:
    model, method = network(), stable_sgd(dropout=0.25)
    strategy: Any = type("Strategy", (), {"model": model})
    method.before_forward(strategy)  # and the pass does not end
    method.before_forward(strategy)
    assert max(len(m._forward_hooks) for m in model.modules()) == 1
    method.after_forward(strategy)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_backbone_whose_layers_are_not_known_is_refused_for_its_dropout_alone() -> None:
    model = nn.Linear(3, 2)
    stable_sgd(dropout=0.0).check(model)
    with pytest.raises(OptionError, match="no known sites"):
        stable_sgd().check(model)


FILE = """
name: stable
scenario: {name: stream, data: digits, setting: domain-incremental, by: transform, transform: rotation, n_tasks: 5}
model: {name: mlp, hidden: [64]}
protocol: {budget: {epochs: 2}}
train: {optimizer: sgd, lr: 0.2, batch_size: 20}
references: [naive]
strategies: [{regularization: {name: stable_sgd, dropout: 0.25}}]
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_old_rotations_are_forgotten_less_than_by_naive_training(tmp_path: Path) -> None:
    accuracies = finals(tmp_path, FILE)
    gained = [ours - naive for naive, ours in zip(*accuracies.values(), strict=True)]
    assert min(gained) > 0.02, gained
