"""Prompt tuning: Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning.

https://arxiv.org/abs/2104.08691. 20 tokens where the paper has 100, which are for T5. They stand in front of what
enters the first block, behind the embedding layer's positions and norm, and leave behind the last block: real tokens
keep their positions, and the pooling sees none but them. Vocabulary is drawn from the whole table, not from its most
frequent 5000. An ensemble's prompts read one replicated batch as in the paper, but they learn together: their
features are averaged, which behind a linear head averages their logits, where the paper takes a vote.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, OptionError, Site
from forgetlab.plugins import register


@register("isolation", "prompt")
class Prompt(Isolation):
    """X' = [P; X]: trained tokens P in front of the embedded input X, one P per task."""

    identity_at_birth: ClassVar[bool] = False
    tokens_stay: ClassVar[bool] = True

    def __init__(
        self, length: PositiveInt = 20, start: Literal["random", "vocabulary"] = "random", ensemble: PositiveInt = 1
    ) -> None:
        super().__init__(("tokens",), layers=(0,))
        self.length, self.start, self.ensemble = length, start, ensemble

    def attach(self, backbone: nn.Module) -> None:
        super().attach(backbone)
        if self.start == "vocabulary":
            tables = [module.weight for module in backbone.modules() if isinstance(module, nn.Embedding)]
            if not tables:
                raise OptionError("this backbone reads no token ids, so it has no vocabulary; take 'random'", "start")
            table = max(tables, key=len).detach()  # smaller ones are of positions and of kinds of text
            (prompts,) = self.parameters()
            prompts.data = table[torch.randint(len(table), prompts.shape[:2])]

    def make(self, site: Site) -> nn.Module:
        start = torch.empty(self.ensemble, self.length, site.in_dim).uniform_(-0.5, 0.5)
        return nn.ParameterDict({"prompts": nn.Parameter(start)})

    def tokens(self, part: Any, site: Site, h: Tensor) -> Tensor:
        return part["prompts"].repeat_interleave(len(h) // self.ensemble, 0)

    def features(self, backbone: nn.Module, x: Tensor) -> Tensor:
        replicated = x.repeat(self.ensemble, *[1] * (x.dim() - 1))
        with self.active(backbone, replicated):
            return backbone(replicated).unflatten(0, (self.ensemble, -1)).mean(0)
