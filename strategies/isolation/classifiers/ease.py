"""EASE: Zhou et al. 2024, Expandable Subspace Ensemble, https://arxiv.org/abs/2403.12030.

A class has a prototype under each module. Those under modules that came after its samples are synthesised: a mean of
the prototypes that all classes with samples there have, weighted by how similar they are under the class' own module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import normalize, pad

from forgetlab.isolation import FromSums, count_classes, one_hot
from forgetlab.plugins import register


@register("classifier", "ease")
class EASE(FromSums):
    """Cosines to prototypes, those of a class' own module and alpha times the mean of the other modules'.

    Without an alpha: one cosine over all modules' features side by side.
    """

    adapts = "every"

    def __init__(self, alpha: NonNegativeFloat | None = 0.1) -> None:
        super().__init__()
        self.alpha = alpha

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        count_classes(self.sums, labels)
        n_classes, modules = len(self.sums["y"]), features.shape[1]
        ones, empty = one_hot(labels, n_classes), features.new_zeros(0, 0, features.shape[2], dtype=torch.float64)
        f, n = self.sums.get("f", empty), self.sums.get("n", empty[:, :, 0])  # (C, m, d), (C, m)
        more = (0, modules - n.shape[1], 0, n_classes - len(n))
        self.sums["f"] = pad(f, (0, 0, *more)) + torch.einsum("nc,nmd->cmd", ones, features.double())
        self.sums["n"] = pad(n, more) + ones.sum(0).unsqueeze(1)
        self._solved = None

    def solve(self) -> dict[str, Tensor]:
        n, f = self.sums["n"], self.sums["f"]
        prototypes, there = f / n.clamp(min=1).unsqueeze(2), n > 0
        own = n.shape[1] - 1 - there.flip(1).int().argmax(1)  # the newest module that saw its samples
        unit = normalize(prototypes, dim=2)
        for c, k in (~there & there.any(1, keepdim=True)).nonzero().tolist():
            similar = (unit[there[:, k], own[c]] @ unit[c, own[c]]).softmax(0)
            prototypes[c, k] = similar @ prototypes[there[:, k], k]
        return {"prototypes": prototypes, "own": own}

    def score(self, features: Tensor, solved: Mapping[str, Tensor]) -> Tensor:
        f, prototypes = features.double(), solved["prototypes"]
        if self.alpha is None:
            return normalize(f.flatten(1), dim=1) @ normalize(prototypes.flatten(1), dim=1).T
        cosines = torch.einsum("nmd,cmd->ncm", normalize(f, dim=2), normalize(prototypes, dim=2))
        others = self.alpha / max(1, f.shape[1] - 1)
        ours = one_hot(solved["own"], f.shape[1])  # (C, m)
        return (cosines * (ours + others * (1 - ours))).sum(2)
