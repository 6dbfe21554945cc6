"""SLCA: its Gaussians, loss and alignment against the formulas, written anew, and the classes it brings back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.engine import one_run
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.toolbox import gaussians
from forgetlab.training.network import SharedNetwork
from helpers.networks import opened
from helpers.runs import final, finals, loaded

WIDTH = 6


def slca(**options: Any) -> Any:
    return registry.build("regime", "slca", options)


def features(n: int = 90, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Classes that lie and spread in ways of their own."""
    draw, y = generator("tests", "slca"), torch.arange(n) % classes
    turn = torch.randn(classes, WIDTH, WIDTH, generator=draw)
    noise = torch.einsum("nij,nj->ni", turn[y], torch.randn(n, WIDTH, generator=draw))
    return 10 * torch.eye(WIDTH)[y] + noise, y


class Identity(nn.Module):
    """A backbone that gives its inputs as features."""

    n_features = WIDTH

    def forward(self, x: Tensor) -> Tensor:
        return x


def network(tasks: int, **options: Any) -> SharedNetwork:
    """Two classes in each task."""
    torch.manual_seed(0)
    return opened(SharedNetwork(Identity(), **options), tasks).eval()


def batches(x: Tensor, y: Tensor, size: int) -> list[Batch]:
    pairs = zip(x.split(size), y.split(size), strict=True)
    return [Batch(x, y, torch.zeros_like(y)) for x, y in pairs]


@pytest.mark.parametrize("size", [1, 7, 90])
def test_what_is_known_of_classes_is_exact_in_whatever_parts_they_come(size: int) -> None:
    """Also where a class comes again in another task: it is joined."""
    x, y = features()
    known: gaussians.Known = {}
    for batch in batches(x, y, size):
        gaussians.add(known, batch.x, batch.y)
    assert gaussians.labels(known) == [0, 1, 2]
    for label in range(3):
        own = x[y == label].double().numpy()
        np.testing.assert_allclose(known[f"{label}/mean"].numpy(), own.mean(0), atol=1e-6)
        expected = np.cov(own.T) + gaussians.RIDGE * np.eye(WIDTH)
        np.testing.assert_allclose(gaussians.covariance(known, label).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_drawn_has_the_mean_and_the_covariance_of_its_class() -> None:
    """n |mean - mu|^2 in the metric of Sigma is chi-square of 6 degrees of freedom."""
    x, y = features()
    known: gaussians.Known = {}
    gaussians.add(known, x, y)
    n = 20_000
    drawn, labels = gaussians.sampled(known, n, generator("tests", "drawn"))
    assert labels.bincount().tolist() == [n] * 3
    for label in range(3):
        own, sigma = drawn[labels == label].double(), gaussians.covariance(known, label).double()
        apart = own.mean(0) - known[f"{label}/mean"]
        assert n * (apart @ torch.linalg.solve(sigma, apart)) < 22.5  # one in a thousand
        root = torch.linalg.cholesky(sigma)
        whitened = torch.linalg.solve_triangular(root, (own - own.mean(0)).T, upper=False)
        assert (torch.cov(whitened) - torch.eye(WIDTH)).abs().max() < 5 * (2 / n) ** 0.5


def test_a_class_with_one_sample_and_one_of_few_can_be_drawn() -> None:
    x = torch.randn(4, WIDTH, generator=generator("tests", "few"))
    known: gaussians.Known = {}
    gaussians.add(known, 1e3 * x, torch.tensor([0, 1, 1, 1]))
    assert bool(gaussians.sampled(known, 5, generator("tests", "drawn"))[0].isfinite().all())


def by_the_paper(z: Tensor, y: Tensor, tasks: Mapping[int, list[int]], temperature: float) -> Tensor:
    """Sample by sample: the logits over the mean of the tasks' norms, over T."""
    losses = []
    for row, label in zip(z.double(), y.tolist(), strict=True):
        norm = sum(row[classes].square().sum().sqrt() for classes in tasks.values()) / len(tasks)
        scaled = row / norm / temperature
        losses.append(-scaled[label] + scaled.exp().sum().log())
    return torch.stack(losses).mean()


def known_classes(method: Any, n: int) -> None:
    method.known = {f"{label}/count": torch.tensor(2) for label in range(n)}


def test_the_loss_is_that_of_the_paper() -> None:
    z, y = torch.randn(9, 5, generator=generator("tests", "z")), torch.arange(9) % 5
    tasks, method = {0: [0, 1], 1: [2, 3, 4]}, slca(temperature=0.3)
    known_classes(method, 5)
    found = method.loss(z, y, tasks)
    torch.testing.assert_close(found.double(), by_the_paper(z, y, tasks, 0.3))
    whole = by_the_paper(z, y, {0: [0, 1, 2, 3, 4]}, 0.3)
    assert abs(found - whole) > 0.01, "one norm over all classes would not be told apart"
    method.temperature = None
    torch.testing.assert_close(method.loss(z, y, tasks), F.cross_entropy(z, y))


def test_classes_that_were_not_seen_do_not_compete() -> None:
    z, y = torch.randn(9, 5, generator=generator("tests", "z")), torch.arange(9) % 3
    method = slca()
    known_classes(method, 3)
    wild = torch.cat([z[:, :3], 1e3 * z[:, 3:]], dim=1)
    assert torch.equal(method.loss(z, y, {0: [0, 1, 2]}), method.loss(wild, y, {0: [0, 1, 2]}))


def aligned_by_hand(known: gaussians.Known, head: nn.Linear, tasks: Mapping[int, list[int]]) -> nn.Linear:
    """The second stage of the authors' code with torch's own schedule, on the same draws."""
    optimizer = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule, draws = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4), generator("SLCA", 0, 1)
    for _ in range(4):
        x, y = gaussians.sampled(known, 20, draws)
        order = torch.randperm(len(y), generator=draws)
        for rows in order.split(20):
            optimizer.zero_grad()
            by_the_paper(head(x[rows]), y[rows], tasks, 0.1).backward()
            optimizer.step()
        schedule.step()
    return head


def test_the_head_is_aligned_as_by_the_authors_code() -> None:
    x, y = features(classes=4)
    model, method = network(2), slca(epochs=4, lr=0.02, samples=20)
    method.tasks = 1
    head = nn.Linear(WIDTH, 4)
    head.load_state_dict(model.head.state_dict())
    method.consolidate(model, batches(x, y, 30))
    aligned_by_hand(method.known, head, model.classes_of)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(model.head.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)


def test_the_first_task_needs_no_alignment() -> None:
    x, y = features(classes=2)
    model, method = network(1), slca()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method.consolidate(model, batches(x, y, 30))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert gaussians.labels(method.known) == [0, 1]


def accuracy_after(method: Any) -> float:
    """Over four classes of which the first two come first; then the head favours the last two."""
    x, y = features(n=400, classes=4)
    model, old = network(1), y < 2
    method.consolidate(model, batches(x[old], y[old], 50))
    method.tasks = 1
    model.open(1, [2, 3])
    with torch.no_grad():
        model.head.get_parameter("bias")[2:] += 20
    method.consolidate(model, batches(x[~old], y[~old], 50))
    return (model.head(x).argmax(1) == y).double().mean().item()


def test_alignment_brings_old_classes_back() -> None:
    assert accuracy_after(slca(epochs=0)) <= 0.5
    assert accuracy_after(slca(lr=0.1)) > 0.9


def test_an_alignment_that_forgets_old_classes_is_found() -> None:
    method = slca(lr=0.1)
    consolidate = method.consolidate

    def of_the_last_task(model: Any, data: Any) -> None:
        method.known = {}
        consolidate(model, data)

    method.consolidate = of_the_last_task
    assert accuracy_after(method) <= 0.5


def test_the_backbone_alone_is_slow() -> None:
    method = slca(slow=0.05)
    assert method.rate("backbone.layers.0.0.weight", 3) == 0.05
    assert method.rate("head.weight", 3) == 1.0


def test_what_is_kept_is_a_mean_and_a_square_for_each_class() -> None:
    x, y = features(classes=3)
    model, method = network(2), slca(epochs=1)
    for task in range(3):  # the same classes again and again
        method.tasks = task
        method.consolidate(model, batches(x, y, 30))
    assert sum(t.numel() for t in method.state()[0].values()) == 3 * (1 + WIDTH + WIDTH**2)


def test_heads_of_single_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no task can have a head of its own"):
        slca().check(network(1, task_known=True, head="per-task"))
    slca().check(network(1))
    text = FILE.replace("growing", "per-task").replace("class-incremental", "task-incremental")
    with pytest.raises(FileErrors, match="no task can have a head of its own"):
        loaded(tmp_path, text)


FILE = """
name: slca
scenario: {name: split_digits, setting: class-incremental, n_tasks: 3, held_back: 4}
model: {name: mlp, hidden: [64]}
pretrain: {epochs: 10}
protocol: {head: growing, loss_classes: current, budget: {epochs: 3}}
train: {optimizer: sgd, momentum: 0.9, lr: 1e-2, batch_size: 32}
references: [naive]
strategies: [{regularization: {name: slca, slow: 0.1}}]
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_on_a_pretrained_backbone_it_beats_naive_training(tmp_path: Path) -> None:
    accuracies = finals(tmp_path, FILE)
    gained = [ours - naive for naive, ours in zip(*accuracies.values(), strict=True)]
    assert min(gained) > 0.05, (gained, accuracies)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["task-incremental", "domain-incremental"])
def test_it_runs_where_one_head_serves_told_tasks_or_the_same_classes_again(tmp_path: Path, setting: str) -> None:
    text = FILE.replace("class-incremental", setting).replace("seeds: [0, 1, 2]", "").replace("epochs: 3", "epochs: 1")
    *_, run = loaded(tmp_path, text).runs()
    first, second = one_run.run(run), one_run.run(run)
    assert first == second and final(first) > 0.3
