"""The learner whose answers are a closed form on features: one pass over a task's data, and nothing to unlearn.

The features are those of the frozen backbone; where the entry has ``isolation`` too, those under its modules, which
are trained by the ordinary loop on the first task alone (first-session adaptation) or on each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import Source, TensorTask, batches
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.costs.ledger import byte_count, count
from forgetlab.isolation.classifier import Classifier
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.learners.context import Context
from forgetlab.learners.counts import Counts
from forgetlab.learners.learner import Learner, NamedTensors, Scores
from forgetlab.learners.scores import scored
from forgetlab.plugins.registry import built
from forgetlab.training.competing_classes import all_seen, classes_at_test, handicap, widened
from forgetlab.training.loop import TensorPath

BATCH = 512


class ClosedForm(Learner):
    """Takes a task's features into a classifier, and answers with it."""

    trains = False  # but for the modules under it, where an entry has some

    def __init__(self, classifier: Classifier | None = None) -> None:
        self.given = classifier  # by default the entry's

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.seen: set[int] = set()
        self.classifier: Classifier = self.given or built("classifier", context.run.strategy.classifier or {})
        self.classifier.seed = context.run.seed_of("init")
        self.network = isolated(context) if context.run.strategy.isolation is not None else None
        if self.network is None:
            self.backbone = context.backbone().eval().requires_grad_(False)
            self.work = context.work(self.backbone)
        else:
            self.backbone = self.network.backbone
            self.loop = context.loop(self.network, [IsolationPlugin()])

    def learn(self, task: int) -> None:
        scenario, experience = self.context.scenario, self.context.benchmark.streams["train"][task]
        adapts = self.network is not None and (task == 0 or self.classifier.adapts == "every")
        if adapts:
            self.loop.train(experience, [])
        told = task if scenario.boundaries_known else UNKNOWN
        for batch, source in located(experience.dataset, self.context.device):
            self.classifier.update(told, self.features(batch.x, source), batch.y)
        self.classifier.close(told)
        self.seen |= set(scenario.tasks[task].classes)
        self._count(task, adapts)

    def evaluate(self, task: int) -> Scores | None:
        return answered(self.context, task, self.seen, lambda x, at: self.classifier.logits(self.features(x, at)))

    def task_tensors(self, task: int) -> NamedTensors:
        if self.network is None or task not in self.network.classes_of:
            return {}
        return {name: t for name, t in self.network.task_tensors(task).items() if name.startswith("module.")}

    def current_backbone(self) -> nn.Module | None:
        return self.backbone

    @torch.no_grad()
    def features(self, x: Tensor, source: Source | None = None) -> Tensor:
        """Under each module that was trained, or of the backbone alone. (B, ...) -> (B, m, d) float64"""
        if self.network is None:
            bare = source and self.work and self.work.features(self.backbone, source)
            return (self.backbone(x) if bare is None else bare).unsqueeze(1).double()
        network = self.network.eval()
        parts = [network.under(network.module_of(task), x, source) for task in network.classes_of]
        return torch.stack(parts, dim=1).double()

    def _count(self, task: int, adapted: bool) -> None:
        answers, (state, _) = self.classifier.stored(), self.classifier.state()
        frozen = self.backbone.state_dict() if self.network is None else self.network.stored()
        kept = {name: tensor for name, tensor in frozen.items() if not name.startswith("heads.")}  # none is asked again
        self.counts.keep(kept | {f"classifier.{name}": tensor for name, tensor in answers.items()})
        self.counts.backbone_parameters = count(self.backbone)
        self.counts.memory_bytes = byte_count({name: t for name, t in state.items() if name not in answers})
        learned = [t for name, t in answers.items() if name not in self.classifier.drawn and t.is_floating_point()]
        loop = self.loop if adapted else None
        count_pass(self.counts, learned, len(self.context.scenario.tasks[task].train.y), loop)


def count_pass(counts: Counts, learned: Iterable[Tensor], n: int, loop: TensorPath | None = None) -> None:
    """Count one pass over n samples from which these tensors are learned, after what a loop trained."""
    if loop is None:
        for per_task in (
            counts.trainable,
            counts.updates,
            counts.extra_updates,
            counts.samples_seen,
            counts.samples_replayed,
        ):
            per_task.append(0)
    else:
        counts.add(loop)
    counts.trainable[-1] += sum(t.numel() for t in learned)
    counts.samples_seen[-1] += n


def isolated(context: Context) -> IsolatedNetwork:
    """The backbone with room for modules, none of which has to be found: all are asked, or the first alone."""
    run, backbone = context.run, context.backbone()
    spec = run.strategy.isolation or {}
    return IsolatedNetwork(
        backbone,
        lambda: built("isolation", spec),
        task_known=True,
        seed=run.seed_of("init"),
        work=context.work(backbone),
    ).to(context.device)


def located(dataset: Any, device: torch.device) -> Iterator[tuple[Batch, Source | None]]:
    """A dataset in order, as batches, and where each lies in it."""
    columns = dataset.columns() if isinstance(dataset, TensorTask) else None
    for number, batch in enumerate(batches(dataset, BATCH, device)):
        rows = torch.arange(number * BATCH, number * BATCH + len(batch.y), device=device)
        yield batch, None if columns is None else Source(columns[0], rows)


def answered(
    context: Context, task: int, seen: Collection[int], logits_of: Callable[[Tensor, Source | None], Tensor]
) -> Scores | None:
    """A task's scores by the logits (B, C) of its test samples; None while not all their classes are seen."""
    scenario = context.scenario
    tested = scenario.tasks[task].tested
    if not all_seen(tested, seen):
        return None
    competing = classes_at_test(tested, seen, scenario.task_known_at_test)
    added = handicap(competing, scenario.n_classes, context.device)
    outputs: list[tuple[Tensor, Tensor]] = []
    for batch, source in located(context.benchmark.streams["test"][task].dataset, context.device):
        logits = widened(logits_of(batch.x, source), scenario.n_classes)
        outputs.append((logits + added, batch.y))
    right = torch.cat([output.argmax(1) == y for output, y in outputs])
    ranked = [name for name in scenario.scores if name != "log_loss"]  # a closed form gives no probabilities
    return {"accuracy": right.double().mean().item(), **scored(ranked, outputs)}
