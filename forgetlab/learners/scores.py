"""Scores of one task's test samples beside accuracy, from logits (N, classes) in which what may not compete is MASK."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.learners.context import Context
from forgetlab.learners.learner import Scores
from forgetlab.training.competing_classes import widened
from forgetlab.training.loop import TensorPath

Score = Callable[[Tensor, Tensor], float | None]


def macro_f1(logits: Tensor, y: Tensor) -> float | None:
    """The mean over the classes that occur of F1, the harmonic mean of precision and recall."""
    from sklearn.metrics import f1_score

    labels = y.unique().tolist()
    return float(f1_score(y.cpu(), logits.argmax(1).cpu(), labels=labels, average="macro"))


def auroc(logits: Tensor, y: Tensor) -> float | None:
    """The area under the ROC curve of the higher of two labels; None where the samples do not have two labels."""
    from sklearn.metrics import roc_auc_score

    labels = y.unique().tolist()
    if len(labels) != 2:
        return None
    low, high = labels
    return float(roc_auc_score((y == high).cpu(), (logits[:, high] - logits[:, low]).double().cpu()))


def log_loss(logits: Tensor, y: Tensor) -> float | None:
    """The mean of -log p(y|x), in nats, over the classes that may compete."""
    return F.cross_entropy(logits.double(), y).item()


SCORES: dict[str, Score] = {score.__name__: score for score in (macro_f1, auroc, log_loss)}


def scored(names: Iterable[str], outputs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The named scores of (logits, labels) in batches, without those that are undefined."""
    logits, labels = zip(*outputs, strict=True)
    width = max(part.shape[1] for part in logits)
    whole = torch.cat([widened(part, width) for part in logits])
    values = {name: SCORES[name](whole, torch.cat(labels)) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def scores(loop: TensorPath, context: Context, task: int) -> Scores:
    """Let a loop answer one task's test samples."""
    loop.keeps_outputs = bool(context.scenario.scores)
    loop.eval(context.benchmark.streams["test"][task])
    assert loop.correct is not None
    found = {"accuracy": loop.correct.double().mean().item()}
    if loop.keeps_outputs:
        found |= scored(context.scenario.scores, loop.outputs)
    if context.run.task_identity == "routed" and loop.right_route is not None:
        right = loop.right_route
        found["router_accuracy"] = right.double().mean().item()
        if right.any():
            found["accuracy_given_route"] = loop.correct[right].double().mean().item()
    return found
