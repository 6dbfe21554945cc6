"""A data set, a model and a module as a researcher's own file brings them; it imports what the README says."""

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import nn

from forgetlab.isolation import Isolation, Role
from forgetlab.plugins import Named, Spec, build, register


@register("data", "scored")
def scored(of: Annotated[Spec, Named("data")]) -> Any:
    """Another data set, with scores that show the last bit of an answer where accuracy counts only right and wrong."""
    options = {"name": of} if isinstance(of, str) else dict(of)
    return replace(build("data", options.pop("name"), options), scores=("log_loss", "macro_f1"))


@register("model", "own_model")
class OwnModel(nn.Module):
    """One hidden layer."""

    def __init__(self, input_shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(math.prod(input_shape), width)
        self.n_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden(x.flatten(1)).relu()


class ScaleShift(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))


@register("isolation", "own_module")
class OwnModule(Isolation):
    """y = gamma * x + beta after each site."""

    def __init__(self, sites: tuple[Role, ...] = ("mlp.in",)) -> None:
        super().__init__(sites)

    def make(self, site):
        return ScaleShift(site.out_dim)

    def after(self, part, site, x, y):
        return part.scale * y + part.shift
