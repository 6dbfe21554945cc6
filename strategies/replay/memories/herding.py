"""Herding: Rebuffi et al. 2017, iCaRL: Incremental Classifier and Representation Learning, section 3.3.

https://arxiv.org/abs/1611.07725. Samples enter at a task's end, by the features that the model then has; as classes
come, lists are cut from their ends. No sample counts twice, as one that is picked again does in the authors' code. A
class that comes again gets one more list, and they share its places. For DER, logits are those of the task's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory, directions
from forgetlab.toolbox.teacher import logits


@register("memory", "herding")
class Herding(Memory):
    """Of a class in turn p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k || (algorithm 4), in equal shares.

    With ``per_class`` each class has that many exemplars, with ``share`` that part of its samples; no list is cut then,
    and the memory grows with the classes.
    """

    needs = frozenset({"boundaries", "passes"})

    def __init__(
        self,
        capacity: PositiveInt | None = None,
        ratio: PositiveFloat = 1.0,
        per_class: PositiveInt | None = None,
        share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
    ) -> None:
        super().__init__(capacity or 1, ratio)
        self.take_size(capacity, per_class=per_class, share=share)

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        """Nothing: a sample's place depends on all others of its class."""

    @torch.no_grad()
    def end(self, model: nn.Module, data: Iterable[Batch], generator: Generator) -> None:
        seen: list[tuple[Tensor, Tensor]] = []
        for batch in data:
            self.slots.note(batch)
            seen.append((directions(model, batch.x).double(), batch.y))
        phi, y = (torch.cat(column) for column in zip(*seen, strict=True))
        old = self.slots.tensors["y"][: len(self.slots)] if len(self.slots) else y[:0]
        classes, counts = torch.cat([old, y]).unique(return_counts=True)
        rank = torch.full_like(y, -1)
        for label, share in zip(classes, self.slots.room(classes, counts).tolist(), strict=True):
            rows = (y == label).nonzero().squeeze(1)
            order = rows[herded(phi[rows], share)]
            rank[order] = torch.arange(len(order), device=y.device)
        for batch, place in zip(data, rank.split([len(labels) for _, labels in seen]), strict=True):
            if len(rows := (place >= 0).nonzero().squeeze(1)):
                self._keep(model, batch.rows(rows), place[rows])

    def _keep(self, model: nn.Module, batch: Batch, rank: Tensor) -> None:
        asked = self.rehearsal is not None and self.rehearsal.keeps_logits
        beside = {"logits": logits(model, batch)} if asked else {}
        self.slots.keep_highest(self.encode(model, batch._replace(extra=beside)), key=-rank)


def herded(phi: Tensor, n: int) -> Tensor:
    """The first n rows by herding, in order. (N, d) -> (at most n,)"""
    order = torch.empty(min(n, len(phi)), dtype=torch.int64, device=phi.device)
    mu, half, left = phi.mean(0), phi.square().sum(1) / 2, phi.mean(0)  # left: k mu - sum_j phi(p_j)
    for k in range(len(order)):
        order[k] = nearest = (phi @ left - half).argmax()
        half[nearest] = torch.inf
        left = left + mu - phi[nearest]
    return order
