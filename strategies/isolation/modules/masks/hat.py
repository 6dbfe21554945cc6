"""HAT: Serra et al. 2018, Overcoming Catastrophic Forgetting with Hard Attention to the Task.

https://arxiv.org/abs/1801.01423, on the units of feed-forward parts, whose outgoing weights stay frozen. What enters a
unit counts as used by all. After a task gates are 0 or 1, where theirs are sigmoid(smax e). s rises anew in each epoch,
as the paper has it: up to smax in its last batch, where their code stays a little below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from forgetlab.isolation import Batch, Isolation, Layers, Shared, Site
from forgetlab.plugins import register


@register("isolation", "hat", renewed="2026-12-01")
class HAT(Isolation):
    """f(a * (W x + b)), a = sigmoid(s e) with the gradient of smax sigmoid(e); W, b of a unit that was used stay."""

    identity_at_birth = False
    furthest = 6.0  # an embedding e from 0: beyond it would never come back (their code's thres_emb)

    def __init__(self, smax: PositiveFloat = 400.0, sparsity: NonNegativeFloat = 0.75, layers: Layers = None) -> None:
        super().__init__(("mlp.in",), layers)
        self.smax, self.sparsity, self.s, self.free = smax, sparsity, torch.inf, dict[str, Tensor]()

    def make(self, site: Site) -> nn.Module:
        rows = torch.cat([t.view(site.out_dim, -1) for t in site.tensors.values()], dim=1)  # a unit's weights and bias
        return nn.ParameterDict({"rows": rows, "e": torch.randn(site.out_dim, 1)})

    def gate(self, part: nn.Module) -> Tensor:
        e = part.get_parameter("e")
        return (self.s * e).sigmoid().detach() + self.smax * (e.sigmoid() - e.sigmoid().detach())

    def weights(self, part: nn.ParameterDict, site: Site) -> Mapping[str, Tensor]:
        known = self.shared[site.key].to(site.weight.device)
        rows = self.gate(part) * (torch.where(self.free[site.key], part["rows"], known) if "rows" in part else known)
        return {"weight": rows[:, : site.in_dim]} | ({} if site.bias is None else {"bias": rows[:, -1]})

    def penalty(self) -> Tensor | None:  # the mean gate of those units that no earlier task uses
        gates, free = (torch.cat([*each]) for each in (map(self.gate, self.parts.values()), self.free.values()))
        return self.sparsity * (gates * free).sum() / free.sum().clamp(min=1)

    def step_of_epoch(self, behind: int, batches: int) -> None:
        """s = 1 / smax + (smax - 1 / smax) (b - 1) / (B - 1) for batch b of B."""
        risen = behind / (batches - 1) if batches > 1 else 1.0
        self.s = 1 / self.smax + (self.smax - 1 / self.smax) * risen
        self._constrain()

    @torch.no_grad()
    def _constrain(self) -> None:
        for part in self.parts.values():
            part.get_parameter("e").clamp_(-self.furthest, self.furthest)

    def recall(self, previous: Sequence[Isolation], shared: Shared) -> None:
        self.shared = shared

    def begin(self, data: Iterable[Batch], previous: Sequence[Isolation], shared: Shared, backbone: nn.Module) -> None:
        self.shared = shared
        for key, (e, rows) in ((key, part.parameters()) for key, part in self.parts.items()):
            rows.data.copy_(shared.setdefault(key, rows.detach().clone()))
            self.free[key] = sum((one.parts[key].get_parameter("e") > 0 for one in previous), torch.zeros_like(e)) == 0

    def end(self, data: Iterable[Batch], previous: Sequence[Isolation], shared: Shared, backbone: nn.Module) -> None:
        self._constrain()
        self.s = torch.inf  # from now on a gate is 0 or 1
        shared |= {k: torch.where(f, self.parts[k].get_parameter("rows").data, shared[k]) for k, f in self.free.items()}

    def materialise(self) -> None:
        self.parts = nn.ModuleDict({k: nn.ParameterDict({"e": p.get_parameter("e")}) for k, p in self.parts.items()})
