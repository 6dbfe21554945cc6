"""WiSE-FT: Wortsman et al. 2022, Robust Fine-tuning of Zero-Shot Models, https://arxiv.org/abs/2109.01903.

The path from the pretrained weights to the fine-tuned ones: 0 is the start, 1 the newest task's weights. It is meant
for tasks that were trained one after another; where each started afresh, it keeps the last one only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from forgetlab.isolation import Changes, Merger
from forgetlab.plugins import register


@register("merger", "wise_ft")
class WiseFT(Merger):
    """(1 - alpha) theta_0 + alpha theta_T, so a change of alpha * tau_T (equation 1, the weight-space ensemble)."""

    def __init__(self, alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5) -> None:
        self.alpha = alpha

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return {place: self.alpha * change for place, change in changes[-1].items()}
