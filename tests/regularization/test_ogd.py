"""OGD: answers that stay, its directions against autograd, a basis that stays one, and what leaves the subspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import batches, to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.vit import ViT
from forgetlab.batch import Batch
from forgetlab.costs.ledger import byte_count
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Train
from forgetlab.plugins import registry
from forgetlab.seeding import generator, reseed
from forgetlab.toolbox.projection_math import chosen, true_logit_gradients
from forgetlab.toolbox.teacher import logits
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork
from helpers.runs import finals
from helpers.streams import in_pairs

SIZE = 24  # of a task
KIND = registry.find("projection", "ogd").factory


def ogd(samples: int = SIZE) -> Any:
    return registry.build("projection", "ogd", {"samples": samples})


def part(task: int, width: int = 6) -> Samples:
    y = 2 * task + torch.arange(SIZE) % 2
    return Samples(torch.randn(SIZE, width, generator=generator("ogd", task)) + torch.eye(8)[y % 6, :width], y)


def batch(task: int = 0, width: int = 6) -> Batch:
    x, y = part(task, width)
    return Batch(x, y, torch.full_like(y, task))


def network(hidden: tuple[int, ...] = (40,), width: int = 6, **options: Any) -> SharedNetwork:
    reseed("ogd")
    return SharedNetwork(MLP((width,), hidden) if hidden else Plain(width), **options)


class Plain(nn.Identity):
    """The features are the inputs: with its head the model is linear in its weights."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features


def trained(model: SharedNetwork, *found: Any, tasks: int = 2, width: int = 6, **options: Any) -> list[Tensor]:
    """The first task's true logits after each task."""
    stream = in_pairs([part(task, width) for task in range(tasks)], told=True)
    train = Train(**{"optimizer": "sgd", "lr": 0.05, "batch_size": 8, **options})
    loop, answers = Loop(model=model, train=train, budget=Budget(epochs=3), plugins=[*found]), []
    for experience in to_benchmark(stream, told=True).streams["train"]:
        loop.train(experience, [])
        answers.append(true_logits(model))
    return answers


def true_logits(model: nn.Module, number: int = 0, width: int = 6) -> Tensor:
    one = batch(number, width)
    with torch.no_grad():
        return logits(model.eval(), one).gather(1, one.y[:, None])[:, 0]


def change(answers: list[Tensor]) -> float:
    """Of the first task's true logits while the second was learned."""
    return float((answers[1] - answers[0]).norm() / answers[0].norm())


def test_in_a_linear_model_old_answers_stay() -> None:
    """Exactly: the gradients of the logits are the same everywhere. 3 samples leave room in 6 inputs and a bias."""
    model = network(hidden=())
    few = ogd(3)
    one = batch()
    kept = chosen((one.rows(rows) for rows in torch.arange(SIZE).split(8)), 3, few.draws())  # as the method does
    trained(model, few, tasks=1)
    before = logits(model, kept).detach().gather(1, kept.y[:, None])
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = torch.randn(40, 6, generator=generator("linear")), torch.arange(40) % 2
    for x, y in zip(*(column.split(8) for column in data), strict=True):  # the same two classes, drawn otherwise
        g = torch.autograd.grad(nn.functional.cross_entropy(model(x, torch.zeros_like(y)), y), [*model.parameters()])
        left = few.project(dict(zip(weights, g, strict=True)), [])
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.5 * left[name]
    after = logits(model, kept).detach().gather(1, kept.y[:, None])
    assert max(float((p - weights[name]).detach().abs().max()) for name, p in model.named_parameters()) > 0.05
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_a_step_changes_old_answers_to_second_order_alone(head: Any) -> None:
    """Half the step, a quarter of the change; without the projection it is half."""
    for projects, factor in ((True, 4.0), (False, 2.0)):
        changes = []
        for rate in (0.02, 0.01):
            model, method = network(head=head, task_known=True).double(), ogd()
            model.open(0, [0, 1])
            double = batch()._replace(x=batch().x.double())
            method.consolidate(model.double().eval(), iter([double]))
            model.open(1, [2, 3])
            model.double().train()
            other = batch(1)._replace(x=batch(1).x.double())
            named: dict[str, Tensor] = dict(model.named_parameters())
            loss = nn.functional.cross_entropy(logits(model, other), other.y)
            g = dict(zip(named, torch.autograd.grad(loss, [*named.values()], materialize_grads=True), strict=True))
            before = logits(model, double).gather(1, double.y[:, None]).detach()
            with torch.no_grad():
                for name, step in (method.project(g, []) if projects else g).items():
                    named[name] -= rate * step
            after = logits(model, double).gather(1, double.y[:, None]).detach()
            changes.append(float((after - before).norm()))
        assert changes[0] > 0 and changes[0] / changes[1] == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_old_answers_change_less_than_in_naive_training(head: Any) -> None:
    ours, naive = (trained(network(head=head, task_known=True), *found) for found in ([ogd()], []))
    print(change(ours), change(naive))
    assert change(ours) < 0.2 * change(naive)


def no_orthonormal_basis(self: Any, model: nn.Module, data: Any) -> None:
    for name, g in true_logit_gradients(model, chosen(data, self.samples, self.draws())).items():
        self.basis[name] = g / len(g)


def of_the_loss(self: Any, model: nn.Module, data: Any) -> None:
    """Directions of the loss, which is next to flat where a task is learned."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = []
    for one in next(iter(data)).x.split(1):
        loss = nn.functional.cross_entropy(model(one, torch.zeros(1).long()), torch.zeros(1).long())
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    v = torch.linalg.svd(torch.stack(rows), full_matrices=False)[2][:1]
    self.basis = dict(zip(names, v.split([p.numel() for p in parameters], 1), strict=True))


@pytest.mark.parametrize("consolidate", [no_orthonormal_basis, of_the_loss])
def test_other_directions_do_not_hold_old_answers(consolidate: Any) -> None:
    """Deliberate breaks."""
    broken = type("Broken", (KIND,), {"consolidate": consolidate})(SIZE)  # type: ignore[arg-type]
    ours, naive = (trained(network(task_known=True), *found) for found in ([broken], []))
    assert change(ours) > 0.4 * change(naive)


@pytest.mark.parametrize("vit", [False, True])
def test_directions_are_the_gradients_of_the_true_logits(vit: bool) -> None:
    reseed("ogd")
    if vit:
        model = SharedNetwork(ViT((1, 8, 8), width=8, depth=1, heads=2))
        one = Batch(torch.rand(5, 1, 8, 8, generator=generator("vit")), torch.arange(5) % 3, torch.zeros(5).long())
    else:
        model, one = network(), batch().rows(torch.arange(5))
    model.open(0, [0, 1, 2])
    model.eval()
    values = {name: p.detach() for name, p in model.named_parameters()}
    rows = torch.arange(len(one.y))
    with sdpa_kernel(SDPBackend.MATH):  # the attention that vmap knows
        expected: Any = jacrev(lambda p: functional_call(model, p, (one.x, one.task))[rows, one.y])(values)
    found = true_logit_gradients(model, one)
    assert found.keys() == values.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].flatten(1))


def whole(method: Any) -> Tensor:
    """(directions, weights); what a parameter has grown by since the first is in none of the old ones."""
    return torch.cat([*method.basis.values()], 1)


def test_the_basis_is_orthonormal_and_spans_the_gradients_of_every_task() -> None:
    model, method = network(), ogd(10)
    gradients = []
    for number in range(3):
        model.open(number, [2 * number, 2 * number + 1])
        data = [batch(number).rows(rows) for rows in torch.arange(SIZE).split(7)]
        method.consolidate(model.eval(), iter(data))
        gradients.append(true_logit_gradients(model, chosen(iter(data), 10, method.draws())))
        method.tasks += 1
    v = whole(method).double()
    assert len(v) == 30
    torch.testing.assert_close(v @ v.T, torch.eye(30, dtype=torch.float64), rtol=0, atol=1e-6)
    for found in gradients:
        g = torch.cat(
            [nn.functional.pad(found[n], (0, p.numel() - found[n].shape[1])) for n, p in model.named_parameters()], 1
        )
        left = g.double() - g.double() @ v.T @ v
        assert (left.norm(dim=1) / g.norm(dim=1)).max() < 1e-5


def test_samples_that_say_the_same_take_one_place_and_leave_a_basis() -> None:
    """Also nearly the same ones: where Gram-Schmidt in single precision loses its right angles."""
    one = batch().rows(torch.arange(4))
    noise = 1e-3 * torch.randn(4, 6, generator=generator("noise"))
    near = Batch(torch.cat([one.x, one.x, one.x + noise]), one.y.repeat(3), one.task.repeat(3))
    model, method = network(), ogd(12)
    model.open(0, [0, 1])
    method.consolidate(model.eval(), iter([near]))
    v = whole(method).double()
    assert len(v) == 8
    torch.testing.assert_close(v @ v.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6)
    g = torch.cat([*true_logit_gradients(model, near).values()], 1)
    rows: list[Tensor] = []
    for row in g[torch.tensor([0, 8, 1, 9, 2, 10, 3, 11])]:  # the textbook's, once
        row = row - sum(((row @ r) * r for r in rows), torch.zeros_like(row))
        rows.append(row / row.norm())
    textbook = torch.stack(rows)
    assert (textbook @ textbook.T - torch.eye(8)).abs().max() > 1e-5


def test_it_grows_by_its_samples_with_each_task_and_says_so() -> None:
    model, method = network(head="fixed", n_classes=6), ogd(7)
    parameters = sum(p.numel() for p in model.parameters())
    sizes = []
    for number in range(3):
        trained_on = to_benchmark(in_pairs([part(task) for task in range(3)])).streams["train"]
        model.open(number, [2 * number, 2 * number + 1])
        method.consolidate(model.eval(), batches(trained_on[number].dataset, 8, "cpu"))
        method.tasks += 1
        sizes.append(byte_count(method.state()[0]))
    assert sizes == [7 * n * parameters * 4 for n in (1, 2, 3)]


class Way(SupervisedPlugin):
    """What the second task starts from."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method
        self.start: dict[str, Tensor] = {}
        self.basis: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.start = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
        self.basis = dict(self.method.basis)

    def along(self, model: nn.Module) -> float:
        """How much of the way through the task lies along the basis."""
        way = {name: (p - self.start[name]).detach().flatten() for name, p in model.named_parameters()}
        shares = torch.stack([way[name][: v.shape[1]] @ v.T for name, v in self.basis.items()]).sum(0)
        return float(shares.norm() / torch.cat([*way.values()]).norm())


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({}, True),
        ({"momentum": 0.9}, True),
        ({"weight_decay": 1e-2}, False),
        ({"optimizer": "adam", "lr": 1e-3}, False),
    ],
)
def test_sgd_stays_off_the_old_directions_and_adam_and_weight_decay_do_not(options: Any, stays: bool) -> None:
    model, method = network(task_known=True), ogd()
    way = Way(method)
    trained(model, method, way, **options)
    assert way.along(model) < 1e-5 if stays else way.along(model) > 1e-2


FILE = """
name: ogd
scenario: {name: stream, data: digits, setting: domain-incremental, transform: permutation, n_tasks: 3}
model: {name: mlp, hidden: [32]}
protocol: {budget: {epochs: 2}}
train: {optimizer: sgd, lr: 0.02, batch_size: 10}
references: [naive]
strategies:
  - regularization: {name: ogd, samples: 50}
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_it_forgets_less_than_naive_training(tmp_path: Path) -> None:
    final = finals(tmp_path, FILE)
    print(final)
    assert all(ours > naive for ours, naive in zip(final["ogd"], final["naive"], strict=True))
