"""GEM: Lopez-Paz & Ranzato 2017, Gradient Episodic Memory for Continual Learning, https://arxiv.org/abs/1706.08840.

In a file: ``replay: {memory: task_ring, capacity: 1000, projection: gem}``, the last samples of each task, as in the
paper; with any other memory it is GEM on what that keeps. Each step goes over all kept samples of the ended tasks, so
it costs more with every task. The paper adds the margin to v; its code, Avalanche's and this ask for v >= margin.
``ridge`` is what later code adds to the diagonal of G G' (Avalanche: 1e-3): small gradients then break their bounds.
Adam, momentum and weight decay can leave the cone again, as the bounds are on the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.regularization import Projection, Tensors, nonnegative


@register("projection", "gem")
class GEM(Projection):
    """g + G'v where a task's g . g_k < 0, v the least |g + G'v|^2 with v >= margin (section 3, dual), else g."""

    references: ClassVar[Literal["none", "mixed", "tasks"]] = "tasks"

    def __init__(self, margin: NonNegativeFloat = 0.5, ridge: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.margin, self.ridge = margin, ridge

    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        if not references:
            return gradient
        rows = [torch.cat([one[name].flatten() for name in gradient]) for one in (*references, gradient)]
        rows = torch.stack(rows).double()
        products = rows @ rows.T  # (T + 1, T + 1), the gradient last
        if bool((products[-1, :-1] >= 0).all()):
            return gradient
        squares, axes = torch.linalg.eigh(products)
        root = squares.clamp(min=0).sqrt()[:, None] * axes.T  # root' root are the products: it stands for G and g
        matrix = torch.cat([root[:, :-1], math.sqrt(self.ridge) * torch.eye(len(references)).to(root)])
        target = -F.pad(root[:, -1], (0, len(references))) - self.margin * matrix.sum(1)
        weights = (self.margin + nonnegative(matrix, target)).tolist()
        pairs = [(v, reference) for v, reference in zip(weights, references, strict=True) if v]
        return {name: g + sum(v * reference[name] for v, reference in pairs) for name, g in gradient.items()}
