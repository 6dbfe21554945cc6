"""GPM: Saha, Garg & Roy 2021, Gradient Projection Memory for Continual Learning, https://arxiv.org/abs/2103.09762.

For linear and convolutional layers (no groups). As in the authors' code, which has no biases, all else stands still
after the first task: biases, norms, embeddings, LoRA's factors; but not new heads, new rows of a head and BatchNorm's
averages. Their first task keeps a direction less than equation 5 asks for. SGD stays in the subspace, with momentum if
that starts anew with a task; Adam and weight decay leave it. Defaults: theirs for Split CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Projection, Tensors, chosen, entering
from forgetlab.toolbox.fisher import trainable

Share = Annotated[float, Field(gt=0.0, le=1.0)]


@register("projection", "gpm")
class GPM(Projection):
    """G - G M M' of a layer's gradient (equations 6, 7), M a basis of what entered it in the tasks before."""

    needs = frozenset({"boundaries", "passes"})
    kept: ClassVar[tuple[str, ...]] = ("bases", "rows")

    def __init__(self, threshold: Share = 0.97, increase: NonNegativeFloat = 0.003, samples: PositiveInt = 125) -> None:
        super().__init__()
        self.threshold, self.increase, self.samples = threshold, increase, samples
        self.bases, self.rows = Tensors(), list[tuple[str, int]]()  # by layer (d, directions); of parameters

    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        return {**gradient, **{name: self.held(name, gradient[name], n) for name, n in self.rows if name in gradient}}

    def held(self, name: str, g: Tensor, n: int) -> Tensor:
        matrix, (layer, _, own) = g.reshape(len(g) if g.dim() else 1, -1), name.rpartition(".")
        old, basis = matrix[:n], self.bases.get(layer) if own == "weight" else None
        free = torch.zeros_like(old) if basis is None else old - old @ basis @ basis.T
        return torch.cat([free, matrix[n:]]).view_as(g)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        share = min(1.0, self.threshold + self.tasks * self.increase)
        for layer, rows in entering(model, chosen(data, self.samples, self.draws())).items():
            self.bases[layer] = widened(self.bases.get(layer, rows[:0].T), rows.double(), share)
        self.rows = [(name, len(p) if p.dim() else 1) for name, p in trainable(model)]


def widened(basis: Tensor, rows: Tensor, share: float) -> Tensor:
    """With the fewest directions (equations 5, 8, 9) that hold this share of the rows' squares. (d, k), (N, d)"""
    old, rows = basis.to(rows), torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows
    _, sizes, directions = torch.linalg.svd(rows - rows @ old @ old.T, full_matrices=False)
    whole, energy = rows.square().sum(), sizes.square()
    held = whole - energy.flip(0).cumsum(0).flip(0)  # before each direction is added
    added = (held < share * whole) & (energy > 1e-12 * whole)
    return torch.linalg.qr(torch.cat([old, directions[added].T], 1)).Q.to(basis)
