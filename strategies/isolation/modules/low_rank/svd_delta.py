"""Low-rank approximation: full fine-tuning of the weights, whose change is cut to its best rank-r approximation.

Ryu et al. 2023, Efficient Storage of Fine-Tuned Models, https://arxiv.org/abs/2305.18425; here without quantisation,
and one rank for all weights. The head was trained with the whole change, so the cut may cost accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import Batch, Isolation, Layers, LinearRole, Shared, Site
from forgetlab.plugins import register


@register("isolation", "svd_delta")
class SVDDelta(Isolation):
    """h = (W0 + D) x in training, and with D = U S V^T h = (W0 + U_r S_r V_r^T) x at a task's end and after it."""

    def __init__(
        self,
        rank: PositiveInt = 8,
        sites: tuple[LinearRole, ...] = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"),
        layers: Layers = None,
    ) -> None:
        super().__init__(sites, layers)
        self.rank, self.cut = rank, False

    def make(self, site: Site) -> nn.Module:
        return nn.ParameterDict({"D": torch.zeros_like(site.weight, memory_format=torch.contiguous_format)})

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y + (F.linear(F.linear(x, part["A"]), part["B"]) if self.cut else F.linear(x, part["D"]))

    def delta(self, part: Any, site: Site) -> Tensor:
        return part["B"] @ part["A"] if self.cut else part["D"]

    def end(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.materialise()

    def materialise(self) -> None:
        if not self.cut:
            changes = {site.key: self.delta(self.parts[site.key], site).detach() for site in self.sites}
            self.parts = nn.ModuleDict({key: self._factors(change) for key, change in changes.items()})
        self.cut = True

    def _factors(self, change: Tensor) -> nn.Module:
        """D -> A (r, in_dim), B (out_dim, r), the root of the singular values in each."""
        a, b = change[: self.rank].clone(), change[:, : self.rank].contiguous()
        if change.any():  # there is nothing to cut where stored factors are about to come
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            a, b = (s.diag().sqrt() @ v)[: self.rank], (u * s.sqrt())[:, : self.rank].contiguous()
        return nn.ParameterDict({"A": a, "B": b})
