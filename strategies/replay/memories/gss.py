"""GSS, greedy: Aljundi et al. 2019, Gradient based sample selection, https://arxiv.org/abs/1903.08671.

As in the authors' code, https://github.com/rahafaljundi/Gradient-based-Sample-Selection (defaults: for MNIST), not as
in algorithm 2: G_k are over batches of the memory, a batch comes in as one, places go by their score above the lowest.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory
from forgetlab.toolbox.teacher import gradient


@register("memory", "gss")
class GradientSelection(Memory):
    """c = max_k cos(grad, G_k): a batch with c < 0 comes in, x for place i with chance (c_i + 1) / (c_i + c(x) + 2)."""

    reads_kept = True

    def __init__(
        self, capacity: PositiveInt, ratio: PositiveFloat = 1.0, subsets: PositiveInt = 10, subset: PositiveInt = 10
    ) -> None:
        super().__init__(capacity, ratio)
        self.subsets, self.subset = subsets, subset  # how many batches of the memory, and of how many samples

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        model: Any = self.model
        was_training, here, rows = model.training, len(self.slots), torch.arange(len(batch.y), device=batch.y.device)
        model.eval()
        parts = torch.randperm(here, generator=generator).to(rows.device).split(self.subset)[: self.subsets]
        known = [gradient(model, self.slots.read(part)) for part in parts if here]
        if (room := self.slots.capacity - here) or scores(model, [batch], known) < 0:
            score = scores(model, [batch.rows(row) for row in rows[: room or None].split(1)], known)
            places, enters = (here + rows[:room], rows[:room]) if room else self.exchanged(score, generator)
            new = batch.rows(enters)
            self.slots.write(places, new._replace(extra={**new.extra, "score": score[enters]}))
        model.train(was_training)

    def exchanged(self, score: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Which places are given up, and for which samples."""
        old, new = self.slots.tensors["score"].cpu(), score.cpu()
        above = (old - old.min()) / (old.max() - old.min() + 0.01)
        above = above if above.any() else torch.ones_like(above)
        places = torch.multinomial(above, min(len(new), int((above > 0).sum())), generator=generator)
        odds = (torch.stack([new[: len(places)], old[places]], 1) + 1) / 2
        enters = torch.multinomial(odds, 1, generator=generator).squeeze(1).nonzero().squeeze(1)
        return places[enters].to(score.device), enters.to(score.device)


def scores(model: Any, batches: list[Batch], known: list[Tensor]) -> Tensor:
    """c of each batch; 0.1 where nothing is known."""
    own, known = ([F.normalize(g, dim=0) for g in some] for some in ([gradient(model, b) for b in batches], known))
    return (torch.stack(own) @ torch.stack(known).T).amax(1) if known else torch.full((len(own),), 0.1).to(own[0])
