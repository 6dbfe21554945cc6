"""What every comparison is held against: naive, joint, separate, ridge, and TF-IDF for text.

Joint is a reference, not an upper bound: where the stream drifts, or where more classes compete, less can do better.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat
from torch import nn

from forgetlab.avalanche.tensor_data import together
from forgetlab.isolation.classifier import Ridge
from forgetlab.learners.closed_form import ClosedForm
from forgetlab.learners.context import Context
from forgetlab.learners.learner import Learner, Scores
from forgetlab.learners.scores import scores
from forgetlab.learners.sequential import Sequential
from forgetlab.learners.tfidf import Tfidf
from forgetlab.plugins.registry import register


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
def ridge_reference(strength: PositiveFloat = 1e-3) -> Learner:
    """Closed-form ridge on the frozen starting backbone; sums are kept, no sample is: see `Ridge`."""
    return ClosedForm(Ridge(strength))


@register("reference", "tfidf")
def tfidf(strength: PositiveFloat = 1.0) -> Learner:
    """Ridge on TF-IDF of the token ids, fitted anew to all texts so far; no network, for streams of token ids alone."""
    return Tfidf(strength)
