"""K-means keys: Wang et al. 2022, S-Prompts Learning with Pre-trained Transformers, https://arxiv.org/abs/2207.12819.

As in the authors' code, features have length 1, centres are means of such, and the draws have one fixed seed. Their
code measures the way to a centre by L1; here it is the Euclidean distance, by which k-means itself assigns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from forgetlab.isolation import Router
from forgetlab.plugins import register

# pair by pair: by matrix products, a distance would be rounded otherwise in another batch
distances = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")  # (N, d), (k, d) -> (N, k)


@register("router", "kmeans")
class KMeansKeys(Router):
    """The task of the nearest of k centres per task (section 3.3): argmin over t of min over j of |f/|f| - m_tj|."""

    def __init__(self, k: PositiveInt = 5, iterations: PositiveInt = 300) -> None:
        self.k, self.iterations = k, iterations
        self.kept: dict[str, Tensor] = {}  # centres (n, d) and their tasks (n,)

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        centres = clusters(F.normalize(features.detach().cpu().double(), dim=1), self.k, self.iterations)
        new = {"centres": centres, "tasks": torch.full((len(centres),), task)}
        self.kept = {name: torch.cat([self.kept[name], t]) if self.kept else t for name, t in new.items()}

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        distance = distances(F.normalize(features.detach().cpu().double(), dim=1), self.kept["centres"])
        return self.kept["tasks"][distance.argmin(1)].to(features.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.kept), {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.kept = {name: tensor.cpu() for name, tensor in tensors.items()}


def clusters(points: Tensor, k: int, iterations: int) -> Tensor:
    """Lloyd's algorithm from k-means++ (Arthur & Vassilvitskii 2007). (N, d) -> (at most k, d)"""
    draw, old = torch.Generator().manual_seed(0), torch.empty(0)
    centres = points[torch.randint(len(points), (1,), generator=draw)]
    while len(centres) < k and (far := distances(points, centres).amin(1).square()).any():
        centres = torch.cat([centres, points[torch.multinomial(far, 1, generator=draw)]])
    while iterations and not torch.equal(old, centres):
        member = F.one_hot(distances(points, centres).argmin(1), len(centres)).double()
        n, old, iterations = member.sum(0).unsqueeze(1), centres, iterations - 1
        centres = torch.where(n > 0, member.T @ points / n.clamp(min=1), old)  # one without points stays
    return centres
