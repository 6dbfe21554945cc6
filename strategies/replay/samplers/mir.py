"""MIR: Aljundi et al. 2019, Online Continual Learning with Maximally Interfered Retrieval.

https://arxiv.org/abs/1908.04742. The virtual step is one of plain gradient descent at the rate of the moment, as there,
whatever the optimizer is. Losses are taken without dropout and by the statistics that BatchNorm has, which stay there;
in the authors' code and in Avalanche each look at the candidates moves them. The authors look at 50 candidates for 10
drawn, none of them of the task at hand; here these may be among them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Sampler, Slots
from forgetlab.toolbox.teacher import logits, still


@register("sampler", "mir")
class MaximallyInterfered(Sampler):
    """The candidates of highest l(theta - rate * grad L(new)) - l(theta), l a sample's and L the mean cross-entropy."""

    reads_kept: ClassVar[bool] = True

    def __init__(self, candidates: Annotated[float, Field(ge=1)] = 5.0) -> None:
        self.candidates = candidates  # for each one drawn

    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        some = torch.randperm(len(slots), generator=generator)[: round(self.candidates * n)].to(new.y.device)
        if len(some) <= n:
            return some
        return some[self.interference(model, slots.read(some), new, rate).topk(n).indices]

    def interference(self, model: nn.Module, kept: Batch, new: Batch, rate: float) -> Tensor:
        """By how much a step on the new samples would raise the loss of kept ones. -> (B,)"""
        theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with still(model), torch.enable_grad():
            loss = F.cross_entropy(logits(model, new), new.y)
            gradient = torch.autograd.grad(loss, [*theta.values()], allow_unused=True)
        with still(model), torch.no_grad():
            steps = zip(theta.items(), gradient, strict=True)
            ahead = {name: p - rate * g for (name, p), g in steps if g is not None}
            both = [F.cross_entropy(logits(model, kept, at), kept.y, reduction="none") for at in (ahead, None)]
            return both[0] - both[1]
