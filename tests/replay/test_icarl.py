"""iCaRL: its loss by hand and beside Avalanche's, who teaches, and answers by the nearest mean of exemplars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.costs.ledger import byte_count
from forgetlab.replay.memory import Memory
from forgetlab.replay.slots import Slots
from forgetlab.seeding import generator
from forgetlab.strategies.replay.rehearsals.icarl import ICaRL
from forgetlab.toolbox.teacher import logits
from forgetlab.training.competing_classes import MASK
from forgetlab.training.network import SharedNetwork
from helpers import networks, runs, training
from helpers.modules import moved
from helpers.networks import bare, opened
from helpers.streams import opposed, under_one_label
from helpers.training import SEED, difference, learned

N = 12
TOLERANCE = 1e-6  # in a weight, after all tasks
PARTS = opposed("icarl stream", 60)


def network(tasks: int = 1, **options: Any) -> SharedNetwork:
    return opened(networks.network((6,), (8,), n_classes=6, **options), tasks).train()


def batch(task: int, seed: int = 0, n: int = N) -> Batch:
    y = 2 * task + torch.arange(n) % 2
    return Batch(torch.randn(n, 6, generator=generator("icarl", task, seed)), y, torch.full_like(y, task))


def joined(*batches: Batch) -> Batch:
    x, y, task = (torch.cat(column) for column in zip(*(one[:3] for one in batches), strict=True))
    return Batch(x, y, task)


def slots(*batches: Batch) -> Slots:
    kept = joined(*batches)
    found = Slots(len(kept.y) + 3)
    found.write(torch.arange(len(kept.y)), kept)
    return found


def loss(method: ICaRL, model: nn.Module, new: Batch, drawn: Batch) -> Tensor:
    return method.loss(model, new, drawn, logits(model, joined(new, drawn)))


NOTHING = batch(0, n=0)


def in_the_second_task(method: ICaRL | None = None, **options: Any) -> tuple[ICaRL, SharedNetwork, SharedNetwork]:
    """The method, its model at the end of the first task, and its model some steps into the second."""
    method = ICaRL() if method is None else method
    before, model = network(1, **options), network(1, **options)
    method.begin(model)
    loss(method, model, batch(0), NOTHING)
    method.end(model.eval(), slots(batch(0)))
    for one in (before, model.train()):
        one.open(1, (2, 3))
    method.begin(model)
    moved(model, 0.3)
    return method, before.eval(), model


def bce(z: Tensor, target: Tensor) -> Tensor:
    p = z.double().sigmoid()
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()


def test_the_first_tasks_loss_is_that_of_a_sigmoid_for_each_class() -> None:
    method, model = ICaRL(), network()
    method.begin(model)
    z = logits(model, batch(0))
    torch.testing.assert_close(loss(method, model, batch(0), NOTHING).double(), bce(z, torch.eye(2)[batch(0).y]))


def distils(method: ICaRL) -> bool:
    """Whether the loss in the second task is algorithm 3: old classes as they were, new ones by their labels."""
    method, before, model = in_the_second_task(method)
    new, drawn = batch(1), batch(0, seed=1)
    both = joined(new, drawn)
    target = torch.eye(4)[both.y]
    target[:, :2] = before(both.x, both.task).detach().sigmoid()[:, :2]
    expected = bce(logits(model, both), target)
    return torch.allclose(loss(method, model, new, drawn).double(), expected, atol=1e-6)


class TeachesItself(ICaRL):
    """The deliberate break: the teacher is the model in training."""

    def begin(self, model: nn.Module) -> None:
        super().begin(model)
        self.teacher = model


class OneHot(ICaRL):
    """Another: exemplars are trained on with their labels."""

    def end(self, model: nn.Module, slots: Slots) -> None:
        super().end(model, slots)
        self.old = set()


def test_old_classes_are_distilled_and_new_ones_learned() -> None:
    assert distils(ICaRL())
    assert not distils(TeachesItself()) and not distils(OneHot())


def test_a_class_that_comes_again_is_learned_from_new_samples_and_distilled_on_old_ones() -> None:
    method, model = ICaRL(), network()
    before = network().eval()
    method.begin(model)
    loss(method, model, batch(0), NOTHING)
    method.end(model, slots(batch(0)))
    model.open(1, (0, 1))
    method.begin(model)
    moved(model, 0.3)
    old = batch(0, seed=1)
    new = batch(0, seed=2)._replace(task=torch.ones(N, dtype=torch.int64))
    target = torch.cat([torch.eye(2)[new.y], before(old.x, old.task).detach().sigmoid()])
    expected = bce(logits(model, joined(new, old)), target)
    torch.testing.assert_close(loss(method, model, new, old).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"loss_classes": "current"}, {"task_known": True}, {"task_known": True, "head": "per-task"}, {"head": "fixed"}],
)
def test_classes_that_may_not_answer_have_no_part_in_the_loss(options: Any) -> None:
    """A logit of -10,000 against a target above 0 would be a loss of thousands."""
    method, _, model = in_the_second_task(**options)
    value = loss(method, model, batch(1), batch(0, seed=1))
    assert 0 < value.item() < 20
    value.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


class Nothing(Memory):
    """Keeps nothing, so that the loss on new samples alone is left."""

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None: ...


def in_avalanche() -> nn.Module:
    """Its mean over 6 classes at 6 times the rate is our sum over them."""
    from avalanche.training.losses import ICaRLLossPlugin

    criterion = ICaRLLossPlugin()
    return training.in_avalanche(bare(), under_one_label(PARTS), criterion, criterion=criterion, lr=6 * 0.05)


def in_our_loop(method: ICaRL) -> nn.Module:
    memory = Nothing(5)
    memory.rehearsal = method
    return learned(bare(), under_one_label(PARTS), memory, lr=0.05, seed=SEED)


def test_without_exemplars_it_goes_avalanches_way_step_by_step() -> None:
    theirs = in_avalanche()
    apart = difference(in_our_loop(ICaRL()), theirs)
    print(f"iCaRL: {apart:.2g}")
    assert apart < TOLERANCE
    assert difference(in_our_loop(TeachesItself()), theirs) > 1e-2


def answered(tasks: int = 2, **options: Any) -> tuple[ICaRL, SharedNetwork, Batch]:
    method, model, kept = ICaRL(), network(tasks, **options).eval(), joined(*(batch(task) for task in range(tasks)))
    method.end(model, slots(kept))
    return method, model, kept


def by_distance(model: SharedNetwork, kept: Batch, x: Tensor) -> Tensor:
    """Algorithm 1, written out: the class whose mean of normalised features, normalised again, is the nearest."""
    with torch.no_grad():
        phi = F.normalize(model.backbone(kept.x))
        means = torch.stack([F.normalize(phi[kept.y == label].mean(0), dim=0) for label in kept.y.unique()])
        return torch.cdist(F.normalize(model.backbone(x)), means).argmin(1)


def test_the_answer_is_the_nearest_mean_of_exemplars_as_it_is_in_avalanche() -> None:
    from avalanche.models import NCMClassifier

    method, model, kept = answered()
    x = torch.randn(200, 6, generator=generator("icarl", "test"))
    found = method.answer(model, x, model(x, torch.zeros(200).long())).argmax(1)
    assert torch.equal(found, by_distance(model, kept, x))
    classifier = NCMClassifier(normalize=True)
    classifier.replace_class_means_dict(dict(enumerate(method.means)))
    assert torch.equal(found, classifier(model.backbone(x).detach()).argmax(1))
    assert not torch.equal(found, model(x, torch.zeros(200).long()).argmax(1))  # which is not what the logits say


@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_where_the_task_is_told_its_classes_alone_answer(head: str) -> None:
    method, model, kept = answered(task_known=True, head=head)
    found = method.answer(model, kept.x, logits(model, kept))
    assert torch.equal(found.argmax(1) // 2, kept.task)
    assert bool((found.gather(1, 2 * (1 - kept.task).unsqueeze(1)) == MASK).all())


def test_a_class_without_exemplars_never_answers_and_before_there_are_any_the_logits_do() -> None:
    method, model = ICaRL(), network(3).eval()
    x = batch(2).x
    output = model(x, batch(2).task)
    assert torch.equal(method.answer(model, x, output), output)
    method.end(model, slots(batch(1)))
    found = method.answer(model, x, output)
    assert set(found.argmax(1).tolist()) <= {2, 3} and found.shape == output.shape
    assert bool((found[:, [0, 1, 4, 5]] == MASK).all())


def test_what_goes_on_from_its_state_goes_on_alike() -> None:
    method, _, model = in_the_second_task()
    new = ICaRL()
    tensors, values = method.state()
    new.restore({name: tensor.clone() for name, tensor in tensors.items()}, values)
    new.begin(model)
    given = batch(1), batch(0, seed=1)
    assert torch.equal(loss(new, model, *given), loss(method, model, *given))
    output = logits(model, given[0])
    assert torch.equal(new.answer(model, given[0].x, output), method.answer(model, given[0].x, output))


def test_it_keeps_one_model_and_a_mean_for_each_class() -> None:
    method, _, model = in_the_second_task()
    tensors = method.state()[0]
    one_task = network(1).state_dict()
    assert byte_count(tensors) == byte_count(one_task) + 2 * 8 * 4
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    moved(model, 0.3)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in method.state()[0].items())


FILE = """
name: icarl
scenario: {{name: {scenario}, setting: {setting}, n_tasks: 5}}
model: {{name: {model}}}
protocol: {{head: {head}, budget: {{epochs: {epochs}}}}}
train: {{lr: 1e-2, batch_size: 16}}
references: [naive]
strategies:
  - replay: {{memory: herding, capacity: 60}}
  - replay: {{memory: {memory}, capacity: 60, rehearsal: icarl{more}}}
seeds: [{seeds}]
"""


def run(folder: Path, **options: str) -> list[list[float]]:
    """The final accuracies, seed by seed, of naive fine-tuning, herding alone and iCaRL."""
    given = {"scenario": "split_digits", "setting": "class-incremental", "head": "growing", "model": "mlp"}
    given |= {"epochs": "3", "memory": "herding", "more": "", "seeds": "0", **options}
    return list(runs.finals(folder, FILE.format(**given)).values())


@pytest.mark.slow
def test_it_forgets_less_than_naive_training_with_every_seed(tmp_path: Path) -> None:
    naive, herding, ours = run(tmp_path, seeds="0, 1, 2")
    print(naive, herding, ours)
    assert all(b > a + 0.4 for a, b in zip(naive, ours, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "head", "model"),
    [
        ("task-incremental", "per-task", "mlp"),
        ("domain-incremental", "fixed", "mlp"),
        ("class-incremental", "fixed", "vit, width: 16, depth: 1, patch: 4, heads: 2"),
    ],
)
def test_it_runs_in_every_setting(tmp_path: Path, setting: str, head: str, model: str) -> None:
    (naive,), _, (ours,) = run(tmp_path, setting=setting, head=head, model=model)
    print(setting, naive, ours)
    assert ours > naive


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"more": ", depth: 1", "model": "mlp, hidden: [8, 8]"}, "icarl reads samples as they came"),
        ({"scenario": "stream, data: digits, boundaries: false", "memory": "ring"}, "has to be told when a task ends"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(tmp_path: Path, more: dict[str, str], message: str) -> None:
    with pytest.raises(FileErrors, match=message):
        run(tmp_path, **more)


@pytest.mark.parametrize(
    ("distillation", "over_classes", "of_all"), [(4.0, "sum", 1), (1.0, "mean", 4), (0.5, "mean", 4)]
)
def test_old_classes_have_a_weight_and_classes_a_mean_where_that_is_asked(
    distillation: float, over_classes: Any, of_all: int
) -> None:
    """By hand in the second task, of four classes: the two old ones count ``distillation`` times."""
    method, before, model = in_the_second_task(ICaRL(distillation, over_classes))
    new, drawn = batch(1), batch(0, seed=1)
    both = joined(new, drawn)
    target = torch.eye(4)[both.y]
    target[:, :2] = before(both.x, both.task).detach().sigmoid()[:, :2]
    p = logits(model, both).double().sigmoid()
    each = -(target * p.log() + (1 - target) * (1 - p).log())
    expected = (each * torch.tensor([distillation, distillation, 1.0, 1.0])).sum(1).mean() / of_all
    torch.testing.assert_close(loss(method, model, new, drawn).double(), expected, atol=1e-6, rtol=1e-6)


def test_the_mean_is_that_of_a_binary_cross_entropy_over_all_its_elements() -> None:
    """As PyCIL takes it: torch's own mean over samples and classes."""
    method, before, model = in_the_second_task(ICaRL(over_classes="mean"))
    new, drawn = batch(1), batch(0, seed=1)
    both = joined(new, drawn)
    target = torch.eye(4)[both.y]
    target[:, :2] = before(both.x, both.task).detach().sigmoid()[:, :2]
    expected = F.binary_cross_entropy_with_logits(logits(model, both), target)
    torch.testing.assert_close(loss(method, model, new, drawn), expected)
