"""Nearest class mean: Janson et al. 2022, A Simple Baseline that Questions the Use of Pretrained-Models in Continual
Learning, https://arxiv.org/abs/2210.04428; by cosine as SimpleCIL in Zhou et al. 2023, https://arxiv.org/abs/2303.07338.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.isolation import FromSums, means
from forgetlab.plugins import register


@register("classifier", "ncm")
class NearestClassMean(FromSums):
    """The class whose mean feature is nearest: argmax over c of cos(f, mu_c), or argmin of ||f - mu_c||."""

    def __init__(self, metric: Literal["cosine", "euclidean"] = "cosine") -> None:
        super().__init__()
        self.metric = metric

    def solve(self) -> dict[str, Tensor]:
        return {"means": means(self.sums)}

    def score(self, features: Tensor, solved: Mapping[str, Tensor]) -> Tensor:
        f, mu = self.see(features), solved["means"]
        if self.metric == "cosine":
            return F.normalize(f, dim=1) @ F.normalize(mu, dim=0)
        return -torch.cdist(f, mu.T, compute_mode="donot_use_mm_for_euclid_dist")
