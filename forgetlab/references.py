"""What every comparison is held against: naive, joint, separate and ridge.

Joint is a reference, not an upper bound: where the stream drifts, or where more classes compete, less can do better.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from forgetlab.data import batches, together
from forgetlab.learners import Context, Learner, Scores, Sequential, scores
from forgetlab.network import MASK
from forgetlab.plugins import register
from forgetlab.scores import scored

FEATURE_BATCH = 512


@register("reference", "naive")
def naive() -> Learner:
    """Fine-tuning in sequence with nothing against forgetting."""
    return Sequential()


@register("reference", "joint")
class Joint(Learner):
    """For each k a model trained from the start on tasks 1..k together, as many passes over each sample as others."""

    def __init__(self, prefixes: Literal["all", "final"] = "all") -> None:
        self.prefixes = prefixes

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.trained = False

    def learn(self, task: int) -> None:
        context = self.context
        if self.prefixes == "final" and task + 1 < len(context.scenario.tasks):
            return
        self.network = context.shared_network(context.scenario.task_known_at_test)
        self.loop = context.loop(self.network, first_task=task)
        stream = context.benchmark.streams["train"]
        self.loop.train(together([stream[i].dataset for i in range(task + 1)]), [])
        self.counts.add(self.loop)
        self.counts.keep(self.network.stored())
        self.trained = True

    def evaluate(self, task: int) -> Scores | None:
        if not self.trained or not self.network.can_answer(task, self.context.scenario.tasks[task].tested):
            return None
        return scores(self.loop, self.context, task)

    def current_backbone(self) -> nn.Module | None:
        return self.network.backbone if self.trained else None


@register("reference", "separate")
class Separate(Learner):
    """One model per task, each from the start; the task is told at test. What isolation has to reach."""

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.answers: dict[int, Scores] = {}

    def learn(self, task: int) -> None:
        network = self.context.shared_network(task_known=True)
        loop = self.context.loop(network, first_task=task)
        loop.train(self.context.benchmark.streams["train"][task], [])
        self.answers[task] = scores(loop, self.context, task)  # the model is final, so are its answers
        self.counts.add(loop)
        self.counts.keep(network.stored(), copies=task + 1)

    def evaluate(self, task: int) -> Scores | None:
        return self.answers.get(task)


@register("reference", "ridge")
class Ridge(Learner):
    """Closed-form ridge on the frozen starting backbone: W = (G + s g I)^-1 Q, exact however the data arrive.

    G = sum (f - mean f)(f - mean f)^T and Q = sum (f - mean f) onehot(y)^T over all samples so far, g the mean of
    G's diagonal, s the strength; the intercept is not penalised. Its sums are kept, no sample is.
    """

    def __init__(self, strength: PositiveFloat = 1e-3) -> None:
        self.strength = strength

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.backbone = context.backbone().eval()
        classes, width = context.scenario.n_classes, int(self.backbone.n_features)  # type: ignore[arg-type]
        empty = {"dtype": torch.float64, "device": context.device}
        self.n = 0
        self.sum_f, self.sum_y = torch.zeros(width, **empty), torch.zeros(classes, **empty)
        self.sum_ff, self.sum_fy = torch.zeros(width, width, **empty), torch.zeros(width, classes, **empty)
        self.seen: set[int] = set()

    def learn(self, task: int) -> None:
        stream = self.context.benchmark.streams["train"]
        for batch in batches(stream[task].dataset, FEATURE_BATCH, self.context.device):
            f, y = self._features(batch.x), self._one_hot(batch.y)
            self.n += len(f)
            self.sum_f, self.sum_y = self.sum_f + f.sum(0), self.sum_y + y.sum(0)
            self.sum_ff, self.sum_fy = self.sum_ff + f.T @ f, self.sum_fy + f.T @ y
        self.seen |= set(self.context.scenario.tasks[task].classes)
        self._count(task)

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weight (d, C) and intercept (C,) for all samples so far."""
        mean_f, mean_y = self.sum_f / self.n, self.sum_y / self.n
        g = self.sum_ff - self.n * torch.outer(mean_f, mean_f)
        q = self.sum_fy - self.n * torch.outer(mean_f, mean_y)
        weight = torch.linalg.solve(g + self.strength * g.diagonal().mean() * torch.eye(len(g)).to(g), q)
        return weight, mean_y - mean_f @ weight

    def evaluate(self, task: int) -> Scores | None:
        scenario = self.context.scenario
        told, classes = scenario.task_known_at_test, scenario.tasks[task].tested
        if not self.seen.issuperset(classes):
            return None
        weight, intercept = self.solve()
        support = torch.full_like(intercept, MASK)
        support[sorted(classes if told else self.seen)] = 0
        outputs = [
            (self._features(batch.x) @ weight + intercept + support, batch.y)
            for batch in batches(self.context.benchmark.streams["test"][task].dataset, FEATURE_BATCH, weight.device)
        ]
        right = torch.cat([output.argmax(1) == y for output, y in outputs])
        ranked = [name for name in scenario.scores if name != "log_loss"]  # ridge gives no probabilities
        return {"accuracy": right.double().mean().item(), **scored(ranked, outputs)}

    def current_backbone(self) -> nn.Module | None:
        return self.backbone

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        return self.backbone(x).double()

    def _one_hot(self, y: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(y, len(self.sum_y)).double()

    def _count(self, task: int) -> None:
        backbone = {name: tensor for name, tensor in self.backbone.state_dict().items()}
        weight, intercept = self.solve()
        self.counts.keep({**backbone, "weight": weight, "intercept": intercept})
        sums = {"ff": self.sum_ff, "fy": self.sum_fy, "f": self.sum_f, "y": self.sum_y}
        self.counts.memory_bytes = sum(t.numel() * t.element_size() for t in sums.values())
        self.counts.trainable.append(weight.numel() + intercept.numel())
        self.counts.updates.append(0)
        self.counts.samples_replayed.append(0)
        self.counts.samples_seen.append(len(self.context.scenario.tasks[task].train.y))
