"""L2P: Wang et al. 2022, Learning to Prompt for Continual Learning, https://arxiv.org/abs/2112.08654.

One pool for the stream; the newest answers for all tasks. As in the authors' code, google-research/l2p, the head reads
the mean over the prompts' positions behind the last layer norm; with several layers each has prompts of its own under
the same keys, and they stay in the sequence up to the end. There the prompts of a batch are chosen by its majority, at
test too, which gives the task away where a test batch is of one: here a batch votes in training alone. The "L2P++" of
CODA-Prompt is another method: prefixes before keys and values, and a head that reads the class token.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import Isolation, OptionError, Shared, Site, leaving_last
from forgetlab.plugins import register

SPREAD = 0.01  # of the start: `uniform` is between 0 and this, `normal` deviates by it


@register("isolation", "l2p", renewed="2026-12-01")
class L2P(Isolation):
    """X' = [P_s1 .. P_sN; X], s the N largest cos(q(x), k); the loss has pull * sum over s of 1 - cos(q(x), k_s)."""

    identity_at_birth, asks, tokens_stay, speaks_for_all = False, True, True, True

    def __init__(
        self,
        pool: PositiveInt = 10,
        length: PositiveInt = 5,
        top: PositiveInt = 5,
        pull: NonNegativeFloat = 0.5,
        batchwise: bool = False,  # in training a batch takes what most of it would
        start: Literal["uniform", "normal"] = "uniform",  # of prompts and keys
        layers: tuple[int, ...] = (0,),
        reads: Literal["prompts", "tokens"] = "prompts",  # what the head reads
    ) -> None:
        super().__init__(("tokens",), layers)
        self.shape, self.top, self.pull = (pool, length), top, pull
        self.batchwise, self.start, self.reads = batchwise, start, reads
        if top > pool:
            raise OptionError(f"{top} prompts cannot be selected from {pool}", "top")

    def attach(self, backbone: Any) -> None:
        super().attach(backbone)
        if self.reads == "prompts":
            self._refuse_what_prompts_cannot_say(backbone)
        pool, length = self.shape
        self.prompts = self._begun(len(self.sites), pool, length, self.sites[0].in_dim)
        self.keys = self._begun(pool, backbone.n_features)

    def _refuse_what_prompts_cannot_say(self, backbone: Any) -> None:
        kind = type(backbone).__name__.lower()
        if getattr(backbone, "causal", False):
            raise OptionError(f"in a causal {kind} prompts see no later token; take 'tokens'", "reads")
        if not hasattr(backbone, "averaged"):
            told = "has no method 'averaged', which makes features of the positions of prompts"
            raise OptionError(f"a {kind} {told}; take 'tokens', or write it", "reads")

    def _begun(self, *shape: int) -> nn.Parameter:
        drawn = torch.rand(shape) if self.start == "uniform" else torch.randn(shape)
        return nn.Parameter(SPREAD * drawn)

    def make(self, site: Site) -> nn.Module:
        return nn.Identity()

    def similar(self) -> Tensor:
        """(B, pool) cosines of the batch's queries with the keys"""
        assert self.query is not None
        return torch.cosine_similarity(self.query.unsqueeze(1), self.keys, dim=2)

    def selected(self) -> Tensor:
        """(B, top) prompts"""
        own = self.similar().topk(self.top).indices
        if not (self.batchwise and self.training):
            return own
        votes = F.one_hot(own, self.shape[0]).sum((0, 1))  # of equals the first
        return votes.sort(descending=True, stable=True).indices[: self.top].expand_as(own)

    def tokens(self, part: Any, site: Site, h: Tensor) -> Tensor:
        return self.prompts[self.sites.index(site)][self.selected()].flatten(1, 2)

    def features(self, backbone: Any, x: Tensor) -> Tensor:
        if self.reads == "tokens":
            return super().features(backbone, x)
        n = len(self.sites) * self.top * self.shape[1]
        with leaving_last(backbone) as states, self.active(backbone, x):
            backbone(x)
        return backbone.averaged(states[-1][:, :n])

    def penalty(self) -> Tensor:
        return self.pull * (1 - self.similar().gather(1, self.selected())).sum(1).mean()

    def begin(self, data: Any, previous: Any, shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)

    def recall(self, previous: Any, shared: Shared) -> None:
        self.load_state_dict({**self.state_dict(), **shared})

    def end(self, data: Any, previous: Any, shared: Shared, backbone: nn.Module) -> None:
        shared.update(self.state_dict())

    def materialise(self) -> None:  # the pool is in `shared`, and no task's to store
        for name in list(self._parameters):
            pool = vars(self)["_parameters"].pop(name)
            self.register_buffer(name, pool.detach(), persistent=False)
