"""Largest probability: Hendrycks & Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples
in Neural Networks, https://arxiv.org/abs/1610.02136.

There one network's largest softmax probability p says whether a sample is its own; here the tasks' are compared. With C
classes p is at least 1/C, so it is put on one scale for all tasks, as `entropy` does: (p - 1/C) / (1 - 1/C) is 0 where
the softmax is uniform and 1 where it is sure. What is compared is the logarithm of what is missing to 1: a p that
rounds to 1 would make two sure tasks equal. A task of one class says nothing.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from forgetlab.isolation import ConfidenceRouter
from forgetlab.plugins import register


@register("router", "max_probability")
class LargestProbability(ConfidenceRouter):
    """The task whose own answer is surest: argmax over t of (p_t - 1/C_t) / (1 - 1/C_t), p_t = max softmax f_t(x)."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries", "classes"})

    def confidence(self, logits: Tensor) -> Tensor:
        return -log_doubt(logits)


def log_doubt(logits: Tensor) -> Tensor:
    """log of (1 - p) / (1 - 1/C), at most 0. (B, C) -> (B,)"""
    n_classes = logits.shape[1]
    if n_classes == 1:
        return logits.new_zeros(len(logits))
    rest = logits.sort(1).values[:, :-1]
    return rest.logsumexp(1) - logits.logsumexp(1) - math.log1p(-1 / n_classes)
