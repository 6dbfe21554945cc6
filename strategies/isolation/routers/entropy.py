"""Lowest entropy: von Oswald et al. 2020, Continual Learning with Hypernetworks (HNET+ENT),
https://arxiv.org/abs/1906.00695.

There all tasks have equally many classes. Here an entropy is divided by the largest that its task's C classes allow,
log C: 0 is sure, 1 is uniform, whatever C is. A task of one class is always sure; it counts as 1, saying nothing.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from forgetlab.isolation import ConfidenceRouter
from forgetlab.plugins import register


@register("router", "entropy")
class LowestEntropy(ConfidenceRouter):
    """The task whose own answer is surest: argmin over t of H(softmax f_t(x)) / log C_t (no number in the paper)."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries", "classes"})

    def confidence(self, logits: Tensor) -> Tensor:
        return -normalised_entropy(logits)


def normalised_entropy(logits: Tensor) -> Tensor:
    """H(softmax) / log C, from 0 to 1. (B, C) -> (B,)"""
    n_classes, log_p = logits.shape[1], logits.log_softmax(1)
    if n_classes == 1:
        return log_p.new_ones(len(logits))
    return -(log_p.exp() * log_p).sum(1) / math.log(n_classes)
