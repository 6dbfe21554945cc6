"""Diff pruning: Guo, Rush & Kim 2021, https://arxiv.org/abs/2012.07463, without gates of whole tensors. The authors
prune after 3 of 6 epochs; their gates learn at a rate of 0.1, here at ``gate_rate`` times the run's, with Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Site, own_buffers, own_tensors
from forgetlab.plugins import register

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


@register("isolation", "diff_pruning", renewed="2026-12-01")
class DiffPruning(Isolation):
    """theta_0 + z * w, gates z = clamp(3 sigmoid(log u - log(1 - u) + alpha) - 1.5, 0, 1); then the largest w alone."""

    draws, owns_layers = True, True

    def __init__(
        self, budget: Share = 0.005, prune_at: Share = 0.5, sparsity: Share = 1.25e-7, gate_rate: PositiveFloat = 10.0
    ) -> None:
        super().__init__(("whole",))
        self.budget, self.prune_at, self.sparsity, self.rate = budget, prune_at, sparsity, gate_rate
        self.register_buffer("kept", None)  # which entries of w are left, once pruned

    def make(self, site: Site) -> nn.Module:
        column = torch.tensor([[0.0], [5.0 / self.rate]])  # w, and alpha / gate_rate of its gate
        self.w = nn.Parameter(column.repeat(1, sum(t.numel() for t in site.tensors.values())))
        return own_buffers(site)

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        row = torch.cat([t.flatten() for t in site.tensors.values()])
        row = row + self.gated(self.training) if self.kept is None else row.index_add(0, self.kept, self.left())
        pieces = row.split([t.numel() for t in site.tensors.values()])
        changed = {name: piece.view_as(t) for (name, t), piece in zip(site.tensors.items(), pieces, strict=True)}
        return changed | own_tensors(part)  # BatchNorm's statistics are the task's too

    def gated(self, draw: bool) -> Tensor:
        u = torch.rand_like(self.w[0]) if draw else torch.full_like(self.w[0], 0.5)
        return (3 * (u.logit(1e-4) + self.rate * self.w[1]).sigmoid() - 1.5).clamp(0, 1) * self.w[0]

    def left(self) -> Tensor:
        return self.w[0, self.kept] if self.w.dim() == 2 else self.w

    def penalty(self) -> Tensor | None:  # of the expected number of open gates
        return None if self.kept is not None else self.sparsity * (self.rate * self.w[1]).sigmoid().sum()

    def step(self, done: float) -> None:
        if done >= self.prune_at and self.kept is None:
            self.w.data[0] = self.gated(draw=False).detach()
            self.kept = self.w[0].abs().topk(int(self.budget * self.w.shape[1]) or 1).indices.sort().values.int()

    def materialise(self) -> None:
        self.step(1.0)
        self.w = nn.Parameter(self.left().detach())
