"""PackNet: Mallya & Lazebnik 2018, https://arxiv.org/abs/1711.05769. The authors keep 0.5 of a pretrained network for
its own task and 0.25 of what is free for each later one; here the first task is new too, and all keep ``share``, pruned
as theirs after 20 of 30 epochs. Only weights are shared out: biases and all else stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from forgetlab.isolation import Batch, Isolation, LinearRole, Shared, Site
from forgetlab.plugins import register

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
ALL: tuple[LinearRole, ...] = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")


@register("isolation", "packnet")
class PackNet(Isolation):
    """W_t = W * [0 < owner <= t]: tasks share out one network's weights, each keeps the largest of what was free."""

    def __init__(self, share: Share = 0.5, prune_at: Share = 2 / 3, sites: tuple[LinearRole, ...] = ALL) -> None:
        super().__init__(sites)
        self.share, self.prune_at, self.pruned, self.mine = share, prune_at, False, dict[str, Tensor]()

    def make(self, site: Site) -> nn.Module:
        return nn.ParameterDict({"weight": site.weight.clone()})

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        values, owner = (self.shared[f"{site.key}.{name}"].to(site.weight.device) for name in ("weight", "owner"))
        earlier = torch.where((owner > 0) & (owner <= self.task), values, 0.0)
        return {"weight": torch.where(self.mine[site.key], part["weight"], earlier) if part else earlier}

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        self.task, self.shared = len(previous) + 1, shared

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)
        for key, weight in ((site.key, site.weight) for site in self.sites):
            shared.setdefault(f"{key}.weight", torch.zeros_like(weight))
            self.mine[key] = shared.setdefault(f"{key}.owner", torch.zeros_like(weight, dtype=torch.int16)) == 0
            self.parts[key].get_parameter("weight").data *= not previous  # what was pruned starts from 0

    def step(self, done: float) -> None:
        for key, free in self.mine.items() if done >= self.prune_at and not self.pruned else ():
            size = torch.where(free, self.parts[key].get_parameter("weight").abs(), -1.0).flatten()
            self.mine[key] = size.argsort(descending=True).argsort().view_as(free) < round(self.share * int(free.sum()))
        self.pruned = self.pruned or done >= self.prune_at

    def end(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.step(1.0)
        for key, mine in self.mine.items():
            for name, value in (("weight", self.parts[key].get_parameter("weight").detach()), ("owner", self.task)):
                shared[f"{key}.{name}"] = torch.where(mine, value, shared[f"{key}.{name}"])

    def materialise(self) -> None:
        self.mine, self.parts = {}, nn.ModuleDict({site.key: nn.ParameterDict() for site in self.sites})
