"""CODA-Prompt: Smith et al. 2023, COntinual Decomposed Attention-based Prompting, https://arxiv.org/abs/2211.13218.

Each task adds components to the earlier, frozen ones; the newest sums over all and answers for all. 10 a task, with 4
keys and 4 values each, are the paper's 100 of length 8. The start is the code's, less the Gram-Schmidt between tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat as Weight
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Site
from forgetlab.plugins import register


@register("isolation", "coda_prompt")
class CODAPrompt(Isolation):
    """p = sum_m cos(q(x) * A_m, K_m) P_m before keys and values; penalty |B B^T - I|^2 in the loss, B = P, K, A."""

    identity_at_birth, asks, speaks_for_all = False, True, True

    def __init__(
        self, components: PositiveInt = 10, length: PositiveInt = 4, penalty: Weight = 0.1, layers: Layers = None
    ) -> None:
        super().__init__(("attn.kv",), layers)
        self.components, self.length, self.weight = components, length, penalty
        self.earlier: list[Any] = []  # the tasks' own modules: not registered, so not stored again

    def attach(self, backbone: Any) -> None:
        self.n_query = backbone.n_features
        super().attach(backbone)
        self.sites = self.sites[: None if self.layers else 5]  # the paper's
        self.parts = nn.ModuleDict({site.key: self.parts[site.key] for site in self.sites})

    def make(self, site: Site) -> nn.Module:
        shapes = {"P": (2, site.heads, self.length, site.head_dim), "K": (self.n_query,), "A": (self.n_query,)}
        return nn.ParameterDict({n: nn.init.orthogonal_(torch.empty(self.components, *s)) for n, s in shapes.items()})

    def begin(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        self.earlier = previous

    def recall(self, previous: Any, shared: Any) -> None:
        self.earlier = previous

    def joined(self, key: str) -> list[Tensor]:
        return [torch.cat([m.parts.get_parameter(f"{key}.{n}") for m in (*self.earlier, self)]) for n in "PKA"]

    def keys_values(self, part: Any, site: Site, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        prompts, keys, attention = self.joined(site.key)
        attended = torch.einsum("bd,md->bmd", self.query, attention)
        first = torch.einsum("bm,mshld->sbhld", torch.cosine_similarity(attended, keys, dim=2), prompts)
        return torch.cat([first[0], k], dim=2), torch.cat([first[1], v], dim=2)

    def penalty(self) -> Tensor:
        flat = [tensor.flatten(1) for site in self.sites for tensor in self.joined(site.key)]
        return self.weight * torch.stack([nn.functional.mse_loss(b @ b.T, torch.eye(len(b)).to(b)) for b in flat]).sum()
