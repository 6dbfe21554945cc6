"""OGD: Farajtabar et al. 2020, Orthogonal Gradient Descent for Continual Learning, https://arxiv.org/abs/1910.07104.

The variant GTL: directions are gradients of the true class's logit, of ``samples`` samples of each task. It grows with
the tasks: so many directions a task, each as large as the weights, stored as an orthonormal basis. Directions and steps
are of all that is trained, heads included. Old answers stay to first order in a step, and for plain SGD: Adam and
weight decay leave the subspace; momentum does not, where the optimizer starts anew with each task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Projection, Tensors, chosen, true_logit_gradients

NEW = 1e-4  # of the longest gradient: shorter than this, what is left of one is near to rounding


@register("projection", "ogd")
class OGD(Projection):
    """g - sum_v (g . v) v, v an orthonormal basis of the gradients of old samples' true logits."""

    needs = frozenset({"boundaries", "passes"})
    kept: ClassVar[tuple[str, ...]] = ("basis",)

    def __init__(self, samples: PositiveInt = 200) -> None:
        super().__init__()
        self.samples = samples
        self.basis = Tensors()  # by parameter: (directions, numbers); rows that it has grown by since are not in it

    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        off = self.off({name: g.reshape(1, -1) for name, g in gradient.items()})
        return {name: off[name].view_as(g) for name, g in gradient.items()}

    def off(self, rows: Tensors) -> Tensors:
        """Rows (n, numbers) by parameter, without what lies along the basis."""
        along: Any = sum(rows[name][:, : v.shape[1]] @ v.T for name, v in self.basis.items())  # (n, directions)
        lying = {name: F.pad(along @ v, (0, rows[name].shape[1] - v.shape[1])) for name, v in self.basis.items()}
        return {name: row - lying[name] if name in lying else row for name, row in rows.items()}

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        new = true_logit_gradients(model, chosen(data, self.samples, self.draws()))
        longest = torch.stack([g.square().sum(1) for g in new.values()]).sum(0).max()  # squared
        new = self.off(self.off(new))  # once leaves rounding along the basis
        products: Any = sum(g @ g.T for g in map(Tensor.double, new.values()))  # of the samples
        squares, axes = torch.linalg.eigh(products)
        wide, before = squares > NEW**2 * longest, max((len(v) for v in self.basis.values()), default=0)
        mixture = (axes[:, wide] / squares[wide].sqrt()).T  # (new directions, samples)
        for name, g in new.items():
            old = self.basis.get(name, g.new_zeros(before, 0))
            added = (mixture @ g.double()).to(g)
            self.basis[name] = torch.cat([F.pad(old, (0, g.shape[1] - old.shape[1])), added])
