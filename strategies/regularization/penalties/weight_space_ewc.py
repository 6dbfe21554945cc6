"""EWC on the weights that a shared module amounts to: Zheng et al. 2026, Revisiting Weight Regularization for Low-Rank
Continual Learning (EWC-LoRA), https://arxiv.org/abs/2602.17559. It stands beside `isolation: lora, shared: true`.

A and B may turn against each other while B A stays, which EWC on A and B themselves would punish. The authors' code
(https://github.com/yaoyz96/low-rank-cl) squares gradients of batch means, which depends on the batch; it merges each
task's change, starts A and B anew, and has a head for each task. On a whole network this is `online_ewc`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from forgetlab.plugins import OptionError, register
from forgetlab.regularization import Batch, Regularizer, padded
from forgetlab.toolbox.fisher import Variant, fisher


@register("regularizer", "weight_space_ewc")
class WeightSpaceEWC(Regularizer):
    """strength / 2 * sum_i F~_i (W_i - W*_i)^2, W = W0 + Delta W and the head, F~ <- gamma F~ + F at a task's end."""

    needs, kept = frozenset({"boundaries", "passes"}), ("fisher", "anchor")  # F~, W*

    def __init__(
        self,
        strength: NonNegativeFloat = 1e3,
        gamma: Annotated[float, Field(ge=0, le=1)] = 1.0,
        fisher: Variant = "exact",
    ) -> None:
        super().__init__(strength)
        self.gamma = gamma
        self.variant: Variant = fisher
        self.fisher, self.anchor = dict[str, Tensor](), dict[str, Tensor]()

    def check(self, model: Any) -> None:
        module = getattr(getattr(model, "backbone", None), "module", None)
        if module is not None and not (module.changes() and module.delta_learns):
            raise OptionError("what the module does is no change of weights, which this could hold: use 'ewc'")

    def penalty(self, model: Any, batch: Batch, output: Tensor) -> Tensor:
        w = dict(model.named_parameters())
        if hasattr(backbone := getattr(model, "backbone", model), "merged"):
            w |= {f"backbone.{name}": tensor for name, tensor in backbone.dense().items()}
        terms = [(f * (w[name][: len(f)] - self.anchor[name]).square()).sum() for name, f in self.fisher.items()]
        return torch.stack(terms).sum() / 2

    def consolidate(self, model: Any, data: Iterable[Batch]) -> None:
        backbone = getattr(model, "backbone", model)
        whole = copy.deepcopy(model, {id(backbone): backbone.merged()}) if hasattr(backbone, "merged") else model
        for name, new in fisher(whole, data, self.variant, seed=self.seed).items():
            self.anchor[name] = whole.get_parameter(name).detach().clone()
            self.fisher[name] = self.gamma * padded(self.fisher.get(name, torch.zeros_like(new)), new) + new
