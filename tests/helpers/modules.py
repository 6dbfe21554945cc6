"""An isolation module on a backbone, as a task would have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.checks.backbones import samples
from forgetlab.isolation.module import Isolation
from forgetlab.seeding import generator


def attached(module: Any, backbone: nn.Module, seed: int = 1, spread: float | None = None) -> Any:
    """The module, attached; with a ``spread`` its weights are drawn as training might leave them."""
    torch.manual_seed(seed)
    module.attach(backbone)
    if spread is not None:
        for weight in module.parameters():
            nn.init.normal_(weight, std=spread)
    return module


@torch.no_grad()
def features(module: Isolation, backbone: nn.Module, x: Tensor | None = None) -> Tensor:
    """What the backbone tells of samples with the module in it; of 12 that it can read where none are given."""
    return module.features(backbone, samples(backbone, 0) if x is None else x)


@torch.no_grad()
def moved(model: Any, size: float = 0.1, name: str = "moved") -> Any:
    """The model, its trainable weights away from where they were."""
    draw = generator("tests", name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return model
