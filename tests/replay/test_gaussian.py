"""Gaussian feature replay: its moments, what is drawn of them, what they train, and what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.costs.ledger import byte_count
from forgetlab.data.datasets import Samples, dataset
from forgetlab.plugins import registry
from forgetlab.results.store import Result
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.toolbox import gaussians
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.streams import in_pairs
from helpers.training import learned

D = 3


class Raw(nn.Module):
    """A backbone whose features are its inputs."""

    def __init__(self, n_features: int = D) -> None:
        super().__init__()
        self.n_features = n_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def gaussian(**options: Any) -> Any:
    return registry.build("memory", "gaussian", options)


def features(label: int, n: int, task: int = 0) -> Tensor:
    """Of a class: (n, D), with a mean and a covariance of its own."""
    draws = generator("gaussian", label)
    mix, shift = torch.randn(D, D, generator=draws), 3 * torch.randn(D, generator=draws)
    return torch.randn(n, D, generator=generator("gaussian", label, task)) @ mix + shift


def ended(memory: Any, tasks: list[list[int]], n: int = 40, told: bool = False) -> dict[tuple[int, int], Tensor]:
    """Let tasks of these classes end, in batches of 16; all features by task and class."""
    model, seen = SharedNetwork(Raw(), task_known=told), {}
    for number, classes in enumerate(tasks):
        model.open(number, classes)
        parts = {(number, label): features(label, n + label, number) for label in classes}
        x = torch.cat([*parts.values()])
        y = torch.cat([torch.full((len(part),), label) for (_, label), part in parts.items()])
        order = torch.randperm(len(y), generator=generator("order", number))
        data = [Batch(x[rows], y[rows], torch.full_like(rows, number)) for rows in order.split(16)]
        memory.end(model.eval(), data, generator("end"))
        seen |= parts
    return seen


def test_moments_are_those_of_all_features_at_once() -> None:
    """Whatever batches they come in, and whatever tasks: a class that comes again joins what is known of it."""
    memory = gaussian()
    seen = ended(memory, [[0, 1], [2], [0, 2]])
    for label in range(3):
        x = torch.cat([part for (_, other), part in seen.items() if other == label])
        torch.testing.assert_close(memory.known[f"{label}/mean"], x.mean(0), rtol=1e-4, atol=1e-4)
        covariance = gaussians.covariance(memory.known, label)
        torch.testing.assert_close(covariance, x.T.cov() + gaussians.RIDGE * torch.eye(D), rtol=1e-4, atol=1e-4)
    assert len(memory) == 3


def test_the_shared_covariance_is_that_within_all_classes() -> None:
    memory = gaussian(covariance="shared")
    seen = ended(memory, [[0, 1], [2], [0, 2]])
    classes = [torch.cat([part for (_, other), part in seen.items() if other == label]) for label in range(3)]
    within = torch.cat([x - x.mean(0) for x in classes])
    expected = within.T @ within / (len(within) - 3) + gaussians.RIDGE * torch.eye(D)
    torch.testing.assert_close(gaussians.covariance(memory.within, 0), expected, rtol=1e-4, atol=1e-4)
    assert not [name for name in memory.known if "scatter" in name]


def spread(drawn: Batch, label: int, expected: Tensor) -> float:
    """The largest difference of the covariance of what is drawn, in units of the largest entry."""
    return ((drawn.x[drawn.y == label].T.cov() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("shrinkage", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("covariance", ["class", "shared"])
def test_what_is_drawn_has_these_moments(covariance: str, shrinkage: float) -> None:
    memory = gaussian(covariance=covariance, shrinkage=shrinkage)
    ended(memory, [[0, 1], [2]])
    drawn = memory.sample(60000, generator("draw"))
    assert (drawn.task == UNKNOWN).all()
    for label in range(3):
        shared = covariance == "shared"
        sigma = gaussians.covariance(memory.within if shared else memory.known, 0 if shared else label)
        expected = (1 - shrinkage) * sigma + shrinkage * sigma.trace() / D * torch.eye(D)
        assert spread(drawn, label, expected) < 0.05
        mean, error = memory.known[f"{label}/mean"], (expected.diagonal() / 20000).sqrt()
        assert ((drawn.x[drawn.y == label].mean(0) - mean).abs() < 4 * error).all()


def test_a_factor_that_is_turned_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberate break: F^T F in the place of F F^T."""
    right = gaussians.factors
    monkeypatch.setattr(gaussians, "factors", lambda *args: [factor.T for factor in right(*args)])
    memory = gaussian()
    ended(memory, [[0, 1], [2]])
    drawn = memory.sample(60000, generator("draw"))
    assert max(spread(drawn, label, gaussians.covariance(memory.known, label)) for label in range(3)) > 0.2


def test_each_class_is_drawn_as_often_as_another() -> None:
    memory = gaussian()
    ended(memory, [[0, 1], [2]])
    counts = memory.sample(3000, generator("often")).y.bincount().double()
    assert chi2.sf(((counts - 1000) ** 2 / 1000).sum().item(), 2) > 0.01


def test_where_tasks_are_told_each_has_its_own() -> None:
    """Two tasks of the same classes answer by themselves, so each is drawn with its task."""
    memory = gaussian()
    seen = ended(memory, [[0, 1], [0, 1]], told=True)
    drawn = memory.sample(40000, generator("told"))
    pairs = {(int(t), int(y)) for t, y in zip(drawn.task[:400], drawn.y[:400], strict=True)}
    assert pairs == {*seen} and len(memory) == 4
    for (task, label), x in seen.items():
        mine = drawn.x[(drawn.task == task) & (drawn.y == label)]
        assert ((mine.mean(0) - x.mean(0)).abs() < 5 * x.std(0) / 100).all()


@pytest.mark.parametrize(("covariance", "of_class", "of_all"), [("class", D + D * D, 0), ("shared", D, D * D)])
def test_it_takes_as_much_as_there_are_classes_and_no_more_with_tasks(
    covariance: str, of_class: int, of_all: int
) -> None:
    sizes = []
    for tasks in ([[0, 1, 2]], [[0, 1, 2]] * 5):
        memory = gaussian(covariance=covariance)
        ended(memory, tasks)
        sizes.append(byte_count(memory.state()[0]))
    assert sizes == [4 * (3 * of_class + of_all) + 8 * (3 + (of_all > 0))] * 2  # and how many there were


def stream() -> Scenario:
    """Digits two by two; the head stands on the pixels."""
    digits = dataset("digits")
    parts = []
    for x, y in (digits.train, digits.test):
        parts.append([Samples(x[y // 2 == task].float(), y[y // 2 == task]) for task in range(5)])
    return in_pairs(*parts)


def final(memory: Any, seed: int) -> float:
    """The accuracy over all digits after the last task, of a head that is trained on frozen features."""
    model = SharedNetwork(Raw(64), seed=seed)
    found = [] if memory is None else [memory]
    scenario = stream()
    how: Any = {"epochs": 5, "seed": seed, "optimizer": "adam", "lr": 2e-2, "batch_size": 32}
    learned(model, to_benchmark(scenario), *found, **how)
    x, y = (torch.cat([getattr(task.test, part) for task in scenario.tasks]) for part in ("x", "y"))
    return (model.eval()(x, torch.zeros_like(y)).argmax(1) == y).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"covariance": "shared"}, {"shrinkage": 0.1, "ratio": 2.0}])
def test_on_frozen_features_it_nearly_undoes_forgetting(options: dict[str, Any]) -> None:
    accuracies = [final(gaussian(**options), seed) for seed in range(3)]
    naive = final(None, 0)
    print(f"gaussian {accuracies}, naive {naive:.3f}")
    assert min(accuracies) > 0.8 and naive < 0.4


def test_a_step_is_on_both_and_the_backbone_learns_from_the_new_samples_alone() -> None:
    """The gradients by hand, of the first step of the second task."""
    torch.manual_seed(0)
    model, memory = SharedNetwork(MLP((D,), (4,))), gaussian(ratio=0.5)
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    class Look(registry.find("regularizer", "lwf").factory):  # type: ignore[misc]
        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            named = [(name, p) for name, p in model.named_parameters()]
            found = torch.autograd.grad(strategy.loss, [p for _, p in named], retain_graph=True)
            x, y = strategy.mbatch[0], strategy.mbatch[1]
            drawn = memory._drawn
            if drawn is None:
                return
            assert len(x) == 8 and len(drawn.y) == 4 and len(strategy.mb_output) == 8
            on_new = F.cross_entropy(model(x, strategy.mbatch[2]), y, reduction="sum")
            on_drawn = F.cross_entropy(model.head(drawn.x), drawn.y, reduction="sum")
            by_hand = torch.autograd.grad((on_new + on_drawn) / 12, [p for _, p in named])
            names = [name for name, _ in named]
            seen.append((dict(zip(names, found, strict=True)), dict(zip(names, by_hand, strict=True))))

    parts = []
    for task in range(2):
        x = torch.cat([features(2 * task + i, 8) for i in range(2)])
        parts.append(Samples(x, 2 * task + torch.arange(16) // 8))
    learned(model, to_benchmark(in_pairs(parts)), memory, Look(), epochs=1, optimizer="adam", lr=1e-3)
    assert len(seen) == 2 and memory.replayed == 8
    for ours, by_hand in seen:
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, by_hand[name])


FILE = """
name: gaussian
scenario: {name: split_digits, n_tasks: 3, held_back: 4}
model: {name: vit, width: 16, depth: 2, patch: 4, heads: 2}
pretrain: {epochs: 12}
protocol: {budget: {epochs: 4}}
train: {lr: 5e-3, batch_size: 32}
references: []
strategies: [ENTRY]
seeds: [0, 1, 2]
"""


def results(folder: Path, entry: str, text: str = FILE) -> list[Result]:
    return runs.results(folder, text.replace("ENTRY", entry), starts=folder / "starts")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["", "isolation: {name: lora, rank: 2}, shared: true, "])
def test_it_keeps_what_a_slow_backbone_learned(tmp_path: Path, module: str) -> None:
    """At a hundredth of the head's rate, also where a module is all of it that moves."""
    entry = f"{module}regularization: {{name: slca, epochs: 0}}, train: {{lr: 1e-2}}"
    alone, both = (
        [result.metrics["average_accuracy"] or 0.0 for result in results(tmp_path, f"{{{entry}{more}}}")]
        for more in ("", ", replay: {memory: gaussian, ratio: 2.0}")
    )
    print(f"{module or 'all'}: alone {alone}, with features {both}")
    assert sum(both) > sum(alone) + 3 * 0.15


@pytest.mark.slow
def test_it_works_with_a_head_for_each_task_and_repeats_itself(tmp_path: Path) -> None:
    text = FILE.replace("{budget", "{head: per-task, budget").replace(
        "held_back: 4", "held_back: 4, setting: task-incremental"
    )
    text = text.replace("[0, 1, 2]", "[0]")
    entry = "{replay: {memory: gaussian}, train: {lr: 1e-3}}"
    first, second = (results(tmp_path, entry, text) for _ in range(2))
    assert first == second and (first[0].metrics["average_accuracy"] or 0) > 0.8


@pytest.mark.parametrize(
    "more", ["depth: 1", "sampler: mir", "rehearsal: der++", "rehearsal: icarl", "projection: agem"]
)
def test_what_needs_kept_samples_is_refused_beside_it(tmp_path: Path, more: str) -> None:
    with pytest.raises(FileErrors, match=r"keeps no samples|reads samples|needs the logits"):
        results(tmp_path, f"{{replay: {{memory: gaussian, {more}}}}}")


@pytest.mark.slow
def test_other_rehearsals_take_features(tmp_path: Path) -> None:
    (result, *_) = results(tmp_path, "{replay: {memory: gaussian, rehearsal: er_ace}}")
    assert (result.metrics["average_accuracy"] or 0) > 0.2
