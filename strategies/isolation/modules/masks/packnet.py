"""PackNet: Mallya & Lazebnik 2018, https://arxiv.org/abs/1711.05769. The authors keep 0.5 of a pretrained network for
its own task and 0.25 of what is free for each later one; here the first task is new too, and all keep ``share``, pruned
as theirs after 20 of 30 epochs. Only weights are shared out: biases, BatchNorm and all else stay as they are, so that a
network with BatchNorm should be pretrained. ``sites: [block]`` shares out every matrix and kernel of the blocks, as a
convolutional network has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from forgetlab.isolation import Batch, Isolation, LinearRole, OptionError, Shared, Site
from forgetlab.plugins import register

Place = LinearRole | Literal["block"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
ALL: tuple[Place, ...] = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")


@register("isolation", "packnet")
class PackNet(Isolation):
    """W_t = W * [0 < owner <= t]: tasks share out one network's weights, each keeps the largest of what was free."""

    def __init__(
        self,
        share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5,  # 1: all that is left, as a last task may keep
        prune_at: Share = 2 / 3,
        sites: tuple[Place, ...] = ALL,
    ) -> None:
        super().__init__(sites)
        if "block" in sites and len(sites) > 1:
            raise OptionError("a block has all of these weights already: name it alone", "sites")
        self.share, self.prune_at, self.pruned, self.mine = share, prune_at, False, dict[str, Tensor]()

    def make(self, site: Site) -> nn.Module:
        return nn.ParameterDict({_key(name): site.tensors[name].clone() for name in shared_out(site)})

    def all_shared_out(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """The name in ``shared``, the frozen weight and the trained one of each that is shared out."""
        for site in self.sites:
            for name, place in shared_out(site).items():
                yield place, site.tensors[name], self.parts[site.key].get_parameter(_key(name))

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return {name: self._weight(part, site, name, place) for name, place in shared_out(site).items()}

    def _weight(self, part: Any, site: Site, name: str, place: str) -> Tensor:
        device = site.tensors[name].device
        values, owner = (self.shared[f"{place}.{what}"].to(device) for what in ("weight", "owner"))
        earlier = torch.where((owner > 0) & (owner <= self.task), values, 0.0)
        return torch.where(self.mine[place], part[_key(name)], earlier) if part else earlier

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        self.task, self.shared = len(previous) + 1, shared

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)
        for place, frozen, trained in self.all_shared_out():
            shared.setdefault(f"{place}.weight", torch.zeros_like(frozen))
            self.mine[place] = shared.setdefault(f"{place}.owner", torch.zeros_like(frozen, dtype=torch.int16)) == 0
            trained.data *= not previous  # what was pruned starts from 0

    def step(self, done: float) -> None:
        if done >= self.prune_at and not self.pruned:
            self.pruned = True
            for place, _, trained in self.all_shared_out():
                free = self.mine[place]
                size = torch.where(free, trained.abs(), -1.0).flatten()
                rank = size.argsort(descending=True).argsort().view_as(free)
                self.mine[place] = rank < round(self.share * int(free.sum()))

    def end(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.step(1.0)
        for place, _, trained in self.all_shared_out():
            for what, value in (("weight", trained.detach()), ("owner", self.task)):
                shared[f"{place}.{what}"] = torch.where(self.mine[place], value, shared[f"{place}.{what}"])

    def materialise(self) -> None:
        self.mine, self.parts = {}, nn.ModuleDict({site.key: nn.ParameterDict() for site in self.sites})


def shared_out(site: Site) -> dict[str, str]:
    """The weights of a site that tasks share, by their names in ``site.tensors``, and what ``shared`` calls each."""
    if site.role != "block":
        return {"weight": site.key}
    layers = [
        name.removesuffix(".weight") for name, t in site.tensors.items() if name.endswith(".weight") and t.dim() > 1
    ]
    return {f"{layer}.weight": f"{site.key}.{layer}" for layer in layers}


def _key(name: str) -> str:
    """A path as a part's tensor may be called: torch wants no dots there."""
    return name.replace(".", "/")
