"""The unified view: He et al. 2022, https://arxiv.org/abs/2110.04366; its scaled parallel adapter is the default.

After `prefix` of length 30 in a list it is their MAM. Their dropout of 0.1 is left out.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Site
from forgetlab.plugins import register


@register("isolation", "unified")
class Unified(Isolation):
    """h <- h + s f(x W_down) W_up (table 1), x what enters a part of a layer; sequential: h in the place of x."""

    def __init__(
        self,
        form: Literal["bottleneck", "linear"] = "bottleneck",  # f: ReLU or nothing
        insertion: Literal["parallel", "sequential"] = "parallel",
        place: Literal["attn", "ffn"] = "ffn",
        composition: Literal["add", "scaled", "learned"] = "scaled",  # s: 1, `scale`, or trained from 1 on
        scale: NonNegativeFloat = 4.0,
        bottleneck: PositiveInt = 512,
        start: Literal["lora", "bert"] = "lora",
        layers: Layers = None,
    ) -> None:
        first, self.last = ("attn.q", "attn.out") if place == "attn" else ("mlp.in", "mlp.out")
        super().__init__((first, self.last) if insertion == "parallel" else (self.last,), layers)
        self.form, self.size, self.start, self.identity_at_birth = form, bottleneck, start, start == "lora"  # type: ignore
        self.scale = {"add": 1.0, "scaled": scale, "learned": None}[composition]
        self.entered: dict[int, Tensor] = {}  # by layer, within one forward pass

    def make(self, site: Site) -> nn.Module:
        part, f = nn.Sequential(), nn.ReLU() if self.form == "bottleneck" else nn.Identity()
        if site.role == self.last:
            part.extend([nn.Linear(site.out_dim, self.size), f, nn.Linear(self.size, site.out_dim)])
            for name, tensor in part.named_parameters():  # torch starts 0.weight as LoRA's A
                if self.start == "bert" or name != "0.weight":
                    nn.init.normal_(tensor, std=0.02 if self.start == "bert" and "weight" in name else 0.0)
            part.scale = nn.Parameter(torch.ones(1)) if self.scale is None else self.scale
        return part

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        if site.role == self.last:
            return y + part.scale * part(self.entered.pop(site.layer, y))
        self.entered[site.layer] = x
        return y

    @contextmanager
    def active(self, backbone: nn.Module, x: Tensor | None = None) -> Any:
        with ExitStack() as afterwards, super().active(backbone, x):
            afterwards.callback(self.entered.clear)
            yield
