"""L2P: Wang et al. 2022, Learning to Prompt for Continual Learning, https://arxiv.org/abs/2112.08654.

One pool for the stream; the newest answers for all tasks. The head reads real tokens, not what becomes of the prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, OptionError, Shared, Site
from forgetlab.plugins import register


@register("isolation", "l2p")
class L2P(Isolation):
    """X' = [P_s1 .. P_sN; X], s the N largest cos(q(x), k); the loss has pull * sum over s of 1 - cos(q(x), k_s)."""

    identity_at_birth, asks, tokens_stay, speaks_for_all = False, True, True, True

    def __init__(
        self, pool: PositiveInt = 10, length: PositiveInt = 5, top: PositiveInt = 5, pull: NonNegativeFloat = 0.5
    ) -> None:
        super().__init__(("tokens",), layers=(0,))
        self.shape, self.top, self.pull = (pool, length), top, pull
        if top > pool:
            raise OptionError(f"{top} prompts cannot be selected from {pool}", "top")

    def attach(self, backbone: Any) -> None:
        super().attach(backbone)
        self.prompts = nn.Parameter(torch.rand(*self.shape, self.sites[0].in_dim) / 100)  # the code's start
        self.keys = nn.Parameter(torch.rand(self.shape[0], backbone.n_features) / 100)

    def make(self, site: Site) -> nn.Module:
        return nn.Identity()

    def selected(self, query: Any) -> Any:  # each sample its own: the code's vote of a test batch may tell the task
        return torch.cosine_similarity(query.unsqueeze(1), self.keys, dim=2).topk(self.top)

    def tokens(self, part: Any, site: Site, h: Tensor) -> Tensor:
        return self.prompts[self.selected(self.query).indices].flatten(1, 2)

    def penalty(self) -> Tensor:
        return self.pull * (1 - self.selected(self.query).values).sum(1).mean()

    def begin(self, data: Any, previous: Any, shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)

    def recall(self, previous: Any, shared: Shared) -> None:
        self.load_state_dict({**self.state_dict(), **shared})

    def end(self, data: Any, previous: Any, shared: Shared, backbone: nn.Module) -> None:
        shared.update(self.state_dict())

    def materialise(self) -> None:  # the pool is in `shared`, and no task's to store
        for name in list(self._parameters):
            self.register_buffer(name, vars(self)["_parameters"].pop(name).detach(), persistent=False)
