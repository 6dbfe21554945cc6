"""MIR: Aljundi et al. 2019, Online Continual Learning with Maximally Interfered Retrieval.

https://arxiv.org/abs/1908.04742. The virtual step is one of plain gradient descent at the rate of the moment, as there,
whatever the optimizer is. Losses are taken without dropout and by the statistics that BatchNorm has, which stay there;
in the authors' code and in Avalanche each look at the candidates moves them. The authors look at 50
candidates for 10 drawn, none of them of the task at hand. Where few samples are kept that is all of
them, and the same ones would be drawn each time: here the candidates are at most half of what may be
drawn. `at_most: 1` is the authors' code, where all are drawn of a memory that holds too few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

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

    def __init__(
        self,
        candidates: Annotated[float, Field(ge=1)] = 5.0,
        at_most: Annotated[float, Field(gt=0, le=1)] = 0.5,
        exclude: Literal["task", "classes", "nothing"] = "task",
    ) -> None:
        self.candidates = candidates  # for each one drawn
        self.at_most = at_most  # this share of what may be drawn, but not fewer than are drawn
        self.exclude = exclude  # of what is new: samples of its task, of its batch's classes
        self.tells_tasks = exclude == "task"

    @staticmethod
    def needs_of(options: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"boundaries"} if options.get("exclude", "task") == "task" else ())

    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        old = self.may_be_drawn(slots, new)
        most = max(n, int(self.at_most * len(old)))
        order = torch.randperm(len(old), generator=generator)[: min(round(self.candidates * n), most)]
        some = old[order.to(old.device)]
        if len(some) <= n:
            return some
        return some[self.interference(model, slots.read(some), new, rate).topk(n).indices]

    def may_be_drawn(self, slots: Slots, new: Batch) -> Tensor:
        """The places of samples that are not of the task at hand, or of none of its batch's classes. -> (m,)"""
        kept = slots.kept()
        if self.exclude == "task" and slots.experience is not None:
            return (kept["experience"] != slots.experience).nonzero().squeeze(1)
        if self.exclude == "classes":
            return (~torch.isin(kept["y"], new.y)).nonzero().squeeze(1)
        return torch.arange(len(slots), device=new.y.device)

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
