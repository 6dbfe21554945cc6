"""What every comparison is held against: naive, joint, separate, ridge, and TF-IDF for text.

Joint is a reference, not an upper bound: where the stream drifts, or where more classes compete, less can do better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveFloat, PositiveInt
from torch import nn

from forgetlab.avalanche.tensor_data import together
from forgetlab.experiment import Budget, Train
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
    """For each k a model trained from the start on tasks 1..k together, with the work that the others have had by then.

    Under ``budget: {updates: N}`` that is k x N steps, under epochs as many passes over each sample; where tasks have
    unlike numbers of epochs, as many steps as their passes have one after another. ``updates`` says otherwise: so many
    steps for the model of all tasks of the stream, and for that of tasks 1..k the share that these have of the others'
    planned steps, rounded up. ``prefixes: final`` trains the model of all tasks alone.
    """

    def __init__(self, prefixes: Literal["all", "final"] = "all", updates: PositiveInt | None = None) -> None:
        self.prefixes, self.updates = prefixes, updates

    def budget(self, task: int, given: Budget, sizes: Sequence[int], train: Train) -> Budget:
        """What the model has that learns the tasks up to this one; ``sizes``: the training samples of every task."""
        if self.updates is None:
            return given.of_tasks_together(sizes[: task + 1], train)
        planned = given.planned_updates(sizes, train)
        return Budget(updates=math.ceil(self.updates * sum(planned[: task + 1]) / sum(planned)))

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.trained = False

    def learn(self, task: int) -> None:
        context = self.context
        if self.prefixes == "final" and task + 1 < len(context.scenario.tasks):
            return
        self.network = context.shared_network(context.scenario.task_known_at_test)
        sizes = [len(one.train.y) for one in context.scenario.tasks]
        budget = self.budget(task, context.run.budget, sizes, context.run.train)
        self.loop = context.loop(self.network, first_task=task, budget=budget)
        if (steps := budget.updates_of(task)) is not None:
            given = context.run.budget
            self.loop.schedule_stretch = steps / (given.updates_of(task) or given.epochs_of(task) or steps)
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
