"""A-GEM: Chaudhry et al. 2019, Efficient Lifelong Learning with A-GEM, https://arxiv.org/abs/1812.00420.

In a file: ``replay: {memory: ring, capacity: 500, projection: agem}``; the paper keeps samples by class. A step's
reference is taken on ``ratio`` old samples for each new one, drawn anew, each set of them equally likely. The bound is
on the gradient: an optimizer that scales it (Adam), momentum and weight decay can leave the half-space again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from forgetlab.plugins import register
from forgetlab.regularization import Projection, Tensors


@register("projection", "agem")
class AGEM(Projection):
    """g - (g . r / r . r) r (equation 11) where g . r < 0, else g; r is the gradient on old samples."""

    references: ClassVar[Literal["none", "mixed", "tasks"]] = "mixed"

    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        for reference in references:
            along = dot(gradient, reference)
            if along < 0:
                share = along / dot(reference, reference)
                return {name: g - share * reference[name] for name, g in gradient.items()}
        return gradient


def dot(a: Tensors, b: Tensors) -> torch.Tensor:
    """Over all parameters."""
    return torch.stack([torch.dot(g.flatten(), b[name].flatten()) for name, g in a.items()]).sum()
