"""Union of heads: Liang & Li 2024, InfLoRA (argmax over all heads side by side), https://arxiv.org/abs/2404.00228.

There one summed module feeds all heads; here each head answers behind its own task's module. What is compared are raw
logits. Nothing made them comparable: each head was trained alone, and a constant added to all of its logits would
have left its softmax as it was. So the heads' scale decides as well as the sample.
"""

from __future__ import annotations

from torch import Tensor

from forgetlab.isolation import ConfidenceRouter
from forgetlab.plugins import register


@register("router", "union")
class UnionOfHeads(ConfidenceRouter):
    """The task of the largest logit of all: argmax over t of max over c of f_t(x)_c (no number in the paper)."""

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.amax(1)
