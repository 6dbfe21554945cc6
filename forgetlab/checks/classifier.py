"""What a classifier in closed form promises."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetlab.checks.common import make, require
from forgetlab.isolation.classifier import Classifier
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator
from forgetlab.training.competing_classes import MASK

WIDTH = 8
WIDEST = 64
PER_CLASS = 20
Labelled = tuple[Tensor, Tensor]  # features (N, m, d), labels (N,)


def task_data(task: int, modules: int, n: int = PER_CLASS, spread: float = 0.3) -> Labelled:
    """Two classes far from all others, under so many modules; sample by sample of the classes in turn."""
    draw = generator("checks", "classifier", task)
    labels = torch.arange(2 * n) % 2 + 2 * task
    centres = 10 * torch.eye(WIDTH).roll(1, dims=1)[labels].unsqueeze(1)
    shifts = torch.arange(modules).reshape(1, -1, 1)  # each module sees the world a little otherwise
    return centres + shifts + spread * torch.randn(2 * n, modules, WIDTH, generator=draw), labels


def small(plugin: Plugin) -> Classifier:
    """With default options, but no width beyond what little data need."""
    numbers = {p.name: p.default for p in registry.parameters(plugin) if type(p.default) is int}
    return make(plugin, **{name: min(value, WIDEST) for name, value in numbers.items()})


def modules_of(classifier: Classifier, task: int) -> int:
    return task + 1 if classifier.adapts == "every" else 1


def learn(classifier: Classifier, tasks: range, batch: int = 7, n: int = PER_CLASS) -> None:
    for task in tasks:
        features, labels = task_data(task, modules_of(classifier, task), n)
        for f, y in zip(features.split(batch), labels.split(batch), strict=True):
            classifier.update(task, f, y)
        classifier.close(task)


def learned(plugin: Plugin, tasks: int = 3, batch: int = 7, n: int = PER_CLASS) -> tuple[Classifier, Tensor, Tensor]:
    """A classifier that has seen so many tasks, and other samples of theirs."""
    classifier = small(plugin)
    learn(classifier, range(tasks), batch, n)
    parts = [task_data(task, modules_of(classifier, tasks - 1), n=5, spread=0.4) for task in range(tasks)]
    features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return classifier, features, labels


def tells_distant_classes_apart(plugin: Plugin) -> None:
    """Classes of several tasks that lie far apart are all told apart."""
    classifier, features, labels = learned(plugin)
    wrong = int((classifier.logits(features).argmax(1) != labels).sum())
    require(not wrong, f"well separated classes are mixed up: {wrong} of {len(labels)} samples get a wrong one")


def batches_are_nothing(plugin: Plugin) -> None:
    """Samples taken in one by one, a few at a time or all at once give the same logits but for rounding."""
    classifier, features, _ = learned(plugin)
    whole = classifier.logits(features)
    for batch in (1, 2 * PER_CLASS):
        gap = (learned(plugin, batch=batch)[0].logits(features) - whole).abs().max().item()
        require(gap <= 1e-6 * whole[whole > MASK].abs().max().item(), f"batches of {batch} move a logit by {gap:.2g}")


def the_order_of_samples_moves_no_answer(plugin: Plugin) -> None:
    """A task's samples the other way round, class after class, give the same answers."""
    classifier, features, _ = learned(plugin)
    turned = small(plugin)
    for task in range(3):
        f, y = task_data(task, modules_of(turned, task))
        order = y.argsort(stable=True).flip(0)
        turned.update(task, f[order], y[order])
        turned.close(task)
    answers = (one.logits(features).argmax(1) for one in (classifier, turned))
    require(torch.equal(*answers), "the order of the samples moves an answer")


def answers_each_sample_for_itself(plugin: Plugin) -> None:
    """A sample's logits are the same in any batch but for rounding: alone, or beside others in any order."""
    classifier, features, _ = learned(plugin)
    whole = classifier.logits(features)
    bound = 1e-9 * whole[whole > MASK].abs().max().item()
    order = torch.randperm(len(features), generator=generator("checks", 8))
    require((classifier.logits(features[order]) - whole[order]).abs().max() <= bound, "the order of a batch matters")
    alone = torch.cat([classifier.logits(f.unsqueeze(0)) for f in features])
    require((alone - whole).abs().max() <= bound, "the rest of the batch changes an answer")


def unseen_classes_do_not_compete(plugin: Plugin) -> None:
    """Logits are as wide as the largest label so far, and exactly MASK where a class below it is unseen."""
    classifier = small(plugin)
    for task in (0, 2):
        features, labels = task_data(task, 1 if classifier.adapts == "first" else min(task, 1) + 1)
        classifier.update(task, features, labels)
        classifier.close(task)
    logits = classifier.logits(features)
    require(logits.shape == (len(features), 6), f"logits of {tuple(logits.shape)} for labels up to 5")
    require(torch.isfinite(logits).all(), "a logit is not finite; an unseen class gets MASK, which is")
    masked = logits == MASK
    marked = masked.any(0).nonzero().squeeze(1).tolist()
    right = bool(masked[:, 2:4].all()) and marked == [2, 3]
    require(right, f"MASK marks others than the unseen classes [2, 3]: it marks {marked}, of some samples or of all")


def keeps_no_samples(plugin: Plugin) -> None:
    """More samples of the same classes take no more room."""
    few, many = (
        sum(t.numel() for t in learned(plugin, n=n)[0].state()[0].values()) for n in (PER_CLASS, 3 * PER_CLASS)
    )
    require(few == many, f"{few} numbers are kept of some samples, {many} of three times as many")


def stores_what_answers(plugin: Plugin) -> None:
    """What it says it stores is there and finite."""
    classifier, _, _ = learned(plugin)
    stored = classifier.stored()
    require(stored, "stored() gives nothing")
    strange = [name for name, tensor in stored.items() if not bool(torch.isfinite(tensor).all())]
    require(not strange, f"what is stored is not finite: {', '.join(strange)}")


def state_holds_all(plugin: Plugin) -> None:
    """A new one with the restored state, also one left in the midst of a task, answers alike and learns on alike."""
    classifier, features, _ = learned(plugin, tasks=2)
    asked, (more, labels) = (
        features[:, :1].expand(-1, modules_of(classifier, 2), -1),
        task_data(2, modules_of(classifier, 2)),
    )
    classifier.update(2, more[:9], labels[:9])
    again = small(plugin)
    again.restore(*classifier.state())
    require(torch.equal(again.logits(asked), classifier.logits(asked)), "a restored classifier answers otherwise")
    for one in (classifier, again):
        one.update(2, more[9:], labels[9:])
        one.close(2)
    require(torch.equal(again.logits(asked), classifier.logits(asked)), "a restored classifier learns on otherwise")


CHECKS = (
    tells_distant_classes_apart,
    batches_are_nothing,
    the_order_of_samples_moves_no_answer,
    answers_each_sample_for_itself,
    unseen_classes_do_not_compete,
    keeps_no_samples,
    stores_what_answers,
    state_holds_all,
)
