"""Linear probe (feature extraction): Alain & Bengio 2016, Understanding Intermediate Layers Using Linear Classifier
Probes, https://arxiv.org/abs/1610.01644. Here of the last features alone.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from forgetlab.isolation import Isolation, Site
from forgetlab.plugins import register


@register("isolation", "linear_probe")
class LinearProbe(Isolation):
    """softmax(V f(x) + b): the frozen backbone's features f(x) as they are, and a head per task."""

    siteless: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(())

    def make(self, site: Site) -> nn.Module:
        return nn.Identity()
