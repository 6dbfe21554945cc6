"""Mahalanobis: Lee et al. 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks (equations 1 and 2), https://arxiv.org/abs/1807.03888.

There the nearest class is sought, within one data set; here its task, on the frozen backbone's features. All classes
of all tasks share one covariance, which each task adds to. The paper has no shrinkage; it is there for tasks with
fewer samples than features. With 0, what no sample varies in counts for nothing (the pseudo-inverse, as in their code).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from forgetlab.isolation import Router
from forgetlab.plugins import register

PER_PAIR = "donot_use_mm_for_euclid_dist"  # by matrix products, a distance would be rounded otherwise in another batch


@register("router", "mahalanobis")
class Mahalanobis(Router):
    """The task of the nearest class: argmin over c of (f - mu_c)^T S^-1 (f - mu_c), S = (1 - s) S + s tr(S)/d I."""

    def __init__(self, shrinkage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1) -> None:
        self.shrinkage = shrinkage
        self.kept: dict[str, Tensor] = {}  # means (C, d), their tasks (C,), the sum of squares (d, d), and of how many

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        features = features.detach().cpu().double()
        classes, index = labels.cpu().unique(return_inverse=True)
        means = torch.stack([features[index == c].mean(0) for c in range(len(classes))])
        inside = features - means[index]
        new = {"means": means, "tasks": torch.full((len(means),), task)}
        sums = {"squares": inside.T @ inside, "count": torch.tensor(len(features))}
        joined = {name: torch.cat([self.kept[name], t]) if self.kept else t for name, t in new.items()}
        added = {name: self.kept[name] + t if self.kept else t for name, t in sums.items()}
        self.restore({**joined, **added}, {})

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        whitened = features.detach().cpu().double() @ self.whitening
        distance = torch.cdist(whitened, self.kept["means"] @ self.whitening, compute_mode=PER_PAIR)
        return self.kept["tasks"][distance.argmin(1)].to(features.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.kept), {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.kept = {name: tensor.cpu() for name, tensor in tensors.items()}
        if self.kept:
            variances, vectors = torch.linalg.eigh(self.kept["squares"] / self.kept["count"])
            shrunk = (1 - self.shrinkage) * variances + self.shrinkage * variances.mean()
            there = shrunk > shrunk.max() * len(shrunk) * torch.finfo(shrunk.dtype).eps
            self.whitening = vectors[:, there] / shrunk[there].sqrt()  # (d, r): S^-1 = W W^T
